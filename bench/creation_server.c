/*
 * creation_server.c
 *		A Clerk that creates whatever it is asked to create, and remembers
 *		nothing: the server of drain.sh, fast enough not to be what is measured.
 *
 * Argument: none, or a file to which a line is added for each invitation: the
 * time, in microseconds, when its request had been read, and its address.
 *
 * Listens on a free port of the loopback address and prints its number.  One
 * thread, HTTP/1.1 over kept connections, requests may be pipelined.  Answers
 *
 *	POST /v1/organizations/ORG/invitations			an invitation
 *	POST /v1/organizations/ORG/invitations/bulk		a list of 1 to 10
 *	GET of either list of invitations				an empty list
 *
 * and anything else with 404.  An invitation has an id of its own, and the
 * organization and address of the request; the rest is constant, as long as
 * Clerk's.  Addresses are what stands after "email_address": in the body, and
 * are repeated with their escapes.
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Ten invitations, each with 8 kB of both kinds of metadata, and their head. */
#define INPUT_SIZE (192 * 1024)
#define OUTPUT_SIZE (64 * 1024)

/* A line's worth of head, and ten invitations of the longest address. */
#define MAX_ANSWER (20 * 1024)
#define MAX_BULK 10
#define MAX_ADDRESS 320
#define MAX_ORGANIZATION 64
#define EVENTS 64

#define ORGANIZATIONS "/v1/organizations/"
#define INVITATIONS "/invitations"
#define BULK INVITATIONS "/bulk"
#define NOT_FOUND "{\"errors\":[{\"message\":\"not found\",\"long_message\":\"not found\",\"code\":\"resource_not_found\"}]}"
#define EMPTY_LIST "{\"data\":[],\"total_count\":0}"
#define MONTH_IN_MILLISECONDS 2592000000LL

/* Identifier, address, organization, times of expiry and creation. */
#define INVITATION \
	"{\"object\":\"organization_invitation\"," \
	"\"id\":\"orginv_2fXk0aLqB3c%016llx\"," \
	"\"email_address\":\"%.*s\",\"role\":\"org:member\"," \
	"\"role_name\":\"Member\",\"organization_id\":\"%.*s\"," \
	"\"inviter_id\":null,\"public_inviter_data\":null," \
	"\"status\":\"pending\",\"public_metadata\":{}," \
	"\"private_metadata\":{}," \
	"\"url\":\"https://clerk.example.com/v1/tickets/accept?ticket=" \
	"eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9." \
	"eyJlaXMiOjI1OTIwMDAsImV4cCI6MTc5NTg5MjA3MSwiaWlkIjoiaW5zXzJnIiwic2lkI" \
	"joib3JnaW52XzJmIiwic3QiOiJvcmdhbml6YXRpb25faW52aXRhdGlvbiJ9." \
	"c2lnbmF0dXJlLXNpZ25hdHVyZS1zaWduYXR1cmU\"," \
	"\"expires_at\":%lld,\"created_at\":%lld,\"updated_at\":%lld}"

/* A piece of a request. */
typedef struct Text
{
	const char *start;
	int			length;
} Text;

typedef struct Connection
{
	int			socket;
	bool		closing;		/* once what is in the output has gone out */
	unsigned	wanted;			/* what epoll waits for */
	int			input_length;
	int			output_length;
	char		input[INPUT_SIZE];
	char		output[OUTPUT_SIZE];
} Connection;

typedef struct Request
{
	Text		method;
	Text		path;
	Text		body;
	int			length;			/* of all of it; 0: not all here yet */
	bool		malformed;
} Request;

static int	poller;
static unsigned long long created;
static FILE *journal;

static void
give_up(const char *what)
{
	perror(what);
	exit(1);
}

static long long
now_microseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static bool
equals(Text text, const char *wanted)
{
	return text.length == (int) strlen(wanted) &&
		memcmp(text.start, wanted, text.length) == 0;
}

static bool
ends_with(Text text, const char *wanted)
{
	int			length = strlen(wanted);

	return text.length >= length &&
		memcmp(text.start + text.length - length, wanted, length) == 0;
}

/* The part before the first such character, which is cut off with it. */
static Text
cut(Text *text, char delimiter)
{
	const char *end = memchr(text->start, delimiter, text->length);
	Text		part = {text->start, end ? (int) (end - text->start) : text->length};
	int			cut_off = part.length + (end != NULL);

	text->start += cut_off;
	text->length -= cut_off;
	return part;
}

