#!/usr/bin/env bash
# stage.sh NAME COMMAND… runs one stage of make test, which may run beside others: it prints the
# stage's name at the start, and at the end the time and all output at once, also if the stage is
# interrupted. The output is kept in .run/stages/NAME.log, and the names of the stages that failed
# in .run/stages/failed.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

readonly STAGES=$RUN/stages
name=${1:?usage: stage.sh NAME COMMAND…}
shift
log=$STAGES/$name.log

# finish prints the output between two headings if the stage failed, because the output may be
# long, else after one.
finish() {
	local code=$? heading="passed in $SECONDS s"
	exec 9>"$STAGES/.lock"
	flock 9
	if ((code)); then
		heading="FAILED after $SECONDS s"
		echo "$name" >>"$STAGES/failed"
	fi
	echo "== $name: $heading"
	cat "$log"
	((code == 0)) || echo "== $name: $heading; the output is above, and in $log"
}

mkdir -p "$STAGES"
: >"$log"
echo "== $name: started"
trap finish EXIT
trap 'exit 130' INT TERM
"$@" </dev/null >"$log" 2>&1
