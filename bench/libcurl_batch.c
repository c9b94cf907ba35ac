/*
 * libcurl_batch.c
 *		The least that a C program can do to make many requests, several at a
 *		time: a multi handle, easy handles that are used again, the answers into
 *		buffers.  The yardstick of backlog.sh.
 *
 * Arguments: URL, requests, how many of them at a time, invitations in each (with
 * more than one, the body is a list), header lines.
 * Prints the seconds that the requests took.
 */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_AT_A_TIME 100
#define INVITATION \
	"{\"email_address\":\"person-%d@example.com\",\"role\":\"org:member\"," \
	"\"inviter_user_id\":\"user_2gYl1bMrC4dE5fG6hI7jK8lM9nO\"}"

typedef struct Slot
{
	CURL	   *easy;
	char		body[4096];
	char		answer[65536];
	size_t		answer_length;
} Slot;

static Slot slots[MAX_AT_A_TIME];
static int	invitations_made;

static size_t
on_answer(char *data, size_t size, size_t count, void *arg)
{
	Slot	   *slot = arg;
	size_t		length = size * count;

	if (slot->answer_length + length > sizeof(slot->answer))
		return 0;
	memcpy(slot->answer + slot->answer_length, data, length);
	slot->answer_length += length;
	return length;
}

static double
now_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void
give_up(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

/* Starts the slot's next request. */
static void
start(CURLM *multi, Slot *slot, int invitations)
{
	char	   *end = slot->body;

	if (invitations > 1)
		*end++ = '[';
	for (int i = 0; i < invitations; i++)
	{
		if (i > 0)
			*end++ = ',';
		end += sprintf(end, INVITATION, ++invitations_made);
	}
	if (invitations > 1)
		*end++ = ']';
	slot->answer_length = 0;
	curl_easy_setopt(slot->easy, CURLOPT_POSTFIELDSIZE, (long) (end - slot->body));
	curl_easy_setopt(slot->easy, CURLOPT_POSTFIELDS, slot->body);
	if (curl_multi_add_handle(multi, slot->easy) != CURLM_OK)
		give_up("could not start a request");
}

/* Checks a request that has come to its end, and returns its slot. */
static Slot *
finish(CURLM *multi, const CURLMsg *message)
{
	CURL	   *easy = message->easy_handle;
	Slot	   *slot;
	long		status;

	if (message->data.result != CURLE_OK)
		give_up(curl_easy_strerror(message->data.result));
	curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
	curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **) &slot);
	if (status != 200 || slot->answer_length == 0)
		give_up("the server refuses");
	curl_multi_remove_handle(multi, easy);
	return slot;
}

int
main(int argc, char **argv)
{
	int			requests = atoi(argv[2]);
	int			at_a_time = atoi(argv[3]);
	int			invitations = atoi(argv[4]);
	int			started = 0;
	int			finished = 0;
	CURLM	   *multi = curl_multi_init();
	struct curl_slist *headers = NULL;
	double		begun;

	if (at_a_time < 1 || at_a_time > MAX_AT_A_TIME || invitations < 1 || invitations > 10)
		give_up("too many");
	for (int i = 5; i < argc; i++)
		headers = curl_slist_append(headers, argv[i]);
	for (int i = 0; i < at_a_time; i++)
	{
		CURL	   *easy = slots[i].easy = curl_easy_init();

		curl_easy_setopt(easy, CURLOPT_URL, argv[1]);
		curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
		curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_answer);
		curl_easy_setopt(easy, CURLOPT_WRITEDATA, &slots[i]);
		curl_easy_setopt(easy, CURLOPT_PRIVATE, &slots[i]);
	}

	begun = now_seconds();
	while (started < at_a_time && started < requests)
		start(multi, &slots[started++], invitations);
	while (finished < requests)
	{
		int			running;
		int			left;
		CURLMsg    *message;

		if (curl_multi_perform(multi, &running) != CURLM_OK)
			give_up("curl_multi_perform");
		while ((message = curl_multi_info_read(multi, &left)) != NULL)
		{
			Slot	   *slot = finish(multi, message);

			finished++;
			if (started++ < requests)
				start(multi, slot, invitations);
		}
		if (finished < requests)
			curl_multi_poll(multi, NULL, 0, 1000, NULL);
	}
	printf("%.3f\n", now_seconds() - begun);
	return 0;
}
