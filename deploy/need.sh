#!/usr/bin/env bash
# need.sh THING… sees to it that programs the tests need are there: installs the
# Debian package when it may, otherwise names it.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

# need_pika asks the distribution's own Python, which the package is for.
need_pika() {
	/usr/bin/python3 -c 'import pika' 2>/dev/null && return
	if [[ $(id -u) == 0 ]]; then
		say "installing the package python3-pika"
		apt_install python3-pika && return
	fi
	die "Python's pika is missing: install the package python3-pika"
}

for thing in "$@"; do
	case $thing in
	pika) need_pika ;;
	promtool) need promtool prometheus ;;
	chromium) command -v google-chrome >/dev/null || need chromium chromium ;;
	*) need "$thing" "$thing" ;;
	esac
done
