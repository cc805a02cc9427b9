#!/bin/sh
# The health of a node of compose/cluster.yml: it accepts connections, runs with a majority of the
# three nodes, and has seen no partition. A second or two of CPU.
set -eu
rabbitmq-diagnostics -q check_port_connectivity
rabbitmqctl -q eval '
	Running = case erlang:function_exported(rabbit_nodes, list_running, 0) of
		true -> rabbit_nodes:list_running();
		false -> rabbit_nodes:all_running()
	end,
	case {length(Running), rabbit_node_monitor:partitions()} of
		{N, []} when N >= 2 -> ok;
		Other -> exit({nodes_and_partitions, Other})
	end.'
