EXTENSION = clerk_invite
# The version is defined in the control file.
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(srcdir)/$(EXTENSION).control)
# META.json has the version of the release, with a third number for releases
# that do not change any SQL objects.
DISTVERSION = $(shell sed -n 's/^    "version": *"\(.*\)",/\1/p' $(srcdir)/META.json)
MODULE_big = $(EXTENSION)
DATA = $(EXTENSION)--1.0.sql
OBJS = \
	src/clerk_invite.o \
	src/sql/arguments.o \
	src/sql/bulk_invitations.o \
	src/sql/invitation_functions.o \
	src/sql/invitations_argument.o \
	src/sql/list_invitations.o \
	src/sql/outbox_functions.o \
	src/sql/procedures.o \
	src/sql/result_descriptor.o \
	src/sql/rollback_warning.o \
	src/sql/statement_request.o \
	src/sql/status_functions.o \
	src/sql/webhook_function.o \
	src/worker/launcher.o \
	src/worker/slots.o \
	src/worker/wakeup.o \
	src/worker/worker.o \
	src/worker/worker_pass.o \
	src/outbox/claim.o \
	src/outbox/clock_setback.o \
	src/outbox/commit_wait.o \
	src/outbox/creation_window.o \
	src/outbox/delivery.o \
	src/outbox/delivery_pass.o \
	src/outbox/delivery_plan.o \
	src/outbox/enqueue_trigger.o \
	src/outbox/enqueued_rows.o \
	src/outbox/guard.o \
	src/outbox/id_sequence.o \
	src/outbox/lookup_limit.o \
	src/outbox/lookup_outcome.o \
	src/outbox/open_invitations.o \
	src/outbox/outbox.o \
	src/outbox/outbox_row.o \
	src/outbox/outbox_statement.o \
	src/outbox/outcome.o \
	src/outbox/owner_rights.o \
	src/outbox/packing.o \
	src/outbox/request_batch.o \
	src/outbox/retention.o \
	src/outbox/sender_lock.o \
	src/outbox/set_aside.o \
	src/outbox/settle.o \
	src/outbox/statement_table.o \
	src/outbox/status_refresh.o \
	src/outbox/status_statements.o \
	src/outbox/webhook_receipts.o \
	src/clerk/api_path.o \
	src/clerk/api_request.o \
	src/clerk/await_request.o \
	src/clerk/budget_file.o \
	src/clerk/budget_store.o \
	src/clerk/email_address.o \
	src/clerk/error.o \
	src/clerk/error_response.o \
	src/clerk/error_rules.o \
	src/clerk/instance_budgets.o \
	src/clerk/invitation_json.o \
	src/clerk/invitation_pages.o \
	src/clerk/invitation_response.o \
	src/clerk/json_encoding.o \
	src/clerk/json_reader.o \
	src/clerk/operations.o \
	src/clerk/rate_limit.o \
	src/clerk/remote_clock.o \
	src/clerk/request_accounting.o \
	src/clerk/request_error.o \
	src/clerk/request_window.o \
	src/clerk/reservation.o \
	src/clerk/webhook.o \
	src/clerk/white_space.o \
	src/http/domain_name.o \
	src/http/easy_handle.o \
	src/http/event_loop.o \
	src/http/header_list.o \
	src/http/http.o \
	src/http/multi_handle.o \
	src/http/request_url.o \
	src/http/socket_set.o \
	src/http/transfer.o \
	src/http/url_rules.o \
	src/common/installed_extension.o \
	src/common/monotonic_clock.o \
	src/common/secret_file.o \
	src/common/secret_key.o \
	src/common/server_clock.o \
	src/common/settings.o \
	src/common/shared_memory.o \
	src/common/webhook_secret.o

PG_CPPFLAGS = -I$(srcdir)/src $(shell $(CURL_CONFIG) --cflags) \
	-DCLERK_INVITE_VERSION='"$(EXTVERSION)"'
SHLIB_LINK = $(shell $(CURL_CONFIG) --libs)

# Each regression test runs with its own instance of the fake Clerk.
REGRESS = $(patsubst $(srcdir)/sql/%.sql,%,$(wildcard $(srcdir)/sql/*.sql))
REGRESS_OPTS = --launcher=$(srcdir)/test/with_fake_clerk.sh

CURL_CONFIG = curl-config
PG_CONFIG = pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)

# So does each isolation test, if the server installation has the test driver.
ifneq ($(wildcard $(dir $(PGXS))../test/isolation/pg_isolation_regress),)
ISOLATION = $(patsubst $(srcdir)/test/specs/%.spec,%,$(wildcard $(srcdir)/test/specs/*.spec))
ISOLATION_OPTS = --launcher=$(srcdir)/test/with_fake_clerk.sh --inputdir=$(srcdir)/test
endif

include $(PGXS)

# The built-in rules track no dependencies on headers, and do not create the
# directories of a VPATH build.
BITCODE = $(OBJS:.o=.bc)
# An absolute path, so that make does not search VPATH for the directory.
DIRECTORIES = $(sort $(dir $(addprefix $(CURDIR)/,$(OBJS))))
$(OBJS) $(BITCODE): $(wildcard $(srcdir)/src/*.h $(srcdir)/src/*/*.h) $(EXTENSION).control
$(OBJS) $(BITCODE): | $(DIRECTORIES)
$(DIRECTORIES):
	$(MKDIR_P) $@

# The archive for PGXN: all committed files, in one directory.
.PHONY: dist
dist:
	git -C $(srcdir) archive --format=zip --prefix=$(EXTENSION)-$(DISTVERSION)/ \
		--output=$(CURDIR)/$(EXTENSION)-$(DISTVERSION).zip HEAD
