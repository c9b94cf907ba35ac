/*
 * cppcheck.h
 *		What cppcheck must know of the server's headers, which it does not
 *		read: that raising an error does not return.
 */
#define ERROR 21
#define WARNING 19
#define ereport(elevel, ...) do { if ((elevel) >= ERROR) abort(); } while (0)
#define elog(elevel, ...) do { if ((elevel) >= ERROR) abort(); } while (0)
#define pg_noreturn
