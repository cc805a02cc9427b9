#!/usr/bin/env bash
# compose-v2.sh prints the value of DOCKER_CONFIG with which "docker compose" is Compose v2:
# the folder in force if Compose v2 is installed, else a folder with a plugin that is built
# once per machine, for the end-to-end test.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

readonly VERSION=v2.40.3

if docker compose version >/dev/null 2>&1; then
	echo "${DOCKER_CONFIG:-$HOME/.docker}"
	exit
fi
dir=$CACHE/compose-$VERSION
mkdir -p "$dir/cli-plugins"
exec 9>"$dir/.lock"
flock 9
plugin=$dir/cli-plugins/docker-compose
if [[ ! -x $plugin ]]; then
	say "building Compose $VERSION, because docker compose is missing (once per machine)"
	module=$(mktemp -d "$dir/build.XXXXXX")
	trap 'rm -rf "$module"' EXIT
	cd "$module"
	{
		GOFLAGS='' go mod init build && GOFLAGS='' go get "github.com/docker/compose/v2/cmd@$VERSION" &&
			CGO_ENABLED=0 GOFLAGS='' go build -trimpath -ldflags "-s -w -X github.com/docker/compose/v2/internal.Version=$VERSION" \
				-o "$plugin.new" github.com/docker/compose/v2/cmd
	} >"$dir/log" 2>&1 || die "Compose $VERSION does not build: $(tail -n 5 "$dir/log")"
	mv "$plugin.new" "$plugin"
fi
# The caller's settings for registries apply here too.
[[ ! -f ${DOCKER_CONFIG:-$HOME/.docker}/config.json ]] || cp "${DOCKER_CONFIG:-$HOME/.docker}/config.json" "$dir/"
echo "$dir"
