# run_real_demo.sh FOLDER ORGANIZATION ADDRESS - one real invitation, as an
# ordinary user in a folder of its own with the source in FOLDER/source; see
# demo.sh
#
# The server takes the key from its environment.
set -eu

folder=$1
cd "$folder/source"
. test/throwaway_cluster.sh
trap stop_cluster EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

make -s PG_CONFIG="$PG_CONFIG" DESTDIR="$folder/root" install >"$folder/build.log" 2>&1 ||
	{ cat "$folder/build.log"; exit 1; }
start_cluster "$folder" "$folder/root" \
	"clerk_invite.api_url = '${CLERK_API_URL:-https://api.clerk.com/v1}'" \
	"clerk_invite.ca_file = '${CLERK_CA_FILE:-}'"
psql -X -e -v ON_ERROR_STOP=1 -v organization="$2" -v address="$3" \
	-v role="${CLERK_ROLE:-org:member}" <<'SQL'
CREATE EXTENSION clerk_invite;

SELECT id, email_address, role, status, expires_at
FROM clerk_create_organization_invitation(
	:'organization', NULL, :'address', :'role');
SQL
