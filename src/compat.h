/*
 * compat.h
 *		Differences between PostgreSQL 14 to 19, and between versions of
 *		libcurl from 7.74 on, so that no other file tests a version.
 *
 * The parts for libcurl, the JSON parser and pg_database take effect only in a
 * file that includes curl.h, jsonapi.h or pg_database.h before this header.
 */
#ifndef CLERK_COMPAT_H
#define CLERK_COMPAT_H

#include "storage/latch.h"
#include "utils/guc.h"

#if PG_VERSION_NUM < 140000
#error "clerk_invite requires PostgreSQL 14 or later"
#endif

/*
 * PostgreSQL 18 stores a module's name and version in its magic block, where
 * pg_get_loaded_modules() finds them.
 */
#if PG_VERSION_NUM >= 180000
#define CLERK_MODULE_MAGIC \
	PG_MODULE_MAGIC_EXT(.name = "clerk_invite", .version = CLERK_INVITE_VERSION)
#else
#define CLERK_MODULE_MAGIC PG_MODULE_MAGIC
#endif

/*
 * PostgreSQL 18 renamed this attribute, and it must precede the declaration.
 */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/*
 * PostgreSQL 15 renamed this function, which since then rejects unknown
 * settings rather than only warning about them.
 */
#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix) EmitWarningsOnPlaceholders(prefix)
#endif

/*
 * Since PostgreSQL 16, the strings that a check hook replaces belong to a
 * memory context of guc.c.  Before, they were allocated by malloc().
 */
#if PG_VERSION_NUM < 160000
#define guc_malloc(elevel, size) malloc(size)
#define guc_free(pointer) free(pointer)
#endif

/* PostgreSQL 18 moved wait event sets to a header of their own. */
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif

/*
 * In PostgreSQL 17 wait event sets belong to a resource owner; with NULL they
 * last until they are freed.
 */
#if PG_VERSION_NUM >= 170000
#define clerk_create_wait_event_set(nevents) CreateWaitEventSet(NULL, nevents)
#else
#define clerk_create_wait_event_set(nevents) \
	CreateWaitEventSet(TopMemoryContext, nevents)
#endif

/* Since PostgreSQL 17, extensions can name their own wait events. */
#if PG_VERSION_NUM >= 170000
#include "utils/wait_event.h"
#define clerk_new_wait_event(name) WaitEventExtensionNew(name)
#else
#include "utils/wait_event.h"
#define clerk_new_wait_event(name) PG_WAIT_EXTENSION
#endif

/*
 * Since PostgreSQL 15, shared memory must be requested in a hook, which must
 * first call the hook that "previous" is set to.  Before, each request is made
 * immediately.
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
 * Whether commits wait for synchronous standbys, as far as the checkpointer
 * has published it.  The minor releases of May 2025 replaced the boolean with
 * flags.  Only for a file that includes walsender_private.h before this
 * header.
 */
#ifdef _WALSENDER_PRIVATE_H
#ifdef SYNC_STANDBY_DEFINED
#define clerk_standbys_are_awaited() \
	((WalSndCtl->sync_standbys_status & SYNC_STANDBY_DEFINED) != 0)
#else
#define clerk_standbys_are_awaited() (WalSndCtl->sync_standbys_defined)
#endif
#endif

/*
 * In PostgreSQL 17 this function has a parameter for also accepting stronger
 * lock modes.
 */
#if PG_VERSION_NUM >= 170000
#define clerk_lock_is_held(tag, mode) LockHeldByMe((tag), (mode), false)
#else
#define clerk_lock_is_held(tag, mode) LockHeldByMe((tag), (mode))
#endif

/*
 * Allocates a new LWLock tranche, once per server, and registers its name in
 * this process.  PostgreSQL 19 takes the name when the tranche is allocated,
 * for all processes.
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
 * The size of a name in shared memory.  PostgreSQL 19 has no limit; ours are
 * still shorter than the one it had.
 */
#if PG_VERSION_NUM >= 190000
#define SHMEM_INDEX_KEYSIZE 48
#endif

/*
 * In PostgreSQL 19, a row descriptor that was made by hand must be finalized
 * before it is used.
 */
#if PG_VERSION_NUM >= 190000
#define clerk_finalize_descriptor(descriptor) TupleDescFinalize(descriptor)
#else
#define clerk_finalize_descriptor(descriptor) ((void) 0)
#endif

/* PostgreSQL 19 added a name for this attribute. */
#if PG_VERSION_NUM < 190000
#if __has_attribute(fallthrough)
#define pg_fallthrough __attribute__((fallthrough))
#else
#define pg_fallthrough
#endif
#endif

