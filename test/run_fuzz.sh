# run_fuzz.sh FOLDER - the run itself, as an ordinary user in a folder of its
# own with the source in FOLDER/source; see fuzz.sh
set -eu

folder=$1
cd "$folder/source"
. test/throwaway_cluster.sh
. test/instrumented.sh
. test/sanitizers.sh

# Responses are UTF-8, which has to become each of these.
encodings='UTF8 LATIN1 EUC_JP SQL_ASCII'
key=sk_test_fuzz

# The decoder: what reads responses and webhooks, and nothing else does.
decoder='^clerk/(json_.*|invitation_.*|error_response|request_error|webhook)\.c$'

stop_everything()
{
	exec 9>&-
	stop_cluster
}
trap stop_everything EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# build_driver: all of src/ but http.c, which the driver contains, in a folder
# of its own; lines are counted there
build_driver()
{
	mkdir "$folder/driver"
	cp -r . "$folder/driver"
	rm -f "$folder"/driver/src/http/http.o
	sources=$(cd "$folder/driver" && ls src/*.c src/*/*.c test/fuzz/*.c |
		grep -v '^src/http/http\.c$')
	make -s -j 2 -C "$folder/driver" PG_CONFIG="$PG_CONFIG" MODULE_big=driver \
		OBJS="$(echo "$sources" | sed 's/c$/o/' | tr '\n' ' ')" with_llvm=no \
		COPT="$SANITIZER_FLAGS --coverage -include test/fuzz/poisoned_memory.h"
}

# make_corpus: writes the fake's responses to FOLDER/corpus.sql
make_corpus()
{
	mkfifo "$folder/life" "$folder/port"
	python3 test/fake_clerk.py --exit-with-stdin --any-client --secret-key "$key" \
		--single-limit 10000 --bulk-limit 10000 <"$folder/life" >"$folder/port" &
	exec 9>"$folder/life"
	read -r port <"$folder/port"
	python3 test/fuzz/corpus.py "http://127.0.0.1:$port" "$key" >"$folder/corpus.sql"
	exec 9>&-
}

# make_database ENCODING
make_database()
{
	psql -Xq -v ON_ERROR_STOP=1 <<END
CREATE DATABASE "$1" TEMPLATE template0 ENCODING '$1' LC_COLLATE 'C' LC_CTYPE 'C';
\connect "$1"
CREATE TABLE corpus (operation text, status integer, headers bytea, body bytea,
	number serial);
\set QUIET on
\i $folder/corpus.sql
CREATE FUNCTION fuzz_responses(operations text[], statuses integer[],
	headers bytea[], bodies bytea[], seed bigint, first bigint, responses bigint)
RETURNS text STRICT LANGUAGE c AS '$folder/driver/driver.so';
CREATE FUNCTION fuzz_webhooks(bodies bytea[], seed bigint, first bigint,
	webhooks bigint)
RETURNS text STRICT LANGUAGE c AS '$folder/driver/driver.so';
CREATE TABLE webhooks (body bytea);
\i $folder/source/test/fuzz/webhooks.sql
END
}

# fuzz ENCODING RESPONSES WEBHOOKS SEED: a session for each
fuzz()
{
	{
		PGDATABASE=$1 psql -XAtq -v ON_ERROR_STOP=1 -c "
			SELECT fuzz_responses(array_agg(operation ORDER BY number),
				array_agg(status ORDER BY number), array_agg(headers ORDER BY number),
				array_agg(body ORDER BY number), $4, 0, $2)
			FROM corpus" &&
			PGDATABASE=$1 psql -XAtq -v ON_ERROR_STOP=1 -c "
				SELECT fuzz_webhooks(array_agg(body ORDER BY body), $4, 0, $3)
				FROM webhooks"
	} >"$folder/$1.outcomes" 2>"$folder/$1.errors" || {
		echo "the responses or webhooks in $1 (seed $4) have failed:"
		cat "$folder/$1.errors"
		return 1
	}
}

# The counts of all encodings together, then the figures of each.
show_outcomes()
{
	echo "outcomes:"
	cat "$folder"/*.outcomes | sed -n 's/^\([0-9]\)/\1/p' |
		awk '{n = $1; $1 = ""; counts[$0] += n}
			END {for (name in counts) printf "%10d%s\n", counts[name], name}' |
		sort -k 2
	for encoding in $encodings; do
		sed -n "s/^= /$encoding: /p" "$folder/$encoding.outcomes" 2>/dev/null
	done
}

# Two encodings at a time.
fuzz_all()
{
	databases=$(echo "$encodings" | wc -w)
	failed=
	previous=
	for encoding in $encodings; do
		make_database "$encoding"
		fuzz "$encoding" $((RESPONSES / databases)) $((WEBHOOKS / databases)) "$FUZZ_SEED" &
		[ -z "$previous" ] || wait "$previous" || failed=1
		previous=$!
	done
	wait "$previous" || failed=1
	show_outcomes
	[ -z "$failed" ]
}

# fuzz_arguments: the TAP test with the sanitized module
fuzz_arguments()
{
	CHECKS=tap TAP_FILES=test/t/076_arguments.pl \
		INSTRUMENT="$SANITIZER_FLAGS" sh test/run_checks.sh "$folder" || return 1
	grep '^# .*[0-9] [0-9A-Z]\{5\}' "$folder/tap.log"
}

prepare_sanitizers "$folder"
build_driver >"$folder/build.log" 2>&1 || { cat "$folder/build.log"; exit 1; }
make_corpus
echo "$(grep -c ^INSERT "$folder/corpus.sql") responses of the fake Clerk"
start_cluster "$folder" "$folder/root"
status=0
fuzz_all || status=1
pg_ctl stop -w -m fast >/dev/null
echo "calls:"
fuzz_arguments || status=1
sanitizer_reports "$folder" || status=1
[ $status -eq 0 ] || tail -n 60 "$folder/server.log"
echo "lines of the decoder that were executed:"
perl test/coverage.pl --files "$decoder" "$folder/driver"
exit $status
