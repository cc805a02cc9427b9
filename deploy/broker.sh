#!/usr/bin/env bash
# A private RabbitMQ for tests, with its own ports and data.
#
#   broker.sh up NAME [3|4]     create and start a broker (default: 3)
#   broker.sh env NAME          print AMQPX_TEST_… lines for eval
#   broker.sh ctl NAME ARGS…    run rabbitmqctl in the broker
#   broker.sh tool NAME PROGRAM ARGS…     run another program of RabbitMQ
#   broker.sh stop|start|restart NAME     same ports, data kept
#   broker.sh kill NAME         SIGKILL; start restarts the broker
#   broker.sh pause|resume NAME freeze and thaw the broker
#   broker.sh disconnect|connect NAME     the network; containers only
#   broker.sh down NAME         stop the broker and remove all its data
#   broker.sh down-all [PREFIX] the same for every broker of this clone with that prefix
#
# With a Docker engine the broker is a container, without an engine a plain process;
# BROKER_KIND=engine|plain overrides this. Ports (AMQP, management, metrics) are
# free ones, unless BROKER_AMQP_PORT and BROKER_MANAGEMENT_PORT set the first two.
#
# up reads BROKER_CONF, additional lines for rabbitmq.conf, in which {tls} is the folder with the
# broker's certificate and key; BROKER_PLUGINS, more plugins; and for plain processes only
# BROKER_JOIN, a broker of this clone whose cluster the new broker joins (cluster.sh), and
# BROKER_ERL_ARGS, additional arguments for Erlang.
# shellcheck source=deploy/lib.sh disable=SC2154  # *_port: from the file vars
. "$(dirname "$0")/lib.sh"

readonly BROKERS=$RUN/brokers
readonly START_TIMEOUT=${BROKER_START_TIMEOUT:-90}

# load NAME reads the variables that up wrote and sources the backend: the functions backend_*.
load() {
	name=$1
	state=$BROKERS/$name
	[[ -f $state/vars ]] || die "no broker $name: deploy/broker.sh up $name makes one"
	# shellcheck source=/dev/null
	. "$state/vars"
	# shellcheck source=/dev/null
	. "$DEPLOY/broker-$kind.sh"
}

up() {
	name=$1 state=$BROKERS/$1
	local version=${2:-3} kind=${BROKER_KIND:-}
	[[ $name =~ ^[a-z0-9][a-z0-9-]*$ ]] || die "a broker's name is lower-case letters, digits and -, not '$name'"
	[[ $version == [34] ]] || die "RabbitMQ version is 3 or 4, not '$version'"
	[[ ! -e $state/vars ]] || die "broker $name exists: deploy/broker.sh down $name removes it"
	if [[ -z $kind ]]; then
		if engine; then kind=engine; else kind=plain; fi
	fi
	[[ $kind == engine || $kind == plain ]] || die "BROKER_KIND is engine or plain, not '$kind'"
	mkdir -p "$state"
	cat >"$state/vars" <<-VARS
		kind=$kind
		version=$version
		amqp_port=${BROKER_AMQP_PORT:-$(reserve_port)}
		management_port=${BROKER_MANAGEMENT_PORT:-$(reserve_port)}
		metrics_port=$(reserve_port)
		tls_port=$(reserve_port)
		stomp_port=$(reserve_port)
		dist_port=$(reserve_port)
		epmd_port=$(reserve_port)
	VARS
	load "$name"
	trap 'down "$name"' EXIT # remove everything after a failure
	certify
	backend_create
	if [[ $kind == engine ]]; then # one at a time: three at once take five times as long as one alone
		mkdir -p "$CACHE"
		exec 8>"$CACHE/start.lock"
		flock 8
	fi
	start
	exec 8>&-
	trap - EXIT
	say "broker $name: RabbitMQ $version ($kind), AMQP on 127.0.0.1:$amqp_port, management on 127.0.0.1:$management_port"
}

# certify creates a self-signed certificate for the broker's TLS listener.
certify() {
	need openssl openssl
	mkdir -p "$state/tls"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
		-subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
		-keyout "$state/tls/key.pem" -out "$state/tls/cert.pem" 2>"$state/tls/log" ||
		die "openssl makes no certificate: $(tail -n 1 "$state/tls/log")"
	chmod 644 "$state/tls/key.pem" # the broker in a container runs as another user
}

