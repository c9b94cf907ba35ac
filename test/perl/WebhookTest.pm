# WebhookTest - signs webhooks as Svix does
#
#	my $result = receive($node, signed(event('accepted', $id)));
#	is($result->{stdout}, 'updated');

package WebhookTest;

use strict;
use warnings;

use ClerkTest;
use Digest::SHA qw(hmac_sha256);
use Exporter 'import';
use JSON::PP ();
use MIME::Base64 qw(decode_base64 encode_base64);

our @EXPORT = qw(
  event
  new_secret
  receive
  receive_sql
  signature
  signed
);

my $number = 0;

# A secret as Clerk's Dashboard shows it, of so many bytes.
sub new_secret
{
	my ($length) = @_;

	return 'whsec_'
	  . encode_base64(join('', map { chr(int(rand(256))) } 1 .. $length // 24), '');
}

# The body of an event about an invitation.
sub event
{
	my ($what, $id, %more) = @_;

	return JSON::PP->new->canonical->encode(
		{
			object => 'event',
			type => "organizationInvitation.$what",
			timestamp => time * 1000,
			instance_id => 'ins_test',
			data => {
				object => 'organization_invitation',
				id => $id,
				status => $what eq 'created' ? 'pending' : $what,
				url => 'https://example.com/?__clerk_ticket=secret',
				%more
			},
			event_attributes => { http_request => { client_ip => '127.0.0.1' } }
		});
}

sub signature
{
	my ($secret, $id, $time, $body) = @_;

	return 'v1,'
	  . encode_base64(
		hmac_sha256("$id.$time.$body", decode_base64($secret =~ s/^whsec_//r)), '');
}

# A body (bytes) and its headers.  %params: secret, id, time, prefix of the
# headers' names.
sub signed
{
	my ($body, %params) = @_;
	my $id = $params{id} // 'msg_' . ++$number . '_' . time;
	my $time = $params{time} // time;
	my $prefix = $params{prefix} // 'svix-';

	return {
		body => $body,
		headers => {
			"${prefix}id" => "$id",
			"${prefix}timestamp" => "$time",
			"${prefix}signature" => signature($params{secret}, $id, $time, $body)
		}
	};
}

# SQL that receives a webhook; the headers may also be SQL.
sub receive_sql
{
	my ($webhook) = @_;
	my ($body, $headers) = map { quoted($_) } $webhook->{body},
	  ref $webhook->{headers}
	  ? JSON::PP->new->canonical->ascii->encode($webhook->{headers})
	  : $webhook->{headers};

	my $sql = "SELECT clerk_receive_webhook($body, $headers);";

	# Bytes, whatever Perl has made of them.
	utf8::downgrade($sql);
	return $sql;
}

# What comes of it; %params as for attempt().
sub receive
{
	my ($node, $webhook, %params) = @_;

	return attempt($node, 'postgres', ($params{before} // '') . receive_sql($webhook), %params);
}

sub quoted
{
	my ($text) = @_;

	return 'NULL' unless defined $text;
	return "'" . $text =~ s/'/''/gr . "'";
}

1;
