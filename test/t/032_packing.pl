# What shares a request: src/outbox/packing.c by itself, with backlogs drawn at random.
use strict;
use warnings;

use ClerkTest;
use Driver;
use List::Util qw(min shuffle sum0);
use Packing;
use PostgreSQL::Test::Utils;
use Test::More;

# More than what a bulk request costs in single ones.
my $WORTHWHILE = $SINGLES / $BULKS + 1;

my $ROUNDS = 100;
my $SEED = 20;

my $node = clerk_cluster('main');
my $library = Driver::build('packing_driver');

$node->safe_psql('postgres',
	    'CREATE FUNCTION driver_plan(text[], text[], boolean[], boolean[],'
	  . "integer, integer, integer) RETURNS text LANGUAGE c AS '$library'");
my $psql = start_psql($node, '');

srand($SEED);
check_properties();
check_choice();
check_packing('all at once', \&budgets_of_a_window);
check_packing('in small portions', \&portions_of_a_window);

$psql->{stdin} .= "\\q\n";
$psql->{harness}->finish;
$node->stop;
done_testing();

# Each property holds for every plan, so each is counted over all rounds.
sub check_properties
{
	my %properties = (
		'no invitation is planned twice' => \&has_distinct_candidates,
		'no address is planned twice' => \&has_distinct_addresses,
		'a request is for one organization' => \&has_one_organization_each,
		'a bulk request carries 1 to 10, a single one 1' => \&has_good_sizes,
		'the budgets are kept to' => \&keeps_to_budgets,
		'no budget lies idle while an invitation waits' => \&uses_budgets,
		'who must be alone shares no request' => \&leaves_alone,
		'requests, and what they carry, are in order of age' => \&is_in_order);
	my %broken;

	for (1 .. $ROUNDS)
	{
		my @candidates = random_candidates();
		my @budgets = map { int(rand(2) * rand(@candidates)) } 1 .. 2;
		my @plan = planned(\@candidates, @budgets);

		foreach my $property (keys %properties)
		{
			$broken{$property}++
			  unless $properties{$property}->(\@plan, \@candidates, @budgets);
		}
	}
	is($broken{$_} // 0, 0, $_) foreach sort keys %properties;
	return;
}

# Few and many, with addresses that occur twice; the oldest are overdue.
sub random_candidates
{
	my $count = 1 + int(rand(rand() < 0.5 ? 20 : 400));
	my $organizations = 1 + int(rand($count));
	my $addresses = 1 + int($count * (0.2 + rand(3)));
	my $alone = rand() < 0.5 ? 0 : rand();
	my $overdue = int(rand(2) * $count);

	return map {
		new_candidate(
			int(rand($organizations)),
			int(rand($addresses)),
			alone => rand() < $alone,
			overdue => $_ <= $overdue)
	} 1 .. $count;
}

# The requests of a plan: whether each is a bulk one, and its candidates'
# positions from 0.
sub planned
{
	my ($candidates, $singles, $bulks) = @_;
	my @columns =
	  map { "'{" . join(',', @$_) . "}'" }
	  [ map { $_->{organization} } @$candidates ],
	  [ map { $_->{address} } @$candidates ],
	  [ map { $_->{alone} ? 't' : 'f' } @$candidates ],
	  [ map { $_->{overdue} ? 't' : 'f' } @$candidates ];
	my ($lines, $errors) = run_in_psql($psql,
		    'SELECT driver_plan('
		  . join(', ', @columns, $singles, $bulks, $WORTHWHILE)
		  . ');');

	die $errors if $errors ne '';
	return map {
		my ($kind, @positions) = split(/ /);
		{ bulk => $kind eq 'bulk', members => [ map { $_ - 1 } @positions ] };
	} grep { $_ ne '' } split(/\n/, $lines);
}

sub has_distinct_candidates
{
	my ($plan) = @_;

	return are_distinct(members_of(@$plan));
}

sub has_distinct_addresses
{
	my ($plan, $candidates) = @_;

	return are_distinct(map { $candidates->[$_]{address} } members_of(@$plan));
}

sub has_one_organization_each
{
	my ($plan, $candidates) = @_;

	foreach my $request (@$plan)
	{
		my %organizations =
		  map { $candidates->[$_]{organization} => 1 } members_of($request);
		return 0 if keys %organizations > 1;
	}
	return 1;
}

sub has_good_sizes
{
	my ($plan) = @_;

	return !grep {
		my $size = members_of($_);
		$size < 1 || $size > ($_->{bulk} ? $BULK_MAX : 1);
	} @$plan;
}

sub keeps_to_budgets
{
	my ($plan, $candidates, $singles, $bulks) = @_;
	my $planned_bulks = grep { $_->{bulk} } @$plan;

	return $planned_bulks <= $bulks && @$plan - $planned_bulks <= $singles;
}

sub uses_budgets
{
	my ($plan, $candidates, $singles, $bulks) = @_;
	my %addresses = map { $_->{address} => 1 } @$candidates;

	return scalar(members_of(@$plan)) == keys %addresses
	  || @$plan == $singles + $bulks;
}

sub leaves_alone
{
	my ($plan, $candidates) = @_;

	return !grep {
		my @members = members_of($_);
		@members > 1 && grep { $candidates->[$_]{alone} } @members;
	} @$plan;
}

sub is_in_order
{
	my ($plan) = @_;

	return !grep { !are_ascending(@$_) }
	  map { $_->{members} } @$plan,
	  { members => [ map { $_->{members}[0] } @$plan ] };
}

# Small plans that have only one right answer.
sub check_choice
{
	is(choice(0, 1, '6', '10'), 'B10', 'a bulk request is for the most people');
	is(choice(0, 1, '6 overdue', '10'), 'A6', '... after what is overdue');
	is(choice(0, 1, '10', '10'), 'A10', '... and for the oldest of equals');
	is(choice(1, 0, '3', '2'), 'B1', 'single requests begin with the fewest');
	is(choice(1, 0, '3 overdue', '2'), 'A1', '... after what is overdue');
	is(choice(1, 0, '3', '3'), 'A1', '... and with the oldest of equals');
	is(choice(9, 1, '5'), 'A1 A1 A1 A1 A1', 'five people go one by one');
	is(choice(9, 1, '6'), 'A6', '... and six in a bulk request');
	is(choice(3, 1, '5'),
		'A1 A1 A1 A2', '... but what is left of a budget serves the rest');
	is(choice(9, 1, '12'), 'A10 A1 A1', 'a remainder goes one by one');
	return;
}

# Plans with these budgets for organizations A, B ... of so many people, the
# oldest first.  Returns the requests: for which one, and how many.
sub choice
{
	my ($singles, $bulks, @organizations) = @_;
	my $name = 'A';
	my @candidates;

	foreach my $organization (@organizations)
	{
		my ($size, $overdue) = split(/ /, $organization);

		push @candidates,
		  map { new_candidate($name, "$name$_", overdue => $overdue) } 1 .. $size;
		$name++;
	}
	return join(
		' ',
		map {
			my @members = members_of($_);
			$candidates[ $members[0] ]{organization} . @members;
		} planned(\@candidates, $singles, $bulks));
}

sub new_candidate
{
	my ($organization, $address, %flags) = @_;

	return { organization => $organization, address => $address, %flags };
}

sub members_of
{
	return map { @{ $_->{members} } } @_;
}

sub are_distinct
{
	my %seen;

	return !grep { $seen{$_}++ } @_;
}

sub are_ascending
{
	return !grep { $_[$_] < $_[ $_ - 1 ] } 1 .. $#_;
}

# How backlogs of several kinds drain, if the budgets of each window come as
# the code says.
sub check_packing
{
	my ($how, $budgets) = @_;
	my %draws = (
		'small organizations' => sub { 1 + int(rand(5)) },
		'organizations of up to 20' => sub { 1 + int(rand(20)) },
		'organizations of all sizes' => sub { 1 + int(rand(2)**7) },
		'organizations of 6' => sub { 6 },
		'organizations of 11' => sub { 11 },
		'organizations of 1 and 10' => sub { rand() < 0.2 ? 10 : 1 });

	foreach my $kind (sort keys %draws)
	{
		my @sizes = backlog_that_fills(6, $draws{$kind});

		is(windows_taken($budgets, @sizes),
			6, "$kind are packed as well as can be, $how");
	}
	return;
}

sub windows_taken
{
	my ($budgets, @sizes) = @_;
	my @people;
	my $windows = 0;
	my $address = 0;

	foreach my $organization (0 .. $#sizes)
	{
		push @people,
		  map { new_candidate($organization, $address++) }
		  1 .. $sizes[$organization];
	}
	@people = shuffle(@people);
	while (@people)
	{
		$windows++;
		foreach my $budget ($budgets->())
		{
			my %gone =
			  map { $_ => 1 } members_of(@people ? planned(\@people, @$budget) : ());
			@people = @people[ grep { !$gone{$_} } 0 .. $#people ];
		}
	}
	return $windows;
}

# Pairs of single and bulk requests.
sub budgets_of_a_window
{
	return [ $SINGLES, $BULKS ];
}

# As they come when the window before was used up little by little.
sub portions_of_a_window
{
	my @left = ($SINGLES, $BULKS);
	my @portions;

	while (sum0(@left) > 0)
	{
		my @portion = map { min($_, int(rand(30))) } @left;

		@left = map { $left[$_] - $portion[$_] } 0, 1;
		push @portions, \@portion;
	}
	return @portions;
}
