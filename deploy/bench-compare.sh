#!/usr/bin/env bash
# bench-compare.sh REV [PATTERN] [ROUNDS] compares the micro-benchmarks of pkg/amqpx and its
# internal packages in the working copy with a git revision: both are built once and run
# alternately, and benchstat shows the differences. The benchmarks need no broker.
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
for package in amqpx amqpx/internal/wire; do
	for which in old new; do
		source=$ROOT
		[[ $which == new ]] || source=$tree
		# An older revision may not have the package.
		[[ ! -d $source/pkg/$package ]] || (cd "$source/pkg/$package" && go test -c -o "$work/$which-${package##*/}" .)
	done
done
cd "$work" # without testdata: benchmarks only
for round in $(seq "$rounds"); do
	say "round $round of $rounds"
	for which in old new; do
		for benchmarks in "./$which"-*; do
			"$benchmarks" -test.run '^$' -test.bench "$pattern" -test.benchmem -test.benchtime 0.3s >>"$which.txt"
		done
	done
done
"$ROOT/.bin/benchstat" "base=old.txt" "here=new.txt"
