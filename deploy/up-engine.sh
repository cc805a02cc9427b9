# shellcheck shell=bash disable=SC2153  # sourced by up.sh, which sets the variables
# The server and the client in containers, by compose.

# choose_images chooses the base images, and prints the choice and the reason. The names of
# stand-ins are written to .env (remember_images), so that plain "docker compose up" finds them.
choose_images() {
	local version=3
	if [[ ${RABBITMQ_IMAGE:-} == *standin* ]]; then # chosen earlier: is it still present?
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

# remember_images stores the choice of stand-ins, after keep_broker has accepted the choice.
remember_images() { [[ $RABBITMQ_IMAGE$GO_IMAGE != *standin* ]] || remember RABBITMQ_IMAGE GO_IMAGE GOPROXY; }

# keep_broker refuses a broker image that differs from the existing broker's image, because a
# broker may not start on the data of another version.
keep_broker() {
	local container image
	container=$(compose ps -a -q rabbitmq 2>/dev/null || compose ps -q rabbitmq)
	[[ -n $container ]] || return 0
	image=$(docker inspect -f '{{.Config.Image}}' "$container")
	[[ $image == "$RABBITMQ_IMAGE" ]] ||
		die "the broker that is there, and its data, are of $image, not $RABBITMQ_IMAGE: make down removes both"
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
	! healthy rabbitmq || return 0
	say "rabbitmq is not healthy; the end of its log:"
	compose logs --tail 20 rabbitmq >&2
	say "If its data are of another version of RabbitMQ, make down removes them."
}

# remember NAME… writes these variables to .env.
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
