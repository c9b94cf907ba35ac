/*
 * email_address.c
 *		Which e-mail addresses are the same to Clerk.
 *
 * Those that differ in case only are, which is inferred.  It is not known
 * whether Clerk gives an address back as it was sent, or normalizes it: drops
 * white space, or writes an internationalized domain as the DNS does.  So two
 * addresses are compared in three forms, and those that are closest belong
 * together:
 *
 * 1. as they are,
 * 2. folded: without their case,
 * 3. normalized: folded, without white space, with composed characters, and
 *	  the domain in ASCII.
 *
 * The database's own lower() would not do.  It depends on the locale: that of
 * "C" knows no letters beyond ASCII, and a Turkish one makes another letter of
 * "I".  Clerk knows nothing of that, and an answer that is not recognized is an
 * invitation that is lost.
 */
#include "postgres.h"

#include <locale.h>
#include <wctype.h>

#include "clerk/email_address.h"
#include "clerk/json_encoding.h"
#include "common/unicode_norm.h"
#include "compat.h"
#include "http/domain_name.h"
#include "mb/pg_wchar.h"

/*
 * Longest domain in UTF-8 that is worth converting: each of the characters that
 * the DNS has room for has up to four bytes.
 */
#define LONGEST_DOMAIN (4 * CLERK_DOMAIN_MAX)

/* An address in its three forms. */
typedef struct AddressForms
{
	const char *given;			/* NULL: no address at all */
	const char *folded;
	const char *normalized;
} AddressForms;

static char *normalize_folded(const char *folded);
static char *without_white_space(const char *folded);
static bool is_white_space(pg_wchar character);
static char *composed(const char *text);
static char *with_ascii_domain(const char *address);
static bool is_ascii(const char *text);
static AddressForms forms_of(const char *address);
static ClerkLikeness likeness_of(const AddressForms *a, const AddressForms *b);
static pg_wchar small_letter(pg_wchar letter);
static locale_t unicode_locale(void);
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

/*
 * An address as a Clerk that normalizes would write it, whichever way it was
 * written: a string as that of clerk_fold_address(), under the same conditions.
 * Of addresses with the same normalized form, two must not be in one request.
 */
char *
clerk_normalize_address(const char *address)
{
	char	   *folded = clerk_fold_address(address);
	char	   *normalized = normalize_folded(folded);

	pfree(folded);
	return normalized;
}

/*
 * The normalized form as a text of the database, to ask Clerk for; the address
 * itself if the database's encoding lacks that.
 */
const char *
clerk_normalized_text(const char *address)
{
	const char *normalized = clerk_normalize_address(address);
	ClerkJsonError json_error;
	const char *text = clerk_json_from_wire(normalized, strlen(normalized),
											&json_error);

	return text != NULL ? text : address;
}

/* How alike two addresses are to Clerk; either may be NULL. */
ClerkLikeness
clerk_address_likeness(const char *a, const char *b)
{
	AddressForms first;
	AddressForms second;

	if (a != NULL && b != NULL && strcmp(a, b) == 0)
		return CLERK_ADDRESS_EXACT;
	first = forms_of(a);
	second = forms_of(b);
	return likeness_of(&first, &second);
}

/*
 * Which of the addresses found in an answer belongs to each that was asked for:
 * its position, or -1 if none does.  Each belongs to one only, and the closest
 * come together first.
 *
 * If as many were found as were asked for, and all but one have come together,
 * the last two do, too, however Clerk has changed it.  Those found may be NULL.
 */
void
clerk_match_addresses(const char *const *wanted, int wanted_count,
					  const char *const *found, int found_count, int *matches)
{
	AddressForms *wanted_forms = palloc(Max(wanted_count, 1) * sizeof(AddressForms));
	AddressForms *found_forms = palloc(Max(found_count, 1) * sizeof(AddressForms));
	bool	   *used = palloc0(Max(found_count, 1) * sizeof(bool));
	int			matched = 0;

	for (int i = 0; i < wanted_count; i++)
	{
		wanted_forms[i] = forms_of(wanted[i]);
		matches[i] = -1;
	}
	for (int j = 0; j < found_count; j++)
		found_forms[j] = forms_of(found[j]);

	for (ClerkLikeness least = CLERK_ADDRESS_EXACT; least > CLERK_ADDRESS_OTHER; least--)
		for (int i = 0; i < wanted_count; i++)
			for (int j = 0; j < found_count && matches[i] < 0; j++)
				if (!used[j] &&
					likeness_of(&wanted_forms[i], &found_forms[j]) >= least)
				{
					matches[i] = j;
					used[j] = true;
					matched++;
				}

	if (wanted_count == found_count && matched == wanted_count - 1)
		for (int i = 0; i < wanted_count; i++)
			for (int j = 0; j < found_count && matches[i] < 0; j++)
				if (!used[j])
					matches[i] = j;
}

