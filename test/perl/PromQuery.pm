# What a query of Prometheus (PromQL) names: metrics, labels, and values of
# labels.
#
# It knows the part of the language that the project uses, and refuses the rest.
package PromQuery;

use strict;
use warnings;

use Exporter 'import';
our @EXPORT_OK = qw(complaints_about);

my %FUNCTIONS = map { $_ => 1 } qw(sum min max count);
my %OPERATORS = map { $_ => 1 } qw(and or unless);
my $GROUPING = qr/\b(?:by|without|on|ignoring)\s*\(([^()]*)\)/;

# Labels that Prometheus gives to whatever it gets from an exporter, and the one
# that sql_exporter gives to each of its targets.
my %ADDED = map { $_ => 1 } qw(job instance target);

# complaints_about QUERY, SERVED, LEGEND: what it names that is not there.
# SERVED has a list of series for each metric, each of which is a hash of labels.
# LEGEND may have {{label}} of the result.
sub complaints_about
{
	my ($query, $served, $legend) = @_;
	my $rest = $query;
	my (@complaints, @metrics, @grouped);

	push @grouped, split(/\s*,\s*/, $1) while $rest =~ s/$GROUPING//;
	while ($rest =~ s/([a-z_:][\w:]*)(?:\s*\{([^{}]*)\})?//i)
	{
		my ($name, $matchers) = ($1, $2);

		next if $OPERATORS{$name} || $FUNCTIONS{$name} && $rest =~ /\(/;
		if (!$served->{$name})
		{
			push @complaints, "there is no metric $name";
			next;
		}
		push @metrics, $name;
		push @complaints, complaints_about_matchers($name, $served->{$name}, $matchers // '');
	}
	push @complaints, "cannot read: $rest" if $rest !~ m{^[\s()\d.<>=!+*/-]*$};
	push @complaints, 'it names no metric' if !@metrics && !@complaints;
	foreach my $label (@grouped)
	{
		push @complaints, map { "$_ has no label $label" }
		  grep { !has_label($served->{$_}, $label) } @metrics;
	}
	foreach my $label (($legend // '') =~ /\{\{\s*(\w+)\s*\}\}/g)
	{
		push @complaints, "the result has no label $label"
		  if !grep { $_ eq $label } @grouped;
	}
	return @complaints;
}

# A variable, as in instance=~"$instance", stands for any values.
sub complaints_about_matchers
{
	my ($name, $series, $matchers) = @_;
	my @complaints;

	while ($matchers =~ s/^\s*(\w+)\s*(=~|=|!=|!~)\s*"([^"]*)"\s*,?//)
	{
		my ($label, $operator, $value) = ($1, $2, $3);

		if (!has_label($series, $label))
		{
			push @complaints, "$name has no label $label";
		}
		elsif (!$ADDED{$label})
		{
			my %values = map { $_->{$label} => 1 } @$series;
			my @named = $operator =~ /~/ ? split(/\|/, $value) : $value;

			push @complaints, map { "$name has no $label \"$_\"" } grep { !$values{$_} } @named;
		}
	}
	push @complaints, "cannot read {$matchers}" if $matchers =~ /\S/;
	return @complaints;
}

sub has_label
{
	my ($series, $label) = @_;

	return $ADDED{$label} || !grep { !exists $_->{$label} } @$series;
}

1;
