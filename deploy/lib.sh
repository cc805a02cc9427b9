# shellcheck shell=bash
# Shared by the scripts of this folder: paths, messages, packages, ports.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEPLOY=$ROOT/deploy
RUN=${RPC_RUN_DIR:-$ROOT/.run} # state of running programs; ignored by git
ENV_FILE=${ENV_FILE:-$ROOT/.env}
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/rabbitmq-rpc
# shellcheck disable=SC2034  # read by the scripts that source this file
readonly ROOT DEPLOY RUN ENV_FILE CACHE

say() { printf '%s\n' "$*" >&2; }

die() {
	say "error: $*"
	exit 1
}

# need COMMAND PACKAGE installs the Debian package if the command is missing, or, without
# the rights to install, fails and names the package. It never starts a service.
need() {
	command -v "$1" >/dev/null && return
	if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
		die "$1 is missing: install the package $2"
	fi
	say "installing the package $2, because $1 is missing"
	apt_install "$2" || die "$1 is missing, and installing the package $2 failed"
	hash -r
	command -v "$1" >/dev/null || die "$1 is still missing after installing the package $2"
}

apt_install() {
	local policy=/usr/sbin/policy-rc.d own='' log=$RUN/apt.log code=0
	mkdir -p "$RUN"
	if [[ ! -e $policy ]]; then
		own=yes
		printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
	fi
	{
		apt-get -q -o DPkg::Lock::Timeout=300 update &&
			DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 \
				install --no-install-recommends "$@"
	} >"$log" 2>&1 || code=$?
	[[ -z $own ]] || rm -f "$policy"
	[[ $code == 0 ]] || tail -n 5 "$log" >&2
	return "$code"
}

# engine tells whether a Docker engine responds.
engine() {
	command -v docker >/dev/null && timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1
}

# listening PORT tells whether any program accepts connections on 127.0.0.1:PORT.
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# serves PORT tells whether an AMQP 0-9-1 broker responds on 127.0.0.1:PORT: after
# the protocol header, the broker must begin a method frame (type 1).
serves() (
	exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
	printf 'AMQP\0\0\11\1' >&3
	IFS= read -r -N 1 -t 5 byte <&3 && [[ $byte == $'\1' ]]
)

# free_port prints a port of 127.0.0.1 without a listener.
free_port() {
	local port
	while :; do
		port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
		listening "$port" || break
	done
	echo "$port"
}

# reserve_port is free_port for a broker: the port stays reserved while the broker does not
# listen, before its start and while a test has stopped the broker. The reservation ends with
# release_ports, or after four hours.
reserve_port() {
	local port ports=$CACHE/ports
	mkdir -p "$ports"
	find "$ports" -mindepth 1 -maxdepth 1 -mmin +240 -delete 2>/dev/null || true
	while :; do
		port=$(free_port)
		mkdir -p "$ports"
		! mkdir "$ports/$port" 2>/dev/null || break
	done
	echo "$port"
}

# release_ports FILE releases the ports in the lines NAME_port=NUMBER of a file.
release_ports() {
	local port
	while read -r port; do
		rmdir "$CACHE/ports/$port" 2>/dev/null || true
	done < <(sed -n 's/.*_port=\([0-9]*\)$/\1/p' "$1")
}

# until_true SECONDS COMMAND… repeats the command until the command succeeds or time is up.
until_true() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < end)) || return 1
		sleep 0.1
	done
}

# suite_of VERSION prints the Debian release with that major version of RabbitMQ.
suite_of() {
	case $1 in
	3) echo bookworm ;;
	4) echo trixie ;;
	*) die "no Debian release is known to carry RabbitMQ $1" ;;
	esac
}

# load_env exports the variables of .env; the environment takes precedence. Compose reads the
# file as well, and its versions agree only on plain lines, so all other lines are refused. An
# empty value means the default, as in the Compose file. Errors never show a value, which may
# be a secret.
load_env() {
	local line name value number=0 seen=' '
	[[ -f $ENV_FILE ]] || return 0
	while IFS= read -r line || [[ -n $line ]]; do
		number=$((number + 1))
		[[ -n $line && $line != \#* ]] || continue
		value=$(env_fault "$line" "$seen")
		[[ -z $value ]] || die "$ENV_FILE, line $number: $value"
		name=${line%%=*} value=${line#*=}
		seen+="$name "
		[[ $value != [\"\']* ]] || value=${value:1:-1}
		[[ -z $value || -n ${!name+set} ]] || export "$name=$value"
	done <"$ENV_FILE"
}

# env_fault LINE NAMES prints the fault of a line of .env, or nothing if the line is
# NAME=value, with or without quotes around the value. NAMES are the names set by earlier lines.
env_fault() {
	local line=$1 name=${1%%=*} value=${1#*=}
	case $line in
	*$'\r'*) echo "it ends with a carriage return: save the file with line ends of Unix" ;;
	$'\xef\xbb\xbf'*) echo "the file begins with a byte order mark: save it without" ;;
	export[[:space:]]*) echo "leave out export: write NAME=value" ;;
	*)
		if [[ ! $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; then
			echo "write NAME=value, without a space before or after NAME, or begin a comment with #"
		elif [[ $2 == *" $name "* ]]; then
			echo "$name is set by a line above: remove one of them"
		elif [[ ${#value} -gt 1 && ($value == \'*\' || $value == \"*\") ]]; then
			quoted_fault "${value:0:1}" "${value:1:-1}"
		else
			plain_fault "$value"
		fi
		;;
	esac
}

quoted_fault() {
	case $2 in
	*"$1"*) echo "a quote stands within quotes of its kind" ;;
	*\\*) echo "a backslash stands within quotes: leave the quotes out" ;;
	*\$*) [[ $1 == \' ]] || echo "a \$ begins the name of a variable: put the value into single quotes" ;;
	esac
}

plain_fault() {
	case $1 in
	*\$*) echo "a \$ begins the name of a variable: put the value into single quotes" ;;
	[\"\']* | *[\"\']) echo "a quote stands at one end of the value only" ;;
	[[:space:]]* | *[[:space:]]) echo "a space stands at an end of the value: remove it, or put the value into quotes" ;;
	*[[:space:]]\#*) echo "a # after a space begins a comment: put it on a line of its own, or the value into quotes" ;;
	esac
}

compose_found() { docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null; }

# compose runs Compose v2, or v1 if v2 is missing, in the project's folder.
compose() (
	cd "$ROOT"
	file=$ENV_FILE
	if [[ ! -f $file ]]; then # v1 accepts only a regular file
		file=$RUN/none.env
		mkdir -p "$RUN" && : >"$file"
	fi
	if docker compose version >/dev/null 2>&1; then
		exec docker compose --env-file "$file" "$@"
	fi
	exec docker-compose --env-file "$file" "$@"
)
