#!/usr/bin/env bash
# images.sh rabbitmq 3|4 and images.sh go print the image to use: the official image
# if it is present or can be pulled, otherwise a stand-in image with a separate name,
# built once from Debian's packages. images.sh remove deletes the stand-ins.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

readonly STANDIN=rabbitmq-rpc/standin
readonly PULL_TIMEOUT=${PULL_TIMEOUT:-300}

present() { docker image inspect "$1" >/dev/null 2>&1; }

pullable() { timeout "$PULL_TIMEOUT" docker pull -q "$1" >/dev/null 2>&1; }

# choose OFFICIAL STANDIN COMMAND… prints one of the two names; COMMAND builds the stand-in.
choose() {
	local official=$1 standin=$2
	shift 2
	if present "$official" || { ! present "$standin" && pullable "$official"; }; then
		echo "$official"
		return
	fi
	if ! present "$standin"; then
		say "no image $official here and no registry that has it: building $standin from Debian's packages"
		"$@"
	fi
	echo "$standin"
}

# stage TREE copies the tree to $stage, where files can be added.
stage() { cp -a --reflink=auto "$1/." "$stage/"; }

# import IMAGE CHANGE… creates an image from $stage.
import() {
	local image=$1 change changes=()
	shift
	for change in "$@"; do
		changes+=(--change "$change")
	done
	tar -c --numeric-owner -C "$stage" . | docker import "${changes[@]}" - "$image" >/dev/null
}

# The broker: Debian's rabbitmq-server, with the plugins of the management image.
build_rabbitmq() {
	stage "$("$DEPLOY/rootfs.sh" "$(suite_of "$version")" rabbitmq-server)"
	install -m 644 -t "$stage/etc/rabbitmq" "$DEPLOY/standin/rabbitmq.conf" "$DEPLOY/standin/enabled_plugins"
	import "$STANDIN-rabbitmq:$version" \
		'ENV PATH=/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin:/sbin:/bin' 'ENV LANG=C.UTF-8' \
		'USER rabbitmq' 'VOLUME /var/lib/rabbitmq' 'EXPOSE 5672 15672' 'CMD ["rabbitmq-server"]'
}

# The Go builder: Debian, this machine's Go, and the certificates that this machine trusts.
build_go() {
	local certs=/etc/ssl/certs/ca-certificates.crt
	command -v go >/dev/null || die "go is missing: install Go 1.26 from https://go.dev/dl"
	stage "$("$DEPLOY/rootfs.sh" bookworm)"
	cp -a "$(go env GOROOT)" "$stage/usr/local/go"
	[[ ! -f $certs ]] || cp -L "$certs" "$stage$certs"
	import "$STANDIN-go:1.26" \
		'ENV PATH=/usr/local/go/bin:/usr/sbin:/usr/bin:/sbin:/bin' 'ENV GOTOOLCHAIN=local'
}

remove() {
	local images
	images=$(docker image ls -q --filter "reference=$STANDIN-*")
	# shellcheck disable=SC2086  # one word per image
	[[ -z $images ]] || docker image rm -f $images >/dev/null
}

mkdir -p "$CACHE"
exec 7>"$CACHE/images.lock"
flock 7
stage=$(mktemp -d "$CACHE/stage.XXXXXX")
trap 'rm -rf "$stage"' EXIT
case ${1:-} in
rabbitmq)
	version=${2:?usage: images.sh rabbitmq 3|4}
	choose "rabbitmq:$version-management" "$STANDIN-rabbitmq:$version" build_rabbitmq
	;;
go) choose golang:1.26 "$STANDIN-go:1.26" build_go ;;
remove) remove ;;
*) die "usage: images.sh rabbitmq 3|4, images.sh go, images.sh remove" ;;
esac
