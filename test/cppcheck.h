/*
 * cppcheck.h
 *		What cppcheck must know of the server's headers, which it does not
 *		read: that raising an error does not return, and what makes a loop.
 */
#define ERROR 21
#define WARNING 19
#define ereport(elevel, ...) do { if ((elevel) >= ERROR) abort(); } while (0)
#define elog(elevel, ...) do { if ((elevel) >= ERROR) abort(); } while (0)
#define pg_noreturn
#define foreach(cell, list) for ((cell) = list_head(list); (cell) != NULL; (cell) = lnext((list), (cell)))
