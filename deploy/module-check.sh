#!/usr/bin/env bash
# module-check.sh short|all tests deploy/module.sh on a copy of the work tree: the renamed copy
# has no old path and builds, and an empty module fetches the library from the copy's tags, without
# the requirements of metrics, traces and services. all also runs go mod tidy and go vet in every
# module, and the unit tests of the services and the library.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

# For this host, Go knows the address of a repository from the path alone.
readonly NEW=github.com/someone/renamed
readonly VERSION=v0.1.0
export GOFLAGS=-trimpath CGO_ENABLED=0 # as make build, which finds the packages in the build cache
export GOWORK=off

# commit records the copy's work tree, whatever the user's settings of git are.
commit() {
	git add -A
	git -c user.name=check -c user.email=check@localhost -c commit.gpgsign=false \
		-c core.hooksPath=/dev/null commit -qm "$1"
}

# refused MODULE REASON requires that module.sh fails for the reason.
refused() {
	local said
	! said=$(deploy/module.sh "$1" 2>&1) || die "module.sh accepted \"$1\""
	[[ $said == *"$2"* ]] || die "module.sh refused \"$1\", but not because \"$2\": $said"
}

# quietly COMMAND… shows the command's output only if the command fails.
quietly() { "$@" >"$work/log" 2>&1 || die "$*: $(cat "$work/log")"; }

# in_modules MODULES COMMAND… runs the command in the folder of each matching module.
in_modules() {
	local file
	for file in $(git ls-files "$1"); do
		(cd "$(dirname "$file")" && "${@:2}")
	done
}

check_refusals() {
	refused renamed "cannot be fetched"
	refused "someone/renamed.git" "cannot be fetched"
	refused "$NEW/v2" "ends with a major version"
	touch untracked
	refused "$NEW" "the work tree has changes"
	rm untracked
	git diff --quiet HEAD || die "module.sh refused a path and changed files"
}

# check_renamed looks for the old path with simpler patterns than module.sh, so the names of the
# project that begin like the path are left out here.
check_renamed() {
	local left
	left=$(git grep -nI -F "$old/" | grep -vE '\brabbitmq-rpc/(server|client|standin)\b|\.cache/rabbitmq-rpc/' || true)
	left+=$(git grep -nIw -F "$old" -- '*go.mod' .golangci.yml || true)
	[[ -z $left ]] || die "lines with the old path:"$'\n'"$left"
	refused "$NEW" "is $NEW already"
	in_modules go.mod go build ./...
	in_modules 'pkg/*go.mod' go build ./...
}

# check_fetched tags the copy like a release, and fetches the library into an empty module. Only
# this repository is fetched from the copy; all other modules come from the module cache.
check_fetched() {
	local module graph foreign
	for module in amqpxcodec amqpxgrpc amqpxotel amqpxprom amqpxredis; do
		(cd "pkg/$module" && go mod edit "-require=$NEW/pkg/amqpx@$VERSION")
	done
	commit "release"
	for module in amqpx amqpxcodec amqpxgrpc amqpxotel amqpxprom amqpxredis; do
		git tag "pkg/$module/$VERSION"
	done
	export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0="url.file://$PWD.insteadOf" GIT_CONFIG_VALUE_0="https://$NEW"
	GOPROXY="file://$(go env GOMODCACHE)/cache/download,$(go env GOPROXY)"
	export GOPROXY GOPRIVATE=$NEW GOSUMDB=off GOMODCACHE=$work/modules GOFLAGS="$GOFLAGS -modcacherw"
	mkdir "$work/importer" && cd "$work/importer"
	quietly go mod init example.com/importer
	printf 'package main\n\nimport _ "%s/pkg/amqpx"\n\nfunc main() {}\n' "$NEW" >main.go
	quietly go get "$NEW/pkg/amqpx@$VERSION"
	go build -o /dev/null .
	graph=$(go list -m all | grep -v '^example.com/')
	foreign=$(grep -E 'grpc|otlp|opentelemetry|prometheus|redis' <<<"$graph" || true)
	[[ -z $foreign ]] || die "a program that imports only pkg/amqpx gets these modules too:"$'\n'"$foreign"
	quietly go get "$NEW/pkg/amqpxcodec@$VERSION" "$NEW/pkg/amqpxgrpc@$VERSION" "$NEW/pkg/amqpxotel@$VERSION" "$NEW/pkg/amqpxprom@$VERSION" "$NEW/pkg/amqpxredis@$VERSION"
	say "fetched pkg/amqpx with $(wc -l <<<"$graph") modules in the graph, then pkg/amqpxcodec, pkg/amqpxgrpc, pkg/amqpxotel, pkg/amqpxprom and pkg/amqpxredis"
}

scope=${1:-}
[[ $scope == short || $scope == all ]] || die "usage: module-check.sh short|all"
old=$(sed -n 's/^module //p' "$ROOT/go.mod")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/copy"
cd "$ROOT"
git ls-files -z -co --exclude-standard | xargs -0 cp --parents -t "$work/copy"
cd "$work/copy"
git init -q
commit "copy"
check_refusals
quietly deploy/module.sh "$NEW"
commit "renamed"
check_renamed
if [[ $scope == all ]]; then
	in_modules '*go.mod' go mod tidy -diff
	in_modules '*go.mod' go vet -tags 'integration fault hostile e2e' ./...
	in_modules go.mod go test -count=1 ./...
	in_modules 'pkg/*go.mod' go test -count=1 ./...
fi
check_fetched
