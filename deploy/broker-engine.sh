# shellcheck shell=bash disable=SC2154  # name, state, version, *_port come from broker.sh
# Backend of broker.sh with a Docker engine: RabbitMQ in a container.

backend_create() {
	local image what
	[[ -z ${BROKER_JOIN:-} ]] || die "a broker in a container joins no cluster: set BROKER_KIND=plain"
	container=rabbitmq-rpc-$name-$(cksum <<<"$state" | cut -d' ' -f1)
	echo "container=$container" >>"$state/vars"
	image=$("$DEPLOY/images.sh" rabbitmq "$version")
	docker create --name "$container" --label "rabbitmq-rpc.run=$RUN" --hostname "$name" \
		--log-opt max-size=10m --stop-timeout 30 \
		-p "127.0.0.1:$amqp_port:5672" -p "127.0.0.1:$management_port:15672" \
		-p "127.0.0.1:$metrics_port:15692" -p "127.0.0.1:$tls_port:5671" \
		-p "127.0.0.1:$stomp_port:61613" "$image" >/dev/null
	mkdir -p "$state/conf.d"
	tls_conf 0.0.0.0:5671 /etc/rabbitmq/tls >"$state/conf.d/20-tls.conf"
	more_conf /etc/rabbitmq/tls >"$state/conf.d/30-more.conf"
	plugins >"$state/enabled_plugins"
	for what in tls conf.d enabled_plugins; do
		docker cp "$state/$what" "$container:/etc/rabbitmq/" >/dev/null
	done
}

backend_start() { docker start "$container" >/dev/null; }
backend_stop() { docker stop "$container" >/dev/null; }
backend_kill() { docker kill "$container" >/dev/null; }
backend_pause() { docker pause "$container" >/dev/null; }
backend_resume() { docker unpause "$container" >/dev/null; }
backend_disconnect() { docker network disconnect bridge "$container" >/dev/null; }
backend_connect() { docker network connect bridge "$container" >/dev/null; }
backend_alive() { [[ $(docker inspect -f '{{.State.Running}}' "$container") == true ]]; }
backend_log() { docker logs "$container" 2>&1; }
backend_remove() { docker rm -fv "$container" >/dev/null; }

# In a stand-in image, root has another HOME and so does not find the broker's cookie;
# therefore the command runs as the broker's user.
backend_tool() { docker exec -u rabbitmq "$container" "$@"; }
