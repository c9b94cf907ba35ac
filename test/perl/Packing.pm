# Packing - how few windows a backlog can be sent in
#
#	use Packing;
#	my $windows = windows_needed(27, 3, 1);    # three organizations
#	my @sizes = backlog_that_fills(6, sub { 1 + int(rand(20)) });

package Packing;

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(min sum0);

our @EXPORT = qw(
  $SINGLES
  $BULKS
  $BULK_MAX
  windows_needed
  backlog_that_fills
);

# Clerk's budgets of a window, in requests, and what a bulk request carries.
our ($SINGLES, $BULKS, $BULK_MAX) = (250, 50, 10);

# The fewest windows that invitations for organizations of these sizes need.
#
# A bulk request is for one organization.  With 27 people, the first one takes
# at most 10, another one 10, another one 7: whatever K bulk requests are made,
# they carry no more than the K largest of all organizations' such pieces.  The
# others need a single request each.  So N windows suffice if, and only if, what
# is left of the pieces without the N x 50 largest is at most N x 250 people.
sub windows_needed
{
	my @pieces = sort { $b <=> $a } map { _pieces_of($_) } @_;
	my $left = sum0(@pieces);
	my $windows = 0;

	while ($left > $SINGLES * $windows)
	{
		$windows++;
		$left -= sum0(splice(@pieces, 0, $BULKS));
	}
	return $windows;
}

sub _pieces_of
{
	my ($size) = @_;
	my $rest = $size % $BULK_MAX;

	return (($BULK_MAX) x int($size / $BULK_MAX), $rest > 0 ? $rest : ());
}

# Organizations of sizes that the code draws, which together fill so many
# windows to the last request, so that one request that carries less than it
# could needs another window.
sub backlog_that_fills
{
	my ($windows, $draw) = @_;
	my @sizes;

	while ((my $size = $draw->()) > 0)
	{
		last if windows_needed(@sizes, $size) > $windows;
		push @sizes, $size;
	}
	push @sizes, 1 while windows_needed(@sizes, 1) <= $windows;
	return @sizes;
}

1;
