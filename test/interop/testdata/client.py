"""A client as existing Python programs have it: an exclusive reply queue named by
the server and consumed without acknowledgements; requests carry app_id, reply_to,
correlation_id and the body "request", nothing else.

    client.py URL QUEUE FUNCTION=CALLS...

Prints what was answered, as JSON: {function: {answer: count}}.
"""

import collections
import json
import sys
import uuid

import pika


class Client:
    def __init__(self, url, queue):
        self.queue = queue
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        declared = self.channel.queue_declare(queue="", exclusive=True)
        self.reply_to = declared.method.queue
        self.channel.basic_consume(
            queue=self.reply_to, on_message_callback=self.on_answer, auto_ack=True
        )

    def on_answer(self, _channel, _method, properties, body):
        if properties.correlation_id == self.waiting:
            self.answer = body

    def call(self, function):
        self.answer = None
        self.waiting = str(uuid.uuid4())
        self.channel.basic_publish(
            exchange="",
            routing_key=self.queue,
            properties=pika.BasicProperties(
                app_id=function, reply_to=self.reply_to, correlation_id=self.waiting
            ),
            body="request",
        )
        while self.answer is None:
            self.connection.process_data_events(time_limit=30)
        return self.answer.decode()


def main():
    url, queue, *plan = sys.argv[1:]
    client = Client(url, queue)
    answers = collections.defaultdict(collections.Counter)
    for part in plan:
        function, calls = part.split("=")
        for _ in range(int(calls)):
            answers[function][client.call(function)] += 1
    client.connection.close()
    print(json.dumps(answers))


main()
