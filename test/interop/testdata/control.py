"""A caller and an operator at the control plane, written from docs/protocol.md alone.

    control.py URL QUEUE FUNCTION

Calls the function, waits until a server says that it runs, gives the call up, and waits
until the server says so. Prints what the server says then, as JSON.
"""

import json
import sys
import uuid

import pika

import batch

PATIENCE = 20  # seconds for one answer
QUESTIONS = 1000


class Operator:
    def __init__(self, channel, queue):
        self.channel = channel
        self.exchange = queue + ".control"
        channel.exchange_declare(self.exchange, exchange_type="fanout", passive=True)
        self.inbox = channel.queue_declare(queue="", exclusive=True).method.queue

    def tell(self, body="", **properties):
        self.channel.basic_publish(
            exchange=self.exchange,
            routing_key="",
            properties=pika.BasicProperties(**properties),
            body=body,
        )

    def ask(self):
        """Returns what one server says of itself."""
        question = str(uuid.uuid4())
        self.tell(app_id="stats", reply_to=self.inbox, correlation_id=question)
        answers = self.channel.consume(
            self.inbox, auto_ack=True, inactivity_timeout=PATIENCE
        )
        for _, properties, body in answers:
            if properties is None:
                sys.exit("no server answers")
            if properties.correlation_id == question:
                return json.loads(body)

    def wait_until(self, holds):
        for _ in range(QUESTIONS):
            server = self.ask()
            if holds(server["stats"]):
                return server
        sys.exit(f"it never came to that: {server}")


def main():
    url, queue, function = sys.argv[1:]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    operator = Operator(channel, queue)
    call = str(uuid.uuid4())
    channel.basic_publish(
        exchange="",
        routing_key=queue,
        properties=pika.BasicProperties(
            app_id=function, correlation_id=call, reply_to=operator.inbox, type="rpc.v1"
        ),
        body=b"request",
    )
    operator.wait_until(lambda stats: stats["busy"] == 1)
    record = batch.message(
        (batch.CALL_ID, call.encode()), (batch.CALL_METHOD, function.encode())
    )
    operator.tell(
        batch.batch([record]),
        app_id="cancel",
        content_type=batch.CALLS,
        reply_to=operator.inbox,  # of the call: a cancellation counts for its caller only
    )
    server = operator.wait_until(lambda stats: stats["busy"] == 0 and stats["in_flight"] == 0)
    print(json.dumps(server), flush=True)
    connection.close()


main()
