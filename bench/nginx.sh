# nginx.sh - a server with a constant answer: Clerk's to a new invitation
#
# Sourced, not run, after cores.sh, with the name of the measurement's folder in
# folder.  start_nginx sets plain_port (HTTP/1.1) and tls_port (HTTP/2 as well).

# As Clerk answers an invitation that a backend sends in nobody's name: a URL
# with a signed ticket makes up half of it.
answer='{"object":"organization_invitation","id":"orginv_2fXk0aLqB3cD4eF5gH6iJ7kL8mN","email_address":"ann@example.com","role":"org:member","role_name":"Member","organization_id":"org_2fXk0aLqB3cD4eF5gH6iJ7kL8mN","inviter_id":null,"public_inviter_data":null,"status":"pending","public_metadata":{"team":"red"},"private_metadata":{},"url":"https://clerk.example.com/v1/tickets/accept?ticket=eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJlaXMiOjI1OTIwMDAsImV4cCI6MTc5NTg5MjA3MSwiaWlkIjoiaW5zXzJnIiwic2lkIjoib3JnaW52XzJmIiwic3QiOiJvcmdhbml6YXRpb25faW52aXRhdGlvbiJ9.c2lnbmF0dXJlLXNpZ25hdHVyZS1zaWduYXR1cmU","expires_at":1795892071000,"created_at":1793300071000,"updated_at":1793300071000}'

free_port()
{
	python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

start_nginx()
{
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost \
		-addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
		-keyout "$folder/tls.key" -out "$folder/tls.crt" 2>"$folder/openssl.log"
	plain_port=$(free_port)
	tls_port=$(free_port)
	sed -e "s,@FOLDER@,$folder,; s,@PLAIN@,$plain_port,; s,@TLS@,$tls_port," \
		bench/nginx.conf >"$folder/nginx.conf"
	printf '%s' "$answer" >"$folder/answer.json"
	taskset -c "$server_cpu" /usr/sbin/nginx -c "$folder/nginx.conf" \
		2>"$folder/nginx.log"
}

stop_nginx()
{
	if [ -f "$folder/nginx.pid" ]; then
		kill "$(cat "$folder/nginx.pid")"
	fi
}

# requests_served: how many requests the server has answered so far
requests_served()
{
	python3 -c 'import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1]).read().split()[9].decode())' \
		"http://127.0.0.1:$plain_port/status"
}
