# PsqlOutput - what psql shows, in a form in which two runs can be compared
#
#	my $shown = PsqlOutput->new($text);
#	is_deeply([ $shown->tables ], ...); is_deeply([ $shown->messages ], ...)
#
# Left out is what differs from run to run, such as times and Clerk's IDs, and
# how things are laid out: widths, wrapped lines, rows as lines or as records,
# and the order of messages, which psql may show before or after an error.

package PsqlOutput;

use strict;
use warnings;

my $SEVERITY = qr/(?:ERROR|WARNING|NOTICE|INFO|FATAL)/;
my $LEFT_OUT = qr/(?:CONTEXT|LINE \d+|LOCATION|SCHEMA NAME|TABLE NAME)/;
my $FIELD = qr/(?:$LEFT_OUT|DETAIL|HINT|CONSTRAINT NAME|COLUMN NAME)/;

# Numbers and times that depend on what else has happened, or on the system.
my %VARIES = map { $_ => 1 } qw(id pid used remaining overdue);

# @replacements are pairs of a pattern and a text, done before all others.
sub new
{
	my ($class, $text, @replacements) = @_;
	my $self = bless { tables => [], messages => [] }, $class;

	while (my ($pattern, $replacement) = splice(@replacements, 0, 2))
	{
		$text =~ s/$pattern/$replacement/g;
	}
	$self->_read_lines(split(/\n/, $text));
	@{ $self->{messages} } = sort map { _normalized($_) } @{ $self->{messages} };
	return $self;
}

# Each a list of rows, which are texts "column=value, ...".
sub tables
{
	my ($self) = @_;

	return @{ $self->{tables} };
}

# Each on one line with its fields, but for those that tell where in the SQL or
# in the source it was; sorted.
sub messages
{
	my ($self) = @_;

	return @{ $self->{messages} };
}

sub _read_lines
{
	my ($self, @lines) = @_;

	while (defined(my $line = shift @lines))
	{
		$line =~ s/^psql:<stdin>:\d+: //;
		if ($line =~ /^$SEVERITY:  /)
		{
			push @{ $self->{messages} }, $line . _rest_of_message(\@lines);
		}
		elsif ($line =~ /^Asynchronous notification/)
		{
			push @{ $self->{messages} }, $line;
		}
		elsif ($line =~ /^-\[ RECORD \d+ \]/)
		{
			push @{ $self->{tables} }, _records(\@lines);
		}
		elsif (@lines && $lines[0] =~ /^-[-+]*$/)
		{
			shift @lines;
			push @{ $self->{tables} }, _rows($line, \@lines);
		}
	}
	return;
}

sub _rest_of_message
{
	my ($lines) = @_;
	my $text = '';
	my $kept = 1;

	while (@$lines && $lines->[0] =~ /^(?:($FIELD):  ?|\s+\S|(?!psql:)\w+.*" line \d+)/)
	{
		$kept = $1 !~ /^$LEFT_OUT$/ if defined $1;
		my $line = shift @$lines;
		$text .= " $line" if $kept;
	}
	return $text;
}

sub _rows
{
	my ($header, $lines) = @_;
	my @columns = map { _trimmed($_) } split(/\|/, $header);
	my @rows;

	while (@$lines && $lines->[0] !~ /^\(\d+ rows?\)$/)
	{
		my @cells = split(/\|/, shift @$lines, -1);

		# psql marks with points where it has wrapped a value.
		if (grep { /^\./ } @cells)
		{
			foreach my $i (grep { $cells[$_] =~ /^\./ } 0 .. $#cells)
			{
				$rows[-1][$i] =~ s/\.$//;
				$rows[-1][$i] .= substr($cells[$i], 1);
			}
		}
		else
		{
			push @rows, \@cells;
		}
	}
	shift @$lines;
	return [
		map {
			my $row = $_;
			_row(map { ($columns[$_], $row->[$_]) } 0 .. $#columns)
		} @rows
	];
}

sub _records
{
	my ($lines) = @_;
	my @records = ([]);

	while (@$lines && $lines->[0] ne '')
	{
		my $line = shift @$lines;

		if ($line =~ /^-\[ RECORD/)
		{
			push @records, [];
		}
		elsif ($line =~ /^([^|]*)\|(.*)$/)
		{
			push @{ $records[-1] }, _trimmed($1), $2;
		}
	}
	return [ map { _row(@$_) } @records ];
}

sub _row
{
	my (@pairs) = @_;
	my @values;

	while (my ($column, $value) = splice(@pairs, 0, 2))
	{
		$value = _normalized(_trimmed($value));
		$value =~ s/^[\d:]+$/N/ if $VARIES{$column};
		push @values, "$column=$value";
	}
	return join(', ', @values);
}

sub _trimmed
{
	return $_[0] =~ s/^\s+|\s+$//gr;
}

sub _normalized
{
	my ($text) = @_;

	$text =~ s/\s+/ /g;
	$text =~ s/\borginv_\w+/orginv_ID/g;
	$text =~ s/\b[0-9a-f]{32}\b/TRACE_ID/g;
	$text =~ s/\?ticket=\S+/?ticket=.../g;
	$text =~ s/\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d(?:\.\d+)?(?:[-+]\d\d(?::\d\d)?)?)?/TIME/g;
	$text =~ s/\d\d:\d\d:\d\d\.\d+/DURATION/g;
	$text =~ s/\bPID \d+/PID N/g;
	$text =~ s/\bpayload "\d+ /payload "N /g;
	return $text;
}

1;
