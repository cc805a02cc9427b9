#!/usr/bin/env bash
# A client with curl and jq over the management API, as docs/interop.md requires: client.sh METHOD BODY
#
# The environment has MANAGEMENT_URL, RPC_VHOST, RPC_QUEUE and RPC_TIMEOUT_MS. The API polls, and
# is meant for single calls by people.
set -euo pipefail

method=$1 body=$2
timeout_ms=${RPC_TIMEOUT_MS:-30000}
vhost=$(jq -rn --arg v "${RPC_VHOST:-/}" '$v|@uri')
id=$(cat /proc/sys/kernel/random/uuid)
replies=responses.$id

# api METHOD PATH [JSON] makes one request to the management API.
api() {
	curl -fsS -m 10 -H 'content-type: application/json' -X "$1" ${3:+-d "$3"} \
		"${MANAGEMENT_URL:-http://guest:guest@localhost:15672}/api/$2"
}

# fail CODE MESSAGE OUTCOME; the outcome tells whether a function ran.
fail() {
	printf '%s: %s (%s)\n' "$@" >&2
	exit 1
}

# An HTTP request has no connection that a queue could belong to, hence x-expires.
api PUT "queues/$vhost/$replies" '{"durable": true, "arguments": {"x-expires": 60000}}'
trap 'api DELETE "queues/$vhost/$replies"' EXIT
end=$(($(date +%s%3N) + timeout_ms))
request=$(jq -n --arg q "${RPC_QUEUE:-rpc_queue}" --arg m "$method" --arg b "$body" --arg r "$replies" --arg i "$id" --arg t "$timeout_ms" \
	'{routing_key: $q, payload: $b, payload_encoding: "string",
	  properties: {app_id: $m, reply_to: $r, correlation_id: $i, type: "rpc.v1", expiration: $t}}')
routed=$(api POST "exchanges/$vhost/amq.default/publish" "$request" | jq .routed)
[[ $routed == true ]] || fail unavailable 'no such queue' 'did not run'

while (($(date +%s%3N) < end)); do
	response=$(api POST "queues/$vhost/$replies/get" '{"count": 1, "ackmode": "ack_requeue_false", "encoding": "base64"}')
	if [[ $(jq -r '.[0].properties.correlation_id' <<<"$response") == "$id" ]]; then
		headers=$(jq '.[0].properties.headers // {}' <<<"$response")
		# Only the header rpc-code marks an error; the body is its message then.
		code=$(jq -r '."rpc-code" // empty' <<<"$headers")
		result() { jq -r '.[0].payload' <<<"$response" | base64 -d; }
		[[ -n $code ]] || { result && exit; }
		case $(jq '."rpc-ran"' <<<"$headers") in
		true) fail "$code" "$(result)" ran ;;
		false) fail "$code" "$(result)" 'did not run' ;;
		*) fail "$code" "$(result)" 'may have run' ;;
		esac
	fi
	sleep 0.1
done
fail deadline_exceeded 'no response' 'may have run'
