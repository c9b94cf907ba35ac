/*
 * email_address.c
 *		Which e-mail addresses Clerk treats as the same.
 *
 * Clerk's documentation does not say so, but we infer that Clerk ignores the
 * case of an address.  It is not known whether Clerk returns an address as it
 * was sent or normalizes it, for example by removing white space or by
 * converting an internationalized domain to ASCII.  So addresses are compared
 * in three forms, and those that are most similar are paired:
 *
 * 1. exact: as they are
 * 2. folded: in lower case
 * 3. normalized: folded, without white space, in Unicode's form NFC, and with
 *	  the domain in ASCII
 *
 * The database's own lower() is not suitable, because it depends on the
 * locale: the locale "C" knows only ASCII letters, and a Turkish locale maps
 * "I" to a dotless i.  Clerk knows nothing of the database's locale, and if we
 * do not recognize an address in a response, we lose track of the invitation.
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
 * Longest domain in UTF-8 that is worth converting, in bytes: as many
 * characters as the DNS allows, of up to four bytes each.
 */
#define MAX_DOMAIN_BYTES (4 * CLERK_DOMAIN_MAX)

/* An address in the three forms. */
typedef struct AddressForms
{
	const char *given;			/* as it is; NULL: no address */
	const char *folded;
	const char *normalized;
} AddressForms;

static char *normalize_folded(const char *folded);
static char *remove_white_space(const char *folded);
static bool is_white_space(pg_wchar character);
static char *compose(const char *text);
static char *convert_domain_to_ascii(const char *address);
static bool is_ascii(const char *text);
static AddressForms forms_of(const char *address);
static ClerkLikeness likeness_of(const AddressForms *a, const AddressForms *b);
static pg_wchar to_lower_case(pg_wchar letter);
static locale_t get_utf8_locale(void);
static const char *to_utf8(const char *address);

/*
 * Returns an address, or a text that contains addresses, in lower case, as a
 * palloc'd string.  The result is UTF-8 whatever the database's encoding is,
 * so use it only for comparisons with other results of this function and of
 * clerk_normalize_address().
 *
 * "address" is in the database's encoding.  Must be called in a transaction,
 * because the conversion to UTF-8 may look up catalogs.
 */
char *
clerk_fold_address(const char *address)
{
	const unsigned char *from = (const unsigned char *) to_utf8(address);
	const unsigned char *end = from + strlen((const char *) from);

	/* Lower case may take more bytes: a two-byte letter may become three. */
	char	   *folded = palloc((end - from) * 3 / 2 + 1);
	char	   *to = folded;

	while (from < end)
	{
		int			length = pg_utf_mblen(from);

		/* A database with encoding SQL_ASCII may contain any bytes. */
		if (IS_HIGHBIT_SET(*from) && length <= end - from &&
			pg_utf8_islegal(from, length))
		{
			unicode_to_utf8(to_lower_case(utf8_to_unicode(from)),
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
 * Returns an address in its normalized form: the form that a normalizing Clerk
 * would give it, however it was written.  The result and the requirements are
 * those of clerk_fold_address().  Two addresses with the same normalized form
 * must not be in one request.
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
 * Returns the normalized form of an address in the database's encoding, to
 * search Clerk's list for it.  Returns the address itself if the encoding
 * cannot represent that form.
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

/*
 * How similar two addresses are.  Either may be NULL, which is similar to
 * nothing.  Must be called in a transaction.
 */
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
 * Pairs addresses that were sent in a request ("wanted") with addresses in the
 * response to it ("found", which may include NULLs).  For each wanted address,
 * stores the position of its partner in "matches", or -1 if it has none.  Each
 * found address has at most one partner.  The most similar addresses are
 * paired first.
 *
 * If there are as many found addresses as wanted ones and exactly one pair is
 * left, these two are paired, however different they are.  Must be called in a
 * transaction.
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
	char	   *address = remove_white_space(folded);

	return is_ascii(address) ? address :
		convert_domain_to_ascii(compose(address));
}

static char *
remove_white_space(const char *folded)
{
	const unsigned char *from = (const unsigned char *) folded;
	const unsigned char *end = from + strlen(folded);
	char	   *result = palloc(end - from + 1);
	char	   *to = result;

	while (from < end)
	{
		int			length = pg_utf_mblen(from);

		/* A database with encoding SQL_ASCII may contain any bytes. */
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
	return result;
}

/*
 * Whether a character has Unicode's property White_Space, or is U+200B or
 * U+FEFF: invisible characters that come along when an address is copied from
 * a web page or a spreadsheet.
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

/*
 * Converts UTF-8 to Unicode's form NFC, in which a letter with an accent is
 * one character where possible.
 */
static char *
compose(const char *text)
{
	int			length = strlen(text);
	pg_wchar   *characters;
	char	   *result;
	char	   *to;

	/* A database with encoding SQL_ASCII may contain any bytes. */
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

/*
 * Returns the address with its domain in ASCII, or the address itself if its
 * domain is ASCII already or cannot be converted.
 */
static char *
convert_domain_to_ascii(const char *address)
{
	const char *at = strrchr(address, '@');
	char		ascii[CLERK_DOMAIN_MAX + 1];

	if (at == NULL || is_ascii(at) || strlen(at) > MAX_DOMAIN_BYTES ||
		!clerk_domain_to_ascii(at + 1, get_utf8_locale(), ascii))
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
 * Maps a letter to lower case by Unicode's simple mappings, which are those of
 * the C library's locale C.UTF-8.  If the C library lacks that locale, which
 * Linux systems have, letters other than ASCII are not mapped.
 */
static pg_wchar
to_lower_case(pg_wchar letter)
{
	locale_t	utf8_locale = get_utf8_locale();

	return utf8_locale == (locale_t) 0 ? letter :
		towlower_l(letter, utf8_locale);
}

/* The locale C.UTF-8; 0 if the C library lacks it. */
static locale_t
get_utf8_locale(void)
{
	static bool tried = false;
	static locale_t utf8_locale = (locale_t) 0;

	if (!tried)
		utf8_locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t) 0);
	tried = true;
	return utf8_locale;
}

/*
 * Returns the text itself if the encoding is SQL_ASCII, or if the text cannot
 * be converted.
 */
static const char *
to_utf8(const char *address)
{
	size_t		length;
	char	   *utf8;

	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		return address;
	utf8 = clerk_json_to_wire(unconstify(char *, address), &length);
	return utf8 != NULL ? utf8 : address;
}
