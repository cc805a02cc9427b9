#!/usr/bin/env bash
# module.sh PATH gives every module of this repository another path, such as
# github.com/you/rabbitmq-rpc, which other modules can fetch: in the go.mod files, imports,
# linker flags, linter settings and documents. The names of images, labels, caches, metrics and
# dashboards are names of the project, not of a module, and stay as they are.
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

# A host with a dot, then at least one element.
readonly FETCHABLE='^[a-z0-9-]+(\.[a-z0-9-]+)+(/[A-Za-z0-9_~-]+(\.[A-Za-z0-9_~-]+)*)+$'

cd "$ROOT"
new=${1:-}
old=$(sed -n 's/^module //p' go.mod)
[[ $new =~ $FETCHABLE ]] || die "\"$new\" cannot be fetched: write MODULE=host.tld/path, as in github.com/you/rabbitmq-rpc"
[[ ! $new =~ /v[0-9]+$ ]] || die "\"$new\" ends with a major version, which belongs at the end of each module's own path"
[[ $new != "$old" ]] || die "the module path is $old already"
changes=$(git status --porcelain) || die "this is no git work tree: the renaming could not be reviewed, or undone"
[[ -z $changes ]] || die "the work tree has changes: commit them, so that the renaming can be reviewed alone"

folders=$(git ls-files '*.go' | cut -d/ -f1 | sort -u | paste -sd '|')
quoted=${old//./\\.}
start='(^|[^A-Za-z0-9._~/-]|\.\.\.)' # the path is no part of a longer path; it may be the type of a variadic parameter
# in_files FILES TEXT SED applies the sed script to the tracked files with the text.
in_files() { { git grep -lzI -F -e "$2" -- "$1" || true; } | xargs -0r sed -E -i "$3"; }
in_files '*' "$old" "s#$start$quoted(/($folders)\b)#\1$new\2#g"
in_files '*.go' "$old" "s#\"$quoted\"#\"$new\"#g" # a string that is the whole path
in_files '*go.mod' "$old" "s#(^|[[:space:]])$quoted([[:space:]]|$)#\1$new\2#"
in_files .golangci.yml "$old" "s#(module-path: |prefix\()$quoted\b#\1$new#"
# The documents' instructions for a path that cannot be fetched.
in_files '*.md' '<!-- until make module -->' '/^<!-- until make module -->$/,/^<!-- end -->$/d'
for file in $(git ls-files '*go.mod'); do
	go mod edit -fmt "$file"
done

git --no-pager diff --stat >&2
say "renamed $old to $new. Run make lint unit, then commit."
