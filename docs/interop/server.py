"""A server with pika, as docs/interop.md requires: server.py

The environment has AMQP_URL and RPC_QUEUE. The server prints "ready" once it consumes, and at the
end how many requests it answered.
"""

import os
import re
import signal
import sys

import pika
from pika.exceptions import NackError, UnroutableError

DIRECT = "amq.rabbitmq.reply-to"
# A forged address would end the server's connection.
DIRECT_ADDRESS = re.compile(re.escape(DIRECT) + r"\.g(1h|2d)[A-Za-z0-9+/]+=*\.[^.]+")


class RpcError(Exception):
    """A failure with a code of docs/protocol.md, and a message for the caller."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def echo(body):
    return body


def divide(body):
    dividend, divisor = (int(part) for part in body.split())
    return str(dividend // divisor).encode()


def find(body):
    raise RpcError("not_found", f"no such thing: {body.decode()}")


# Every server of a queue has the same functions: the broker gives any request to any server.
FUNCTIONS = {"echo": echo, "divide": divide, "find": find}


def refusal(code, message):
    return {"rpc-code": code, "rpc-ran": False}, message.encode()


def budget_ms(properties):
    """Returns the time that the caller gives the server, or None. It raises ValueError."""
    budget = (properties.headers or {}).get("rpc-timeout-ms")
    if budget is None and (properties.type or "").startswith("rpc.v1"):
        budget = properties.expiration
    return None if budget is None else int(budget)


def run(properties, body):
    """Returns the response: the headers and the body. It raises nothing."""
    method = properties.app_id or (properties.headers or {}).get("rpc-method")
    if not isinstance(method, str):
        return refusal("invalid_argument", "no method: app_id is empty, or no text")
    try:
        budget = budget_ms(properties)
        if budget is not None and budget < 0:
            raise ValueError(budget)
    except (TypeError, ValueError):
        return refusal("invalid_argument", "rpc-timeout-ms is no number of milliseconds")
    if budget == 0:  # with a prefetch of 1 no request waits in this server
        return refusal("deadline_exceeded", "the time for the call is used up")
    if method not in FUNCTIONS:
        message = f'method "{method}" is unknown to this server'
        return refusal("unimplemented", message)
    try:
        return {}, FUNCTIONS[method](body)
    except RpcError as error:
        return {"rpc-code": error.code, "rpc-ran": True}, str(error).encode()
    except Exception as error:  # what it says is for the log, not for the caller
        print(f"{method} failed: {error!r}", file=sys.stderr, flush=True)
        return {"rpc-code": "internal", "rpc-ran": True}, b"internal error"


def respond(channel, request, headers, body):
    """Publishes a response, and returns when the broker has confirmed it."""
    if not isinstance(request.reply_to, str):  # without it nobody waits
        return
    direct = request.reply_to.startswith(DIRECT)
    if direct and not DIRECT_ADDRESS.fullmatch(request.reply_to):
        return
    properties = pika.BasicProperties(
        correlation_id=request.correlation_id or request.message_id, headers=headers
    )
    try:  # the broker returns every mandatory message to direct reply-to
        channel.basic_publish("", request.reply_to, body, properties, mandatory=not direct)
    except (NackError, UnroutableError) as error:
        print(f"response lost: {error!r}", file=sys.stderr, flush=True)


def main():
    url = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672")
    queue = os.environ.get("RPC_QUEUE", "rpc_queue")
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)  # as our servers declare it
    channel.basic_qos(prefetch_count=1)  # what it holds, no other server can run
    channel.confirm_delivery()
    answered = 0

    def on_request(channel, method, properties, body):
        nonlocal answered
        headers, response = run(properties, body)
        if method.redelivered and headers.get("rpc-ran") is False:
            del headers["rpc-ran"]  # another server may have run it
        refused = headers.get("rpc-ran") is False
        if refused:  # first the acknowledgement: after this response nobody may run the request
            channel.basic_ack(method.delivery_tag)
            # A caller that tries again distinguishes the refusals by their numbers.
            headers["rpc-retry"] = (properties.headers or {}).get("rpc-retry", 0)
        respond(channel, properties, headers, response)
        if not refused:
            channel.basic_ack(method.delivery_tag)
        answered += 1

    channel.basic_consume(queue, on_request)  # no auto_ack
    signal.signal(
        signal.SIGTERM,
        lambda *_: connection.add_callback_threadsafe(channel.stop_consuming),
    )
    print("ready", flush=True)
    channel.start_consuming()
    connection.close()
    print(answered, flush=True)


if __name__ == "__main__":
    main()
