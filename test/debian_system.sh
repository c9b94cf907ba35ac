# debian_system.sh - Debian systems in folders, for scripts
#
# Sourced, not run, after machine.sh and by root: it takes root to make device
# files and to change the root folder.  What runs in a system has a private
# namespace of mounts and processes, so nothing of it outlives the command.
#
# DEBIAN_MIRROR in the environment names another mirror.

# prepare_for_systems: refuses to go on without root, and installs what it
# takes
prepare_for_systems()
{
	if [ "$(id -u)" != 0 ]; then
		echo "$0: needs root, to make Debian systems in folders" >&2
		exit 1
	fi
	[ -z "$(missing_packages debootstrap debian-archive-keyring git)" ] ||
		refresh_package_lists
	install_packages debootstrap debian-archive-keyring git
}

# make_folder_for_systems: sets SYSTEMS, a folder that is removed at exit.  Not
# below /tmp, where device files are often refused.
make_folder_for_systems()
{
	SYSTEMS=$(mktemp -d "${TMPDIR:-/var/tmp}/clerk_invite.XXXXXX")
	trap 'rm -rf --one-file-system "$SYSTEMS"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
}

# make_system FOLDER SUITE [ARCHITECTURE]: the smallest Debian there is
make_system()
{
	# A suite that is younger than the machine's debootstrap is made as sid is.
	unshare --mount debootstrap --variant=minbase \
		--arch="${3:-$(dpkg --print-architecture)}" "$2" "$1" \
		"${DEBIAN_MIRROR:-}" \
		/usr/share/debootstrap/scripts/sid >&2
	# Nothing that is installed may start by itself: the network is shared with
	# the machine.
	printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
	chmod +x "$1/usr/sbin/policy-rc.d"
	# A mirror may be a snapshot, whose lists are out of date by themselves.
	echo 'Acquire::Check-Valid-Until "false";' \
		>"$1/etc/apt/apt.conf.d/90clerk_invite"
}

# in_system FOLDER COMMAND...: as root, with nothing of the caller's
# environment
in_system()
{
	in_system_folder=$1
	shift
	case $(chroot "$in_system_folder" dpkg --print-architecture) in
		i386) set -- setarch i686 "$@" ;;
	esac
	cp -L /etc/resolv.conf "$in_system_folder/etc/resolv.conf"
	# The shell stays, to be the one that collects orphans.
	# shellcheck disable=SC2016
	unshare --mount --pid --fork --kill-child sh -euc '
		cd "$1"
		shift
		mount -t proc proc proc
		mount -t tmpfs -o mode=1777 tmpfs dev/shm
		mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
		status=0
		chroot . env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
			DEBIAN_FRONTEND=noninteractive "$@" || status=$?
		exit $status
	' sh "$in_system_folder" "$@"
}

# clone_into FOLDER PLACE: what is committed, at that place of the system's
clone_into()
{
	[ -z "$(git status --porcelain)" ] ||
		echo "$0: what is not committed is left out" >&2
	rm -rf "${1:?}/$2"
	git clone -q --no-hardlinks . "$1/$2"
}

# step SYSTEM NAME SCRIPT: runs the script there and says whether it went well;
# its output goes to $SYSTEMS/log
step()
{
	if in_system "$1" sh -euc "$3" >"$SYSTEMS/log" 2>&1; then
		echo "ok      $2"
	else
		echo "FAILED  $2"
		tail -n 100 "$SYSTEMS/log"
		return 1
	fi
}
