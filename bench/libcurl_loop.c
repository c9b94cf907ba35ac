/*
 * libcurl_loop.c
 *		The least that a C program can do: one easy handle, one request after
 *		the other, the answer into a buffer.  The yardstick of sync.sh.
 *
 * Arguments: URL, body, calls, CA file or "", header lines.
 * Prints the microseconds of the first call, with all that libcurl does before,
 * and those of a call of the others.
 */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static char answer[65536];
static size_t answer_length;

static size_t
on_answer(char *data, size_t size, size_t count, void *arg)
{
	size_t		length = size * count;

	(void) arg;
	if (answer_length + length > sizeof(answer))
		return 0;
	memcpy(answer + answer_length, data, length);
	answer_length += length;
	return length;
}

static double
now_microseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

int
main(int argc, char **argv)
{
	const char *url = argv[1];
	const char *body = argv[2];
	int			calls = atoi(argv[3]);
	struct curl_slist *headers = NULL;
	double		started = now_microseconds();
	double		first = 0;
	CURL	   *easy = curl_easy_init();

	for (int i = 5; i < argc; i++)
		headers = curl_slist_append(headers, argv[i]);
	curl_easy_setopt(easy, CURLOPT_URL, url);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_answer);
	if (argv[4][0] != '\0')
		curl_easy_setopt(easy, CURLOPT_CAINFO, argv[4]);

	/* The first call pays for the connection. */
	for (int i = -1; i < calls; i++)
	{
		CURLcode	result;
		long		status;

		if (i == 0)
		{
			double		now = now_microseconds();

			first = now - started;
			started = now;
		}
		answer_length = 0;
		result = curl_easy_perform(easy);
		if (result != CURLE_OK)
		{
			fprintf(stderr, "%s\n", curl_easy_strerror(result));
			return 1;
		}
		curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
		if (status != 200 || answer_length == 0)
		{
			fprintf(stderr, "status %ld\n", status);
			return 1;
		}
	}
	printf("%.2f %.2f\n", first, (now_microseconds() - started) / calls);
	return 0;
}