/*
 * The connection limit that marks a database whose DROP DATABASE was
 * interrupted, added in the minor releases of August 2023.
 */
#if defined(PG_DATABASE_H) && !defined(DATCONNLIMIT_INVALID_DB)
#define DATCONNLIMIT_INVALID_DB (-2)
#endif

/*
 * PostgreSQL 16 replaced the privilege checks for each object type by one
 * function.
 */
#if PG_VERSION_NUM >= 160000
#define clerk_function_aclcheck(function, user) \
	object_aclcheck(ProcedureRelationId, (function), (user), ACL_EXECUTE)
#else
#define clerk_function_aclcheck(function, user) \
	pg_proc_aclcheck((function), (user), ACL_EXECUTE)
#endif

/*
 * Since PostgreSQL 15, SPI_commit() begins the next transaction automatically.
 */
#if PG_VERSION_NUM >= 150000
#define clerk_spi_commit_and_begin() SPI_commit()
#else
#define clerk_spi_commit_and_begin() (SPI_commit(), SPI_start_transaction())
#endif

/* PostgreSQL 19 made the third parameter constant. */
#if PG_VERSION_NUM >= 190000
#define CLERK_POST_PARSE_ANALYZE_PARAMETERS \
	ParseState *pstate, Query *query, const JumbleState *jumble
#define CLERK_POST_PARSE_ANALYZE_ARGUMENTS pstate, query, jumble
#else
#define CLERK_POST_PARSE_ANALYZE_PARAMETERS \
	ParseState *pstate, Query *query, JumbleState *jumble
#define CLERK_POST_PARSE_ANALYZE_ARGUMENTS pstate, query, jumble
#endif

/* A random number from 0 to 1.  PostgreSQL 15 added its own generator. */
#if PG_VERSION_NUM >= 150000
#include "common/pg_prng.h"
#define clerk_random_fraction() pg_prng_double(&pg_global_prng_state)
#else
#define clerk_random_fraction() ((double) random() / MAX_RANDOM_VALUE)
#endif

/* PostgreSQL 17 added transaction_timeout. */
#if PG_VERSION_NUM >= 170000
#define clerk_transaction_timeout_pending() TransactionTimeoutPending
#else
#define clerk_transaction_timeout_pending() false
#endif

/* On these systems locale.h does not declare the functions for locale_t. */
#if defined(__APPLE__) || defined(__FreeBSD__)
#include <xlocale.h>
#endif

/* macOS has other names for these members of struct stat. */
#ifdef __APPLE__
#define st_mtim st_mtimespec
#define st_ctim st_ctimespec
#endif

#ifdef JSONAPI_H

/*
 * PostgreSQL 17 takes the lexer's memory from the caller, or allocates it if
 * that is NULL.
 */
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
 * With CURLOPT_QUICK_EXIT (7.87), when a transfer ends early, libcurl leaves
 * behind the thread that does its name lookup.  Before, it joins the thread.
 * True if the option was set, which also requires a new enough library at run
 * time.
 */
#if LIBCURL_VERSION_NUM >= 0x075700
#define clerk_set_quick_exit(easy) \
	(curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L) == CURLE_OK)
#else
#define clerk_set_quick_exit(easy) false
#endif

/*
 * Since 8.20, the threads for name lookups belong to the multi handle, and its
 * cleanup joins them unless this option, number 21, is set.  An older library
 * does not know the option and does not need it.  True if the multi handle is
 * valid.
 */
#define clerk_set_quick_cleanup(multi) \
	(curl_multi_setopt(multi, (CURLMoption) 21, 1L) != CURLM_BAD_HANDLE)

/*
 * Since 7.80, libcurl can call a function before each attempt to send a
 * request.  True if the function was set, which also requires a new enough
 * library at run time.
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

/* 7.85 replaced the bit mask with a list of names. */
#if LIBCURL_VERSION_NUM >= 0x075500
#define clerk_set_protocols(easy) \
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https")
#else
#define clerk_set_protocols(easy) \
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS, \
					 (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS))
#endif

/*
 * Since 7.88, libcurl can return a host name in its DNS form (Punycode).  An
 * older library ignores the flag.
 */
#if LIBCURL_VERSION_NUM < 0x075800
#define CURLU_PUNYCODE (1 << 12)
#endif

#endif							/* LIBCURL_VERSION_NUM */

#endif							/* CLERK_COMPAT_H */
