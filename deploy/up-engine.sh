# shellcheck shell=bash disable=SC2153  # sourced by up.sh, which sets the variables
# The pair in containers, by compose.

# choose_images says which base images it takes, and why. Stand-ins go into .env
# (remember_images), so that plain "docker compose up" finds them later.
choose_images() {
	local version=3
	if [[ ${RABBITMQ_IMAGE:-} == *standin* ]]; then # chosen earlier: is it still here?
		version=${RABBITMQ_IMAGE##*:} RABBITMQ_IMAGE=''
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

# remember_images keeps the choice of stand-ins, once it is known to be a good one.
remember_images() { [[ $RABBITMQ_IMAGE$GO_IMAGE != *standin* ]] || remember RABBITMQ_IMAGE GO_IMAGE GOPROXY; }

# keep_broker refuses another broker image than that of the broker which is there: on the
# data of another version a broker may not start.
keep_broker() {
	local container image
	container=$(compose ps -a -q rabbitmq 2>/dev/null || compose ps -q rabbitmq)
	[[ -n $container ]] || return 0
	image=$(docker inspect -f '{{.Config.Image}}' "$container")
	[[ $image == "$RABBITMQ_IMAGE" ]] ||
		die "the broker that is there, and its data, are of $image, not $RABBITMQ_IMAGE: make down removes both"
}

# check_settings ends a run whose settings a service would refuse, before the broker is
# waited for.
check_settings() {
	local service
	for service in rpc-server rpc-client; do
		compose run --rm --no-deps -T -e RPC_REPORT_DIR=/report "$service" check || die "$service does not take these settings"
	done
}

# broker_trouble says why a broker is not healthy, if it is not.
broker_trouble() {
	! healthy rabbitmq || return 0
	say "rabbitmq is not healthy; the end of its log:"
	compose logs --tail 20 rabbitmq >&2
	say "If its data are of another version of RabbitMQ, make down removes them."
}

# remember NAME… puts these variables into .env.
remember() {
	local name
	for name in "$@"; do
		sed -i "/^$name=/d" "$ENV_FILE" 2>/dev/null || true
		[[ -z ${!name} ]] || printf '%s=%s\n' "$name" "${!name}" >>"$ENV_FILE"
	done
}

container_of() { compose ps -q "$1" | head -n 1; }

healthy() { [[ $(docker inspect -f '{{.State.Health.Status}}' "$(container_of "$1")") == healthy ]]; }

running() { [[ -n $(container_of "$1") ]]; }

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
	compose up -d rabbitmq rpc-server || die "compose could not start broker and server: its messages are above"
	until_true 120 healthy rpc-server || {
		broker_trouble
		die "rpc-server is not healthy after 120 s: $(compose logs --tail 20 rpc-server)"
	}
}

# call runs the client, alone (--no-deps), because Compose v2 would scale the servers
# back to one. The report is copied out of its volume: the client's user may not write
# to a folder of the host. It has a folder of its own there, or an older one would be copied.
call() {
	local name code=0 tty=() dir
	name=rpc-client-$$
	dir=/report/$(date +%s)-$$
	[[ -t 0 && -t 1 ]] || tty=(-T)
	compose run --no-deps "${tty[@]}" -e "RPC_REPORT_DIR=$dir" --name "$name" rpc-client || code=$?
	mkdir -p "$REPORT_DIR"
	docker cp "$name:$dir/." "$REPORT_DIR" >/dev/null || true # its message says why
	docker rm -f "$name" >/dev/null
	return "$code"
}
