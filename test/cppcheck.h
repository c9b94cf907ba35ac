/*
 * cppcheck.h
 *		What cppcheck must know of the server's headers and of the build: that
 *		raising an error does not return, what makes a loop, and which versions
 *		there are.
 */
#define PG_VERSION_NUM 150000
#define PG_MODULE_MAGIC struct module_magic
#define __has_attribute(attribute) 0
#define ERROR 21
#define WARNING 19
#define ereport(elevel, ...) do { if ((elevel) >= ERROR) abort(); } while (0)
#define elog(elevel, ...) do { if ((elevel) >= ERROR) abort(); } while (0)
#define pg_noreturn
#define foreach(cell, list) for ((cell) = list_head(list); (cell) != NULL; (cell) = lnext((list), (cell)))
#define CLERK_INVITE_VERSION "x"
#define forboth(cell1, list1, cell2, list2) for ((cell1) = list_head(list1), (cell2) = list_head(list2); (cell1) != NULL && (cell2) != NULL; (cell1) = lnext((list1), (cell1)), (cell2) = lnext((list2), (cell2)))
