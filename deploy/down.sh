#!/usr/bin/env bash
# down.sh stops what up.sh started and removes what it left behind.
# down.sh server stops only a plain server: drains it and waits for its end.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

readonly PID_FILE=$RUN/pair/server.pid

server_gone() { [[ $(ps -o stat= -p "$(<"$PID_FILE")") != [!Z]* ]]; }

stop_server() {
	[[ -f $PID_FILE ]] || return 0
	server_gone || kill -s TERM "$(<"$PID_FILE")"
	until_true 30 server_gone || kill -s KILL "$(<"$PID_FILE")"
	rm -f "$PID_FILE"
}

stop_server
[[ ${1:-} != server ]] || exit 0
load_env
"$DEPLOY/broker.sh" down-all
if engine; then
	# With the overlay, whose volume it is.
	! compose_found || compose -f docker-compose.yml -f compose/observability.yml down -v --remove-orphans
	# Brokers whose state was deleted under them.
	docker ps -aq --filter "label=rabbitmq-rpc.run=$RUN" | xargs -r docker rm -fv >/dev/null
fi
rm -rf "$RUN"
