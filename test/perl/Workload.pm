# Workload - what applications do with an outbox, as a seed has it
#
#	my $workload = Workload->new($seed);
#	$node->safe_psql('postgres', Workload::SCHEMA);
#	my $session = $workload->session($transactions);
#	... psql runs $session->{sql} and writes to $output ...
#	$workload->learn($session, $output);
#
# Invitations by INSERT, by the function, by both triggers and by COPY, many in
# one organization and one in many; with rollbacks, savepoints, errors, cancels
# and retries; of people who are members, are invited, accept, or whose
# invitation is revoked at once; in organizations that are gone.  An address
# says what is to become of it.

package Workload;

use strict;
use warnings;

use SeededRandom;

# The tables of an application.
use constant SCHEMA => q(
CREATE TABLE members_by_row (org_id text, email text PRIMARY KEY);
CREATE TABLE members_by_statement (org_id text, email text);
CREATE TRIGGER invite AFTER INSERT ON members_by_row FOR EACH ROW
	EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');
CREATE TRIGGER invite AFTER INSERT ON members_by_statement
	REFERENCING NEW TABLE AS n FOR EACH STATEMENT
	EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');
);

# Clerk refuses these for good.  One is refused at first only, and is for
# retries.
our $MAY_FAIL = qr/^(?:missing|refused|x-error-422-form_param_value_invalid-once)\b/;

my %WAYS = (insert => 4, function => 3, by_row => 4, by_statement => 4, copy => 2, copy_to_outbox => 2);
my %ENDS = (commit => 16, rollback => 2, savepoint => 2, error => 1);
my %PEOPLE = (
	person => 24, member => 1, invited => 1, raced => 1, accepts => 2,
	revokes => 5, twin => 1, later => 2, refused => 1, once => 1, missing => 1, leaving => 1);

# Organizations that get many, so that some of theirs go in bulk.
my $LARGE = 12;

# Rows a transaction.
my $MOST_ROWS = 8;

# Milliseconds until somebody accepts or revokes.
my @MEANWHILE = (5, 20, 60, 200, 500);

# Seconds until a row is sent that is enqueued for later.
my $LATER = 3;

# Organizations that are deleted at some time.
my $LEAVING = 6;

sub new
{
	my ($class, $seed) = @_;

	return bless {
		random => SeededRandom->new($seed, 'workload'),
		tag => sprintf('%x', $seed & 0xffffff),
		number => 0,
		sessions => 0,
		waiting => [],		# transactions to be run again, since they never began
		recent => [],		# addresses that may be canceled
		leaving => 1,
		planned => 0,
		committed => [],
		rolled_back => [],
		invited => [],		# people whom others have invited
		raced => [],		# and those whom they are about to invite
	}, $class;
}

# So many people whom somebody else has invited long before they get a row:
# pairs of organization and address, to be told to Clerk.
sub invited_people
{
	my ($self, $count) = @_;

	$self->{invited} = [
		map { [ "org_large$self->{tag}n" . $_ % $LARGE, "invited.$_.$self->{tag}\@example.com" ] } 1 .. $count ];
	return @{ $self->{invited} };
}

# A session with about so many invitations to be committed.
sub session
{
	my ($self, $invitations) = @_;
	my $random = $self->{random};
	my @transactions;
	my $sum = 0;

	while ($sum < $invitations)
	{
		my $transaction = shift @{ $self->{waiting} } // $self->_transaction;

		push @transactions, $transaction;
		$sum += @{ $transaction->{kept} };
		push @transactions, { sql => $self->_change, kept => [], lost => [] }
		  if $random->happens(0.3);
	}
	my $number = 0;
	my $sql = join('', map { $number++; "\\echo begin $number\n$_->{sql}\\echo end $number\n" } @transactions);
	return { sql => $sql, transactions => \@transactions };
}

