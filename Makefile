EXTENSION = clerk_invite
# The version is defined in the control file.
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(EXTENSION).control)
# META.json has the version of the release, with a third number for releases
# that do not change any SQL objects.
DISTVERSION = $(shell sed -n 's/^    "version": *"\(.*\)",/\1/p' META.json)
MODULE_big = $(EXTENSION)
DATA = $(EXTENSION)--1.0.sql
OBJS = \
	src/arguments.o \
	src/budget_file.o \
	src/bulk_invitations.o \
	src/clerk_api.o \
	src/clerk_error.o \
	src/clerk_invite.o \
	src/delivery.o \
	src/domain_name.o \
	src/email_address.o \
	src/functions.o \
	src/guc.o \
	src/http.o \
	src/http_event_loop.o \
	src/http_transfer.o \
	src/installed_extension.o \
	src/invitation_json.o \
	src/invitation_pages.o \
	src/invitation_progress.o \
	src/invitations_argument.o \
	src/json_reader.o \
	src/json_wire.o \
	src/launcher.o \
	src/list_invitations.o \
	src/monotonic_clock.o \
	src/outbox.o \
	src/outbox_by_hand.o \
	src/outbox_guard.o \
	src/outbox_lock.o \
	src/outbox_numbers.o \
	src/outbox_retention.o \
	src/outbox_set_aside.o \
	src/outbox_statement.o \
	src/outbox_status.o \
	src/owner_rights.o \
	src/planner.o \
	src/procedure.o \
	src/rate_limit.o \
	src/rate_limit_status.o \
	src/refresh_invitations.o \
	src/rollback_warning.o \
	src/secret_key.o \
	src/send_invitations.o \
	src/server_clock.o \
	src/shared_memory.o \
	src/shipment.o \
	src/socket_set.o \
	src/statement_request.o \
	src/statement_table.o \
	src/status_refresh.o \
	src/trigger.o \
	src/url_rules.o \
	src/verdict.o \
	src/white_space.o \
	src/worker.o \
	src/worker_slots.o \
	src/worker_status.o \
	src/worker_wakeup.o

PG_CPPFLAGS = $(shell $(CURL_CONFIG) --cflags) \
	-DCLERK_INVITE_VERSION='"$(EXTVERSION)"'
SHLIB_LINK = $(shell $(CURL_CONFIG) --libs)

# Each regression test runs with its own instance of the fake Clerk.
REGRESS = $(patsubst sql/%.sql,%,$(wildcard sql/*.sql))
REGRESS_OPTS = --launcher=test/with_fake_clerk.sh

CURL_CONFIG = curl-config
PG_CONFIG = pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)

# So does each isolation test, if the server installation has the test driver.
ifneq ($(wildcard $(dir $(PGXS))../test/isolation/pg_isolation_regress),)
ISOLATION = $(patsubst test/specs/%.spec,%,$(wildcard test/specs/*.spec))
ISOLATION_OPTS = --launcher=test/with_fake_clerk.sh --inputdir=test
endif

include $(PGXS)

# The built-in rule does not track dependencies on headers.
$(OBJS): $(wildcard src/*.h) $(EXTENSION).control

# The archive for PGXN: all committed files, in one directory.
.PHONY: dist
dist:
	git archive --format=zip --prefix=$(EXTENSION)-$(DISTVERSION)/ \
		--output=$(EXTENSION)-$(DISTVERSION).zip HEAD
