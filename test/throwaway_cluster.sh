# throwaway_cluster.sh - a PostgreSQL cluster in a folder, for scripts
#
# Sourced, not run, by an ordinary user, with PG_CONFIG set.  What the caller's
# environment tells of another server is forgotten: that one must be neither
# asked nor stopped.
for variable in $(env | sed -n 's/^\(PG[A-Z]*\)=.*/\1/p'); do
	unset "$variable"
done

# start_cluster FOLDER DESTDIR [LINE...]: makes and starts a cluster below
# FOLDER that finds extensions below DESTDIR, as "make install DESTDIR=" leaves
# them, with more lines for postgresql.conf; sets PGDATA, PGHOST, PGPORT,
# PGUSER, PGDATABASE, and PATH to the server's programs
start_cluster()
{
	cluster_folder=$1
	cluster_destdir=$2
	shift 2
	PATH="$("$PG_CONFIG" --bindir):$PATH"
	PGDATA=$cluster_folder/data
	PGHOST=$cluster_folder
	PGPORT=5432
	PGUSER=postgres
	PGDATABASE=postgres
	export PATH PGDATA PGHOST PGPORT PGUSER PGDATABASE
	initdb -U postgres -A trust -N -E UTF8 --locale=C >"$cluster_folder/initdb.log"
	{
		echo "listen_addresses = ''"
		echo "unix_socket_directories = '$cluster_folder'"
		echo "fsync = off"
		where_extensions_are
		for line in "$@"; do
			echo "$line"
		done
	} >>"$PGDATA/postgresql.conf"
	pg_ctl start -w -l "$cluster_folder/server.log" >"$cluster_folder/pg_ctl.log" ||
		{ cat "$cluster_folder/server.log" >&2; return 1; }
}

# Debian's servers up to 17 have a setting of their own; 18 has PostgreSQL's.
where_extensions_are()
{
	if [ "$(cat "$PGDATA/PG_VERSION")" -lt 18 ]; then
		echo "extension_destdir = '$cluster_destdir'"
	else
		echo "extension_control_path = '$cluster_destdir$("$PG_CONFIG" --sharedir):\$system'"
		echo "dynamic_library_path = '$cluster_destdir$("$PG_CONFIG" --pkglibdir):\$libdir'"
	fi
}

stop_cluster()
{
	if [ -f "${PGDATA:-}/postmaster.pid" ]; then
		pg_ctl stop -w -m immediate >/dev/null
	fi
}
