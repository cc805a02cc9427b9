%% Defines and loads the module bench_slow_queue, a backing queue of classic queues that hands everything
%% on to RabbitMQ's own, and waits a millisecond before each message that a request queue of the
%% experiment takes. The wait uses no processor: the process of the queue is the limit, not the machine.
Own = rabbit_priority_queue,
Slow = bench_slow_queue,
Vars = fun(N) -> [{var, 1, list_to_atom("V" ++ integer_to_list(I))} || I <- lists:seq(1, N)] end,
Form = fun(Text) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    {ok, F} = erl_parse:parse_form(Tokens),
    F
end,
All = [{F, A} || {F, A} <- Own:module_info(exports), F =/= module_info],
HandOn = fun({F, A}) ->
    Call = {call, 1, {remote, 1, {atom, 1, Own}, {atom, 1, F}}, Vars(A)},
    Before = case F of
        publish -> [{call, 1, {atom, 1, bench_wait}, []}];
        publish_delivered -> [{call, 1, {atom, 1, bench_wait}, []}];
        init when A =:= 3 -> [{call, 1, {atom, 1, bench_note}, [{var, 1, 'V1'}]}];
        _ -> []
    end,
    {function, 1, F, A, [{clause, 1, Vars(A), [], Before ++ [Call]}]}
end,
Forms = [{attribute, 1, module, Slow}, {attribute, 1, export, All}] ++ lists:map(HandOn, All) ++ [
    Form("bench_wait() -> case get(bench_slow) of true -> receive after 1 -> ok end; _ -> ok end."),
    Form("bench_note(Q) -> {resource, _, queue, Name} = amqqueue:get_name(Q), put(bench_slow, re:run(Name, <<\"^bench\\\\.slow\\\\.[^.]+(\\\\.[0-9]+)?$\">>) =/= nomatch).")
],
{ok, Slow, Code} = compile:forms(Forms),
{module, Slow} = code:load_binary(Slow, "bench_slow_queue", Code),
application:set_env(rabbit, backing_queue_module, Slow),
slow.
