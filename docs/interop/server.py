"""A server in another language, with what docs/interop.md asks of one.

    server.py URL QUEUE

Prints "ready" once it consumes, and at the end how many requests it answered.
"""

import signal
import sys

import pika


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


def run(function, body):
    """Returns the response: the headers and the body. It raises nothing."""
    if function not in FUNCTIONS:
        message = f'method "{function}" is unknown to this server'
        return {"rpc-code": "unimplemented", "rpc-ran": False}, message.encode()
    try:
        return {}, FUNCTIONS[function](body)
    except RpcError as error:
        return {"rpc-code": error.code, "rpc-ran": True}, str(error).encode()
    except Exception as error:  # what it says is for the log, not for the caller
        print(f"{function} failed: {error!r}", file=sys.stderr, flush=True)
        return {"rpc-code": "internal", "rpc-ran": True}, b"internal error"


def main():
    url, queue = sys.argv[1:]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue=queue, durable=True)  # as our servers declare it
    channel.basic_qos(prefetch_count=1)  # what it holds, no other server can run
    answered = 0

    def on_request(channel, method, properties, body):
        nonlocal answered
        headers, response = run(properties.app_id, body)
        if method.redelivered and headers.get("rpc-ran") is False:
            del headers["rpc-ran"]  # another server may have run it
        if properties.reply_to:  # without it nobody waits
            channel.basic_publish(
                exchange="",
                routing_key=properties.reply_to,
                properties=pika.BasicProperties(
                    correlation_id=properties.correlation_id, headers=headers
                ),
                body=response,
            )
        channel.basic_ack(delivery_tag=method.delivery_tag)  # after the response
        answered += 1

    channel.basic_consume(queue=queue, on_message_callback=on_request)  # no auto_ack
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
