# MarkdownPage - the examples of a page of the documentation
#
#	my $page = MarkdownPage->read("$source/README.md");
#	foreach my $example ($page->examples) { ... $example->{sql} ... }
#	my @blocks = $page->results_without_sql;
#
# An example is a block of SQL, and the block without a language that follows it
# in the same section, if there is one: what psql shows for it.  Comments, which
# readers do not see, tell what to know about the SQL block that comes next:
#
#	<!-- given: Clerk cannot be reached -->		a step to take before
#	<!-- not run: why -->						an example that cannot be run
#	<!-- not compared: why -->					a result that is not repeatable

package MarkdownPage;

use strict;
use warnings;

use Carp;
use PostgreSQL::Test::Utils;

my $FENCE = qr/^(\s*)```(\w*)\s*$/;

sub read
{
	my ($class, $file) = @_;
	my $self = bless {
		examples => [],
		without_sql => [],
		headings => [],
		links => []
	}, $class;

	$self->_read_lines(split(/\n/, slurp_file($file)));
	return $self;
}

# Each is a hash of line, sql, given (a list of steps), not_run and not_compared
# (reasons), and result; what does not apply is not there.
sub examples
{
	my ($self) = @_;

	return @{ $self->{examples} };
}

# The blocks without a language that follow no SQL: hashes of line and text.
sub results_without_sql
{
	my ($self) = @_;

	return @{ $self->{without_sql} };
}

# The names by which GitHub lets one link to the page's sections.
sub anchors
{
	my ($self) = @_;
	my (%used, @anchors);

	foreach my $heading (@{ $self->{headings} })
	{
		my $anchor = lc($heading) =~ s/[^\w\- ]//gr =~ tr/ /-/r;
		my $times = $used{$anchor}++;

		push @anchors, $times ? "$anchor-$times" : $anchor;
	}
	return @anchors;
}

# What the page links to, as it is written.
sub links
{
	my ($self) = @_;

	return @{ $self->{links} };
}

sub _read_lines
{
	my ($self, @lines) = @_;
	my $next = { given => [] };
	my $last;    # the example that a result would belong to

	for (my $i = 0; $i < @lines; $i++)
	{
		if ($lines[$i] =~ $FENCE)
		{
			my ($indent, $language, $line) = ($1, $2, $i + 1);
			my $text = '';

			until ($lines[ ++$i ] =~ /^\s*```\s*$/)
			{
				$text .= $lines[$i] =~ s/^$indent//r . "\n";
				croak "the block of line $line does not end" if $i == $#lines;
			}
			$last =
			  $self->_add_block({ line => $line, text => $text }, $language,
				$next, $last);
			$next = { given => [] } if $language eq 'sql' || $language eq '';
		}
		elsif ($lines[$i] =~ /^#+ (.*)/)
		{
			push @{ $self->{headings} }, $1;
			$last = undef;
		}
		elsif ($lines[$i] =~ /^<!-- given: (.*) -->$/)
		{
			push @{ $next->{given} }, $1;
		}
		elsif ($lines[$i] =~ /^<!-- not (run|compared): (.*) -->$/)
		{
			$next->{"not_$1"} = $2;
		}
		push @{ $self->{links} }, $lines[$i] =~ /\]\(([^)\s]+)\)/g;
	}
	return;
}

# Returns the example that a result after this block would belong to.
sub _add_block
{
	my ($self, $block, $language, $next, $last) = @_;

	if ($language eq 'sql')
	{
		my $example =
		  { %$next, line => $block->{line}, sql => $block->{text} };

		push @{ $self->{examples} }, $example;
		return $example;
	}
	return if $language ne '';
	if ($last)
	{
		$last->{result} = $block->{text};
		$last->{not_compared} //= $next->{not_compared};
	}
	else
	{
		push @{ $self->{without_sql} }, $block;
	}
	return;
}

1;
