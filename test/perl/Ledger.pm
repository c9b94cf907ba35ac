# Ledger - compares outboxes with what the fake Clerk has done
#
#	my $ledger = Ledger->new($clerk);
#	my @violations = $ledger->violations(outboxes => [ $node ]);
#	is_deeply([ map { $_->{text} } @violations ], []);
#
# Between the rows that are "sent" and the invitations that Clerk created for
# the client, there must be one pair for each and nothing else.  From this
# follows that no invitation is lost, none is created twice, and none for a row
# that was rolled back or canceled.  For what was not sent, Clerk must have a
# reason.
#
# violations() takes:
#
#	outboxes		servers (PostgreSQL::Test::Cluster, or connection strings) whose
#					database has an outbox that sends to this Clerk; a string
#					names the database, else it is postgres
#	committed		addresses whose transactions were reported as committed
#	rolled_back		addresses whose transactions were rolled back
#	may_fail		a pattern of the addresses that Clerk refuses for good; without
#					it, any row may have failed, if there is no invitation for it
#	synchronous		a pattern of addresses that were invited by the synchronous
#					functions, so that no row has their invitations
#	statuses		true if the outboxes have just been refreshed: what they say
#					of an invitation's status must be what Clerk says
#
# It returns a list of hashes, each with
#
#	kind			open: a row is not final; lost: a committed row is not there, or
#					what it says was sent is not; twice: there are more invitations
#					for an address than rows that were sent; unwanted: there is an
#					invitation for what was rolled back or canceled; shared: two rows
#					have one invitation; untrue: a row says what is not so;
#					present: there is a row that was rolled back
#	text			what and where

package Ledger;

use strict;
use warnings;

use Carp;
use IPC::Run ();
use JSON::PP qw(decode_json);
use PostgreSQL::Test::Utils;

our @KINDS = qw(open lost twice unwanted shared untrue present crash);

# An invitation that somebody else created after the row was first claimed may
# be taken for the row's, if the row's outcome was unknown: Clerk does not say
# who created it.  Its clock has seconds, and so has HTTP; in milliseconds.
my $TOLERANCE = 2000;

# Of a violation's kind, so many are described.
my $MOST_DESCRIBED = 20;

# A ClerkTest::Fake over plain http.
sub new
{
	my ($class, $clerk) = @_;

	return bless { clerk => $clerk }, $class;
}

sub violations
{
	my ($self, %params) = @_;
	my $rows = $self->_read_rows($params{outboxes});

	$self->{found} = [];
	$self->{mistaken} = 0;
	$self->_read_ledger;
	$self->_check_row($_, \%params) foreach @$rows;
	$self->_check_shared($rows);
	$self->_check_invitations($rows, \%params);
	$self->_check_transactions($rows, \%params);
	return @{ $self->{found} };
}

