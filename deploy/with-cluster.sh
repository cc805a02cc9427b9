#!/usr/bin/env bash
# with-cluster.sh VERSION COMMAND… runs the command in the module DIR (default: test) with
# a private cluster of three nodes of that version, which is always removed at the end. If
# AMQPX_TEST_CLUSTER_URLS is set, the command uses that cluster, and no cluster is started.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

version=${1:?usage: with-cluster.sh VERSION COMMAND…}
shift
if [[ -n ${AMQPX_TEST_CLUSTER_URLS:-} ]]; then
	say "cluster: the one of AMQPX_TEST_CLUSTER_URLS"
else
	name=test-$version-$$
	trap '"$DEPLOY/cluster.sh" down "$name"' EXIT
	trap 'exit 130' INT TERM
	"$DEPLOY/cluster.sh" up "$name" "$version"
	eval "$("$DEPLOY/cluster.sh" env "$name")"
fi
export AMQPX_TEST_REQUIRE=1 # a missing broker is a failure
cd "$ROOT/${DIR:-test}"
"$@"
