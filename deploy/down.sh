#!/usr/bin/env bash
# down.sh stops everything that up.sh started and removes its data.
# down.sh server only stops the plain servers: they drain, and the script waits for their end.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

server_gone() { [[ $(ps -o stat= -p "$(<"$1")") != [!Z]* ]]; }

# stop_servers stops all servers at once.
stop_servers() {
	local file files=("$RUN"/pair/server-*.pid)
	[[ -f ${files[0]} ]] || return 0
	for file in "${files[@]}"; do
		server_gone "$file" || kill -s TERM "$(<"$file")"
	done
	for file in "${files[@]}"; do
		until_true 30 server_gone "$file" || kill -s KILL "$(<"$file")"
		rm -f "$file"
	done
}

stop_servers
[[ ${1:-} != server ]] || exit 0
load_env
"$DEPLOY/broker.sh" down-all
if engine; then
	# With the overlays, so that their volumes are removed too.
	! compose_found || compose -f docker-compose.yml -f compose/observability.yml -f compose/tls.yml -f compose/production.yml -f compose/cluster.yml down -v --remove-orphans
	# Brokers whose state folder was deleted.
	docker ps -aq --filter "label=rabbitmq-rpc.run=$RUN" | xargs -r docker rm -fv >/dev/null
fi
rm -rf "$RUN"
