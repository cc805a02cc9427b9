"""A server as existing Python programs have it: it declares its queue without any
flags, takes one request at a time, answers with only the correlation_id, and
acknowledges after it answered. A function that it does not know ends it.

    server.py URL QUEUE

Prints "ready" once it consumes, and at the end how many requests it answered.
"""

import signal
import sys

import pika

FUNCTIONS = {"a": lambda: "a", "b": lambda: "b"}


def main():
    url, queue = sys.argv[1:]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue=queue)
    channel.basic_qos(prefetch_count=1)
    answered = 0

    def on_request(channel, method, properties, _body):
        nonlocal answered
        answer = FUNCTIONS[properties.app_id]()
        channel.basic_publish(
            exchange="",
            routing_key=properties.reply_to,
            properties=pika.BasicProperties(correlation_id=properties.correlation_id),
            body=answer,
        )
        channel.basic_ack(delivery_tag=method.delivery_tag)
        answered += 1

    channel.basic_consume(queue=queue, on_message_callback=on_request)
    signal.signal(
        signal.SIGTERM,
        lambda *_: connection.add_callback_threadsafe(channel.stop_consuming),
    )
    print("ready", flush=True)
    channel.start_consuming()
    connection.close()
    print(answered, flush=True)


main()
