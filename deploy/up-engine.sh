# shellcheck shell=bash disable=SC2153  # sourced by up.sh, which sets the variables
# The servers and the client in containers, by compose.

NODES=(rabbitmq)
if [[ -n ${CLUSTER:-} ]]; then
	NODES+=(rabbitmq-2 rabbitmq-3)
	export COMPOSE_FILE=${COMPOSE_FILE:-docker-compose.yml}:compose/cluster.yml
fi

# choose_images chooses the base images, and prints the choice and the reason. The names of
# stand-ins are written to .env (remember_images), so that plain "docker compose up" finds them.
choose_images() {
	local version=${RABBITMQ_VERSION:-3}
	if [[ ${RABBITMQ_IMAGE:-} == *standin* ]]; then # chosen earlier: is it still present?
		version=${RABBITMQ_VERSION:-${RABBITMQ_IMAGE##*:}} RABBITMQ_IMAGE=''
	fi
	[[ ${GO_IMAGE:-} != *standin* ]] || GO_IMAGE=''
	: "${RABBITMQ_IMAGE:=$("$DEPLOY/images.sh" rabbitmq "$version")}" "${GO_IMAGE:=$("$DEPLOY/images.sh" go)}"
	export RABBITMQ_IMAGE GO_IMAGE
	if [[ $RABBITMQ_IMAGE$GO_IMAGE != *standin* ]]; then
		say "compose with $RABBITMQ_IMAGE and $GO_IMAGE, because an engine answers and has these images or a registry"
		return
	fi
	say "compose with $RABBITMQ_IMAGE and $GO_IMAGE (now in .env), because an engine answers but no registry"
}

# remember_images stores the choice of stand-ins, after keep_broker has accepted the choice.
remember_images() { [[ $RABBITMQ_IMAGE$GO_IMAGE != *standin* ]] || remember RABBITMQ_IMAGE GO_IMAGE GOPROXY; }

# containers_of SERVICE prints the containers of a service of the cluster's file, also those that
# do not run.
containers_of() {
	local files=(-f docker-compose.yml -f compose/cluster.yml)
	compose "${files[@]}" ps -a -q "$1" 2>/dev/null || compose "${files[@]}" ps -q "$1"
}

# keep_broker refuses a broker image that differs from the existing broker's image, because a
# broker may not start on the data of another version, and a cluster in the place of a single
# broker.
keep_broker() {
	local container image others
	container=$(containers_of rabbitmq)
	[[ -n $container ]] || return 0
	others=$(containers_of rabbitmq-2)
	[[ -z $others || -n $CLUSTER ]] || other_kind 'a cluster'
	[[ -n $others || -z $CLUSTER ]] || other_kind 'a single broker'
	image=$(docker inspect -f '{{.Config.Image}}' "$container")
	[[ $image == "$RABBITMQ_IMAGE" ]] ||
		die "the broker that is there, and its data, are of $image, not $RABBITMQ_IMAGE: make down removes both${CLUSTER:+, and make roll-cluster upgrades node by node where RabbitMQ can}"
}

# check_settings ends a run with invalid settings before the wait for the broker.
check_settings() {
	local service
	for service in rpc-server rpc-client; do
		compose run --rm --no-deps -T -e RPC_REPORT_DIR=/report "$service" check || die "$service does not take these settings"
	done
}

# broker_trouble prints the log of a broker that is not healthy.
broker_trouble() {
	local node
	for node in "${NODES[@]}"; do
		! healthy "$node" || continue
		say "$node is not healthy; the end of its log:"
		compose logs --tail 20 "$node" >&2
		say "If its data are of another version of RabbitMQ, make down removes them."
	done
}

# remember NAME… writes these variables to .env.
remember() {
	local name
	for name in "$@"; do
		sed -i "/^$name=/d" "$ENV_FILE" 2>/dev/null || true
		[[ -z ${!name} ]] || printf '%s=%s\n' "$name" "${!name}" >>"$ENV_FILE"
	done
}

# healthy SERVICE… tells whether each service has containers, and all of them are healthy.
healthy() {
	local service containers
	for service in "$@"; do
		mapfile -t containers < <(compose ps -q "$service")
		[[ ${#containers[@]} -gt 0 ]] || return 1
		docker inspect -f '{{.State.Health.Status}}' "${containers[@]}" | (! grep -qvx healthy) || return 1
	done
}

running() { [[ -n $(compose ps -q "$1") ]]; }

bring_up() {
	compose_found || die "a Docker engine answers, but compose is missing: install the package docker-compose-plugin or docker-compose"
	GOPROXY=${GOPROXY:-$(go env GOPROXY 2>/dev/null || true)}
	export GOPROXY
	choose_images
	keep_broker
	remember_images
	running rabbitmq || free_ports
	say "building the images (log: $RUN/build.log)"
	compose build >"$RUN/build.log" 2>&1 || die "the images do not build: $(tail -n 20 "$RUN/build.log")"
	check_settings
	if [[ -n $CLUSTER ]]; then
		compose up -d "${NODES[@]}" || die "compose could not start the nodes: its messages are above"
		say "waiting for the three nodes"
		until_true 300 healthy "${NODES[@]}" || {
			broker_trouble
			die "the cluster is not healthy after 300 s"
		}
	fi
	compose up -d --scale "rpc-server=$SERVERS" "${NODES[@]}" rpc-server || die "compose could not start broker and server: its messages are above"
	until_true 120 healthy rpc-server || {
		broker_trouble
		die "rpc-server is not healthy after 120 s: $(compose logs --tail 20 rpc-server)"
	}
}

# call runs only the client (--no-deps), because Compose v2 would scale the servers back to
# one. The report is copied from the volume, because the client's user may not write to a
# folder of the host. Each run has a separate folder, so that no older report is copied.
call() {
	local name code=0 tty=() dir
	name=rpc-client-$$
	dir=/report/$(date +%s)-$$
	[[ -t 0 && -t 1 ]] || tty=(-T)
	compose run --no-deps "${tty[@]}" -e "RPC_REPORT_DIR=$dir" --name "$name" rpc-client || code=$?
	mkdir -p "$REPORT_DIR"
	docker cp "$name:$dir/." "$REPORT_DIR" >/dev/null || true # docker prints the reason
	docker rm -f "$name" >/dev/null
	return "$code"
}
