#!/bin/sh
# The start of a node of compose/cluster.yml: it refuses overlays that do not go together and data that
# its version cannot take over, takes the cookie, chooses the settings of its version, and runs RabbitMQ.
set -eu

here=$(dirname "$0")
home=/var/lib/rabbitmq
conf=$home/conf.d
node=rabbit@$(hostname)

"$here/overlays-check.sh" /etc/rabbitmq/conf.d "$node"
"$here/upgrade-check.sh" "$home/mnesia" "$node"

rm -f "$home/.erlang.cookie"
(umask 377 && cat /cookie/cookie >"$home/.erlang.cookie")

for dir in /opt/rabbitmq/plugins /usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins; do
	for app in "$dir"/rabbit-[0-9]*; do
		[ ! -d "$app" ] || version=${app##*/rabbit-}
	done
done

# Other overlays put files into conf.d, too; RabbitMQ reads the folder in the order of the names.
rm -rf "$conf"
mkdir "$conf"
for file in /etc/rabbitmq/conf.d/*.conf; do
	[ ! -f "$file" ] || cat "$file" >"$conf/${file##*/}"
done
cat "$here/rabbitmq.conf" "$here/rabbitmq-${version%%.*}.conf" >"$conf/20-cluster.conf"
export RABBITMQ_CONFIG_FILES="$conf"
# Clients and servers learn the name of their node from this property of the connection.
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="${RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS:-} -rabbit server_properties [{<<\"node\">>,longstr,<<\"$node\">>}]"

# runs NODE tells whether a node is running.
runs() { timeout 60 rabbitmq-diagnostics -q -n "$1" check_running >/dev/null 2>&1; }

# another_runs tells whether one of the other nodes is running.
another_runs() {
	nodes=$(sed -n 's/^cluster_formation\.classic_config\.nodes\.[0-9]* = //p' "$here/rabbitmq.conf")
	for other in $nodes; do
		[ "$other" = "$node" ] || ! runs "$other" || return 0
	done
	return 1
}

# The first node forms the cluster. At its first start, another node waits for it: nodes that
# start at the same moment would not see each other, and each would form a cluster of its own.
# RabbitMQ 4 in turn waits at its first start for a second node of the list of nodes, so the list of
# the first node has no other node, unless one runs: then the first node has lost its data, and must
# not form a second cluster.
if [ ! -e "$home/mnesia/$node" ]; then
	if [ -n "${JOIN:-}" ]; then
		until runs "$JOIN"; do
			echo "$node waits for $JOIN"
			sleep 1
		done
	elif ! another_runs; then
		echo "$node forms a cluster"
		sed -i "/target_cluster_size_hint/d; /classic_config\.nodes\./{/= $node\$/!d;}" "$conf/20-cluster.conf"
	fi
fi
echo "$version" >"$home/rabbitmq-version"
exec rabbitmq-server
