# ledger_campaign.pl - the campaign itself; see ledger.sh
use strict;
use warnings;

# The modules send standard output to a log of their own.
my $terminal;

BEGIN
{
	open($terminal, '>&', \*STDOUT) or die "could not copy standard output: $!";
	$terminal->autoflush(1);
}

use Campaign;
use Getopt::Long;

my %options = (invitations => 10000, faults => 500, seed => time);

GetOptions(\%options, 'invitations=i', 'faults=i', 'seed=i', 'disk=s', 'without=s')
  or die "usage: ledger.sh --invitations N --faults N --seed S [--without PATTERN]\n";
say_line("$options{invitations} invitations, $options{faults} faults, seed $options{seed}");
say_line('the disk is never full: no small file system can be mounted') unless $options{disk};

my $campaign = Campaign->new(
	seed => $options{seed},
	disk => $options{disk},
	without => $options{without},
	say => \&say_line);
$campaign->run($options{invitations}, $options{faults});
my @violations = $campaign->finish;

say_line($_) foreach $campaign->table;
say_line(scalar(@violations) . ' violations');
say_line($_) foreach Ledger::describe(@violations);
$campaign->node->stop('immediate');
exit(@violations ? 1 : 0);

sub say_line
{
	print $terminal "$_[0]\n";
	return;
}
