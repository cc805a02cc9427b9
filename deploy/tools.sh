#!/usr/bin/env bash
# Installs the pinned tools into ./.bin. The tools are built once per machine:
# the binaries are in the cache folder, and .bin contains links.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

readonly TOOLS='
github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
golang.org/x/vuln/cmd/govulncheck@v1.9.0
golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
'

# install_tool MODULE@VERSION builds the tool unless it is in the cache, and then links it.
install_tool() {
	local spec=$1 name dir
	name=$(basename "${spec%@*}")
	dir=$CACHE/tools/$name-${spec#*@}-$(go env GOVERSION)
	if [[ ! -x $dir/$name ]]; then
		say "building $name ${spec#*@} (once per machine)"
		# -buildvcs and -mod settings of the caller must not reach this build.
		(cd / && GOFLAGS='' GOBIN=$dir.tmp go install -trimpath "$spec")
		mkdir -p "$dir" && mv "$dir.tmp/$name" "$dir/" && rmdir "$dir.tmp"
	fi
	ln -sfn "$dir/$name" "$ROOT/.bin/$name"
}

mkdir -p "$ROOT/.bin" "$CACHE/tools"
exec 9>"$CACHE/tools/.lock"
flock 9
for spec in $TOOLS; do
	install_tool "$spec"
done
