#!/usr/bin/env bash
# Restarts the nodes of make up-cluster one after the other, under load: each node is drained
# first, and no node goes while another is missing. With RABBITMQ_IMAGE or RABBITMQ_VERSION (3, 4) of
# another version the nodes are upgraded in place. Before the first node stops, each is asked whether
# that version may start on its data (compose/cluster/upgrade-check.sh).
#
#   roll-cluster.sh          restart or upgrade
#   roll-cluster.sh check    only ask
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

load_env
export CLUSTER=yes
mkdir -p "$RUN"

# tool NODE PROGRAM ARGS… runs a program of RabbitMQ in a node.
if engine; then
	# shellcheck source=deploy/up-engine.sh
	. "$DEPLOY/up-engine.sh"
	tool() { compose exec -T "$@"; }
else
	NODES=(pair-1 pair-2 pair-3)
	tool() { "$DEPLOY/broker.sh" tool "$@"; }
fi

prepare() {
	local version
	if ! engine; then
		[[ -f $RUN/brokers/pair-1/vars ]] || die "no cluster is here: make up-cluster makes one"
		version=$(sed -n 's/^version=//p' "$RUN/brokers/pair-1/vars")
		: "${RABBITMQ_VERSION:=$version}"
		return
	fi
	[[ -n $(containers_of rabbitmq-2) ]] || die "no cluster is here: make up-cluster makes one"
	choose_images
}

# root_of VERSION prints the folder of that RabbitMQ's plugins.
root_of() {
	local roots=("/usr/lib/rabbitmq/lib/rabbitmq_server-$1".*/plugins)
	if [[ ! -d ${roots[0]} ]]; then
		roots=("$("$DEPLOY/rootfs.sh" "$(suite_of "$1")" rabbitmq-server)"/usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins)
	fi
	echo "${roots[0]}"
}

# check NODE asks whether the chosen version may start on the data of the node.
check() {
	if engine; then
		compose run --rm --no-deps -T "$1" /cluster/upgrade-check.sh /var/lib/rabbitmq/mnesia "rabbit@$1"
	else
		RABBITMQ_ROOT=$(root_of "$RABBITMQ_VERSION") "$ROOT/compose/cluster/upgrade-check.sh" \
			"$RUN/brokers/$1/data" "$1@localhost"
	fi
}

# restart NODE restarts a node, in a container of the chosen image.
restart() {
	if engine; then
		compose up -d --no-deps --force-recreate "$1"
		until_true 300 healthy "$1" || die "$1 is not healthy after 300 s: $(compose logs --tail 20 "$1")"
	else
		"$DEPLOY/broker.sh" restart "$1"
	fi
}

drain() { tool "$1" rabbitmq-upgrade -q drain >>"$RUN/roll.log" 2>&1; }

prepare
for node in "${NODES[@]}"; do
	check "$node" || die "no node was touched, because ${RABBITMQ_IMAGE:-RabbitMQ ${RABBITMQ_VERSION:-}} may not start on the data of $node: the reason is above"
done
[[ ${1:-} != check ]] || exit 0
if ! engine && ! grep -qx "version=$RABBITMQ_VERSION" "$RUN/brokers/pair-1/vars"; then
	die "a cluster of plain processes keeps its version"
fi
for ((i = ${#NODES[@]} - 1; i >= 0; i--)); do
	node=${NODES[i]}
	say "$node: waiting until the queues do without it"
	tool "$node" rabbitmq-upgrade -q await_online_quorum_plus_one --timeout 120 >&2 || die "$node is needed: without it a queue would have no majority"
	# RabbitMQ 3.10 fails if one of the connections that it wants to close has ended before.
	until_true 60 drain "$node" || die "$node cannot be drained: $(tail -n 3 "$RUN/roll.log")"
	say "$node: drained, restarting"
	restart "$node"
done
for command in "rabbitmqctl -q enable_feature_flag all" "rabbitmq-queues -q rebalance all"; do
	# shellcheck disable=SC2086  # a program and its arguments
	tool "${NODES[0]}" $command >>"$RUN/roll.log" 2>&1 || die "$command failed: $(tail -n 3 "$RUN/roll.log")"
done
engine && remember_images
say "all nodes were restarted; the leaders are spread again"
