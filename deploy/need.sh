#!/usr/bin/env bash
# need.sh THING… ensures that programs needed by the tests are installed: it installs
# the Debian package, or, without the rights to install, fails and names the package.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

# need_pika checks the distribution's Python, for which the package is made.
need_pika() {
	/usr/bin/python3 -c 'import pika' 2>/dev/null && return
	if [[ $(id -u) == 0 ]]; then
		say "installing the package python3-pika"
		apt_install python3-pika && return
	fi
	die "Python's pika is missing: install the package python3-pika"
}

# need_rabbitmq installs RabbitMQ if it has the rights. Brokers of tests are then plain
# processes, which start several times faster than containers; otherwise they are containers.
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
	erlc) need erlc erlang-base ;;
	chromium) command -v google-chrome >/dev/null || need chromium chromium ;;
	*) need "$thing" "$thing" ;;
	esac
done
