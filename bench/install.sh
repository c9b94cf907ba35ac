# install.sh - what is measured, in a folder of its own
#
# Sourced, not run, with the name of the measurement's folder in folder and the
# source's as the working directory.

# install_extensions: the extension into $folder/root, as it is in the folder BUILT
# if there is one, else from the source; and the other extensions that "make
# install DESTDIR=" has put into the folder PEERS, if there is one, which need not
# be installed on the machine then.
install_extensions()
{
	if [ -n "${BUILT:-}" ]; then
		cp -r "$BUILT" "$folder/root"
	else
		make -s PG_CONFIG="$PG_CONFIG" DESTDIR="$folder/root" install >"$folder/build.log" 2>&1 ||
			{ cat "$folder/build.log"; return 1; }
	fi
	[ -z "${PEERS:-}" ] || cp -r "$PEERS/." "$folder/root/"
}

# has_extension NAME: whether the cluster could create it.  The server's own list
# does not have those in folders of their own, in some versions.
has_extension()
{
	sharedir=$("$PG_CONFIG" --sharedir)
	[ -f "$folder/root$sharedir/extension/$1.control" ] ||
		[ -f "$sharedir/extension/$1.control" ]
}

# peer_settings: a line for postgresql.conf with which the server finds the
# libraries of others by name alone, as pg_net's worker is started
peer_settings()
{
	echo "dynamic_library_path = '$folder/root$("$PG_CONFIG" --pkglibdir):\$libdir'"
}
