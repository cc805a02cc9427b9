"""Answers one request at a time, and acknowledges after the answer."""

import threading

import pika

ANSWERS = {"b": b"b"}


def main():
    env = configuration()["env"]
    connection = pika.BlockingConnection(pika.URLParameters(env["url"]))
    channel = connection.channel()
    channel.queue_declare(queue=env["queue"])
    channel.basic_qos(prefetch_count=1)

    def on_request(channel, method, properties, body):
        if body != b"request":
            raise ValueError(body)
        channel.basic_publish(
            exchange="",
            routing_key=properties.reply_to,
            properties=pika.BasicProperties(correlation_id=properties.correlation_id),
            body=ANSWERS[properties.app_id],
        )
        channel.basic_ack(delivery_tag=method.delivery_tag)

    def listen():
        serve_commands(lambda command: None)
        connection.add_callback_threadsafe(channel.stop_consuming)

    channel.basic_consume(queue=env["queue"], on_message_callback=on_request)
    threading.Thread(target=listen).start()
    channel.start_consuming()
    connection.close()


main()
