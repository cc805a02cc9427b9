# shellcheck shell=bash disable=SC2153  # sourced by up.sh, which sets the variables
# The server and the client as plain processes, with a private broker.

readonly PAIR=$RUN/pair

bring_up() {
	say "plain processes and a private rabbitmq-server, because no Docker engine answers"
	command -v go >/dev/null || die "go is missing: install Go 1.26 from https://go.dev/dl"
	(cd "$ROOT" && CGO_ENABLED=0 go build -trimpath -ldflags "-X rabbitmq-rpc/internal/version.stamped=$VERSION" -o "$PAIR/bin/" ./services/...)
	"$PAIR/bin/rpc-server" check || die "rpc-server does not take these settings"
	"$PAIR/bin/rpc-client" check || die "rpc-client does not take these settings"
	if [[ -f $RUN/brokers/pair/vars ]]; then
		keep_broker
		say "the broker of the last make up is still there: it keeps its ports"
		"$DEPLOY/broker.sh" start pair
	else
		free_ports
		BROKER_KIND=plain BROKER_AMQP_PORT=$AMQP_PORT BROKER_MANAGEMENT_PORT=$MANAGEMENT_PORT \
			"$DEPLOY/broker.sh" up pair "${RABBITMQ_VERSION:-3}"
	fi
	eval "$("$DEPLOY/broker.sh" env pair)"
	export AMQP_URL=$AMQPX_TEST_AMQP_URL
	MANAGEMENT_PORT=${AMQPX_TEST_MANAGEMENT_URL##*:}
	start_server
}

# keep_broker refuses a version that differs from the existing broker's version.
keep_broker() {
	local version
	version=$(sed -n 's/^version=//p' "$RUN/brokers/pair/vars")
	[[ ${RABBITMQ_VERSION:-$version} == "$version" ]] ||
		die "the broker that is there, and its data, are of RabbitMQ $version, not $RABBITMQ_VERSION: make down removes both"
}

# start_server starts rpc-server in a new session; a running rpc-server is stopped first.
start_server() {
	[[ ! -f $PAIR/server.pid ]] || "$DEPLOY/down.sh" server
	HTTP_ADDR=127.0.0.1:$(free_port)
	export HTTP_ADDR
	setsid "$PAIR/bin/rpc-server" </dev/null >>"$PAIR/server.log" 2>&1 &
	echo $! >"$PAIR/server.pid"
	until_true 30 "$PAIR/bin/rpc-server" healthcheck >/dev/null 2>&1 ||
		die "rpc-server is not ready after 30 s: $(tail -n 5 "$PAIR/server.log")"
	say "rpc-server: log in $PAIR/server.log, health on http://$HTTP_ADDR/readyz"
}

call() {
	HTTP_ADDR=127.0.0.1:$(free_port) RPC_REPORT_DIR=$REPORT_DIR "$PAIR/bin/rpc-client"
}
