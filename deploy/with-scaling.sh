#!/usr/bin/env bash
# with-scaling.sh VERSION COMMAND… runs the command in the module bench with a private broker and
# a private cluster of three nodes of that version, which are always removed at the end. Their
# idle schedulers do not spin, so that processor times count work only.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

version=${1:?usage: with-scaling.sh VERSION COMMAND…}
shift
name=scaling-$version-$$
trap '"$DEPLOY/broker.sh" down "$name"; "$DEPLOY/cluster.sh" down "$name"' EXIT
trap 'exit 130' INT TERM
export BROKER_KIND=plain
BROKER_ERL_ARGS='+sbwt none +sbwtdcpu none +sbwtdio none' "$DEPLOY/broker.sh" up "$name" "$version"
"$DEPLOY/cluster.sh" up "$name" "$version"
eval "$("$DEPLOY/cluster.sh" env "$name")"
eval "$("$DEPLOY/broker.sh" env "$name")"
cd "$ROOT/bench"
"$@"
