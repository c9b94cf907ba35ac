# Faults - what goes wrong while invitations flow, as a seed has it
#
#	my $faults = Faults->new($campaign, $seed, $without);
#	my ($name, $inject) = $faults->next;
#	$inject->();
#
# Each kind of fault happens as often as its weight before any happens again.
# Those that match the pattern $without are left out.  Clerk's clock is set no
# more than once before a response has shown it: nobody can know what invitations
# were created by a clock that no response has ever shown (docs/outbox.md, "What is
# not covered").  That asks for no more than real clocks keep: a Clerk that sets its
# clock by minutes twice, and sends this server no response in between, is none.  The campaign gives the server, Clerk, and what it takes to get over a fault.

package Faults;

use strict;
use warnings;

use ClerkTest;
use List::Util qw(min sum);
use SeededRandom;
use Time::HiRes qw(time);

# Weight, title and function of each.
my @KINDS = (
	[ 4, 'SIGKILL of the sender', sub { $_[0]{campaign}->kill_sender } ],
	[ 3, 'SIGKILL of a client backend', sub { $_[0]{campaign}->kill_client } ],
	[ 3, 'SIGKILL of the postmaster', sub { $_[0]{campaign}->kill_postmaster } ],
	[ 3, 'immediate stop', sub { $_[0]{campaign}->stop_at_once } ],
	[ 3, 'pg_terminate_backend() of the sender', sub { $_[0]{campaign}->signal_sender('pg_terminate_backend') } ],
	[ 2, 'pg_cancel_backend() of the sender', sub { $_[0]{campaign}->signal_sender('pg_cancel_backend') } ],
	[ 2, 'pg_terminate_backend() of clients', sub { $_[0]{campaign}->terminate_clients } ],
	[ 3, 'senders that fight', sub { $_[0]{campaign}->let_senders_fight } ],
	[ 2, 'disk full', sub { $_[0]{campaign}->fill_disk } ],
	[ 2, 'name server hung', \&_hang_name_server ],
	[ 4, 'the fake Clerk killed', \&_kill_clerk ],
	[ 4, "Clerk's clock stepped", \&_step_clock ],
	[ 3, 'connection dropped before creation', sub { $_[0]->_misbehave(qw(drop reset)) } ],
	[ 4, 'connection dropped after creation', sub { $_[0]->_misbehave(qw(drop-after reset-after)) } ],
	[ 3, 'half an answer', sub { $_[0]->_misbehave(qw(half-body truncated)) } ],
	[ 3, '500 after creation', sub { $_[0]->_misbehave('500-after') } ],
	[ 3, '503 after creation', sub { $_[0]->_misbehave('503-after') } ],
	[ 2, '500 or 503 before creation', sub { $_[0]->_misbehave(qw(500 503)) } ],
	[ 2, 'no answer', sub { $_[0]->_misbehave(qw(hang hang-after)) } ],
	[ 3, 'request that arrives late', sub { $_[0]->_misbehave(qw(late-300 late-600)) } ],
	[ 3, '429 storm', \&_storm ],
	[ 3, '401 for a while', \&_refuse_key ],
	[ 3, 'look-ups that come to nothing', \&_spoil_lookups ]);

# Clerk's names of the operations that create, and of the look-up.
my @CREATE = qw(CreateOrganizationInvitation CreateOrganizationInvitationBulk);
my $LOOK_UP = 'ListOrganizationInvitations';

# The most that Clerk's clock is off, in seconds.
my $MOST_OFF = 300;

# As many requests as there are in any time that counts.
my $ALL = 1000;

sub new
{
	my ($class, $campaign, $seed, $without) = @_;
	my @kinds = grep { $_->[1] ne 'disk full' || $campaign->has_small_disk } @KINDS;

	@kinds = grep { $_->[1] !~ /$without/ } @kinds if defined $without;

	return bless {
		campaign => $campaign,
		clerk => $campaign->clerk,
		random => SeededRandom->new($seed, 'faults'),
		kinds => \@kinds,
		left => [],
		stepped_at => time,		# Clerk's clock
	}, $class;
}

# So many faults contain each kind, whatever the seed.
sub enough_for_all_kinds
{
	my @weights = map { $_->[0] } @KINDS;

	return sum(@weights) - min(@weights) + 1;
}

sub titles
{
	my ($self) = @_;

	return map { $_->[1] } @{ $self->{kinds} };
}

# The next fault: its title, and a function that injects it.
sub next
{
	my ($self) = @_;

	$self->{left} = [ $self->{random}->shuffle(map { ($_) x $_->[0] } @{ $self->{kinds} }) ]
	  unless @{ $self->{left} };
	my $kind = shift @{ $self->{left} };
	return ($kind->[1], sub { $kind->[2]->($self) });
}

# Ends what would go on.
sub end
{
	my ($self) = @_;

	$self->_misbehave_in($_, '500', 0) foreach @CREATE, $LOOK_UP;
	return;
}

# Some requests that create get one of these.
sub _misbehave
{
	my ($self, @behaviours) = @_;
	my $random = $self->{random};

	foreach my $operation (@CREATE)
	{
		$self->_misbehave_in($operation, $random->pick(@behaviours), 1 + $random->below(4));
	}
	return;
}

sub _misbehave_in
{
	my ($self, $operation, $behaviour, $times) = @_;

	$self->{clerk}->control('misbehave',
		{ operation => $operation, behaviour => $behaviour, times => $times });
	return;
}

# All requests, for a while.
sub _storm
{
	my ($self) = @_;

	$self->_misbehave_in($_, $self->{random}->pick(qw(429-1 429-empty 429-none)), $ALL) foreach @CREATE;
	$self->_misbehave_in($LOOK_UP, '429-1', $ALL) if $self->{random}->happens(0.5);
	$self->{campaign}->wait_a_moment(0.4);
	$self->end;
	return;
}

sub _refuse_key
{
	my ($self) = @_;

	$self->_misbehave_in($_, 'error-401-clerk_key_invalid', $ALL) foreach @CREATE, $LOOK_UP;
	$self->{campaign}->wait_a_moment(0.4);
	$self->end;
	return;
}

sub _spoil_lookups
{
	my ($self) = @_;

	$self->_misbehave_in($_, '500-after', 3) foreach @CREATE;
	$self->_misbehave_in($LOOK_UP, $_, 1 + $self->{random}->below(4))
	  foreach $self->{random}->shuffle(qw(503 drop truncated half-body error-403-not_allowed_access));
	return;
}

sub _step_clock
{
	my ($self) = @_;

	$self->{campaign}->await_response_since($self->{stepped_at});
	$self->{clerk}->control('clock',
		{ offset => $self->{random}->below(2 * $MOST_OFF + 1) - $MOST_OFF });
	$self->{stepped_at} = time;
	return;
}

# With requests under way, and not there for a moment.
sub _kill_clerk
{
	my ($self) = @_;

	$self->{clerk}->kill;
	$self->{campaign}->wait_a_moment(0.1 + $self->{random}->fraction * 0.4);
	$self->{clerk}->revive;
	return;
}

sub _hang_name_server
{
	my ($self) = @_;
	my $campaign = $self->{campaign};

	$campaign->set_url('https://hung.invalid');
	$campaign->wait_a_moment(0.5);
	$campaign->set_url(undef);
	return;
}

1;
