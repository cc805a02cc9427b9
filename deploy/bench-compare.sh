#!/usr/bin/env bash
# bench-compare.sh REV [PATTERN] [ROUNDS] compares the micro-benchmarks of pkg/amqpx in the
# working copy with a git revision: both are built once and run alternately, and benchstat
# shows the differences. The benchmarks need no broker.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

base=${1:?usage: bench-compare.sh REV [PATTERN] [ROUNDS]}
pattern=${2:-.}
rounds=${3:-6}
git -C "$ROOT" rev-parse --verify --quiet "$base^{commit}" >/dev/null || die "no revision $base"
"$DEPLOY/tools.sh"

work=$(mktemp -d)
tree=$work/base
trap 'git -C "$ROOT" worktree remove --force "$tree" 2>/dev/null; rm -rf "$work"' EXIT
git -C "$ROOT" worktree add --quiet --detach "$tree" "$base"
(cd "$tree/pkg/amqpx" && go test -c -o "$work/old" .)
(cd "$ROOT/pkg/amqpx" && go test -c -o "$work/new" .)
cd "$work" # without testdata: benchmarks only
for round in $(seq "$rounds"); do
	say "round $round of $rounds"
	for which in old new; do
		"./$which" -test.run '^$' -test.bench "$pattern" -test.benchmem -test.benchtime 0.3s >>"$which.txt"
	done
done
"$ROOT/.bin/benchstat" "base=old.txt" "here=new.txt"
