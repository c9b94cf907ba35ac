/*
 * compat.h
 *		Every difference between PostgreSQL 13 to 18, and between libcurl 7.74
 *		and later, that the other files would otherwise test for themselves.
 *
 * The parts for libcurl, for the JSON parser and for pg_database take effect only
 * in a file that has included curl.h, jsonapi.h or pg_database.h before this
 * header.
 */
#ifndef CLERK_COMPAT_H
#define CLERK_COMPAT_H

#include "storage/latch.h"
#include "utils/guc.h"

/*
 * 18 stores a module's name and version with its magic block, where
 * pg_get_loaded_modules() shows them.
 */
#if PG_VERSION_NUM >= 180000
#define CLERK_MODULE_MAGIC \
	PG_MODULE_MAGIC_EXT(.name = "clerk_invite", .version = CLERK_INVITE_VERSION)
#else
#define CLERK_MODULE_MAGIC PG_MODULE_MAGIC
#endif

/* 18 renamed it, and wants it in front. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* 15 renamed it when it began to refuse, not only report, unknown settings. */
#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix) EmitWarningsOnPlaceholders(prefix)
#endif

/*
 * Since 16 the strings that a check hook replaces live in a memory context of
 * guc.c's; before that they came from malloc().
 */
#if PG_VERSION_NUM < 160000
#define guc_malloc(elevel, size) malloc(size)
#define guc_free(pointer) free(pointer)
#endif

/* 18 moved wait event sets to a header of their own. */
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif

/* 17 hangs wait event sets on resource owners; NULL means for good. */
#if PG_VERSION_NUM >= 170000
#define clerk_create_wait_event_set(nevents) CreateWaitEventSet(NULL, nevents)
#else
#define clerk_create_wait_event_set(nevents) \
	CreateWaitEventSet(TopMemoryContext, nevents)
#endif

/* Extensions can name their own wait events since 17. */
#if PG_VERSION_NUM >= 170000
#include "utils/wait_event.h"
#define clerk_new_wait_event(name) WaitEventExtensionNew(name)
#else
#if PG_VERSION_NUM >= 140000
#include "utils/wait_event.h"
#else
#include "pgstat.h"
#endif
#define clerk_new_wait_event(name) PG_WAIT_EXTENSION
#endif

/*
 * 15 wants shared memory to be asked for in a hook, which finds in "previous"
 * the one to call before; until then each request is made at once.
 */
#if PG_VERSION_NUM >= 150000
#define clerk_at_shmem_request(hook, previous) \
	((previous) = shmem_request_hook, shmem_request_hook = (hook))
#define clerk_shmem_requested(size) ((void) 0)
#else
#define clerk_at_shmem_request(hook, previous) ((previous) = NULL, (void) (hook))
#define clerk_shmem_requested(size) RequestAddinShmemSpace(size)
#endif

/*
 * Whether commits wait for synchronous standbys, as far as the checkpointer has
 * told all processes.  The minor releases of May 2025 made flags of it.  Only
 * for a file that has included walsender_private.h before this header.
 */
#ifdef _WALSENDER_PRIVATE_H
#ifdef SYNC_STANDBY_DEFINED
#define clerk_standbys_are_awaited() \
	((WalSndCtl->sync_standbys_status & SYNC_STANDBY_DEFINED) != 0)
#else
#define clerk_standbys_are_awaited() (WalSndCtl->sync_standbys_defined)
#endif
#endif

/* 17 can also look for stronger modes. */
#if PG_VERSION_NUM >= 170000
#define clerk_lock_is_held(tag, mode) LockHeldByMe((tag), (mode), false)
#else
#define clerk_lock_is_held(tag, mode) LockHeldByMe((tag), (mode))
#endif

/*
 * A new kind of LWLock, once a server, and its name in this process.  19 takes
 * the name once, for all processes.
 */
#if PG_VERSION_NUM >= 190000
#define clerk_new_lwlock_tranche(name) LWLockNewTrancheId(name)
#define clerk_name_lwlock_tranche(tranche, name) ((void) 0)
#else
#define clerk_new_lwlock_tranche(name) LWLockNewTrancheId()
#define clerk_name_lwlock_tranche(tranche, name) \
	LWLockRegisterTranche(tranche, name)
#endif

/*
 * The connection limit of a database whose DROP DATABASE did not finish; minor
 * releases of August 2023 brought it.
 */
#if defined(PG_DATABASE_H) && !defined(DATCONNLIMIT_INVALID_DB)
#define DATCONNLIMIT_INVALID_DB (-2)
#endif

/* 16 brought one function for the privileges on objects of all kinds. */
#if PG_VERSION_NUM >= 160000
#define clerk_function_aclcheck(function, user) \
	object_aclcheck(ProcedureRelationId, (function), (user), ACL_EXECUTE)
