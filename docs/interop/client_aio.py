"""A client with aio-pika, as docs/interop.md requires: client_aio.py METHOD BODY

The environment has AMQP_URL, RPC_QUEUE and RPC_TIMEOUT_MS.
"""

import asyncio
import os
import sys
import uuid

from aio_pika import Message, connect
from aio_pika.exceptions import PublishError

OUTCOMES = {True: "ran", False: "did not run"}


class RpcError(Exception):
    """A call that failed. The outcome tells whether a function ran."""

    def __init__(self, code, message, outcome):
        super().__init__(f"{code}: {message} ({outcome})")


class Client:
    async def open(self, connection, queue):
        channel = await connection.channel(on_return_raises=True)
        self.queue, self.exchange = queue, channel.default_exchange
        self.replies = await channel.declare_queue(exclusive=True)
        self.waiting = {}
        await self.replies.consume(self.on_response, no_ack=True)

    async def on_response(self, message):
        future = self.waiting.get(message.correlation_id)
        if future and not future.done():
            future.set_result(message)

    async def call(self, method, body, timeout_ms=30_000):
        call = str(uuid.uuid4())
        self.waiting[call] = asyncio.get_running_loop().create_future()
        request = Message(
            body,
            app_id=method,
            reply_to=self.replies.name,
            correlation_id=call,
            type="rpc.v1",
            expiration=timeout_ms / 1000,  # aio-pika counts in seconds
        )
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self.exchange.publish(request, self.queue, mandatory=True)
                response = await self.waiting[call]
        except PublishError:  # the broker has returned the request
            raise RpcError("unavailable", "no such queue", "did not run") from None
        except TimeoutError:
            raise RpcError("deadline_exceeded", "no response", "may have run") from None
        finally:
            del self.waiting[call]
        headers = response.headers
        if "rpc-code" in headers:  # the body is the error's message, and no result
            outcome = OUTCOMES.get(headers.get("rpc-ran"), "may have run")
            raise RpcError(headers["rpc-code"], response.body.decode(), outcome)
        return response.body


async def main():
    _, method, body = sys.argv
    url = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672")
    timeout_ms = int(os.environ.get("RPC_TIMEOUT_MS", "30000"))
    async with await connect(url) as connection:
        client = Client()
        await client.open(connection, os.environ.get("RPC_QUEUE", "rpc_queue"))
        sys.stdout.buffer.write(await client.call(method, body.encode(), timeout_ms))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except RpcError as error:
        sys.exit(str(error))  # to standard error, with exit code 1
