#!/usr/bin/env bash
# pin.sh pulls the builder's image and the broker's, and writes their names with digests to .env
# (GO_IMAGE, RABBITMQ_IMAGE), which Compose, make up and make images read: they then use these very
# images until pin.sh runs again. GO_IMAGE and RABBITMQ_IMAGE may name other images to pin. Needs
# a registry; without one nothing is changed.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

engine || die "no Docker engine answers"
pins=''
for pair in "GO_IMAGE=${GO_IMAGE:-golang:1.26}" "RABBITMQ_IMAGE=${RABBITMQ_IMAGE:-rabbitmq:3-management}"; do
	image=${pair#*=}
	docker pull -q "$image" >/dev/null || die "$image cannot be pulled, so its digest is not known"
	# An image that was pulled from several repositories has a digest in each.
	repository=${image%@*}
	[[ ${repository##*/} != *:* ]] || repository=${repository%:*}
	digest=$(docker image inspect -f '{{join .RepoDigests "\n"}}' "$image" | grep -m 1 "^$repository@") ||
		die "$image has no digest"
	pins+=${pair%%=*}=$digest$'\n'
done
touch "$ENV_FILE"
left=$(grep -vE '^(GO_IMAGE|RABBITMQ_IMAGE)=' "$ENV_FILE" || true)
printf '%s' "${left:+$left$'\n'}$pins" >"$ENV_FILE"
printf '%s' "$pins"