/* Content-Length of a request's head; 0 if there is none, -1 if it is none. */
static int
body_length(Text head)
{
	static const char name[] = "content-length:";
	const int	name_length = sizeof(name) - 1;
	int			length = 0;

	while (head.length > 0)
	{
		Text		line = cut(&head, '\n');

		if (line.length <= name_length ||
			strncasecmp(line.start, name, name_length) != 0)
			continue;
		for (int i = name_length; i < line.length; i++)
		{
			char		c = line.start[i];

			if (c == ' ' || c == '\r')
				continue;
			if (c < '0' || c > '9' || length > INPUT_SIZE)
				return -1;
			length = length * 10 + (c - '0');
		}
	}
	return length;
}

static Request
read_request(const Connection *connection)
{
	Request		request = {0};
	const char *end = memmem(connection->input, connection->input_length,
							 "\r\n\r\n", 4);
	Text		head = {connection->input, 0};
	Text		line;
	int			length;

	if (end == NULL)
	{
		request.malformed = connection->input_length == INPUT_SIZE;
		return request;
	}
	head.length = end + 4 - connection->input;
	length = body_length(head);
	request.malformed = length < 0 || head.length + length > INPUT_SIZE;
	if (request.malformed || head.length + length > connection->input_length)
		return request;

	request.length = head.length + length;
	request.body.start = end + 4;
	request.body.length = length;
	line = cut(&head, '\r');
	request.method = cut(&line, ' ');
	line = cut(&line, ' ');
	request.path = cut(&line, '?');
	return request;
}

/* Whether the path is an organization's, with this after its identifier. */
static bool
is_of_organization(Text path, const char *rest, Text *organization)
{
	int			before = strlen(ORGANIZATIONS);

	if (path.length < before ||
		memcmp(path.start, ORGANIZATIONS, before) != 0 ||
		!ends_with(path, rest))
		return false;
	organization->start = path.start + before;
	organization->length = path.length - before - (int) strlen(rest);
	return organization->length > 0 &&
		organization->length <= MAX_ORGANIZATION &&
		memchr(organization->start, '/', organization->length) == NULL;
}

/* The next address in a body, which is cut off with it; false: there is none. */
static bool
next_address(Text *body, Text *address)
{
	static const char name[] = "\"email_address\"";
	const char *end = body->start + body->length;
	const char *c = memmem(body->start, body->length, name, sizeof(name) - 1);

	if (c == NULL)
		return false;
	c += sizeof(name) - 1;
	while (c < end && (*c == ' ' || *c == ':'))
		c++;
	if (c == end || *c++ != '"')
		return false;
	address->start = c;
	while (c < end && *c != '"')
		c += *c == '\\' ? 2 : 1;
	if (c >= end)
		return false;
	address->length = c - address->start;
	body->length = end - c;
	body->start = c;
	return true;
}

static int
write_invitation(char *to, Text organization, Text address, long long now)
{
	return sprintf(to, INVITATION, ++created,
				   address.length, address.start,
				   organization.length, organization.start,
				   now + MONTH_IN_MILLISECONDS, now, now);
}

/* The answer's body, as long as returned; 0 if the request is to be refused. */
static int
write_invitations(char *to, Text organization, Text body, bool bulk)
{
	long long	now = now_microseconds();
	int			length = bulk ? sprintf(to, "{\"data\":[") : 0;
	int			count = 0;
	Text		address;

	while (next_address(&body, &address))
	{
		if (address.length > MAX_ADDRESS || count++ == (bulk ? MAX_BULK : 1))
			return 0;
		if (count > 1)
			to[length++] = ',';
		length += write_invitation(to + length, organization, address, now / 1000);
		if (journal)
			fprintf(journal, "%lld %.*s\n", now, address.length, address.start);
	}
	if (bulk)
		length += sprintf(to + length, "],\"total_count\":%d}", count);
	return count > 0 ? length : 0;
}

static const char *
date_header(void)
{
	static char text[64];
	static time_t last;
	time_t		now = time(NULL);

	if (now != last)
		strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", gmtime(&now));
	last = now;
	return text;
}

