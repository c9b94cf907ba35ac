# measure_enqueue.sh FOLDER - the measuring part of enqueue.sh, as an ordinary
# user in a folder of its own with the source in FOLDER/source
set -eu

folder=$1
cd "$folder/source"
. test/throwaway_cluster.sh
. bench/figures.sh
. bench/install.sh
trap stop_cluster EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Members as an application has them: a key, and what an invitation needs.  Who
# they are is made up beforehand; that is nobody's cost.
prepare()
{
	psql -Xq -v ON_ERROR_STOP=1 <<SQL
CREATE EXTENSION clerk_invite;
CREATE TABLE people AS
SELECT 'org_2fXk0aLqB3cD4eF5gH6iJ7kL8mN' AS org_id,
       'user_2gYl1bMrC4dE5fG6hI7jK8lM9nO' AS invited_by,
       'person-' || n || '@example.com' AS email
FROM generate_series(1, $largest) AS n;
CREATE TABLE members (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id text NOT NULL,
    invited_by text,
    email text NOT NULL,
    joined_at timestamptz NOT NULL DEFAULT now()
);
CREATE TRIGGER by_statement AFTER INSERT ON members
REFERENCING NEW TABLE AS new_members
FOR EACH STATEMENT EXECUTE FUNCTION
clerk_invitation_trigger('org_id', 'invited_by', 'email', '=org:member');
CREATE TRIGGER by_row AFTER INSERT ON members
FOR EACH ROW EXECUTE FUNCTION
clerk_invitation_trigger('org_id', 'invited_by', 'email', '=org:member');
VACUUM ANALYZE people;
SQL
}

# Of the first MEMBERS people.
add_members='INSERT INTO members (org_id, invited_by, email)
SELECT org_id, invited_by, email FROM people LIMIT :members;'
add_invitations="INSERT INTO clerk_invitation_outbox
	(organization_id, inviter_user_id, email_address, role)
SELECT org_id, invited_by, email, 'org:member' FROM people LIMIT :members;"

# time_transaction MEMBERS TRIGGER STATEMENTS: milliseconds of the third
# transaction of a session, each with empty tables, with no trigger but this.
# Truncation makes new files, and a checkpoint before makes them the only ones to
# write.
time_transaction()
{
	{
		cat <<SQL
SET client_min_messages = error;
ALTER TABLE members DISABLE TRIGGER USER;
$([ -z "$2" ] || echo "ALTER TABLE members ENABLE TRIGGER $2;")
CHECKPOINT;
\\set members $1
SQL
		for _ in 1 2 3; do
			cat <<SQL
TRUNCATE members, clerk_invitation_outbox;
SELECT clock_timestamp() AS begun \\gset
BEGIN;
$3
COMMIT;
SELECT clock_timestamp() AS ended \\gset
SQL
		done
		cat <<SQL
SELECT 1 / (count(*) = $1)::integer FROM clerk_invitation_outbox
WHERE organization_id LIKE 'org%' AND inviter_user_id LIKE 'user%'
AND role = 'org:member' \\g /dev/null
SELECT round(extract(epoch FROM :'ended'::timestamptz - :'begun')::numeric * 1000, 2);
SQL
	} | psql -XAtq -v ON_ERROR_STOP=1
}

# measure MEMBERS: the rounds, in turn.  The ratios are taken round by round,
# since the machine's speed drifts, and every other round goes backwards.
measure()
{
	rm -f "$folder"/*.figures
	for round in $(seq "$ROUNDS"); do
		if [ $((round % 2)) -eq 1 ]; then
			ways='plain statement row'
		else
			ways='row statement plain'
		fi
		for way in $ways; do
			case $way in
				plain) time_transaction "$1" '' "$add_members $add_invitations" ;;
				*) time_transaction "$1" "by_$way" "$add_members" ;;
			esac >"$folder/last_$way"
			cat "$folder/last_$way" >>"$folder/$way.figures"
		done
		for way in statement row; do
			ratio "$(cat "$folder/last_$way")" "$(cat "$folder/last_plain")" \
				>>"$folder/${way}_ratios.figures"
		done
	done
}

# report MEMBERS: a line of the table.  What a transaction costs that is all but
# empty is no matter of ratios: they are limited from 10,000 members on.
report()
{
	for way in plain statement row; do
		note "enqueue.$1.$way $(median <"$folder/$way.figures")"
	done
	printf '%12s %12s' "$1" "$(median <"$folder/plain.figures")"
	for way in statement row; do
		overhead=$(median <"$folder/${way}_ratios.figures")
		note "enqueue.$1.$way.ratio $overhead"
		printf ' %12s %8s' "$(median <"$folder/$way.figures")" "$overhead"
		limit=$([ $way = row ] && echo 2.5 || echo 1.5)
		[ "$1" -lt 10000 ] || ! exceeds "$overhead" "$limit" || failed=1
	done
	echo
}

failed=
largest=$(printf '%s\n' $MEMBERS | sort -n | tail -n 1)
install_extensions
start_cluster "$folder" "$folder/root" 'autovacuum = off' 'max_wal_size = 8GB' \
	'clerk_invite.worker = off'

prepare

echo "milliseconds a transaction: medians of $ROUNDS rounds"
printf '%12s %12s %12s %8s %12s %8s\n' members 'two INSERTs' statement ratio 'row trigger' ratio
for members in $MEMBERS; do
	measure "$members"
	report "$members"
done
printf '%12s %12s %12s %8s %12s %8s\n' limit '' '' 1.5 '' 2.5
within_limits
