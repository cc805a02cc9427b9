#!/usr/bin/env bash
# Starts a broker, SERVERS servers (1), and a client that makes its calls; the exit code is the
# client's. With CLUSTER=yes the broker is a cluster of three nodes with quorum queues. With a
# Docker engine they are containers, on stand-in images if no registry responds; without an
# engine they are plain processes.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

load_env
: "${CLUSTER:=}" "${SERVERS:=1}" "${AMQP_PORT:=5672}" "${MANAGEMENT_PORT:=15672}" "${REPORT_DIR:=$ROOT/report}"
export AMQP_PORT MANAGEMENT_PORT
# The version that the services report.
: "${VERSION:=$(git -C "$ROOT" describe --tags --always --dirty 2>/dev/null || echo dev)}"
export VERSION
mkdir -p "$RUN"
[[ $SERVERS =~ ^[1-9][0-9]?$ ]] || die "SERVERS is a number from 1 to 99, not '$SERVERS'"

# other_kind ends the run, because a broker with data of its own would join a cluster, or leave it.
other_kind() { die "$1 is there, and make up${CLUSTER:+-cluster} would change it: make down removes it"; }

# free PORT VARIABLE fails if another program uses the port.
free() {
	! listening "$1" || die "port $1 is taken: set $2 to another one, such as make up $2=$(free_port)"
}

free_ports() {
	free "$AMQP_PORT" AMQP_PORT
	free "$MANAGEMENT_PORT" MANAGEMENT_PORT
}

if engine; then
	# shellcheck source=deploy/up-engine.sh
	. "$DEPLOY/up-engine.sh"
else
	# shellcheck source=deploy/up-plain.sh
	. "$DEPLOY/up-plain.sh"
fi
rm -f "$REPORT_DIR"/report.{json,html} # from an earlier run
bring_up

code=0
call || code=$?

say ''
say "make down      stops it all and leaves nothing behind"
say "management UI: http://127.0.0.1:$MANAGEMENT_PORT (guest/guest)"
# The last line of the output is the report for people.
if [[ -f $REPORT_DIR/report.html ]]; then
	say "report:        $REPORT_DIR/report.html"
else
	say "no report was written"
fi
exit "$code"
