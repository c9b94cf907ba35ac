/*
 * mutator.c
 *		Changes texts at random, as bytes and as JSON.
 *
 * The same state of the generator makes the same changes, so that each of
 * millions of texts can be made again from two numbers.  A text that an earlier
 * change has made invalid is still changed as JSON, as far as parts of it look
 * like JSON.
 */
#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "mutator.h"

/* Values of a text that are considered for changes. */
#define MAX_VALUES 2048

/* A value of JSON in a text, or the name of a field. */
typedef struct Span
{
	size_t		start;
	size_t		end;
	bool		is_name;
} Span;

typedef struct Spans
{
	int			count;
	Span		spans[MAX_VALUES];
} Spans;

/* Values that are unusual somewhere. */
static const char *const values[] = {
	"null", "true", "false", "{}", "[]", "\"\"", "0", "-0", "-1", "1e400",
	"-1e400", "1e-400", "0.5", "9223372036854775807", "-9223372036854775808",
	"9223372036854775808", "2147483647", "2147483648", "4294967296",
	"99999999999999999999999999999999999999", "1712345678901.75",
	"253402300800000", "8640000000000001", "-62135596800001",
	"9224318015999999", "9224318016000000", "-210866803200001", "1E+5", "01",
	".5", "1.", "NaN", "Infinity", "[[]]", "[{}]", "{\"id\":null}", "[null,1]",
	"\"\\u0000\"", "\"\\ud800\"", "\"\\udc00\\ud800\"", "\"\\ud83d\\ude00\"",
	"\"\\u30e1\"", "\"\\u20ac\"", "\"\\\"", "\"\\x\"", "\"\\u12\"", "\"\n\"",
	"\"\xff\"", "\"\xc3\xa4\"", "\"\xe3\x83\xa1\"", "\"\xf0\x9f\x98\x80\"",
	"\"orginv_1\"", "\"pending\"", "\"ann@example.com\"", "\"a@\"", "\"@\"",
	"\"https://x/?__clerk_ticket=t\"", "\"://?\"", "\"sk_test_fuzz\"", "'x'", "",
};

/* Names of fields that the decoder knows, and some that it does not. */
static const char *const names[] = {
	"\"id\"", "\"data\"", "\"total_count\"", "\"errors\"", "\"code\"",
	"\"meta\"", "\"message\"", "\"long_message\"", "\"clerk_trace_id\"",
	"\"param_name\"", "\"email_addresses\"", "\"identifiers\"",
	"\"email_address\"", "\"created_at\"", "\"expires_at\"", "\"url\"",
	"\"public_metadata\"", "\"status\"", "\"i\\u0064\"", "\"\"", "\"ID\"",
	"\"\xff\"", "id", "1",
};

/* Parts of strings, not in quotes. */
static const char *const pieces[] = {
	"\\u0000", "\\ud800", "\\udfff", "\\ud83d\\ude00", "\\u30e1", "\\\"", "\\\\",
	"\\", "\\u", "\\u1", "\"", "\xc3", "\xa4", "\xe3\x83", "\xed\xa0\x80",
	"\xc0\x80", "\xf4\x90\x80\x80", "\xef\xbb\xbf", "\t", "\r\n", "\x7f", "@",
	".", "://", "?", " <ann@example.com> ", "sk_test_fuzz", "%s%n", "\xe2\x80\xae",
};

