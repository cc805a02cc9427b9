# shellcheck shell=bash disable=SC2154  # name, state, version, *_port come from broker.sh
# Backend of broker.sh without an engine: RabbitMQ as a plain process with a private
# epmd. Brokers of one cluster share the epmd and the Erlang cookie. If the installed
# server has another major version, the server runs from a tree of Debian packages
# (rootfs.sh), by chroot.

LIB=/usr/lib/rabbitmq

installed_version() {
	local dir
	for dir in "$LIB"/lib/rabbitmq_server-*; do
		[[ ! -d $dir ]] || basename "$dir" | sed 's/^rabbitmq_server-//'
	done
}

backend_create() {
	tree=''
	[[ -d $LIB || $(id -u) != 0 ]] || need rabbitmqctl rabbitmq-server
	if [[ $(installed_version) != "$version".* ]]; then
		[[ $(id -u) == 0 ]] || die "RabbitMQ $version is not installed: install the package rabbitmq-server of that version, or be root"
		tree=$("$DEPLOY/rootfs.sh" "$(suite_of "$version")" rabbitmq-server)
		mkdir -p "$tree$state"
		# RabbitMQ looks its host's name up for each connection. Without this entry a broker
		# in a tree asks a name server, and does not greet its clients until that answers.
		echo "127.0.0.1 localhost $(uname -n)" >"$state/hosts"
	fi
	echo "tree=$tree" >>"$state/vars"
	plugins >"$state/enabled_plugins"
	cat >"$state/rabbitmq.conf" <<-CONF
		listeners.tcp.1 = 127.0.0.1:$amqp_port
		management.tcp.ip = 127.0.0.1
		management.tcp.port = $management_port
		prometheus.tcp.ip = 127.0.0.1
		prometheus.tcp.port = $metrics_port
		stomp.listeners.tcp.1 = 127.0.0.1:$stomp_port
		loopback_users.guest = false
		disk_free_limit.absolute = 50MB
	CONF
	tls_conf "127.0.0.1:$tls_port" "$state/tls" >>"$state/rabbitmq.conf"
	more_conf "$state/tls" >>"$state/rabbitmq.conf"
	erl_args=${BROKER_ERL_ARGS:-}
	echo "erl_args='$erl_args'" >>"$state/vars"
	[[ -z ${BROKER_JOIN:-} ]] || join "$BROKER_JOIN"
}

# join BROKER prepares the new broker to join the cluster of BROKER at its first start: with
# the same epmd, the same cookie, and BROKER as its peer.
join() {
	local peer=$BROKERS/$1
	[[ -f $peer/vars ]] || die "no broker $1 to join"
	epmd_port=$(sed -n 's/^epmd_port=//p' "$peer/vars")
	echo "epmd_port=$epmd_port" >>"$state/vars"
	cp "$peer/.erlang.cookie" "$state/"
	cat >>"$state/rabbitmq.conf" <<-CONF
		cluster_formation.peer_discovery_backend = classic_config
		cluster_formation.classic_config.nodes.1 = $1@localhost
		cluster_formation.classic_config.nodes.2 = $name@localhost
	CONF
}

# in_place runs a command with the broker's environment; in a tree, in a separate mount
# namespace, where the state folder has the same path inside and outside.
in_place() {
	set -- env -i HOME="$state" PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
		ERL_EPMD_PORT="$epmd_port" ERL_EPMD_ADDRESS=127.0.0.1 \
		RABBITMQ_NODENAME="$name@localhost" RABBITMQ_DIST_PORT="$dist_port" \
		RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_CONFIG_FILE="$state/rabbitmq.conf" \
		RABBITMQ_ENABLED_PLUGINS_FILE="$state/enabled_plugins" \
		RABBITMQ_MNESIA_BASE="$state/data" RABBITMQ_LOG_BASE="$state/log" \
		RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} -rabbit server_properties [{<<\"node\">>,longstr,<<\"$name@localhost\">>}] $erl_args" \
		"$@"
	if [[ -z $tree ]]; then
		exec "$@"
	fi
	# shellcheck disable=SC2016  # expanded by the inner shell
	exec unshare --mount sh -ec '
		mount --bind "$2" "$1$2"; mount --bind "$2/hosts" "$1/etc/hosts"; mount --rbind /dev "$1/dev"; mount -t proc proc "$1/proc"
		tree=$1; shift 2; exec chroot "$tree" "$@"' sh "$tree" "$state" "$@"
}

# spawn PIDFILE COMMAND… starts the command detached, in a new session (process group),
# and in the state folder, because a broker fails if its working folder is removed.
spawn() {
	local pid_file=$1
	shift
	(
		trap - INT
		cd "$state" || exit
		in_place setsid "$@" </dev/null >>"$state/out" 2>&1 &
		echo $! >"$pid_file"
	)
}

# alive PIDFILE tells whether the process runs (a zombie does not).
alive() { [[ -f $1 && $(ps -o stat= -p "$(<"$1")") == [!Z]* ]]; }

# gone PIDFILE tells whether no process of the session runs any more.
gone() { ! alive "$1" && ! pgrep -s "$(<"$1")" -r D,R,S,T >/dev/null; }

# signal_group SIGNAL sends the signal to the server and all its helpers.
signal_group() { kill -s "$1" -- "-$(<"$state/server.pid")" 2>/dev/null || true; }

backend_start() {
	listening "$epmd_port" || spawn "$state/epmd.pid" epmd -address 127.0.0.1 -port "$epmd_port"
	until_true 10 listening "$epmd_port" || die "epmd does not serve port $epmd_port: $(tail -n 1 "$state/out")"
	alive "$state/server.pid" || spawn "$state/server.pid" "$LIB/bin/rabbitmq-server"
}

backend_stop() {
	alive "$state/server.pid" || return 0
	signal_group CONT
	kill -s TERM "$(<"$state/server.pid")"
	until_true 30 gone "$state/server.pid" || backend_kill
}

backend_kill() {
	alive "$state/server.pid" || return 0
	signal_group KILL
	until_true 10 gone "$state/server.pid" || die "broker $name does not die"
}

backend_pause() { signal_group STOP; }
backend_resume() { signal_group CONT; }
backend_disconnect() { die "broker $name is a plain process: only a container has a network of its own"; }
backend_connect() { backend_disconnect; }
backend_alive() { alive "$state/server.pid"; }
backend_tool() { (in_place "$LIB/bin/$1" "${@:2}"); }
backend_log() { cat "$state/out" "$state"/log/*.log 2>/dev/null || true; } # there may be no log yet

backend_remove() {
	backend_kill
	! alive "$state/epmd.pid" || kill -s KILL "$(<"$state/epmd.pid")"
	[[ -z $tree ]] || rm -rf "${tree:?}$state"
}
