# What the documentation says in its tables and links: the settings with their
# types, defaults and who may change them, every SQLSTATE and code of Clerk's,
# every page and section that is linked to; the README is short; and the
# drawings are those of their texts.
use strict;
use warnings;

use ClerkTest;
use Cwd qw(abs_path);
use Digest::SHA qw(sha256_hex);
use File::Basename qw(basename dirname);
use File::Find qw(find);
use MarkdownPage;
use PostgreSQL::Test::Utils;
use Test::More;

# What the page calls the contexts of settings.
my %WHO = (
	user => 'everyone',
	superuser => 'superuser',
	sighup => '`postgresql.conf` and `ALTER SYSTEM` only');

my $README_LINES = 350;

my %UNIT = (ms => ', milliseconds', s => ', seconds', '' => '');

my $source = abs_path("$ClerkTest::TEST_FOLDER/..");

check_settings();
check_errors();
check_links();
check_length();
check_drawings();

done_testing();

# The rows of the page's table, against those of pg_settings.
sub check_settings
{
	my $node = clerk_cluster('settings');
	my $library = ClerkTest::library_name($node);
	my $text = slurp_file("$source/docs/settings.md");
	my @documented =
	  $text =~ /^(\[`\w+`\]\([^)]*\) \| .* \| .* \| .*)$/mg;
	my @expected;

	# SHOW of a value that is not configured is the default, with its unit.
	foreach my $line (
		split(
			/\n/,
			$node->safe_psql(
				'postgres', qq(
				LOAD '$library';
				SELECT name, vartype, coalesce(unit, ''), context,
					CASE WHEN unit IS NULL THEN boot_val ELSE current_setting(name) END
				FROM pg_settings WHERE name LIKE 'clerk\\_invite.%' ORDER BY name))))
	{
		my ($name, $type, $unit, $context, $default) = split(/\|/, $line, -1);

		$name =~ s/^clerk_invite\.//;
		$type =~ s/^bool$/boolean/;
		push @expected,
		  join(' | ',
			$name, $type . $UNIT{$unit},
			$default eq '' ? 'empty' : "`$default`",
			$WHO{$context});
	}
	is_deeply(
		[ sort map { s/^\[`(\w+)`\]\([^)]*\)/$1/r } @documented ],
		[ sort @expected ],
		'the page of settings has each setting as it is');
	$node->stop;
	return;
}

# Each code of the source, and each SQLSTATE of the catalog's comments.
sub check_errors
{
	my $page = slurp_file("$source/docs/errors.md");
	my @codes =
	  map { slurp_file($_) =~ /^\t\{\d+, "([a-z_]+)"/mg } c_files();
	my %sqlstates = map { $_ => 1 } map { /\b([0-9][0-9A-Z]{4})\b(?=\s+\()/g }
	  slurp_file("$source/clerk_invite--1.0.sql") =~ /^raises: (.*?)';$/msg;
	my @rows = $page =~ /^(?:[0-9][0-9A-Z]{4}|any 4xx|any|[1-5]\d\d|[35]xx|2xx.*?) \| .*$/mg;

	cmp_ok(scalar(@codes), '>', 15, 'there are codes in the source');
	cmp_ok(scalar(keys %sqlstates), '>', 15, 'there are SQLSTATEs in the script');
	is_deeply([ grep { $page !~ /^[^|\n]+ \|[^|\n]*`$_`/m } @codes ],
		[], 'the page of errors has each of Clerk\'s codes');
	is_deeply([ grep { $page !~ /^$_ \| /m } sort keys %sqlstates ],
		[], 'the page of errors has each SQLSTATE');
	is_deeply([ grep { (split(/ \| /))[-1] !~ /\w\w/ || split(/ \| /) != 5 } @rows ],
		[], 'the page of errors says for each what to do');
	return;
}

# The files of src/, in whichever folder of it.
sub c_files
{
	my @files;

	find(sub { push @files, $File::Find::name if /\.c$/ }, "$source/src");
	return sort @files;
}

sub check_links
{
	my @pages = map { glob("$source/$_") } qw(*.md docs/*.md src/*.md src/*/*.md);
	my %anchors;
	my @broken;

	foreach my $file (@pages)
	{
		$anchors{$file} =
		  { map { $_ => 1 } MarkdownPage->read($file)->anchors };
	}
	foreach my $file (@pages)
	{
		foreach my $link (grep { !/^https?:/ } MarkdownPage->read($file)->links)
		{
			my ($path, $anchor) = $link =~ /^([^#]*)(?:#(.*))?$/;
			my $target = $path eq '' ? $file : abs_path(dirname($file) . "/$path");

			push @broken, basename($file) . ": $link"
			  if !$target
			  || !-e $target
			  || defined $anchor && !$anchors{$target}{$anchor};
		}
	}
	is_deeply(\@broken, [], 'every link leads somewhere');

	my $list = slurp_file("$source/docs/README.md");
	is_deeply(
		[
			grep { $_ ne 'README.md' && index($list, "]($_)") < 0 }
			map { basename($_) } glob("$source/docs/*.md")
		],
		[],
		'the list of pages has every page');
	return;
}

# What does not fit belongs on a page of its own.
sub check_length
{
	my @lines = split(/\n/, slurp_file("$source/README.md"));

	cmp_ok(scalar(@lines), '<=', $README_LINES,
		"the README has at most $README_LINES lines");
	return;
}

sub check_drawings
{
	foreach my $text (glob("$source/docs/*.dot"))
	{
		my $name = basename($text, '.dot');
		my $drawing = slurp_file("$source/docs/$name.svg");
		my $sum = sha256_hex(slurp_file($text));

		like($drawing, qr/from $name\.dot, SHA-256 $sum/,
			"$name.svg was made of $name.dot as it is");
	}
	my ($dashboard) = run_command([ 'python3', '-B', "$source/docs/dashboard/draw.py" ]);
	ok("$dashboard\n" eq slurp_file("$source/docs/dashboard.svg"),
		'dashboard.svg was made of the dashboard and the recording as they are');
	return;
}
