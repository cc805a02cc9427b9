#!/usr/bin/env escript
%% A client with RabbitMQ's amqp_client, as docs/interop.md requires: escript client.escript METHOD BODY
%%
%% The environment has AMQP_URL, RPC_QUEUE and RPC_TIMEOUT_MS, and ERL_LIBS, the folder of
%% amqp_client and rabbit_common: /usr/lib/rabbitmq/lib/rabbitmq_server-VERSION/plugins.

-include_lib("amqp_client/include/amqp_client.hrl").

-define(DIRECT, <<"amq.rabbitmq.reply-to">>).

%% The consumer of direct reply-to exists before the first request is published.
open(Connection) ->
    {ok, Channel} = amqp_connection:open_channel(Connection),
    ok = amqp_channel:register_return_handler(Channel, self()),
    Consume = #'basic.consume'{queue = ?DIRECT, no_ack = true},
    #'basic.consume_ok'{} = amqp_channel:subscribe(Channel, Consume, self()),
    receive #'basic.consume_ok'{} -> Channel end.

call(Channel, Queue, Method, Body, Timeout) ->
    Id = base64:encode(crypto:strong_rand_bytes(16)),
    Properties = #'P_basic'{app_id = Method, reply_to = ?DIRECT, correlation_id = Id,
                            type = <<"rpc.v1">>, expiration = integer_to_binary(Timeout)},
    Publish = #'basic.publish'{routing_key = Queue, mandatory = true},
    ok = amqp_channel:cast(Channel, Publish, #amqp_msg{props = Properties, payload = Body}),
    receive %% only messages with this id: any other response is late
        {#'basic.deliver'{}, #amqp_msg{props = #'P_basic'{correlation_id = Id, headers = Headers}, payload = Payload}} ->
            result(Headers, Payload);
        {#'basic.return'{}, #amqp_msg{props = #'P_basic'{correlation_id = Id}}} ->
            {error, <<"unavailable">>, <<"no such queue">>, "did not run"}
    after Timeout ->
        {error, <<"deadline_exceeded">>, <<"no response">>, "may have run"}
    end.

%% Only the header rpc-code marks an error; the body is its message then.
result(undefined, Payload) -> {ok, Payload};
result(Headers, Payload) ->
    case lists:keyfind(<<"rpc-code">>, 1, Headers) of
        false -> {ok, Payload};
        {_, _, Code} -> {error, Code, Payload, outcome(lists:keyfind(<<"rpc-ran">>, 1, Headers))}
    end.

outcome({_, bool, true}) -> "ran";
outcome({_, bool, false}) -> "did not run";
outcome(_) -> "may have run".

main(Args) ->
    [Method, Body] = [unicode:characters_to_binary(A) || A <- Args],
    logger:set_primary_config(level, error),
    {ok, _} = application:ensure_all_started(amqp_client),
    {ok, Params} = amqp_uri:parse(os:getenv("AMQP_URL", "amqp://guest:guest@localhost:5672")),
    {ok, Connection} = amqp_connection:start(Params),
    Queue = list_to_binary(os:getenv("RPC_QUEUE", "rpc_queue")),
    Timeout = list_to_integer(os:getenv("RPC_TIMEOUT_MS", "30000")),
    Result = call(open(Connection), Queue, Method, Body, Timeout),
    ok = amqp_connection:close(Connection),
    case Result of
        {ok, Response} ->
            ok = file:write(standard_io, Response);
        {error, Code, Message, Outcome} ->
            ok = file:write(standard_error, [Code, ": ", Message, " (", Outcome, ")\n"]),
            halt(1)
    end.