/* Bytes that mean something to some layer. */
static const char bytes[] = {
	'\0', '"', '\\', '{', '}', '[', ']', ',', ':', '-', '0', '9', 'e', '.', 'u',
	'n', 't', '/', ' ', '\t', '\n', '\r', 0x1f, 0x7f, (char) 0x80, (char) 0xbf,
	(char) 0xc0, (char) 0xe2, (char) 0xed, (char) 0xf4, (char) 0xff,
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* A number from 0 to limit - 1; 0 if the limit is 0.  (SplitMix64.) */
uint64_t
fuzz_random(FuzzRandom *random, uint64_t limit)
{
	uint64_t	z = (*random += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	z ^= z >> 31;
	return limit == 0 ? 0 : z % limit;
}

/* A copy of a text, or of a part of one, in memory of exactly its size. */
FuzzText
fuzz_copy(const char *data, size_t length)
{
	FuzzText	copy = {malloc(length > 0 ? length : 1), length};

	if (copy.data == NULL)
		abort();
	memcpy(copy.data, data, length);
	return copy;
}

/*
 * Replaces the bytes from "start" to "end" with "count" copies of other bytes,
 * which may be a part of the text.  Does nothing if the text would be too long.
 */
static void
replace(FuzzText *text, size_t start, size_t end, const char *data,
		size_t length, size_t count)
{
	FuzzText	changed;
	char	   *to;

	changed.length = text->length - (end - start) + length * count;
	if (changed.length > FUZZ_MAX_TEXT)
		return;
	changed.data = malloc(changed.length > 0 ? changed.length : 1);
	if (changed.data == NULL)
		abort();
	memcpy(changed.data, text->data, start);
	to = changed.data + start;
	for (size_t i = 0; i < count; i++, to += length)
		memcpy(to, data, length);
	memcpy(to, text->data + end, text->length - end);
	free(text->data);
	*text = changed;
}

static void
replace_by(FuzzText *text, size_t start, size_t end, const char *string)
{
	replace(text, start, end, string, strlen(string), 1);
}

static void
add_span(Spans *found, size_t start, size_t end, bool is_name)
{
	if (found->count < MAX_VALUES)
		found->spans[found->count++] = (Span) {start, end, is_name};
}

/* End of the string that begins at "start": after its closing quote. */
static size_t
end_of_string(const FuzzText *text, size_t start)
{
	size_t		i = start + 1;

	while (i < text->length && text->data[i] != '"')
		i += text->data[i] == '\\' ? 2 : 1;
	return i < text->length ? i + 1 : text->length;
}

static size_t
end_of_word(const FuzzText *text, size_t start)
{
	size_t		i = start;

	while (i < text->length && (isalnum((unsigned char) text->data[i]) ||
								strchr("+-.", text->data[i]) != NULL) &&
		   text->data[i] != '\0')
		i++;
	return i > start ? i : start + 1;
}

/* Finds what looks like values and names of fields. */
static void
find_spans(const FuzzText *text, Spans *found)
{
	size_t		open[64];
	int			depth = 0;
	size_t		i = 0;

	found->count = 0;
	while (i < text->length)
	{
		char		c = text->data[i];
		size_t		end = i + 1;

		if (c == '"')
		{
			end = end_of_string(text, i);
			add_span(found, i, end, end < text->length && text->data[end] == ':');
		}
		else if (c == '{' || c == '[')
		{
			if (depth < (int) COUNT(open))
				open[depth++] = i;
		}
		else if (c == '}' || c == ']')
		{
			if (depth > 0)
				add_span(found, open[--depth], end, false);
		}
		else if (isalnum((unsigned char) c) || c == '-')
		{
			end = end_of_word(text, i);
			add_span(found, i, end, false);
		}
		i = end;
	}
}

/* A span at random; all of the text if there is none. */
static Span
choose(FuzzRandom *random, const FuzzText *text, const Spans *found)
{
	if (found->count == 0)
		return (Span) {0, text->length, false};
	return found->spans[fuzz_random(random, found->count)];
}

/*
 * The field that a name belongs to, with the comma behind it or in front of it,
 * or the element of an array.
 */
static Span
with_comma(const FuzzText *text, const Spans *found, Span span)
{
	if (span.is_name)
		for (int i = 0; i < found->count; i++)
			if (found->spans[i].start == span.end + 1)
				span.end = found->spans[i].end;
	if (span.end < text->length && text->data[span.end] == ',')
		span.end++;
	else if (span.start > 0 && text->data[span.start - 1] == ',')
		span.start--;
	return span;
}

/* Puts so many opening brackets before a value, and closing ones behind it. */
static void
nest(FuzzRandom *random, FuzzText *text, Span span)
{
	static const char *const opening[] = {"[", "{\"id\":"};
	static const char *const closing[] = {"]", "}"};
	int			kind = fuzz_random(random, 2);
	size_t		levels = fuzz_random(random, 500) == 0 ?
	fuzz_random(random, 50000) : 1 + fuzz_random(random, 8);

	replace(text, span.end, span.end, closing[kind], 1, levels);
	replace(text, span.start, span.start, opening[kind], strlen(opening[kind]),
			levels);
}

/* Repeats a value or a field, seldom very often. */
static void
repeat(FuzzRandom *random, FuzzText *text, const Spans *found, Span span)
{
	FuzzText	copy;
	size_t		times = fuzz_random(random, 200) == 0 ?
	fuzz_random(random, 3000) : 1 + fuzz_random(random, 4);

	span = with_comma(text, found, span);
	copy = fuzz_copy(text->data + span.start, span.end - span.start);
	replace(text, span.end, span.end, copy.data, copy.length, times);
	free(copy.data);
}

static void
exchange(FuzzText *text, Span a, Span b)
{
	FuzzText	first;
	FuzzText	second;

	if (a.start > b.start)
	{
		Span		other = a;

		a = b;
		b = other;
	}
	if (a.end > b.start)
		return;
	first = fuzz_copy(text->data + a.start, a.end - a.start);
	second = fuzz_copy(text->data + b.start, b.end - b.start);
	replace(text, b.start, b.end, first.data, first.length, 1);
	replace(text, a.start, a.end, second.data, second.length, 1);
	free(first.data);
	free(second.data);
}

/* Puts a value of another text in the place of a value. */
static void
transplant(FuzzRandom *random, FuzzText *text, Span span, const FuzzText *donor)
{
	Spans		found;
	Span		other;

	find_spans(donor, &found);
	other = choose(random, donor, &found);
	replace(text, span.start, span.end, donor->data + other.start,
			other.end - other.start, 1);
}

/* Puts a piece into a value, seldom very often. */
static void
insert_piece(FuzzRandom *random, FuzzText *text, Span span)
{
	const char *piece = pieces[fuzz_random(random, COUNT(pieces))];
	size_t		at = span.start + 1 +
	fuzz_random(random, span.end > span.start + 1 ? span.end - span.start - 1 : 1);
	size_t		times = fuzz_random(random, 500) == 0 ?
	fuzz_random(random, 100000) : 1 + fuzz_random(random, 2);

	if (at > text->length)
		at = text->length;
	replace(text, at, at, piece, strlen(piece), times);
}

/*
 * Changes one value or field of a text.  "donor" is another text, from which
 * values may be taken.
 */
static void
mutate_json(FuzzRandom *random, FuzzText *text, const FuzzText *donor)
{
	Spans		found;
	Span		span;
	Span		whole;

	find_spans(text, &found);
	span = choose(random, text, &found);
	switch (fuzz_random(random, 10))
	{
		case 0:
		case 1:
			replace_by(text, span.start, span.end,
					   values[fuzz_random(random, COUNT(values))]);
			break;
		case 2:
			whole = with_comma(text, &found, span);
			replace_by(text, whole.start, whole.end, "");
			break;
		case 3:
			repeat(random, text, &found, span);
			break;
		case 4:
			exchange(text, span, choose(random, text, &found));
			break;
		case 5:
			transplant(random, text, span, donor);
			break;
		case 6:
			nest(random, text, span);
			break;
		case 7:
			for (int i = 0; i < 8 && !span.is_name; i++)
				span = choose(random, text, &found);
			replace_by(text, span.start, span.end,
					   names[fuzz_random(random, COUNT(names))]);
			break;
		default:
			insert_piece(random, text, span);
			break;
	}
}

/*
 * Changes bytes of a text, whatever they mean.  "donor" is another text, parts
 * of which may be inserted.
 */
static void
mutate_bytes(FuzzRandom *random, FuzzText *text, const FuzzText *donor)
{
	size_t		at = fuzz_random(random, text->length);
	size_t		end = at + fuzz_random(random, text->length - at < 64 ?
									   text->length - at : 64);
	size_t		from = fuzz_random(random, donor->length);

	switch (fuzz_random(random, 8))
	{
		case 0:
			if (text->length > 0)
				text->data[at] ^= 1 << fuzz_random(random, 8);
			break;
		case 1:
			if (text->length > 0)
				text->data[at] = bytes[fuzz_random(random, sizeof(bytes))];
			break;
		case 2:
			replace(text, at, at, &bytes[fuzz_random(random, sizeof(bytes))], 1,
					1 + fuzz_random(random, 4));
			break;
		case 3:
			replace(text, at, end, "", 0, 0);
			break;
		case 4:
			replace(text, at, end, text->data + at, end - at, 2);
			break;
		case 5:
			replace(text, at, end, donor->data + from,
					fuzz_random(random, donor->length - from), 1);
			break;
		case 6:
			/* The rest is missing. */
			if (fuzz_random(random, 4) == 0)
				replace(text, at, text->length, "", 0, 0);
			break;
		default:
			if (text->length > 0)
				text->data[at] = (char) fuzz_random(random, 256);
			break;
	}
}

/*
 * A changed copy of a text.  Most have one or two changes, some up to twelve,
 * some none.  "donor" is another text, from which parts may be taken.
 */
FuzzText
fuzz_mutated(FuzzRandom *random, const FuzzText *original, const FuzzText *donor,
			 bool is_json)
{
	FuzzText	text = fuzz_copy(original->data, original->length);
	int			changes = fuzz_random(random, 6) == 0 ? 0 :
	1 + fuzz_random(random, fuzz_random(random, 5) == 0 ? 12 : 2);

	for (int i = 0; i < changes; i++)
	{
		if (is_json && fuzz_random(random, 4) != 0)
			mutate_json(random, &text, donor);
		else
			mutate_bytes(random, &text, donor);
	}
	return text;
}
