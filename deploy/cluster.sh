#!/usr/bin/env bash
# A private cluster of three RabbitMQ nodes for tests, as plain processes: the brokers
# NAME-1, NAME-2 and NAME-3 of broker.sh, which can also stop, kill, pause and start each
# node.
#
#   cluster.sh up NAME [3|4]    create and start a cluster (default: 3)
#   cluster.sh env NAME         print AMQPX_TEST_… lines for eval
#   cluster.sh start NAME       start the nodes that do not run
#   cluster.sh down NAME        stop the cluster and remove all its data
#
# CLUSTER_CONF has additional lines for the rabbitmq.conf of every node.
# CLUSTER_PARTITIONS is RabbitMQ's cluster_partition_handling (pause_minority). A node
# that is silent counts as down after 6 to 10 s, not after RabbitMQ's 60 s.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

readonly NODES=(1 2 3)

up() {
	local name=$1 version=${2:-3} number starting=()
	export BROKER_KIND=plain
	# Spinning schedulers of several nodes would compete for the processors.
	export BROKER_ERL_ARGS='-kernel net_ticktime 8 +sbwt none +sbwtdcpu none +sbwtdio none'
	BROKER_CONF="cluster_partition_handling = ${CLUSTER_PARTITIONS:-pause_minority}"
	BROKER_CONF+=$'\n'"collect_statistics_interval = 1000"$'\n'${CLUSTER_CONF:-}
	export BROKER_CONF
	trap 'down "$name"' EXIT # remove everything after a failure
	"$DEPLOY/broker.sh" up "$name-1" "$version"
	unset BROKER_AMQP_PORT BROKER_MANAGEMENT_PORT # those of the first node
	for number in "${NODES[@]:1}"; do
		BROKER_JOIN=$name-1 "$DEPLOY/broker.sh" up "$name-$number" "$version" &
		starting+=($!)
	done
	for number in "${starting[@]}"; do
		wait "$number" || die "cluster $name does not start: its log is above"
	done
	until_true 60 complete "$name" || die "cluster $name has less than ${#NODES[@]} nodes that run"
	trap - EXIT
}

# start starts all nodes at once, because nodes that were stopped wait for each other.
start() {
	local number starting=()
	for number in "${NODES[@]}"; do
		"$DEPLOY/broker.sh" start "$1-$number" &
		starting+=($!)
	done
	for number in "${starting[@]}"; do
		wait "$number" || die "cluster $1 does not start: its log is above"
	done
	until_true 60 complete "$1" || die "cluster $1 has less than ${#NODES[@]} nodes that run"
}

# complete NAME tells whether the first node sees all nodes running.
complete() {
	local running
	running=$("$DEPLOY/broker.sh" ctl "$1-1" -q eval 'length(rabbit_nodes:all_running()).' 2>/dev/null) || return 1
	[[ $running == "${#NODES[@]}" ]]
}

# print_env prints the variables of node 1, as for a single broker, and the variables of the
# cluster.
print_env() {
	local number urls='' brokers='' management='' metrics=''
	for number in "${NODES[@]}"; do
		eval "$("$DEPLOY/broker.sh" env "$1-$number")"
		urls+=,$AMQPX_TEST_AMQP_URL
		management+=,$AMQPX_TEST_MANAGEMENT_URL
		metrics+=,$AMQPX_TEST_METRICS_URL
		brokers+=,$AMQPX_TEST_BROKER
	done
	"$DEPLOY/broker.sh" env "$1-1"
	cat <<-ENV
		export AMQPX_TEST_CLUSTER_URLS=${urls#,}
		export AMQPX_TEST_CLUSTER_MANAGEMENT_URLS=${management#,}
		export AMQPX_TEST_CLUSTER_METRICS_URLS=${metrics#,}
		export AMQPX_TEST_CLUSTER_BROKERS=${brokers#,}
	ENV
}

# down removes the first node last, because all nodes use its epmd.
down() {
	local number code=0
	for number in $(printf '%s\n' "${NODES[@]}" | sort -r); do
		"$DEPLOY/broker.sh" down "$1-$number" || code=$?
	done
	return "$code"
}

usage() { sed -n '2,/^# that is silent/s/^# \{0,1\}//p' "$0" >&2; }

case ${1:-} in
up | start | down) [[ -n ${2:-} ]] && "$@" ;;
env) [[ -n ${2:-} ]] && print_env "$2" ;;
*) usage && exit 2 ;;
esac