# What a session's output tells: which of its transactions have begun, and which
# have committed.  One that has begun and not ended may have done either.
sub learn
{
	my ($self, $session, $output) = @_;
	my $number = 0;

	foreach my $transaction (@{ $session->{transactions} })
	{
		$number++;
		if ($output !~ /^begin $number$/m)
		{
			push @{ $self->{waiting} }, $transaction if @{ $transaction->{kept} };
			next;
		}
		push @{ $self->{rolled_back} }, @{ $transaction->{lost} };
		push @{ $self->{committed} }, @{ $transaction->{kept} }
		  if $output =~ /^end $number$/m;
		$self->{planned} += @{ $transaction->{kept} };
	}
	return;
}

# People whom somebody else invites at the same time, each told once.
sub take_raced
{
	my ($self) = @_;

	return splice @{ $self->{raced} };
}

# The organization that is to be deleted; rows go on coming in for it.
sub delete_organization
{
	my ($self) = @_;
	my $organization = "org_leaving$self->{tag}n" . $self->{leaving};

	$self->{leaving}++;
	return $organization;
}

sub may_delete_organization
{
	my ($self) = @_;

	return $self->{leaving} <= $LEAVING;
}

# One transaction with some rows.
sub _transaction
{
	my ($self) = @_;
	my $random = $self->{random};
	my $way = $random->weighted(\%WAYS);
	my $end = $random->weighted(\%ENDS);
	my @rows = $self->_rows;

	if ($end eq 'commit')
	{
		my $sql = $self->_insert($way, @rows);

		# Half of them in a block, since a statement alone is a transaction.
		$sql = "BEGIN;\n${sql}COMMIT;\n" if $random->happens(0.5) || $sql =~ /;.*;/s;
		push @{ $self->{recent} }, map { $_->{email} } @rows;
		return { sql => $sql, kept => [ _emails(@rows) ], lost => [] };
	}
	my @lost = $self->_rows;
	my $lost = $self->_insert($self->{random}->weighted(\%WAYS), @lost);

	return { sql => "BEGIN;\n${lost}ROLLBACK;\n", kept => [], lost => [ _emails(@lost) ] }
	  if $end eq 'rollback';
	return {
		sql => "\\set ON_ERROR_STOP 0\nBEGIN;\n${lost}SELECT 1 / 0;\nCOMMIT;\n\\set ON_ERROR_STOP 1\n",
		kept => [],
		lost => [ _emails(@lost) ]
	} if $end eq 'error';

	my $kept = $self->_insert($way, @rows);
	return {
		sql => "BEGIN;\nSAVEPOINT s;\n${lost}ROLLBACK TO s;\n${kept}COMMIT;\n",
		kept => [ _emails(@rows) ],
		lost => [ _emails(@lost) ]
	};
}

sub _emails
{
	my (@rows) = @_;

	return map { $_->{email} } @rows;
}

# Rows for a large organization, or one each for small ones.
sub _rows
{
	my ($self) = @_;
	my $random = $self->{random};
	my $together = $random->happens(0.5);
	my $organization = "org_large$self->{tag}n" . $random->below($LARGE);
	my $count = 1 + $random->below($MOST_ROWS);
	my @rows;

	for (1 .. $count)
	{
		my $number = ++$self->{number};
		my $person = $random->weighted(\%PEOPLE);
		my $row = {
			org => $together ? $organization : "org_small$self->{tag}n$number",
			email => "$person.$number.$self->{tag}\@example.com"
		};

		$self->_make($person, $row, $number);
		push @rows, $row;
		push @rows, {%$row} if $person eq 'twin';
	}
	return @rows;
}

