#!/usr/bin/env bash
# with-broker.sh VERSION COMMAND… runs the command in the module DIR (default: test) with
# a private broker of that version, which is always removed at the end. If
# AMQPX_TEST_AMQP_URL is set, the command uses that broker, and no broker is started.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

version=${1:?usage: with-broker.sh VERSION COMMAND…}
shift
if [[ -n ${AMQPX_TEST_AMQP_URL:-} ]]; then
	say "broker: the one of AMQPX_TEST_AMQP_URL"
	export AMQPX_TEST_BROKER_MAJOR=${AMQPX_TEST_BROKER_MAJOR:-$version}
else
	name=test-$version-$$
	trap '"$DEPLOY/broker.sh" down-all "$name-own-" || true; "$DEPLOY/broker.sh" down "$name"' EXIT
	trap 'exit 130' INT TERM
	"$DEPLOY/broker.sh" up "$name" "$version"
	eval "$("$DEPLOY/broker.sh" env "$name")"
fi
export AMQPX_TEST_REQUIRE=1 # a missing broker is a failure
cd "$ROOT/${DIR:-test}"
"$@"