static AddressForms
forms_of(const char *address)
{
	AddressForms forms = {.given = address};

	if (address != NULL)
	{
		forms.folded = clerk_fold_address(address);
		forms.normalized = normalize_folded(forms.folded);
	}
	return forms;
}

static ClerkLikeness
likeness_of(const AddressForms *a, const AddressForms *b)
{
	if (a->given == NULL || b->given == NULL)
		return CLERK_ADDRESS_OTHER;
	if (strcmp(a->given, b->given) == 0)
		return CLERK_ADDRESS_EXACT;
	if (strcmp(a->folded, b->folded) == 0)
		return CLERK_ADDRESS_FOLDED;
	return strcmp(a->normalized, b->normalized) == 0 ?
		CLERK_ADDRESS_NORMALIZED : CLERK_ADDRESS_OTHER;
}

static char *
normalize_folded(const char *folded)
{
	char	   *address = without_white_space(folded);

	return is_ascii(address) ? address : with_ascii_domain(composed(address));
}

static char *
without_white_space(const char *folded)
{
	const unsigned char *from = (const unsigned char *) folded;
	const unsigned char *end = from + strlen(folded);
	char	   *rest = palloc(end - from + 1);
	char	   *to = rest;

	while (from < end)
	{
		int			length = pg_utf_mblen(from);

		/* SQL_ASCII may hold anything. */
		if (length > end - from || !pg_utf8_islegal(from, length))
			length = 1;
		else if (is_white_space(utf8_to_unicode(from)))
		{
			from += length;
			continue;
		}
		memcpy(to, from, length);
		to += length;
		from += length;
	}
	*to = '\0';
	return rest;
}

/*
 * Unicode's property White_Space, and two invisible characters that come along
 * when an address is copied from a page or a spreadsheet.
 */
static bool
is_white_space(pg_wchar character)
{
	switch (character)
	{
		case ' ':
		case 0x0085:
		case 0x00A0:			/* no-break space */
		case 0x1680:
		case 0x200B:			/* zero width space */
		case 0x2028:
		case 0x2029:
		case 0x202F:
		case 0x205F:
		case 0x3000:			/* ideographic space */
		case 0xFEFF:			/* byte order mark */
			return true;
		default:
			return (character >= '\t' && character <= '\r') ||
				(character >= 0x2000 && character <= 0x200A);
	}
}

/* In Unicode's form C: a letter with its accent may be one character or two. */
static char *
composed(const char *text)
{
	int			length = strlen(text);
	pg_wchar   *characters;
	char	   *result;
	char	   *to;

	/* SQL_ASCII may hold anything. */
	if (!pg_verify_mbstr(PG_UTF8, text, length, true))
		return pstrdup(text);
	characters = palloc((length + 1) * sizeof(pg_wchar));
	pg_encoding_mb2wchar_with_len(PG_UTF8, text, characters, length);
	characters = unicode_normalize(UNICODE_NFC, characters);
	length = pg_wchar_strlen(characters);
	to = result = palloc(length * MAX_MULTIBYTE_CHAR_LEN + 1);
	for (int i = 0; i < length; i++)
	{
		unicode_to_utf8(characters[i], (unsigned char *) to);
		to += pg_utf_mblen((unsigned char *) to);
	}
	*to = '\0';
	return result;
}

/* The address itself if there is no way to convert its domain, or no need. */
static char *
with_ascii_domain(const char *address)
{
	const char *at = strrchr(address, '@');
	char		ascii[CLERK_DOMAIN_MAX + 1];

	if (at == NULL || is_ascii(at) || strlen(at) > LONGEST_DOMAIN ||
		!clerk_domain_to_ascii(at + 1, unicode_locale(), ascii))
		return unconstify(char *, address);
	return psprintf("%.*s@%s", (int) (at - address), address, ascii);
}

static bool
is_ascii(const char *text)
{
	for (; *text != '\0'; text++)
		if (IS_HIGHBIT_SET(*text))
			return false;
	return true;
}

/*
 * By Unicode's simple mappings, as the C library has them.  Where it lacks this
 * locale, which those of Linux have, letters beyond ASCII stay as they are.
 */
static pg_wchar
small_letter(pg_wchar letter)
{
	locale_t	unicode = unicode_locale();

	return unicode == (locale_t) 0 ? letter : towlower_l(letter, unicode);
}

/* 0: the C library lacks it. */
static locale_t
unicode_locale(void)
{
	static bool sought = false;
	static locale_t unicode = (locale_t) 0;

	if (!sought)
		unicode = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t) 0);
	sought = true;
	return unicode;
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
