"""A client of the batch lane: it sends calls in batches of up to 100, one batch after
the other.

    batch_client.py URL QUEUE FUNCTION=CALLS...

Prints what was answered, as JSON: {function: {answer or "error CODE": count}}.
"""

import collections
import itertools
import json
import sys
import uuid

import pika

import batch

SIZE = 100


def main():
    url, queue, *plan = sys.argv[1:]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    reply_to = channel.queue_declare(queue="", exclusive=True).method.queue
    waiting = {}
    answers = collections.defaultdict(collections.Counter)

    def on_answers(_channel, _method, properties, body):
        if properties.content_type == batch.ANSWERS:
            for record in batch.records(body):
                settle(
                    record[batch.ANSWER_ID].decode(),
                    record.get(batch.ANSWER_CODE, b"").decode(),
                    record.get(batch.ANSWER_BODY, b""),
                )
        else:  # one that travelled alone
            code = (properties.headers or {}).get("rpc-code", "")
            settle(properties.correlation_id, code, body)

    def settle(call, code, body):
        function = waiting.pop(call)
        answers[function][f"error {code}" if code else body.decode()] += 1

    channel.basic_consume(
        queue=reply_to, on_message_callback=on_answers, auto_ack=True
    )
    calls = (part.split("=") for part in plan)
    todo = iter([function for function, count in calls for _ in range(int(count))])
    while functions := list(itertools.islice(todo, SIZE)):
        records = []
        for function in functions:
            call = str(uuid.uuid4())
            waiting[call] = function
            records.append(
                batch.message(
                    (batch.CALL_ID, call.encode()),
                    (batch.CALL_METHOD, function.encode()),
                    (batch.CALL_BODY, b"request"),
                    (batch.CALL_TIMEOUT_MS, 30_000),
                )
            )
        channel.basic_publish(
            exchange="",
            routing_key=queue + ".batch",
            properties=pika.BasicProperties(
                content_type=batch.CALLS, reply_to=reply_to
            ),
            body=batch.batch(records),
        )
        while waiting:
            connection.process_data_events(time_limit=30)
    connection.close()
    print(json.dumps(answers))


main()
