"""A client with pika, as docs/interop.md requires: client.py METHOD BODY

The environment has AMQP_URL, RPC_QUEUE and RPC_TIMEOUT_MS.
"""

import os
import sys
import time
import uuid

import pika

OUTCOMES = {True: "ran", False: "did not run"}


class RpcError(Exception):
    """A call that failed. The outcome tells whether a function ran."""

    def __init__(self, code, message, outcome):
        super().__init__(f"{code}: {message} ({outcome})")


class Client:
    def __init__(self, url, queue):
        self.queue = queue
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.channel.add_on_return_callback(self.on_return)
        declared = self.channel.queue_declare(queue="", exclusive=True)
        self.reply_to = declared.method.queue
        self.responses = {}
        self.channel.basic_consume(self.reply_to, self.on_response, auto_ack=True)

    def on_response(self, _channel, _method, properties, body):
        # A response after its deadline finds no call, and is dropped.
        if properties.correlation_id in self.responses:
            self.responses[properties.correlation_id] = properties.headers or {}, body

    def on_return(self, _channel, _method, properties, _body):
        headers = {"rpc-code": "unavailable", "rpc-ran": False}
        self.responses[properties.correlation_id] = headers, b"no such queue"

    def call(self, method, body, timeout_ms=30_000):
        call = str(uuid.uuid4())
        self.responses[call] = None
        properties = pika.BasicProperties(
            app_id=method,
            reply_to=self.reply_to,
            correlation_id=call,
            type="rpc.v1",
            expiration=str(timeout_ms),
        )
        self.channel.basic_publish("", self.queue, body, properties, mandatory=True)
        end = time.monotonic() + timeout_ms / 1000
        while not self.responses[call] and time.monotonic() < end:
            self.connection.process_data_events(max(end - time.monotonic(), 0))
        headers, response = self.responses.pop(call) or (None, None)
        if headers is None:
            raise RpcError("deadline_exceeded", "no response", "may have run")
        if "rpc-code" in headers:  # the body is the error's message, and no result
            outcome = OUTCOMES.get(headers.get("rpc-ran"), "may have run")
            raise RpcError(headers["rpc-code"], response.decode(), outcome)
        return response


def main():
    _, method, body = sys.argv
    url = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672")
    client = Client(url, os.environ.get("RPC_QUEUE", "rpc_queue"))
    try:
        timeout_ms = int(os.environ.get("RPC_TIMEOUT_MS", "30000"))
        sys.stdout.buffer.write(client.call(method, body.encode(), timeout_ms))
    except RpcError as error:
        sys.exit(str(error))  # to standard error, with exit code 1
    finally:
        client.connection.close()


if __name__ == "__main__":
    main()
