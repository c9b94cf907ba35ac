EXTENSION = clerk_invite
# The control file is where the version is written.
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(EXTENSION).control)
# META.json has the release's, with a third number for what changes no SQL.
DISTVERSION = $(shell sed -n 's/^    "version": *"\(.*\)",/\1/p' META.json)
MODULE_big = $(EXTENSION)
DATA = $(EXTENSION)--1.0.sql
OBJS = \
	src/arguments.o \
	src/bulk_invitations.o \
	src/clerk_api.o \
	src/clerk_error.o \
	src/clerk_invite.o \
	src/delivery.o \
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
	src/outbox_guard.o \
	src/outbox_statement.o \
	src/outbox_status.o \
	src/planner.o \
	src/procedure.o \
	src/rate_limit.o \
	src/rate_limit_status.o \
	src/refresh_invitations.o \
	src/rollback_warning.o \
	src/secret_key.o \
	src/send_invitations.o \
	src/shared_memory.o \
	src/shipment.o \
	src/socket_set.o \
	src/statement_request.o \
	src/status_refresh.o \
	src/trigger.o \
	src/url_rules.o \
	src/verdict.o \
	src/worker.o \
	src/worker_slots.o \
	src/worker_status.o \
	src/worker_wakeup.o

PG_CPPFLAGS = $(shell $(CURL_CONFIG) --cflags) \
	-DCLERK_INVITE_VERSION='"$(EXTVERSION)"'
SHLIB_LINK = $(shell $(CURL_CONFIG) --libs)

# Each regression test runs beside a fake Clerk of its own.
REGRESS = $(patsubst sql/%.sql,%,$(wildcard sql/*.sql))
REGRESS_OPTS = --launcher=test/with_fake_clerk.sh

CURL_CONFIG = curl-config
PG_CONFIG = pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)

# So has each isolation test, where the server comes with the tester.
ifneq ($(wildcard $(dir $(PGXS))../test/isolation/pg_isolation_regress),)
ISOLATION = $(patsubst test/specs/%.spec,%,$(wildcard test/specs/*.spec))
ISOLATION_OPTS = --launcher=test/with_fake_clerk.sh --inputdir=test
endif

include $(PGXS)

# Make's own rule knows nothing of headers.
$(OBJS): $(wildcard src/*.h) $(EXTENSION).control

# The archive that is uploaded to PGXN: what is committed, in one folder.
.PHONY: dist
dist:
	git archive --format=zip --prefix=$(EXTENSION)-$(DISTVERSION)/ \
		--output=$(EXTENSION)-$(DISTVERSION).zip HEAD
