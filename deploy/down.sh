#!/usr/bin/env bash
# down.sh stops everything that up.sh started and removes its data.
# down.sh server only stops a plain server: the server drains, and the script waits for its end.
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
	# With the overlays, so that their volumes are removed too.
	! compose_found || compose -f docker-compose.yml -f compose/observability.yml -f compose/tls.yml -f compose/production.yml down -v --remove-orphans
	# Brokers whose state folder was deleted.
	docker ps -aq --filter "label=rabbitmq-rpc.run=$RUN" | xargs -r docker rm -fv >/dev/null
fi
rm -rf "$RUN"
