# TestCertificates - certificate authorities and what they sign, for a test
#
#	my $authority = TestCertificates->new($folder, 'ours');
#	my ($certificate, $key) = $authority->sign('good');
#	... $authority->file ...
#
# Made with the openssl command, 1.1.1 or later.

package TestCertificates;

use strict;
use warnings;

use POSIX qw(strftime);
use PostgreSQL::Test::Utils;

my $DAY = 86400;

# A new authority, which keeps its files in a folder of this name in $folder.
sub new
{
	my ($class, $folder, $name) = @_;
	my $self = bless { folder => "$folder/$name" }, $class;

	mkdir $self->{folder} or die "could not make $self->{folder}: $!";
	append_to_file("$self->{folder}/index", '');
	append_to_file("$self->{folder}/openssl.cnf", <<EOC);
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[ca]
default_ca = this
[this]
dir = $self->{folder}
database = \$dir/index
new_certs_dir = \$dir
certificate = \$dir/ca.crt
private_key = \$dir/ca.key
rand_serial = yes
default_md = sha256
policy = policy
unique_subject = no
[policy]
commonName = supplied
EOC
	$self->_new_key('ca');
	$self->_openssl(
		'req', '-x509', '-new', '-key', 'ca.key',
		'-subj', "/CN=$name", '-extensions', 'authority',
		'-days', '2', '-out', 'ca.crt');
	return $self;
}

# The authority's own certificate.
sub file
{
	my ($self) = @_;

	return "$self->{folder}/ca.crt";
}

# Signs a server's certificate and returns the files of it and of its key.
# Options: names, what it is good for; ends, seconds from now.
sub sign
{
	my ($self, $name, %options) = @_;
	my $names = $options{names} // 'DNS:localhost,IP:127.0.0.1';
	my $ends = $options{ends} // $DAY;

	append_to_file("$self->{folder}/$name.ext",
		"basicConstraints = CA:false\n"
		  . "authorityKeyIdentifier = keyid\n"
		  . "subjectAltName = $names\n");
	$self->_new_key($name);
	$self->_openssl('req', '-new', '-key', "$name.key", '-subj', "/CN=$name",
		'-out', "$name.csr");
	$self->_openssl(
		'ca', '-batch', '-notext', '-in', "$name.csr", '-out', "$name.crt",
		'-extfile', "$name.ext",
		'-startdate', _time(-2 * $DAY),
		'-enddate', _time($ends));
	return map { "$self->{folder}/$name.$_" } qw(crt key);
}

sub _new_key
{
	my ($self, $name) = @_;

	# Not RSA, whose keys take long to make.
	system_or_bail('openssl', 'ecparam', '-name', 'prime256v1', '-genkey',
		'-noout', '-out', "$self->{folder}/$name.key");
	return;
}

# Runs a command of openssl's that reads a configuration, and must succeed.
sub _openssl
{
	my ($self, $command, @arguments) = @_;
	my $line = join(' ',
		"cd '$self->{folder}' && openssl $command -config openssl.cnf",
		map { "'$_'" } @arguments);
	my $said = qx($line 2>&1);

	die "openssl $command failed: $said" if $? != 0;
	return;
}

# A time so many seconds from now, as openssl wants it.
sub _time
{
	my ($seconds) = @_;

	return strftime('%Y%m%d%H%M%SZ', gmtime(time + $seconds));
}

1;
