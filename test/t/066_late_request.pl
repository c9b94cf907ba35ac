# A request that was given up must not reach Clerk later: what the kernel has
# yet to send is dropped as well.
use strict;
use warnings;

use ClerkTest;
use IO::Socket::INET;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Socket qw(SOL_SOCKET SO_RCVBUF);
use Test::More;

plan skip_all => 'needs TCP_USER_TIMEOUT, and /proc to see sockets'
  unless $^O eq 'linux';

# Far less than a request, so that most of it waits in the client's kernel: for
# that, nobody need read or acknowledge.
my $WINDOW = 2048;
my $END = 'the end of the request';

my $node = clerk_cluster('main');
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'tcp')
  or die "could not make a socket: $!";
setsockopt($listener, SOL_SOCKET, SO_RCVBUF, pack('i', $WINDOW)) or die "could not set a window: $!";
$listener->listen(5) or die "could not listen: $!";
my $port = $listener->sockport;

my $invited = attempt(
	$node, 'postgres', qq(
	SET clerk_invite.api_url = 'http://127.0.0.1:$port';
	SET clerk_invite.request_timeout = '1s';
	SELECT id FROM clerk_create_organization_invitation('org_test', NULL, 'ann\@example.com', 'org:member',
		metadata => jsonb_build_object('a', repeat('x', 7000), 'b', '$END'));));
is($invited->{sqlstate}, '08007', 'a request of which the server reads nothing is given up')
  or diag $invited->{stderr};

# The window is closed, so the kernel asks now and then whether it has opened.
my $client = $listener->accept or die "could not accept: $!";
my $gone = eval {
	local $PostgreSQL::Test::Utils::timeout_default = 10;
	wait_until('the client\'s kernel has given up too', sub { !is_open($client->peerport) });
};
ok($gone, 'what was not sent yet is not kept') or diag $@;

my $received = '';
my $more = 1;
$more = sysread($client, $received, 65536, length $received) while $more;
like($received, qr{^POST /v1/organizations/org_test/invitations}, 'the server gets the beginning');
ok($received !~ /\Q$END\E/, '... and not the end, when it reads at last');

$node->stop;
done_testing();

# Whether the client's end of a connection to our port exists.
sub is_open
{
	my ($local) = @_;

	my $pair = sprintf('0100007F:%04X 0100007F:%04X', $local, $port);
	return slurp_file('/proc/net/tcp') =~ /^\s*\d+: $pair /m;
}
