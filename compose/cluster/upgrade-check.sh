#!/bin/sh
# upgrade-check.sh DATA NODE tells whether the RabbitMQ of this image may start on the data of a
# node, before the data are touched. DATA is the folder with NODE-feature_flags; DATA/../rabbitmq-version
# is the version that last started on the data, if node.sh started it. The exit code is 0 for yes
# and 1 for no, with the reason and the way out on stderr.
#
# The rules are RabbitMQ's: https://www.rabbitmq.com/docs/upgrade#rabbitmq-version-upgradability
# for versions, https://www.rabbitmq.com/docs/feature-flags for feature flags. RABBITMQ_ROOT is the
# folder of RabbitMQ's plugins, if it is not where the packages and the official image have it.
set -eu

data=${1:?usage: upgrade-check.sh DATA NODE}
node=${2:?usage: upgrade-check.sh DATA NODE}

say() { printf '%s\n' "$*" >&2; }

refuse() {
	say "error: $node: $*"
	exit 1
}

# series VERSION prints its major and minor number.
series() { echo "$1" | sed 's/^\([0-9]*\.[0-9]*\).*/\1/'; }

# older A B tells whether version A is older than version B.
older() { [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -t . -k 1,1n -k 2,2n -k 3,3n | head -n 1)" = "$1" ]; }

ebin=''
for dir in ${RABBITMQ_ROOT:+"$RABBITMQ_ROOT"} /opt/rabbitmq/plugins /usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins; do
	for beam in "$dir"/rabbit-[0-9]*/ebin/rabbit_core_ff.beam; do
		[ -n "$ebin" ] || [ ! -f "$beam" ] || ebin=$(dirname "$beam")
	done
done
[ -n "$ebin" ] || refuse "no RabbitMQ is installed here"
new=$(basename "$(dirname "$ebin")" | sed 's/^rabbit-//')

if [ ! -e "$data/$node" ] && [ ! -e "$data/$node-feature_flags" ]; then
	say "$node: no data yet, RabbitMQ $new starts anew"
	exit 0
fi

old=''
[ ! -s "$data/../rabbitmq-version" ] || old=$(cat "$data/../rabbitmq-version")
later="stop here: keep the old image, or begin with new data (blue-green deployment, https://www.rabbitmq.com/docs/blue-green-upgrade)"
if [ -n "$old" ] && [ "$old" != "$new" ]; then
	path="$(series "$old") $(series "$new")"
	if older "$new" "$old"; then
		refuse "its data are of RabbitMQ $old, and RabbitMQ does not support the way back to $new: $later"
	fi
	case $path in
	"3.8 3.9" | "3.9 3.10" | "3.10 3.11" | "3.12 3.13" | "3.13 4.0" | "3.13 4.1" | "3.13 4.2" | "4.0 4.1" | "4.0 4.2" | "4.1 4.2") ;;
	"3.11 3.12") ! older "$old" 3.11.18 || refuse "its data are of RabbitMQ $old: upgrade to 3.11.18 or later before $new" ;;
	"3.8 "* | "3.9 "* | "3.1"[0-3]" "* | "4.0 "* | "4.1 "*)
		[ "${path% *}" = "${path#* }" ] ||
			refuse "its data are of RabbitMQ $old, and RabbitMQ $new can only follow a later version: go one series at a time, 3.8, 3.9, 3.10, 3.11, 3.12, 3.13, then 4.0 to 4.2, with rabbitmqctl enable_feature_flag all at each, or $later"
		;;
	*) say "$node: the path from RabbitMQ $old to $new is not known here, the feature flags decide" ;;
	esac
fi
[ -n "$old" ] || say "$node: the version of its data is not recorded, the feature flags decide"

# Each -rabbit_feature_flag attribute of a module is a feature flag that the image knows. Most are in
# modules *_ff; all others are read only if a flag is not there, because they are many. RabbitMQ does
# not start while a flag that its core requires is disabled.
faults=$(erl -noinput -boot start_clean -eval '
	[File, Ebin, Plugins] = init:get_plain_arguments(),
	Enabled = case file:consult(File) of {ok, [L]} -> L; _ -> [] end,
	Flags = fun(Beam) ->
		case beam_lib:chunks(Beam, [attributes]) of
			{ok, {_, [{attributes, A}]}} -> [{N, maps:get(stability, P, stable)} || {rabbit_feature_flag, L} <- A, {N, P} <- L];
			_ -> []
		end
	end,
	Core = [_ | _] = Flags(filename:join(Ebin, "rabbit_core_ff.beam")),
	Without = fun(Names, Beams) ->
		Names -- [N || Names =/= [], B <- filelib:wildcard(Plugins ++ "/*/ebin/" ++ Beams), {N, _} <- Flags(B)]
	end,
	Missing = [N || {N, required} <- Core, not lists:member(N, Enabled)],
	Unknown = Without(Without(Enabled, "*_ff.beam"), "*.beam"),
	Khepri = [khepri_db || lists:member(khepri_db, Enabled)],
	[io:format("~s~s~n", [Kind, [[" ", atom_to_list(N)] || N <- lists:usort(L)]])
		|| {Kind, L} <- [{"missing", Missing}, {"unknown", Unknown}, {"khepri", Khepri}], L =/= []],
	halt().' -extra "$data/$node-feature_flags" "$ebin" "$(dirname "$(dirname "$ebin")")") ||
	refuse "the feature flags of its data cannot be read"

list() { printf '%s\n' "$faults" | sed -n "s/^$1 //p"; }

missing=$(list missing)
if [ -n "$missing" ]; then
	refuse "RabbitMQ $new requires feature flags that are not enabled in its data${old:+ (RabbitMQ $old)}: $missing. Start the old image, run rabbitmqctl enable_feature_flag all, and if flags stay missing, upgrade to the series between first; or $later"
fi
unknown=$(list unknown)
[ -z "$unknown" ] || refuse "its data use feature flags that RabbitMQ $new does not know: $unknown. They are of a later version${old:+, $old}: $later"
case $(series "${old:-unknown}")$(list khepri) in
3.13khepri_db) [ "$(series "$new")" = 3.13 ] || refuse "its data are in the Khepri of RabbitMQ 3.13, which $new cannot read: $later" ;;
esac
say "$node: RabbitMQ $new may start on its data${old:+ of RabbitMQ $old}"
