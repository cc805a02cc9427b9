"""A client in another language, with what docs/interop.md asks of one.

    client.py URL QUEUE FUNCTION=BODY...

Makes the calls one after the other and prints what each ended in.
"""

import sys
import time
import uuid

import pika


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
        self.channel.basic_consume(
            queue=self.reply_to, on_message_callback=self.on_response, auto_ack=True
        )

    def on_response(self, _channel, _method, properties, body):
        self.responses[properties.correlation_id] = properties.headers or {}, body

    def on_return(self, _channel, _method, properties, _body):
        headers = {"rpc-code": "unavailable", "rpc-ran": False}
        self.responses[properties.correlation_id] = headers, b"no such queue"

    def call(self, function, body, timeout=30):
        call = str(uuid.uuid4())
        self.channel.basic_publish(
            exchange="",
            routing_key=self.queue,
            properties=pika.BasicProperties(
                app_id=function,
                reply_to=self.reply_to,
                correlation_id=call,
                type="rpc.v1",
                expiration=str(timeout * 1000),
            ),
            body=body,
            mandatory=True,
        )
        end = time.monotonic() + timeout
        while call not in self.responses:
            left = end - time.monotonic()
            if left <= 0:
                raise RpcError("deadline_exceeded", "no response", "may have run")
            self.connection.process_data_events(time_limit=left)
        headers, response = self.responses.pop(call)
        if "rpc-code" not in headers:
            return response
        # Only this header tells a failure: the body is its message, and no result.
        outcomes = {True: "ran", False: "did not run"}
        outcome = outcomes.get(headers.get("rpc-ran"), "may have run")
        raise RpcError(headers["rpc-code"], response.decode(errors="replace"), outcome)


def main():
    url, queue, *calls = sys.argv[1:]
    client = Client(url, queue)
    for part in calls:
        function, body = part.split("=", 1)
        try:
            print(f"result: {client.call(function, body).decode()}", flush=True)
        except RpcError as error:
            print(f"error: {error}", flush=True)
    client.connection.close()


if __name__ == "__main__":
    main()