# The violations as lines, not too many of a kind.
sub describe
{
	my (@violations) = @_;
	my (@lines, %seen);

	foreach my $violation (@violations)
	{
		push @lines, "$violation->{kind}: $violation->{text}"
		  if ++$seen{ $violation->{kind} } <= $MOST_DESCRIBED;
	}
	foreach my $kind (grep { ($seen{$_} // 0) > $MOST_DESCRIBED } @KINDS)
	{
		push @lines, "$kind: and " . ($seen{$kind} - $MOST_DESCRIBED) . ' more';
	}
	return @lines;
}

# How many rows are in each state, of all outboxes.
sub states
{
	my ($self, @outboxes) = @_;
	my %states;

	$states{ $_->{state} }++ foreach @{ $self->_read_rows(\@outboxes) };
	return \%states;
}

sub _read_rows
{
	my ($self, $outboxes) = @_;

	return [ map { _rows_of($_) } @$outboxes ];
}

sub _rows_of
{
	my ($outbox) = @_;
	my $connection = ref $outbox ? $outbox->connstr('postgres') : $outbox;
	my $lines = run_sql(
		$connection, q(
		SELECT json_build_object('id', id, 'organization_id', organization_id,
			'email_address', email_address, 'state', state, 'attempts', attempts,
			'invitation_id', invitation_id, 'status', status,
			'claimed_ms', floor(extract(epoch FROM first_claimed_at) * 1000),
			'error_code', error_code, 'error_message', error_message)
		FROM clerk_invitation_outbox WHERE NOT copied ORDER BY id));

	return map { decode_json($_) } split(/\n/, $lines);
}

# Runs SQL in the database that a connection string names; dies if that fails.
sub run_sql
{
	my ($connection, $sql) = @_;
	my ($stdout, $stderr) = ('', '');

	IPC::Run::run(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $connection, '-f', '-' ],
		'<', \$sql, '>', \$stdout, '2>', \$stderr)
	  or croak "psql failed: $stderr";
	return $stdout;
}

# By address: the invitations that the client made, and whether others did.
sub _read_ledger
{
	my ($self) = @_;
	my $ledger = $self->{clerk}->ledger;

	$self->{invitations} = { map { $_->{id} => $_ } @{ $ledger->{invitations} } };
	$self->{ours} = {};
	$self->{others} = {};
	foreach my $invitation (@{ $ledger->{invitations} })
	{
		my $whose = $invitation->{origin} eq 'client' ? 'ours' : 'others';

		push @{ $self->{$whose}{ _key($invitation) } }, $invitation;
	}
	$self->{members} = { map { join(' ', $_->[0], lc $_->[1]) => 1 } @{ $ledger->{members} } };
	$self->{clock_settings} = $ledger->{clock_settings};
	$self->{gone} = { map { $_ => 1 } @{ $ledger->{deleted_organizations} } };
	return;
}

# What a row or an invitation is about.
sub _key
{
	my ($about) = @_;

	return join(' ', $about->{organization_id}, lc $about->{email_address});
}

sub _found
{
	my ($self, $kind, $about, $text) = @_;
	my $where = ref $about ? _key($about) . (exists $about->{attempts} ? " (row $about->{id})" : " ($about->{id})") : $about;

	push @{ $self->{found} }, { kind => $kind, text => "$where: $text" };
	return;
}

# What a row says of itself.
sub _check_row
{
	my ($self, $row, $params) = @_;
	my $state = $row->{state};

	return $self->_check_sent($row, $params) if $state eq 'sent';
	$self->_found('open', $row, "is $state after $row->{attempts} attempts, " . ($row->{error_message} // 'without an error'))
	  if $state =~ /^(?:queued|sending|verifying)$/;
	$self->_found('untrue', $row, 'is skipped, but nobody else has invited, and there is no member')
	  if $state eq 'skipped' && !$self->_is_taken($row);
	$self->_found('untrue', $row, "has failed: " . ($row->{error_message} // 'no reason'))
	  if $state eq 'failed' && defined $params->{may_fail}
	  && !$self->{gone}{ $row->{organization_id} } && $row->{email_address} !~ $params->{may_fail};
	return;
}

sub _check_sent
{
	my ($self, $row, $params) = @_;
	my $id = $row->{invitation_id};

	return $self->_found('lost', $row, 'is sent, without an invitation') unless defined $id;
	my $invitation = $self->{invitations}{$id};
	return $self->_found('lost', $row, "is sent, but Clerk has never had $id") unless $invitation;
	$self->_found('untrue', $row, "has $id, which is for " . _key($invitation))
	  if _key($invitation) ne _key($row);
	if ($invitation->{origin} ne 'client' && $invitation->{created_really_at} < $row->{claimed_ms} - $TOLERANCE)
	{
		return $self->{mistaken}++ if $self->_looks_new($invitation, $row);
		$self->_found('untrue', $row, "has $id, which somebody else had created before");
	}
	$self->_found('untrue', $row, "says that $id is $row->{status}, but it is $invitation->{status}")
	  if $params->{statuses} && !$invitation->{deleted} && $row->{status} ne $invitation->{status};
	return;
}

# Whether Clerk's clock was set back in such a way after the invitation was
# created that it may look as if it had been created after the row was claimed.
sub _looks_new
{
	my ($self, $invitation, $row) = @_;

	return scalar grep {
		my ($set_at, $ahead) = @$_;

		$set_at > $invitation->{created_really_at}
		  && $invitation->{created_at} >= $row->{claimed_ms} + $ahead - $TOLERANCE
	} @{ $self->{clock_settings} };
}

# How many rows have somebody else's invitation that looked new, since Clerk's
# clock was set back; of the last call of violations().
sub mistaken
{
	my ($self) = @_;

	return $self->{mistaken};
}

# Whether Clerk can have refused this row because of somebody's invitation or
# membership.
sub _is_taken
{
	my ($self, $row) = @_;
	my $key = _key($row);

	return
		 $self->{others}{$key}
	  || $self->{ours}{$key}
	  || $self->{members}{$key}
	  || $row->{email_address} =~ /^member/i;
}

sub _check_shared
{
	my ($self, $rows) = @_;
	my %rows;

	push @{ $rows{ $_->{invitation_id} } }, $_ foreach grep { defined $_->{invitation_id} } @$rows;
	foreach my $id (sort keys %rows)
	{
		my @sharing = @{ $rows{$id} };

		$self->_found('shared', $sharing[0], "has $id, and so have " . (@sharing - 1) . ' other rows')
		  if @sharing > 1;
	}
	return;
}

# Every invitation that the client made must be some row's.  If the
# organization is deleted before that is known, the row says that it is not.
sub _check_invitations
{
	my ($self, $rows, $params) = @_;
	my $synchronous = $params->{synchronous} // qr/(?!)/;
	my %recorded = map { ($_->{invitation_id} // '') => 1 } @$rows;
	my %rows;

	push @{ $rows{ _key($_) } }, $_ foreach @$rows;
	foreach my $key (sort keys %{ $self->{ours} })
	{
		my @all = @{ $self->{ours}{$key} };
		my @rows = @{ $rows{$key} // [] };
		my @unknown = grep { $_->{error_code} && $_->{error_code} eq 'outcome_unknown' } @rows;

		foreach my $invitation (grep { !$recorded{ $_->{id} } && $_->{email_address} !~ $synchronous } @all)
		{
			next if $invitation->{deleted} && pop @unknown;
			$self->_found(_kind_of_surplus($invitation, \@all, \@rows),
				$invitation, "is $invitation->{status}, one of " . @all . ' invitations, which no row has; rows: '
				  . join(', ', map { "$_->{id} $_->{state}" } @rows));
		}
	}
	return;
}

# An invitation that no row has.
sub _kind_of_surplus
{
	my ($invitation, $all, $rows) = @_;
	my @wanted = grep { $_->{state} ne 'canceled' } @$rows;

	return
		!@wanted ? 'unwanted'
	  : @$all > @wanted || (grep { $_->{state} eq 'sent' } @wanted) ? 'twice'
	  : 'untrue';
}

sub _check_transactions
{
	my ($self, $rows, $params) = @_;
	my %present = map { lc $_->{email_address} => 1 } @$rows;

	foreach my $email (@{ $params->{committed} // [] })
	{
		$self->_found('lost', $email, 'was committed, but there is no row')
		  unless $present{ lc $email };
	}
	foreach my $email (@{ $params->{rolled_back} // [] })
	{
		$self->_found('present', $email, 'was rolled back, but there is a row')
		  if $present{ lc $email };
	}
	return;
}

1;