# tls_conf ADDRESS FOLDER prints the settings of a TLS listener with that certificate.
tls_conf() {
	cat <<-CONF
		listeners.ssl.1 = $1
		ssl_options.cacertfile = $2/cert.pem
		ssl_options.certfile = $2/cert.pem
		ssl_options.keyfile = $2/key.pem
		ssl_options.verify = verify_none
		ssl_options.fail_if_no_peer_cert = false
	CONF
}

# plugins prints the list of the broker's plugins: RabbitMQ 4 speaks AMQP 1.0 without one. The
# plugin for EXTERNAL has no effect until auth_mechanisms names it.
plugins() {
	local more=${BROKER_PLUGINS:+,$BROKER_PLUGINS}
	[[ $version != 3 ]] || more+=,rabbitmq_amqp1_0
	echo "[rabbitmq_management,rabbitmq_prometheus,rabbitmq_stomp,rabbitmq_auth_mechanism_ssl$more]."
}

# more_conf FOLDER prints BROKER_CONF with the folder of the certificate filled in.
more_conf() { printf '%s\n' "${BROKER_CONF:-}" | sed "s|{tls}|$1|g"; }

# start starts the broker, a second time if it does not serve: with RabbitMQ 3.10 on a busy machine, a
# start has stopped for good after the line "Application mnesia exited".
start() {
	backend_start
	if ! until_true "$START_TIMEOUT" ready; then
		backend_log | tail -n 15 >&2
		say "broker $name does not serve port $amqp_port after ${START_TIMEOUT}s, its log is above: it is killed and started again"
		backend_kill
		backend_start
		if ! until_true "$START_TIMEOUT" ready; then
			backend_log | tail -n 15 >&2
			die "broker $name does not serve port $amqp_port at its second start either: its log is above"
		fi
	fi
	[[ ! -e $state/gone ]] || die "broker $name ended while it started: its log is above"
}

# ready also succeeds if the broker has ended, because a dead broker never serves. It checks for
# the end only at every tenth call, because this check costs more than the others.
looks=0
ready() {
	rm -f "$state/gone"
	serves "$amqp_port" && listening "$management_port" && listening "$metrics_port" && listening "$tls_port" &&
		listening "$stomp_port" && return
	looks=$((looks + 1))
	((looks % 10 == 0)) || return 1
	backend_alive && return 1
	backend_log | tail -n 15 >&2
	: >"$state/gone"
}

print_env() {
	cat <<-ENV
		export AMQPX_TEST_AMQP_URL=amqp://guest:guest@127.0.0.1:$amqp_port
		export AMQPX_TEST_AMQPS_URL=amqps://guest:guest@localhost:$tls_port
		export AMQPX_TEST_CA_FILE=$state/tls/cert.pem
		export AMQPX_TEST_MANAGEMENT_URL=http://guest:guest@127.0.0.1:$management_port
		export AMQPX_TEST_STOMP=127.0.0.1:$stomp_port
		export AMQPX_TEST_METRICS_URL=http://127.0.0.1:$metrics_port
		export AMQPX_TEST_BROKER=$name
		export AMQPX_TEST_BROKER_MAJOR=$version
		export AMQPX_TEST_BROKER_KIND=$kind
	ENV
}

down() {
	[[ -f $BROKERS/$1/vars ]] || return 0
	load "$1"
	backend_remove
	release_ports "$state/vars"
	rm -rf "$state"
	rmdir --ignore-fail-on-non-empty "$BROKERS"
}

down_all() {
	local vars
	for vars in "$BROKERS/${1:-}"*/vars; do
		[[ ! -f $vars ]] || down "$(basename "$(dirname "$vars")")"
	done
}

usage() { sed -n '2,/^# free ones/s/^# \{0,1\}//p' "$0" >&2; }

command=${1:-}
case $command in
down-all) down_all "${2:-}" && exit ;;
up | env | ctl | tool | stop | start | restart | kill | pause | resume | disconnect | connect | down) ;;
*) usage && exit 2 ;;
esac
[[ $# -ge 2 ]] || { usage && exit 2; }
shift
case $command in
up) up "$@" ;;
down) down "$1" ;;
*)
	load "$1" && shift
	case $command in
	env) print_env ;;
	ctl) backend_tool rabbitmqctl "$@" ;;
	tool) backend_tool "$@" ;;
	start) start ;;
	restart) backend_stop && start ;;
	*) "backend_$command" ;;
	esac
	;;
esac
