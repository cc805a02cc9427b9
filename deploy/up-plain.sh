# shellcheck shell=bash disable=SC2153  # sourced by up.sh, which sets the variables
# The servers and the client as plain processes, with a private broker or cluster.

readonly PAIR=$RUN/pair

bring_up() {
	say "plain processes and a private rabbitmq-server, because no Docker engine answers"
	command -v go >/dev/null || die "go is missing: install Go 1.26 from https://go.dev/dl"
	(cd "$ROOT" && CGO_ENABLED=0 go build -trimpath -ldflags "-X rabbitmq-rpc/internal/version.stamped=$VERSION" -o "$PAIR/bin/" ./services/...)
	"$PAIR/bin/rpc-server" check || die "rpc-server does not take these settings"
	"$PAIR/bin/rpc-client" check || die "rpc-client does not take these settings"
	[[ -z $CLUSTER || ! -f $RUN/brokers/pair/vars ]] || other_kind 'a single broker'
	[[ -n $CLUSTER || ! -f $RUN/brokers/pair-1/vars ]] || other_kind 'a cluster'
	if [[ -n $CLUSTER ]]; then
		bring_up_cluster
	elif [[ -f $RUN/brokers/pair/vars ]]; then
		keep_broker pair
		say "the broker of the last make up is still there: it keeps its ports"
		"$DEPLOY/broker.sh" start pair
	else
		free_ports
		BROKER_KIND=plain BROKER_AMQP_PORT=$AMQP_PORT BROKER_MANAGEMENT_PORT=$MANAGEMENT_PORT \
			"$DEPLOY/broker.sh" up pair "${RABBITMQ_VERSION:-3}"
	fi
	if [[ -n $CLUSTER ]]; then
		eval "$("$DEPLOY/cluster.sh" env pair)"
		export AMQP_URL=$AMQPX_TEST_CLUSTER_URLS RPC_MANAGEMENT_URL=$AMQPX_TEST_CLUSTER_MANAGEMENT_URLS
		export RPC_QUEUE_TYPE=${RPC_QUEUE_TYPE:-quorum}
	else
		eval "$("$DEPLOY/broker.sh" env pair)"
		export AMQP_URL=$AMQPX_TEST_AMQP_URL
	fi
	MANAGEMENT_PORT=${AMQPX_TEST_MANAGEMENT_URL##*:}
	start_servers
}

# bring_up_cluster starts a cluster with the settings of compose/cluster.yml, or its nodes again.
bring_up_cluster() {
	local version=${RABBITMQ_VERSION:-3}
	if [[ -f $RUN/brokers/pair-1/vars ]]; then
		keep_broker pair-1
		say "the cluster of the last make up-cluster is still there: it keeps its ports"
		"$DEPLOY/cluster.sh" start pair
		return
	fi
	free_ports
	CLUSTER_CONF=$(sed "s|/cluster/|$ROOT/compose/cluster/|" "$ROOT/compose/cluster/rabbitmq-$version.conf") \
		BROKER_AMQP_PORT=$AMQP_PORT BROKER_MANAGEMENT_PORT=$MANAGEMENT_PORT "$DEPLOY/cluster.sh" up pair "$version"
}

# keep_broker BROKER refuses a version that differs from the existing broker's version.
keep_broker() {
	local version
	version=$(sed -n 's/^version=//p' "$RUN/brokers/$1/vars")
	[[ ${RABBITMQ_VERSION:-$version} == "$version" ]] ||
		die "the broker that is there, and its data, are of RabbitMQ $version, not $RABBITMQ_VERSION: make down removes both"
}

# start_servers starts each rpc-server in a new session; running servers are stopped first.
start_servers() {
	local number log
	"$DEPLOY/down.sh" server
	for ((number = 1; number <= SERVERS; number++)); do
		log=$PAIR/server-$number.log
		HTTP_ADDR=127.0.0.1:$(free_port)
		export HTTP_ADDR
		setsid "$PAIR/bin/rpc-server" </dev/null >>"$log" 2>&1 &
		echo $! >"$PAIR/server-$number.pid"
		until_true 30 "$PAIR/bin/rpc-server" healthcheck >/dev/null 2>&1 ||
			die "rpc-server is not ready after 30 s: $(tail -n 5 "$log")"
		say "rpc-server: log in $log, health on http://$HTTP_ADDR/readyz"
	done
}

call() {
	HTTP_ADDR=127.0.0.1:$(free_port) RPC_REPORT_DIR=$REPORT_DIR "$PAIR/bin/rpc-client"
}