#else
#define clerk_function_aclcheck(function, user) \
	pg_proc_aclcheck((function), (user), ACL_EXECUTE)
#endif

/* Since 15 SPI_commit() begins the next transaction by itself. */
#if PG_VERSION_NUM >= 150000
#define clerk_spi_commit_and_begin() SPI_commit()
#else
#define clerk_spi_commit_and_begin() (SPI_commit(), SPI_start_transaction())
#endif

/* 14 handed the hook that is called after analysis a third argument. */
#if PG_VERSION_NUM >= 190000
#define CLERK_POST_PARSE_ANALYZE_PARAMETERS \
	ParseState *pstate, Query *query, const JumbleState *jumble
#define CLERK_POST_PARSE_ANALYZE_ARGUMENTS pstate, query, jumble
#elif PG_VERSION_NUM >= 140000
#define CLERK_POST_PARSE_ANALYZE_PARAMETERS \
	ParseState *pstate, Query *query, JumbleState *jumble
#define CLERK_POST_PARSE_ANALYZE_ARGUMENTS pstate, query, jumble
#else
#define CLERK_POST_PARSE_ANALYZE_PARAMETERS ParseState *pstate, Query *query
#define CLERK_POST_PARSE_ANALYZE_ARGUMENTS pstate, query
#endif

/* A random number from 0 to 1; 15 brought a generator of its own. */
#if PG_VERSION_NUM >= 150000
#include "common/pg_prng.h"
#define clerk_random_fraction() pg_prng_double(&pg_global_prng_state)
#else
#define clerk_random_fraction() ((double) random() / MAX_RANDOM_VALUE)
#endif

/* 17 brought transaction_timeout. */
#if PG_VERSION_NUM >= 170000
#define clerk_transaction_timeout_pending() TransactionTimeoutPending
#else
#define clerk_transaction_timeout_pending() false
#endif

/* Not in locale.h there. */
#if defined(__APPLE__) || defined(__FreeBSD__)
#include <xlocale.h>
#endif

/* macOS has these under other names. */
#ifdef __APPLE__
#define st_mtim st_mtimespec
#define st_ctim st_ctimespec
#endif

#ifdef JSONAPI_H

/* 17 takes the lexer's memory from the caller, or allocates it for NULL. */
#if PG_VERSION_NUM >= 170000
#define clerk_make_json_lexer(text, length, encoding) \
	makeJsonLexContextCstringLen(NULL, text, length, encoding, false)
#else
#define clerk_make_json_lexer(text, length, encoding) \
	makeJsonLexContextCstringLen(unconstify(char *, text), length, encoding, false)
#endif

#endif							/* JSONAPI_H */

#ifdef LIBCURL_VERSION_NUM

/*
 * With CURLOPT_QUICK_EXIT (7.87) libcurl leaves the thread behind that looks
 * up the name of a transfer that ends early; before that it joins the thread.
 * True if the option was set, which also needs a library of that age at run
 * time.
 */
#if LIBCURL_VERSION_NUM >= 0x075700
#define clerk_set_quick_exit(easy) \
	(curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L) == CURLE_OK)
#else
#define clerk_set_quick_exit(easy) false
#endif

/*
 * Since 8.20 the threads that look names up belong to the multi handle, whose
 * cleanup joins them unless this option, number 21, is set.  A library that is
 * older than that does not know it, and has no need of it.  True if all is well.
 */
#define clerk_set_quick_cleanup(multi) \
	(curl_multi_setopt(multi, (CURLMoption) 21, 1L) != CURLM_BAD_HANDLE)

/*
 * Since 7.80 a callback is asked before each attempt to send a request.  True
 * if the callback was set, which also needs a library of that age at run time.
 */
#if LIBCURL_VERSION_NUM >= 0x075000
#define clerk_ask_before_attempt(easy, callback, data) \
	(curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, callback) == CURLE_OK && \
	 curl_easy_setopt(easy, CURLOPT_PREREQDATA, data) == CURLE_OK)
#else
#define CURL_PREREQFUNC_OK 0
#define CURL_PREREQFUNC_ABORT 1
#define clerk_ask_before_attempt(easy, callback, data) \
	((void) (callback), false)
#endif

/* 7.85 deprecated the bit mask for a list of names. */
#if LIBCURL_VERSION_NUM >= 0x075500
#define clerk_set_protocols(easy) \
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https")
#else
#define clerk_set_protocols(easy) \
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS, \
					 (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS))
#endif

/*
 * Since 7.88 a host can be had in the form that the DNS has; a library that is
 * older than that ignores the flag.
 */
#if LIBCURL_VERSION_NUM < 0x075800
#define CURLU_PUNYCODE (1 << 12)
#endif

#endif							/* LIBCURL_VERSION_NUM */

#endif							/* CLERK_COMPAT_H */
