# A part of the ledger campaign (test/ledger.sh): while invitations flow and
# faults of all kinds happen, none is lost, none is created twice, none for what was
# rolled back or canceled, and every row says what is so.
#
# CLERK_LEDGER_SEED in the environment is the seed; SMALL_DISK the folder of a small
# file system, without which the disk is never full.
use strict;
use warnings;

use Campaign;
use Faults;
use Test::More;

my $INVITATIONS = 700;

my $FAULTS = Faults::enough_for_all_kinds();

my $seed = $ENV{CLERK_LEDGER_SEED} // time;
my $campaign = Campaign->new(
	seed => $seed,
	disk => $ENV{SMALL_DISK} || undef,
	say => sub { note $_[0] });

note "CLERK_LEDGER_SEED=$seed";
note 'the disk is never full: no small file system could be mounted'
  unless $campaign->has_small_disk;
$campaign->run($INVITATIONS, $FAULTS);
my @violations = $campaign->finish;

note $_ foreach $campaign->table;
is(join("\n", Ledger::describe(@violations)), '', 'the outbox is as the ledger is');
is_deeply([ $campaign->kinds_left_out ], [], '... after faults of all kinds');

my $states = Ledger->new($campaign->clerk)->states($campaign->node);
cmp_ok($states->{$_} // 0, '>', 0, "... and rows are $_") foreach qw(sent skipped failed canceled);
cmp_ok($states->{sent}, '>', $INVITATIONS / 2, '... most of them sent');
cmp_ok(scalar(grep { ref $_->{body} eq 'ARRAY' && $_->{status} && $_->{status} == 200 } $campaign->clerk->journal),
	'>', 0, '... some in bulk');

$campaign->node->stop('immediate');
done_testing();
