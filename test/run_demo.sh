# run_demo.sh FOLDER - the demonstration itself, as an ordinary user in a folder
# of its own with the source in FOLDER/source; see demo.sh
set -eu

folder=$1
cd "$folder/source"
. test/throwaway_cluster.sh

stop_everything()
{
	[ -z "${report:-}" ] || { kill "$report" 2>/dev/null; wait "$report" || true; }
	[ ! -f "$folder/managed/data/postmaster.pid" ] ||
		pg_ctl stop -D "$folder/managed/data" -w -m immediate >/dev/null
	stop_cluster
	stop_fake_clerk
}
trap stop_everything EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

build()
{
	make -s PG_CONFIG="$PG_CONFIG" DESTDIR="$folder/root" install >"$folder/build.log" 2>&1 ||
		{ cat "$folder/build.log"; exit 1; }
}

# Its certificate is its own authority.
make_certificate()
{
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost \
		-addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
		-keyout "$folder/tls.key" -out "$folder/tls.crt" 2>"$folder/openssl.log"
}

# start_fake_clerk [PORT]: sets port.  The fake Clerk ends with its standard
# input, should nobody be left to stop it.
start_fake_clerk()
{
	python3 test/fake_clerk.py --exit-with-stdin --port "${1:-0}" \
		--tls "$folder/tls.crt" "$folder/tls.key" \
		--journal "$folder/journal" --violations "$folder/violations" \
		--secret-key "$key" \
		<"$folder/life" >"$folder/port" &
	fake_clerk=$!
	exec 9>"$folder/life"
	read -r port <"$folder/port"
}

stop_fake_clerk()
{
	if [ -n "${fake_clerk:-}" ]; then
		kill "$fake_clerk" 2>/dev/null || true
		wait "$fake_clerk" || true
		fake_clerk=
	fi
}

headline()
{
	if [ -t 1 ]; then
		printf '\033[1m%s\033[0m\n' "$1"
	else
		printf '%s\n' "$1"
	fi
}

chapter()
{
	echo
	headline "== $1"
	echo
}

sql()
{
	psql -X -e -v ON_ERROR_STOP=1
}

# What the fake Clerk has been asked since the last time.
clerk_received()
{
	headline 'What Clerk received:'
	tail -n "+$((journal_lines_shown + 1))" "$folder/journal" | python3 -c '
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    answer = request["status"] or "no answer"
    created = ", %d created" % len(request["created"]) if request["created"] else ""
    print("  %s %s -> %s%s" % (request["method"], request["path"], answer, created))
    if request["body"]:
        print("    %s" % json.dumps(request["body"], ensure_ascii=False))
'
	journal_lines_shown=$(wc -l <"$folder/journal")
}

# wait_for WHAT QUERY: until the query gives true.  It takes a second, or for
# pg_cron, which looks once a minute, up to one; two are ample.
wait_for()
{
	for _ in $(seq 650); do
		[ "$(psql -XAt -c "$2")" != t ] || return 0
		sleep 0.2
	done
	echo "$1 did not happen" >&2
	return 1
}

show_query()
{
	chapter 'A query'
	sql <<'SQL'
CREATE EXTENSION clerk_invite;

SELECT id, email_address, role, status, expires_at::date
FROM clerk_create_organization_invitation(
	'org_acme', 'user_ines', 'ann@example.com', 'org:member');
SQL
	clerk_received
}

show_trigger()
{
	chapter 'A trigger on a members table'
	sql <<'SQL'
CREATE TABLE members (
	email text PRIMARY KEY,
	team text,
	invitation_id text
);

CREATE FUNCTION invite_member() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	UPDATE members
	SET invitation_id = (clerk_create_organization_invitation('org_acme',
		'user_ines', NEW.email, 'org:member',
		metadata => jsonb_build_object('team', NEW.team))).id
	WHERE email = NEW.email;
	RETURN NULL;
EXCEPTION WHEN unique_violation THEN
	RETURN NULL;	-- Clerk has invited this person already
END
$$;

CREATE TRIGGER invite_member AFTER INSERT ON members
FOR EACH ROW EXECUTE FUNCTION invite_member();

INSERT INTO members (email, team)
VALUES ('ann@example.com', 'red'), ('bob@example.com', 'blue');

SELECT * FROM members;
SQL
	clerk_received
}

show_outbox()
{
	chapter 'The outbox: invitations that follow the commit'
	sql <<'SQL'
DROP TRIGGER invite_member ON members;

-- The ready-made one.  It calls nobody: it puts rows into the outbox.
CREATE TRIGGER invite AFTER INSERT ON members
REFERENCING NEW TABLE AS new_members
FOR EACH STATEMENT EXECUTE FUNCTION
clerk_invitation_trigger('=org_acme', '=user_ines', 'email', '=org:member');

BEGIN;
INSERT INTO members (email, team) VALUES ('eve@example.com', 'red');
ROLLBACK;

INSERT INTO members (email, team)
VALUES ('fay@example.com', 'red'), ('gil@example.com', 'blue');
SQL
	wait_for 'the delivery' "$all_sent"
	echo 'A background worker has started by itself, and has sent them.'
	sql <<'SQL'
SELECT email_address, state, attempts, settled_at - enqueued_at AS took
FROM clerk_invitation_outbox ORDER BY id;
SQL
	clerk_received
}

