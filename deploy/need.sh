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

# need_rabbitmq installs RabbitMQ where it may. Brokers of tests are then plain processes,
# which start several times faster than containers; without it they are containers.
need_rabbitmq() {
	[[ ! -d /usr/lib/rabbitmq ]] || return 0
	if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
		say "installing the package rabbitmq-server: brokers of tests are plain processes"
		apt_install rabbitmq-server && return
	fi
	engine || die "neither RabbitMQ nor a Docker engine is here: install the package rabbitmq-server"
}

for thing in "$@"; do
	case $thing in
	pika) need_pika ;;
	promtool) need promtool prometheus ;;
	rabbitmq) need_rabbitmq ;;
	chromium) command -v google-chrome >/dev/null || need chromium chromium ;;
	*) need "$thing" "$thing" ;;
	esac
done
