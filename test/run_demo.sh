# run_demo.sh FOLDER - the demonstration itself, as an ordinary user in a folder
# of its own with the source in FOLDER/source; see demo.sh
set -eu

folder=$1
cd "$folder/source"
. test/throwaway_cluster.sh

stop_everything()
{
	stop_cluster
	if [ -n "${fake_clerk:-}" ]; then
		kill "$fake_clerk" 2>/dev/null || true
		wait "$fake_clerk" || true
	fi
}
trap stop_everything EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

build()
{
	make -s PG_CONFIG="$PG_CONFIG" DESTDIR="$folder/root" install >"$folder/build.log" 2>&1 ||
		{ cat "$folder/build.log"; exit 1; }
}

# Sets clerk_url; its certificate is its own authority.  The fake Clerk ends with
# its standard input, should nobody be left to stop it.
start_fake_clerk()
{
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost \
		-addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
		-keyout "$folder/tls.key" -out "$folder/tls.crt" 2>"$folder/openssl.log"
	mkfifo "$folder/life" "$folder/port"
	python3 test/fake_clerk.py --exit-with-stdin --tls "$folder/tls.crt" \
		"$folder/tls.key" --journal "$folder/journal" --secret-key "$1" \
		<"$folder/life" >"$folder/port" &
	fake_clerk=$!
	exec 9>"$folder/life"
	read -r port <"$folder/port"
	clerk_url=https://localhost:$port
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
    print("  %s %s -> %s" % (request["method"], request["path"], request["status"]))
    print("    %s" % json.dumps(request["body"], ensure_ascii=False))
'
	journal_lines_shown=$(wc -l <"$folder/journal")
}

# pg_cron looks once a minute: two ticks are ample.
wait_for_cron()
{
	for _ in $(seq 650); do
		[ "$(psql -XAt -c "SELECT count(*) FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')")" = 0 ] ||
			return 0
		sleep 0.2
	done
	echo "pg_cron did not run the job" >&2
	return 1
}

key=sk_test_demonstration
journal_lines_shown=0
build
start_fake_clerk "$key"
touch "$folder/journal"
start_cluster "$folder" "$folder/root" \
	"shared_preload_libraries = 'pg_cron'" \
	"cron.host = '$folder'" \
	'clerk_invite.worker = off' \
	"clerk_invite.secret_key_file = 'clerk.key'" \
	"clerk_invite.api_url = '$clerk_url'" \
	"clerk_invite.ca_file = '$folder/tls.crt'"
(umask 077; echo "$key" >"$PGDATA/clerk.key")

chapter 'A query'
sql <<'SQL'
CREATE EXTENSION clerk_invite;

SELECT id, email_address, role, status, expires_at::date
FROM clerk_create_organization_invitation(
	'org_acme', 'user_ines', 'ann@example.com', 'org:member');
SQL
clerk_received

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

chapter 'A pg_cron job'
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
wait_for_cron
sql <<'SQL'
SELECT status, return_message FROM cron.job_run_details;

SELECT * FROM waiting_list;
SQL
clerk_received
