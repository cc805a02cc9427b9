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

# packages_of_languages prints the packages for the programs of docs/interop, one a line, each
# with a command that fails without the package.
packages_of_languages() {
	cat <<-'END'
		python3-pika /usr/bin/python3 -c 'import pika'
		python3-aio-pika /usr/bin/python3 -c 'import aio_pika'
		default-jdk-headless command -v javac
		librabbitmq-client-java test -e /usr/share/java/amqp-client.jar
		ruby-bunny ruby -e 'require "bunny"'
		php-cli command -v php
		php-amqplib test -e /usr/share/php/PhpAmqpLib/autoload.php
		rabbitmq-server test -d /usr/lib/rabbitmq
		erlang-base command -v escript
		gcc command -v cc
		librabbitmq-dev test -e /usr/include/amqp.h
		libanyevent-rabbitmq-perl perl -MAnyEvent::RabbitMQ -e1
		nodejs command -v node
		curl command -v curl
		jq command -v jq
	END
}

# missing_of_languages prints the packages of packages_of_languages that are missing.
missing_of_languages() {
	local package check
	while read -r package check; do
		bash -c "$check" &>/dev/null </dev/null || echo "$package"
	done < <(packages_of_languages)
}

need_languages() {
	local missing
	mapfile -t missing < <(missing_of_languages)
	((${#missing[@]})) || return 0
	if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
		say "installing the packages ${missing[*]}"
		apt_install "${missing[@]}" || true
		mapfile -t missing < <(missing_of_languages)
	fi
	((${#missing[@]} == 0)) || die "programs of docs/interop need more: install the packages ${missing[*]}"
}

for thing in "$@"; do
	case $thing in
	pika) need_pika ;;
	promtool) need promtool prometheus ;;
	rabbitmq) need_rabbitmq ;;
	languages) need_languages ;;
	erlc) need erlc erlang-base ;;
	redis) need redis-server redis-server ;;
	chromium) command -v google-chrome >/dev/null || need chromium chromium ;;
	*) need "$thing" "$thing" ;;
	esac
done
