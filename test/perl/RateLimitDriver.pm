# RateLimitDriver - src/clerk/rate_limit.c and reservation.c, from SQL
#
#	RateLimitDriver::install($node);
#	$node->safe_psql('postgres', RateLimitDriver::session() . 'SELECT ...');
#
# See rate_limit_driver.c for the functions.

package RateLimitDriver;

use strict;
use warnings;

use ClerkTest ();
use Driver;

# Names of the functions and what comes after them in CREATE FUNCTION.
my @functions = (
	[ 'driver_set_clock', '(timestamptz) RETURNS void' ],
	[ 'driver_step_clock', '(integer) RETURNS void' ],
	[ 'driver_set_window', '(integer) RETURNS void' ],
	[ 'driver_set_reload_time', '(timestamptz) RETURNS void' ],
	[ 'driver_instance', '(text, text) RETURNS bigint' ],
	[ 'driver_use_up_memory', '() RETURNS void' ],
	[ 'driver_find_memory', '(integer) RETURNS integer' ],
	[ 'driver_restart', '() RETURNS void' ],
	[ 'driver_reserve', '(bigint, integer, integer) RETURNS integer' ],
	[ 'driver_start', '(integer) RETURNS void' ],
	[ 'driver_take', '(bigint, integer, integer) RETURNS integer' ],
	[ 'driver_available_at', '() RETURNS timestamptz' ],
	[ 'driver_count', '(bigint, integer) RETURNS void' ],
	[ 'driver_answered', '(integer, timestamptz) RETURNS void' ],
	[ 'driver_give_back', '(integer) RETURNS void' ],
	[ 'driver_not_sent', '(integer) RETURNS void' ],
	[ 'driver_close', '(bigint, integer, integer) RETURNS void' ],
	[ 'driver_used', '(bigint, integer) RETURNS integer' ],
	[ 'driver_closed_until', '(bigint, integer) RETURNS timestamptz' ]);

# Builds the functions and creates them in the database postgres.
sub install
{
	my ($node) = @_;
	my $library = Driver::build('rate_limit_driver');

	$node->safe_psql(
		'postgres',
		session($node)
		  . join(
			'',
			map { "CREATE FUNCTION $_->[0]$_->[1] LANGUAGE c STRICT AS '$library';\n" }
			  @functions));
	return;
}

# What a session must do first.
sub session
{
	my ($node) = @_;

	return "LOAD '" . ClerkTest::library_name($node) . "';\n";
}

1;