show_outage()
{
	chapter 'Clerk is down, and comes back'
	stop_fake_clerk
	echo 'Nobody listens at the address of Clerk now.'
	sql <<'SQL'
INSERT INTO members (email, team)
VALUES ('hal@example.com', 'red'), ('ida@example.com', 'blue');
SQL
	wait_for 'the attempt' "SELECT bool_or(last_error IS NOT NULL)
		FROM clerk_worker_status()"
	sql <<'SQL'
SELECT email_address, state, attempts, error_message
FROM clerk_invitation_outbox WHERE state <> 'sent' ORDER BY id;

SELECT database, last_error FROM clerk_worker_status();
SQL
	start_fake_clerk "$port"
	echo 'Clerk is back.  Nobody does anything.'
	wait_for 'the delivery' "$all_sent"
	sql <<'SQL'
SELECT email_address, state, attempts, error_message,
	enqueued_at::time(3), settled_at::time(3)
FROM clerk_invitation_outbox ORDER BY id;
SQL
	clerk_received
}

show_lost_answer()
{
	chapter 'Clerk invites, but its answer is lost'
	echo 'The fake Clerk does so once for an address that begins like this one.'
	sql <<'SQL'
INSERT INTO members (email, team)
VALUES ('x-drop-after-once--jon@example.com', 'red');
SQL
	wait_for 'the delivery' "$all_sent"
	echo 'The worker has asked Clerk whether it has the invitation, and has not sent it again.'
	sql <<'SQL'
SELECT email_address, state, attempts, invitation_id
FROM clerk_invitation_outbox ORDER BY id DESC LIMIT 1;
SQL
	clerk_received
}

show_cron()
{
	chapter 'A pg_cron job'
	if [ -z "$preload" ]; then
		echo 'There is no pg_cron for this version of PostgreSQL.'
		return
	fi
	sql <<'SQL'
CREATE EXTENSION pg_cron;

CREATE TABLE waiting_list (email text PRIMARY KEY, invitation_id text);
INSERT INTO waiting_list VALUES ('cleo@example.com'), ('dan@example.com');

-- Each invitation is committed before the next one is sent.
CREATE PROCEDURE invite_waiting() LANGUAGE plpgsql AS $$
DECLARE
	person waiting_list;
BEGIN
	FOR person IN SELECT * FROM waiting_list WHERE invitation_id IS NULL LOOP
		UPDATE waiting_list
		SET invitation_id = (clerk_create_organization_invitation(
			'org_acme', NULL, email, 'org:member')).id
		WHERE email = person.email;
		COMMIT;
	END LOOP;
END
$$;

SELECT cron.schedule('invite', '* * * * *', 'CALL invite_waiting()');
SQL
	echo 'Waiting for the next full minute ...'
	wait_for 'the job' "SELECT count(*) > 0 FROM cron.job_run_details
		WHERE status IN ('succeeded', 'failed')"
	sql <<'SQL'
SELECT status, return_message FROM cron.job_run_details;

SELECT * FROM waiting_list;
SQL
	clerk_received
}

# A second server stands for the managed one.  The first one is its hub, too.
show_hub()
{
	chapter 'A managed database, on which nothing can be installed'
	mkdir "$folder/managed"
	hub_data=$PGDATA
	start_cluster "$folder/managed" "$folder/nothing" "wal_level = 'logical'" \
		"max_slot_wal_keep_size = '1GB'"
	psql -Xq -v ON_ERROR_STOP=1 -c 'SET client_min_messages = warning' \
		-f hub/publisher.sql >/dev/null
	echo 'It has run hub/publisher.sql, which is plain SQL; a hub of its own has the extension.'
	sql <<'SQL'
SELECT count(*) AS installed FROM pg_extension WHERE extname = 'clerk_invite';

CREATE TABLE members (email text PRIMARY KEY, team text);
CREATE TRIGGER invite AFTER INSERT ON members
FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger('=org_acme', '', 'email', '=org:member');
SQL
	PGHOST=$folder PGDATA=$hub_data \
		CLERK_PUBLISHER="host=$folder/managed port=$PGPORT user=$PGUSER dbname=postgres" \
		sh hub/add_publisher.sh managed >"$folder/hub.log" 2>&1 ||
		{ cat "$folder/hub.log" >&2; exit 1; }
	PGHOST=$folder PGDATA=$hub_data sh hub/report.sh managed >>"$folder/hub.log" 2>&1 &
	report=$!
	wait_for 'the first report of the hub' \
		'SELECT last_report_at IS NOT NULL FROM clerk_hub_status'
	sql <<'SQL'
INSERT INTO members VALUES ('kim@example.com', 'green');
SQL
	wait_for 'the delivery' "$all_sent"
	sql <<'SQL'
SELECT email_address, state, status, invitation_id FROM clerk_invitation_outbox;
SQL
	PGHOST=$folder PGDATA=$hub_data
	clerk_received
}

key=sk_test_demonstration
all_sent="SELECT bool_and(state = 'sent') FROM clerk_invitation_outbox"
journal_lines_shown=0
build
make_certificate
mkfifo "$folder/life" "$folder/port"
touch "$folder/journal"
start_fake_clerk
preload="shared_preload_libraries = 'pg_cron'"
[ -e "$("$PG_CONFIG" --pkglibdir)/pg_cron.so" ] || preload=
# After a failure the worker waits for 10 seconds, unless told otherwise.
start_cluster "$folder" "$folder/root" "$preload" \
	"cron.host = '$folder'" \
	"clerk_invite.secret_key_file = 'clerk.key'" \
	"clerk_invite.api_url = 'https://localhost:$port'" \
	"clerk_invite.ca_file = '$folder/tls.crt'" \
	"clerk_invite.retry_delay = '2s'"
(umask 077; echo "$key" >"$PGDATA/clerk.key")

show_query
show_trigger
show_outbox
show_outage
show_lost_answer
show_hub
show_cron
if [ -s "$folder/violations" ]; then
	echo "These requests have violated Clerk's contract:" >&2
	cat "$folder/violations" >&2
	exit 1
fi
