#!/usr/bin/env bash
# Removes the files that make down keeps: images, caches of this project, tools and .env.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

if engine; then
	"$DEPLOY/images.sh" remove
	docker image prune -f --filter label=rabbitmq-rpc >/dev/null
	docker image rm -f "rabbitmq-rpc/server:${IMAGE_TAG:-latest}" "rabbitmq-rpc/client:${IMAGE_TAG:-latest}" >/dev/null 2>&1 || true
fi
rm -rf "$CACHE" "$ROOT/.bin" "$ROOT/.env" "$ROOT/report"
