#!/bin/sh
# overlays-check.sh CONF NODE tells whether a node of compose/cluster.yml may start with the settings
# that other overlays have put into the folder CONF. The exit code is 0 for yes and 1 for no, with the
# reason and the way out on stderr.
#
# An overlay that imports definitions, such as compose/production.yml, knows the first node only. The other
# two nodes would import the definitions of this overlay, in which the user guest is an administrator
# with a known password, or accept logins without a user; and users belong to the whole cluster.
set -eu

conf=${1:?usage: overlays-check.sh CONF NODE}
node=${2:?usage: overlays-check.sh CONF NODE}

for file in "$conf"/*.conf; do
	if [ -f "$file" ] && grep -q '^[[:space:]]*load_definitions[[:space:]]*=' "$file"; then
		printf '%s\n' >&2 \
			"error: $node: the overlays cluster and production cannot be used together: ${file##*/} imports users on this node only, and the other nodes would let the user guest in. Use one of the two overlays; for a cluster with least privilege see docs/kubernetes.md"
		exit 1
	fi
done
