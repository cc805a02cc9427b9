Kind = fun(P) when is_pid(P) ->
        case erlang:process_info(P, dictionary) of
            {dictionary, D} ->
                case lists:keyfind(process_name, 1, D) of
                    {process_name, N} when is_tuple(N) -> element(1, N);
                    _ ->
                        case lists:keyfind('$initial_call', 1, D) of
                            {_, {M, _, _}} -> M;
                            _ -> other
                        end
                end;
            _ -> other
        end;
    (_) -> port
end,
Self = self(),
Tracer = spawn(fun() ->
    (fun Loop(In, Sums) ->
        receive
            stop -> Self ! {sums, Sums};
            {trace_ts, P, in, _, T} -> Loop(In#{P => T}, Sums);
            {trace_ts, P, out, _, T} ->
                case In of
                    #{P := T0} -> Loop(maps:remove(P, In), maps:update_with(P, fun({N, S}) -> {N + 1, S + T - T0} end, {1, T - T0}, Sums));
                    _ -> Loop(In, Sums)
                end;
            _ -> Loop(In, Sums)
        end
    end)(#{}, #{})
end),
erlang:trace(all, true, [running, running_ports, monotonic_timestamp, {tracer, Tracer}]),
timer:sleep(400),
erlang:trace(all, false, [running, running_ports]),
Kinds = maps:from_list([{P, Kind(P)} || P <- erlang:processes()]),
Tracer ! stop,
receive
    {sums, Sums} -> [{maps:get(P, Kinds, port), N, erlang:convert_time_unit(S, nanosecond, microsecond)} || {P, {N, S}} <- maps:to_list(Sums), P =/= Self, P =/= Tracer]
end.
