"""A server of the batch lane and of nothing else: it takes batches of calls from
<queue>.batch, and answers each of them with one batch.

    batch_server.py URL QUEUE

Prints "ready" once it consumes, and at the end how many calls it answered.
"""

import signal
import sys

import pika

import batch

FUNCTIONS = {b"a": lambda: b"a", b"b": lambda: b"b"}


def answer(call):
    function = FUNCTIONS.get(call[batch.CALL_METHOD])
    if function is None:
        return batch.message(
            (batch.ANSWER_ID, call[batch.CALL_ID]),
            (batch.ANSWER_CODE, b"unimplemented"),
            (batch.ANSWER_BODY, b"unknown function"),
        )
    return batch.message(
        (batch.ANSWER_ID, call[batch.CALL_ID]), (batch.ANSWER_BODY, function())
    )


def main():
    url, queue = sys.argv[1:]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue=queue + ".batch", durable=True)
    channel.basic_qos(prefetch_count=4)
    answered = 0

    def on_batch(channel, method, properties, body):
        nonlocal answered
        if properties.content_type != batch.CALLS:
            raise ValueError(f"content type {properties.content_type}")
        calls = batch.records(body)
        channel.basic_publish(
            exchange="",
            routing_key=properties.reply_to,
            properties=pika.BasicProperties(content_type=batch.ANSWERS),
            body=batch.batch(answer(call) for call in calls),
        )
        channel.basic_ack(delivery_tag=method.delivery_tag)
        answered += len(calls)

    channel.basic_consume(queue=queue + ".batch", on_message_callback=on_batch)
    signal.signal(
        signal.SIGTERM,
        lambda *_: connection.add_callback_threadsafe(channel.stop_consuming),
    )
    print("ready", flush=True)
    channel.start_consuming()
    connection.close()
    print(answered, flush=True)


main()