static void
answer(Connection *connection, const Request *request)
{
	char		body[MAX_ANSWER];
	int			length = 0;
	int			status = 200;
	Text		organization;

	if (equals(request->method, "POST"))
	{
		bool		bulk = ends_with(request->path, BULK);

		if (is_of_organization(request->path, bulk ? BULK : INVITATIONS,
							   &organization))
			length = write_invitations(body, organization, request->body, bulk);
	}
	else if (equals(request->method, "GET") &&
			 (equals(request->path, "/v1/organization_invitations") ||
			  is_of_organization(request->path, INVITATIONS, &organization)))
		length = sprintf(body, EMPTY_LIST);
	if (length == 0)
	{
		status = 404;
		length = sprintf(body, NOT_FOUND);
	}

	connection->output_length +=
		sprintf(connection->output + connection->output_length,
				"HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: application/json\r\n"
				"Content-Length: %d\r\n"
				"x-clerk-trace-id: 0123456789abcdef0123456789abcdef\r\n%s\r\n%.*s",
				status, status == 200 ? "OK" : "Not Found", date_header(),
				length, connection->closing ? "Connection: close\r\n" : "",
				length, body);
}

/* Answers the first request of the input, if there is one and room for it. */
static bool
answer_next(Connection *connection)
{
	Request		request;

	if (connection->closing ||
		connection->output_length + MAX_ANSWER > OUTPUT_SIZE)
		return false;
	request = read_request(connection);
	connection->closing = request.malformed;
	if (request.length == 0 && !request.malformed)
		return false;
	answer(connection, &request);
	connection->input_length -= request.length;
	memmove(connection->input, connection->input + request.length,
			connection->input_length);
	return true;
}

/* Receives what there is; false at the connection's end. */
static bool
receive(Connection *connection)
{
	ssize_t		received = recv(connection->socket,
								connection->input + connection->input_length,
								INPUT_SIZE - connection->input_length, 0);

	if (received <= 0)
		return received < 0 && (errno == EAGAIN || errno == EINTR);
	connection->input_length += received;
	return true;
}

/* Sends as much of the output as the socket takes; false at an error. */
static bool
transmit(Connection *connection)
{
	ssize_t		sent = send(connection->socket, connection->output,
							connection->output_length, MSG_NOSIGNAL);

	if (sent < 0)
		return errno == EAGAIN || errno == EINTR;
	connection->output_length -= sent;
	memmove(connection->output, connection->output + sent,
			connection->output_length);
	return true;
}

/* Nothing more is read from a client that does not read its answers. */
static void
wait_for(Connection *connection, unsigned wanted)
{
	struct epoll_event event = {.events = wanted};

	event.data.ptr = connection;
	if (connection->wanted != wanted &&
		epoll_ctl(poller, EPOLL_CTL_MOD, connection->socket, &event) != 0)
		give_up("epoll_ctl");
	connection->wanted = wanted;
}

/* False if the connection is at its end. */
static bool
serve(Connection *connection)
{
	bool		more;

	if (connection->wanted == EPOLLIN && !receive(connection))
		return false;
	do
	{
		more = false;
		while (answer_next(connection))
			more = true;
		if (connection->output_length > 0 && !transmit(connection))
			return false;
	} while (more && connection->output_length == 0);
	if (connection->closing && connection->output_length == 0)
		return false;
	wait_for(connection, connection->output_length > 0 ? EPOLLOUT : EPOLLIN);
	return true;
}

static void
accept_connection(int listener)
{
	int			one = 1;
	int			client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	struct epoll_event event = {.events = EPOLLIN};
	Connection *connection;

	if (client < 0)
		return;
	connection = calloc(1, sizeof(Connection));
	if (connection == NULL)
		give_up("calloc");
	connection->socket = client;
	connection->wanted = EPOLLIN;
	event.data.ptr = connection;
	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (epoll_ctl(poller, EPOLL_CTL_ADD, client, &event) != 0)
		give_up("epoll_ctl");
}

static int
listen_on_free_port(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t	length = sizeof(address);
	int			listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (listener < 0 ||
		bind(listener, (struct sockaddr *) &address, length) != 0 ||
		listen(listener, 128) != 0 ||
		getsockname(listener, (struct sockaddr *) &address, &length) != 0)
		give_up("could not listen");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	return listener;
}

int
main(int argc, char **argv)
{
	int			listener = listen_on_free_port();
	struct epoll_event event = {.events = EPOLLIN};

	if (argc > 1)
	{
		journal = fopen(argv[1], "a");
		if (journal == NULL || setvbuf(journal, NULL, _IOLBF, 0) != 0)
			give_up("could not open the journal");
	}
	poller = epoll_create1(0);
	if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) != 0)
		give_up("epoll");
	for (;;)
	{
		struct epoll_event events[EVENTS];
		int			count = epoll_wait(poller, events, EVENTS, -1);

		for (int i = 0; i < count; i++)
		{
			Connection *connection = events[i].data.ptr;

			if (connection == NULL)
				accept_connection(listener);
			else if (!serve(connection))
			{
				close(connection->socket);
				free(connection);
			}
		}
	}
}