# What makes this person a special one.
sub _make
{
	my ($self, $person, $row, $number) = @_;
	my $random = $self->{random};

	if ($person =~ /^(?:accepts|revokes)$/)
	{
		my $milliseconds = $random->pick(@MEANWHILE);

		$row->{email} = "person.$number.$self->{tag}\@$person-$milliseconds.example.com";
	}
	elsif ($person eq 'invited')
	{
		my $invited = shift @{ $self->{invited} };

		@{$row}{qw(org email)} = @$invited if $invited;
	}
	elsif ($person eq 'raced')
	{
		push @{ $self->{raced} }, [ $row->{org}, $row->{email} ];
	}
	elsif ($person eq 'refused')
	{
		$row->{role} = 'org:missing';
	}
	elsif ($person eq 'once')
	{
		$row->{email} = "x-error-422-form_param_value_invalid-once--$number.$self->{tag}\@example.com";
	}
	elsif ($person eq 'missing')
	{
		$row->{org} = "org_missing$self->{tag}n" . $random->below(3);
	}
	elsif ($person eq 'leaving')
	{
		$row->{org} = "org_leaving$self->{tag}n" . (1 + $random->below($LEAVING));
	}
	elsif ($person eq 'later')
	{
		$row->{later} = 1;
	}
	return;
}

# SQL that enqueues these rows.  The triggers have one role, and only the outbox
# and the function have a time.
sub _insert
{
	my ($self, $way, @rows) = @_;

	$way = 'insert' if $way ne 'function' && grep { $_->{later} || $_->{role} } @rows;
	# A primary key allows no twins.
	$way = 'by_statement' if $way eq 'by_row' && grep { $_->{email} =~ /^twin/ } @rows;

	return 'INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after, public_metadata) VALUES '
	  . join(', ', map { "('$_->{org}', '$_->{email}', '" . _role_of($_) . "', " . _time_of($_) . ", '{\"team\": 1.5}')" } @rows) . ";\n"
	  if $way eq 'insert';
	return join('', map {
		"SELECT clerk_enqueue_organization_invitation('$_->{org}', NULL, '$_->{email}', '" . _role_of($_)
		  . "', send_after => " . _time_of($_) . ");\n"
	} @rows) if $way eq 'function';
	return "INSERT INTO members_$way VALUES " . join(', ', map { "('$_->{org}', '$_->{email}')" } @rows) . ";\n"
	  if $way =~ /^by_/;
	return "COPY members_by_statement FROM STDIN;\n" . join('', map { "$_->{org}\t$_->{email}\n" } @rows) . "\\.\n"
	  if $way eq 'copy';
	return "COPY clerk_invitation_outbox (organization_id, email_address, role) FROM STDIN;\n"
	  . join('', map { "$_->{org}\t$_->{email}\torg:member\n" } @rows) . "\\.\n";
}

sub _role_of
{
	my ($row) = @_;

	return $row->{role} // 'org:member';
}

sub _time_of
{
	my ($row) = @_;

	return $row->{later} ? "now() + interval '$LATER s'" : 'now()';
}

# Something that is done to rows that are there.
sub _change
{
	my ($self) = @_;
	my $random = $self->{random};
	my $what = $random->weighted({ cancel => 6, take_back => 1, retry => 2, refresh => 1 });

	return "SELECT count(clerk_retry_invitation(id)) FROM clerk_invitation_outbox WHERE state = 'failed'\n"
	  . "AND email_address LIKE 'x-error-422-form\\_param\\_value\\_invalid-once--%';\n"
	  if $what eq 'retry';
	return "CALL clerk_refresh_invitations();\n" if $what eq 'refresh';

	# Those that are for later, and the newest.  Rows of others are left alone.
	my @emails = grep { /^later/ } splice @{ $self->{recent} };
	my $newest = join(', ', map { "'$_'" } @emails, 'nobody@example.com');
	my $cancel = "SELECT count(clerk_cancel_invitation(id)) FROM clerk_invitation_outbox\n"
	  . "WHERE organization_id LIKE '%$self->{tag}n%' AND (email_address IN ($newest)\n"
	  . "OR id > (SELECT max(id) - 2 FROM clerk_invitation_outbox));\n";

	return $what eq 'cancel' ? $cancel : "BEGIN;\n${cancel}ROLLBACK;\n";
}

1;
