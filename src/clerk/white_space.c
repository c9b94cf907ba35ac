/*
 * white_space.c
 *		Removes white space around an e-mail address, which files and forms
 *		often leave there by accident.
 *
 * White space is what has Unicode's property White_Space, and two more
 * characters that are invisible: U+200B, which occurs in text copied from web
 * pages, and U+FEFF, which may be at the start of a file (byte order mark).
 * The database's locale does not matter.
 */
#include "postgres.h"

#include "clerk/json_encoding.h"
#include "clerk/white_space.h"
#include "mb/pg_wchar.h"

static int	character_length(const char *c, const char *end);
static bool is_white_space(const char *c, int length);
static pg_wchar code_point(const char *c, int length);

/*
 * Returns the part of a text without leading and trailing white space; it
 * points into "text".  The text is in the database's encoding.  *length is the
 * length of the text in bytes, and becomes that of the part.
 */
const char *
clerk_trim(const char *text, size_t *length)
{
	const char *end = text + *length;
	const char *kept_end;

	while (text < end)
	{
		int			step = character_length(text, end);

		if (!is_white_space(text, step))
			break;
		text += step;
	}

	/*
	 * In some encodings characters can be found only from the start of the
	 * text.
	 */
	kept_end = end;
	if (text < end && (IS_HIGHBIT_SET(end[-1]) || is_white_space(end - 1, 1)))
	{
		kept_end = text;
		for (const char *c = text; c < end;)
		{
			int			step = character_length(c, end);

			if (!is_white_space(c, step))
				kept_end = c + step;
			c += step;
		}
	}
	*length = kept_end - text;
	return text;
}

/*
 * Length in bytes of the character at "c".  A database with encoding SQL_ASCII
 * may contain any bytes; what looks like UTF-8 is treated as UTF-8.
 */
static int
character_length(const char *c, const char *end)
{
	int			length;

	if (!IS_HIGHBIT_SET(*c))
		return 1;
	if (GetDatabaseEncoding() == PG_SQL_ASCII)
	{
		length = pg_utf_mblen((const unsigned char *) c);
		return length <= end - c &&
			pg_utf8_islegal((const unsigned char *) c, length) ? length : 1;
	}
	length = pg_encoding_mblen(GetDatabaseEncoding(), c);
	return Min(length, end - c);
}

static bool
is_white_space(const char *c, int length)
{
	pg_wchar	code;

	if (!IS_HIGHBIT_SET(*c))
		return *c == ' ' || (*c >= '\t' && *c <= '\r');
	code = code_point(c, length);
	return code == 0x0085 || code == 0x00A0 || code == 0x1680 ||
		(code >= 0x2000 && code <= 0x200B) ||
		code == 0x2028 || code == 0x2029 || code == 0x202F ||
		code == 0x205F || code == 0x3000 || code == 0xFEFF;
}

/*
 * The Unicode code point of a character that is not ASCII; 0 if it has none.
 */
static pg_wchar
code_point(const char *c, int length)
{
	const unsigned char *utf8 = (const unsigned char *) c;
	size_t		utf8_length = length;

	if (GetDatabaseEncoding() != PG_UTF8 &&
		GetDatabaseEncoding() != PG_SQL_ASCII)
		utf8 = (const unsigned char *) clerk_json_to_wire(pnstrdup(c, length),
														  &utf8_length);
	if (utf8 == NULL || utf8_length < 2 ||
		(size_t) pg_utf_mblen(utf8) != utf8_length ||
		!pg_utf8_islegal(utf8, utf8_length))
		return 0;
	return utf8_to_unicode(utf8);
}
