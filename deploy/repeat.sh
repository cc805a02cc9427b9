#!/usr/bin/env bash
# Runs the integration suite repeatedly under CPU load, and stops at the first failure:
# repeat.sh TIMES BROKER REGEXP COMMAND..., where COMMAND runs the suite once.
set -euo pipefail
cd "$(dirname "$0")/.."

times=$1 broker=$2 regexp=$3
shift 3

# One busy loop per processor, with a lower priority than the tests and a time limit.
load=()
trap 'kill "${load[@]}" 2>/dev/null || true' EXIT
for ((i = $(nproc); i > 0; i--)); do
	nice -n 5 timeout 4h sh -c 'while :; do :; done' &
	load+=($!)
done

for ((run = 1; run <= times; run++)); do
	echo "run $run of $times on RabbitMQ $broker"
	deploy/with-broker.sh "$broker" "$@" -failfast -run "$regexp" ./integration/... ||
		{ echo "failed in run $run of $times on RabbitMQ $broker" >&2; exit 1; }
done
echo "passed $times times on RabbitMQ $broker"
