# instrumented.sh - what the scripts have in common that build the module with
# more than the compiler's usual code in it
#
# Sourced, not run, by an ordinary user, with PG_CONFIG set.

# Files that a slower module makes fail or that do not run the module that was
# built, and why: those that measure time or memory, and those that build and
# run other copies of the source.
not_instrumented()
{
	cat <<'END'
014_check_script.pl runs check.sh, without building anything
015_demo_script.pl runs the demo, which builds a copy of its own
031_pace.pl measures how fast the outbox empties
050_distribution.pl packs an archive and builds what is in it
055_build.pl builds copies by other means
END
}

# instrumented_tests: the other files of test/t
instrumented_tests()
{
	for file in test/t/*.pl; do
		not_instrumented | grep -q "^${file##*/} " || echo "$file"
	done
}

# use_programs FOLDER SCRIPT: makes FOLDER a copy of the server's folder of
# programs whose "postgres" runs the lines of SCRIPT, which find the real one in
# $server and its arguments in "$@", and sets PG_CONFIG to a pg_config that
# names FOLDER.  The programs are copied because they look for postgres beside
# the file that a link leads to.  SCRIPT is for bash, which can give the real one
# the name of the script, so that "pg_ctl restart" finds that again.  The last
# part of FOLDER must not be "bin", or the server takes its libraries for moved,
# too.
use_programs()
{
	real_bin=$("$PG_CONFIG" --bindir)
	mkdir "$1"
	cp "$real_bin"/* "$1/"
	rm "$1/postgres" "$1/pg_config"
	[ ! -e "$1/postmaster" ] || ln -sf postgres "$1/postmaster"
	{
		echo '#!/bin/bash'
		echo "server='$real_bin/postgres'"
		echo "$2"
	} >"$1/postgres"
	cat >"$1/pg_config" <<END
#!/bin/sh
if [ "\$*" = --bindir ]; then
	echo '$1'
else
	exec '$PG_CONFIG' "\$@"
fi
END
	chmod +x "$1/postgres" "$1/pg_config"
	PG_CONFIG=$1/pg_config
	export PG_CONFIG
}
