#!/usr/bin/env bash
# release-images.sh builds the images rabbitmq-rpc/server and rabbitmq-rpc/client with
# the tag IMAGE_TAG (latest), and prints their names and IDs. The same commit and the same builder
# image give the same IDs, on any machine, in any folder and at any time: the image of the
# Dockerfile is rewritten without the traces of its build (internal/supply).
#
# VERSION, REVISION and SOURCE_DATE_EPOCH are those of the commit unless they are set, and GO_IMAGE
# is the builder's image, from .env (pin.sh) or else as in make up; the image has its name as a label.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

readonly IMAGES=(rabbitmq-rpc/server rabbitmq-rpc/client)

engine || die "no Docker engine answers"
load_env
cd "$ROOT"
: "${VERSION:=$(git describe --tags --always --dirty 2>/dev/null || echo dev)}"
: "${REVISION:=$(git rev-parse HEAD 2>/dev/null || true)}"
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
: "${GO_IMAGE:=$("$DEPLOY/images.sh" go)}" "${GOPROXY:=$(go env GOPROXY)}"

mkdir -p "$RUN"
program=$(mktemp -d "$RUN/supply.XXXXXX")
trap 'rm -rf "$program"' EXIT
go build -o "$program/" ./internal/supply/cmd/supply
say "building with $GO_IMAGE (log: $RUN/images.log)"
for image in "${IMAGES[@]}"; do
	tag=$image:${IMAGE_TAG:-latest}
	docker build --iidfile "$program/id" -f "Dockerfile.${image#*/}" \
		--build-arg "GO_IMAGE=$GO_IMAGE" --build-arg "GOPROXY=$GOPROXY" \
		--build-arg "VERSION=$VERSION" --build-arg "REVISION=$REVISION" . >"$RUN/images.log" 2>&1 ||
		die "the image $tag does not build: $(tail -n 20 "$RUN/images.log")"
	docker save "$(<"$program/id")" | "$program/supply" image -tag "$tag" -created "$SOURCE_DATE_EPOCH" | docker load -q >/dev/null
	docker image inspect -f "$tag {{.Id}}" "$tag"
done
