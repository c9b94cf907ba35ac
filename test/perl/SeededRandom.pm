# SeededRandom - random decisions that a seed repeats, whoever else calls rand()
#
#	my $random = SeededRandom->new($seed, 'faults');
#	my $number = $random->below(10);
#
# Streams of one seed with different names have nothing to do with each other.

package SeededRandom;

use strict;
use warnings;

# FNV-1a mixes the name in; the rest is Marsaglia's xorshift of 32 bits.
sub new
{
	my ($class, $seed, $name) = @_;
	my $state = 2166136261;

	$state = (($state ^ ord) * 16777619) & 0xffffffff foreach split(//, "$seed $name");
	my $self = bless { state => $state || 1 }, $class;
	$self->_next for 1 .. 10;
	return $self;
}

sub _next
{
	my ($self) = @_;
	my $state = $self->{state};

	$state ^= ($state << 13) & 0xffffffff;
	$state ^= $state >> 17;
	$state ^= ($state << 5) & 0xffffffff;
	return $self->{state} = $state;
}

# An integer from 0 on.
sub below
{
	my ($self, $limit) = @_;

	return $self->_next % $limit;
}

# A fraction of 1.
sub fraction
{
	my ($self) = @_;

	return $self->_next / 4294967296;
}

# Whether something happens that happens so often.
sub happens
{
	my ($self, $probability) = @_;

	return $self->fraction < $probability;
}

sub pick
{
	my ($self, @choices) = @_;

	return $choices[ $self->below(scalar @choices) ];
}

# Takes a key of a hash of weights.
sub weighted
{
	my ($self, $weights) = @_;
	my @bag = map { ($_) x $weights->{$_} } sort keys %$weights;

	return $self->pick(@bag);
}

sub shuffle
{
	my ($self, @list) = @_;

	foreach my $last (reverse 1 .. $#list)
	{
		my $other = $self->below($last + 1);

		@list[ $last, $other ] = @list[ $other, $last ];
	}
	return @list;
}

1;
