/*
 * email_address.c
 *		Which e-mail addresses are the same to Clerk: those that differ in case
 *		only, which is inferred.
 *
 * The database's own lower() would not do.  It depends on the locale: that of
 * "C" knows no letters beyond ASCII, and a Turkish one makes another letter of
 * "I".  Clerk knows nothing of that, and an answer that is not recognized is an
 * invitation that is lost.
 */
#include "postgres.h"

#include <locale.h>
#include <wctype.h>

#include "compat.h"
#include "email_address.h"
#include "json_wire.h"
#include "mb/pg_wchar.h"

static pg_wchar small_letter(pg_wchar letter);
static const char *as_utf8(const char *address);

/*
 * A text, of which an address may be a part, without its case: a palloc'd
 * string to be compared with others of its kind, and for nothing else, since it
 * is UTF-8 whatever the encoding of the database.  That must be of the server's
 * encoding, and in a transaction.
 */
char *
clerk_fold_address(const char *address)
{
	const unsigned char *from = (const unsigned char *) as_utf8(address);
	const unsigned char *end = from + strlen((const char *) from);

	/* Letters of two bytes may become letters of three. */
	char	   *folded = palloc((end - from) * 3 / 2 + 1);
	char	   *to = folded;

	while (from < end)
	{
		int			length = pg_utf_mblen(from);

		/* SQL_ASCII may hold anything. */
		if (IS_HIGHBIT_SET(*from) && length <= end - from &&
			pg_utf8_islegal(from, length))
		{
			unicode_to_utf8(small_letter(utf8_to_unicode(from)),
							(unsigned char *) to);
			to += pg_utf_mblen((unsigned char *) to);
			from += length;
		}
		else
			*to++ = pg_ascii_tolower(*from++);
	}
	*to = '\0';
	return folded;
}

/* Whether Clerk takes two addresses for the same. */
bool
clerk_is_same_address(const char *a, const char *b)
{
	return strcmp(a, b) == 0 ||
		strcmp(clerk_fold_address(a), clerk_fold_address(b)) == 0;
}

/*
 * By Unicode's simple mappings, as the C library has them.  Where it lacks this
 * locale, which those of Linux have, letters beyond ASCII stay as they are.
 */
static pg_wchar
small_letter(pg_wchar letter)
{
	static bool sought = false;
	static locale_t unicode = (locale_t) 0;

	if (!sought)
		unicode = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t) 0);
	sought = true;
	return unicode == (locale_t) 0 ? letter : towlower_l(letter, unicode);
}

/* The text itself where there is nothing to convert, or no way to. */
static const char *
as_utf8(const char *address)
{
	size_t		length;
	char	   *utf8;

	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		return address;
	utf8 = clerk_json_to_wire(unconstify(char *, address), &length);
	return utf8 != NULL ? utf8 : address;
}
