"""Calls one after the other, over an exclusive reply queue read without acks."""

import time
import uuid

import pika


class Client:
    def __init__(self, env):
        self.queue = env["queue"]
        self.connection = pika.BlockingConnection(pika.URLParameters(env["url"]))
        self.channel = self.connection.channel()
        self.reply_to = self.channel.queue_declare(queue="", exclusive=True).method.queue
        self.channel.basic_consume(
            queue=self.reply_to, on_message_callback=self.on_answer, auto_ack=True
        )

    def on_answer(self, _channel, _method, properties, body):
        if properties.correlation_id == self.waiting:
            self.answer = body

    def call(self):
        self.answer = None
        self.waiting = str(uuid.uuid4())
        self.channel.basic_publish(
            exchange="",
            routing_key=self.queue,
            properties=pika.BasicProperties(
                app_id="b", reply_to=self.reply_to, correlation_id=self.waiting
            ),
            body=b"request",
        )
        while self.answer is None:
            self.connection.process_data_events(time_limit=30)
        if self.answer != b"b":
            raise ValueError(self.answer)

    def turn(self, command):
        turn = command.get("turn")
        if turn is None:
            return None
        took = []
        begun = time.monotonic_ns()
        while time.monotonic_ns() - begun < turn["duration"] and len(took) < turn["max_calls"]:
            called = time.monotonic_ns()
            self.call()
            took.append(time.monotonic_ns() - called)
        elapsed = time.monotonic_ns() - begun
        took.sort()
        return {
            "calls": len(took),
            "elapsed": elapsed,
            "all": {name: took[min(int(len(took) * q), len(took) - 1)] // 1000
                    for name, q in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1))},
        }


def main():
    client = Client(configuration()["env"])
    serve_commands(client.turn)
    client.connection.close()


main()
