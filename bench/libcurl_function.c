/*
 * libcurl_function.c
 *		libcurl_loop.c's request as an SQL function: the least that a call from
 *		a backend costs, without waiting for the latch, without looking at the
 *		answer.  The second yardstick of sync.sh.
 *
 * libcurl_call(url text, body text, ca_file text, headers text[]) RETURNS
 * integer, the answer's length.  The arguments count in a session's first call
 * only.
 */
#include "postgres.h"

#include <curl/curl.h>

#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;

static char answer[65536];
static size_t answer_length;

static CURL *prepare(FunctionCallInfo fcinfo);
static size_t on_answer(char *data, size_t size, size_t count, void *arg);

PG_FUNCTION_INFO_V1(libcurl_call);

Datum
libcurl_call(PG_FUNCTION_ARGS)
{
	static CURL *easy = NULL;
	CURLcode	result;
	long		status;

	if (easy == NULL)
		easy = prepare(fcinfo);
	answer_length = 0;
	result = curl_easy_perform(easy);
	if (result != CURLE_OK)
		elog(ERROR, "%s", curl_easy_strerror(result));
	curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
	if (status != 200 || answer_length == 0)
		elog(ERROR, "status %ld", status);
	PG_RETURN_INT32(answer_length);
}

static CURL *
prepare(FunctionCallInfo fcinfo)
{
	CURL	   *easy = curl_easy_init();
	struct curl_slist *headers = NULL;
	const char *ca_file = text_to_cstring(PG_GETARG_TEXT_PP(2));
	Datum	   *lines;
	int			count;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(3), TEXTOID, -1, false,
					  TYPALIGN_INT, &lines, NULL, &count);
	for (int i = 0; i < count; i++)
		headers = curl_slist_append(headers, TextDatumGetCString(lines[i]));
	curl_easy_setopt(easy, CURLOPT_URL,
					 text_to_cstring(PG_GETARG_TEXT_PP(0)));
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_COPYPOSTFIELDS,
					 text_to_cstring(PG_GETARG_TEXT_PP(1)));
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_answer);
	if (ca_file[0] != '\0')
		curl_easy_setopt(easy, CURLOPT_CAINFO, ca_file);
	return easy;
}

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
