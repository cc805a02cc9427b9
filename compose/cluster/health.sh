#!/bin/sh
# The health of a node of compose/cluster.yml: its listeners accept connections, it runs with a
# majority of the three nodes, and it has seen no partition. One question to the node, because each
# start of a command costs about a second of CPU.
exec rabbitmqctl -q --timeout 50 eval '
	Running = case erlang:function_exported(rabbit_nodes, list_running, 0) of
		true -> rabbit_nodes:list_running();
		false -> rabbit_nodes:all_running()
	end,
	Ports = [element(6, L) || L <- rabbit_networking:node_listeners(node())],
	Deaf = [P || P <- Ports, case gen_tcp:connect("localhost", P, [], 5000) of
		{ok, S} -> gen_tcp:close(S) =/= ok;
		_ -> true
	end],
	case {length(Running) >= 2, rabbit_node_monitor:partitions(), Deaf} of
		{true, [], []} when Ports =/= [] -> ok;
		Other -> exit({majority_partitions_deaf, Other, Ports})
	end.'
