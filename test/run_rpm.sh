# run_rpm.sh FOLDER - builds and tries the RPM package, as an ordinary user in a
# folder of its own with a clone in FOLDER/clone; see rpm.sh
set -eu

folder=$1
cd "$folder/source"
. test/throwaway_cluster.sh
trap stop_cluster EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

spec=$folder/clone/rpm/clerk_invite.spec
version=$("$PG_CONFIG" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
release=$(sed -n 's/^Version:[[:space:]]*//p' "$spec")
pkglibdir=$("$PG_CONFIG" --pkglibdir)
sharedir=$("$PG_CONFIG" --sharedir)

# step NAME COMMAND...: says whether it went well; its output goes to a log,
# which is shown if it did not
step()
{
	name=$1
	shift
	if "$@" >"$folder/log" 2>&1; then
		echo "ok      $name"
	else
		echo "FAILED  $name"
		tail -n 100 "$folder/log"
		exit 1
	fi
}

# Debian's server has its files in other folders than PostgreSQL's repository
# for RPM-based distributions, and no RPM package that can be required.
build()
{
	rpmbuild "$1" --nodeps --define "_topdir $folder/rpmbuild" \
		--define "pgmajorversion $version" \
		--define "pginstdir $(dirname "$("$PG_CONFIG" --bindir)")" \
		--define "pgpkglibdir $pkglibdir" --define "pgsharedir $sharedir" "$spec"
}

# lint FILE...: fails on a warning, too, which rpmlint does not
lint()
{
	rpmlint --config "$folder/clone/rpm/rpmlint.toml" "$@" || return
	rpmlint --config "$folder/clone/rpm/rpmlint.toml" "$@" | grep -q ' 0 errors, 0 warnings'
}

# The files of the extension, where its server looks for them, and nothing
# outside of the folders for documentation.
has_its_files()
{
	rpm -qlp "$package" | grep -vE "^/usr/(share/doc|share/licenses|lib/.build-id)(/|$)" |
		sort >"$folder/files"
	cat "$folder/files"
	printf '%s\n' "$pkglibdir/clerk_invite.so" "$sharedir/extension/clerk_invite.control" \
		"$sharedir/extension/clerk_invite--1.0.sql" | sort | cmp - "$folder/files"
}

requires()
{
	rpm -qp --requires "$package" | sort -u
	for what in "postgresql$version-server" ca-certificates 'libcurl\.so\.4.*'; do
		rpm -qp --requires "$package" | grep -qx "$what"
	done
}

unpack()
{
	mkdir "$folder/root"
	rpm2cpio "$package" | (cd "$folder/root" && cpio -idm --quiet)
}

create_extension()
{
	start_cluster "$folder" "$folder/root"
	psql -X -v ON_ERROR_STOP=1 -c "CREATE EXTENSION clerk_invite" \
		-c "\dx clerk_invite" -c "SELECT count(*) AS workers FROM clerk_worker_status()" \
		-c "DROP EXTENSION clerk_invite"
	stop_cluster
}

mkdir -p "$folder/rpmbuild/SOURCES"
step 'make dist makes the source' make -s -C "$folder/clone" PG_CONFIG="$PG_CONFIG" dist
mv "$folder/clone/clerk_invite-$release.zip" "$folder/rpmbuild/SOURCES"
step 'rpmlint finds no error and no warning in the spec file' lint "$spec"
step 'rpmbuild makes the source package' build -bs
step 'rpmbuild makes the package' build -bb
package=$(echo "$folder"/rpmbuild/RPMS/*/clerk_invite_"$version"-"$release"-*.rpm)
step 'rpmlint finds no error and no warning in the packages' \
	lint "$folder"/rpmbuild/SRPMS/*.rpm "$package"
step 'the package has the files of the extension, in their places' has_its_files
step '... and requires what it needs' requires
step '... and can be unpacked' unpack
step "PostgreSQL $version creates the extension from it" create_extension
cat <<'TEXT'
not run: the package's installation by dnf, its build with the dependencies that
the spec file names, and the server of PostgreSQL's repository for RPM-based
distributions, with SELinux
TEXT
