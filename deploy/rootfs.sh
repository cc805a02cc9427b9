#!/usr/bin/env bash
# rootfs.sh SUITE [PACKAGE…] builds a tree of Debian SUITE with the packages, once,
# and prints its path. Needs root; takes a minute the first time.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

readonly TREES=$CACHE/rootfs

# base TREE builds the bare distribution with CA certificates, from DEBIAN_MIRROR or else
# from debootstrap's default mirror.
base() {
	need debootstrap debootstrap
	debootstrap --variant=minbase --include=ca-certificates "$suite" "$1" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
	echo '127.0.0.1 localhost' >"$1/etc/hosts"
	printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
	chmod 755 "$1/usr/sbin/policy-rc.d"
}

# extended TREE PACKAGE… builds a copy of the base tree with the packages installed.
extended() {
	local tree=$1
	shift
	cp -a --reflink=auto "$("$0" "$suite")" "$tree"
	chroot "$tree" apt-get -qy update
	chroot "$tree" env DEBIAN_FRONTEND=noninteractive \
		apt-get -qy install --no-install-recommends "$@"
	chroot "$tree" apt-get clean
	rm -rf "$tree"/var/lib/apt/lists/*
}

[[ $(id -u) == 0 ]] || die "a tree of Debian packages can only be built by root"
suite=${1:?usage: rootfs.sh SUITE [PACKAGE…]}
shift
tree=$TREES/$suite${*:+-}$(IFS=-; echo "$*")

mkdir -p "$TREES"
exec 8>"$tree.lock"
flock 8
if [[ ! -d $tree ]]; then
	say "building a tree of Debian $suite ${*:+with $* }from packages (once per machine)"
	rm -rf "$tree.tmp"
	if [[ $# == 0 ]]; then
		base "$tree.tmp" >"$tree.log" 2>&1 8>&- || die "debootstrap of $suite failed: $(tail -n 3 "$tree.log")"
	else
		extended "$tree.tmp" "$@" >"$tree.log" 2>&1 8>&- || die "installing $* in a tree of $suite failed: $(tail -n 3 "$tree.log")"
	fi
	mv "$tree.tmp" "$tree"
fi
echo "$tree"
