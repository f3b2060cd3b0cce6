"""A small in-process service, driven by a plain thread.

The counter lives on its own loop thread and nowhere else. Requests travel to it through a channel, replies back through a
registry that closes with the service: when the service ends, nobody who waits for it is left behind.
"""

from dataclasses import dataclass
from itertools import count

from microio import (
    CloseScope,
    LoopServiceThread,
    ObjectReceiveChannel,
    ObjectSendChannel,
    ReplyHandle,
    RequestRegistry,
    create_channel,
)

SECOND = 1.0


@dataclass
class Request:
    op: str
    amount: int
    reply: ReplyHandle[int, int]


class CounterServer(LoopServiceThread):
    """The service's side, on the loop thread."""

    def __init__(self) -> None:
        super().__init__(name="counter")
        self.requests: ObjectSendChannel[Request]
        self.inbox: ObjectReceiveChannel[Request]
        self.requests, self.inbox = create_channel()
        self.waiting: RequestRegistry[int, int] = RequestRegistry()
        self.total = 0

    async def run_async(self) -> None:
        self.inbox.bind()
        self.started()
        try:
            async for request in self.inbox:
                self.serve(request)
        except Exception as error:
            self.waiting.close(error)
            raise
        finally:
            self.waiting.close()

    def serve(self, request: Request) -> None:
        match request.op:
            case "add":
                self.total += request.amount
                request.reply.resolve(self.total)
            case "get":
                request.reply.resolve(self.total)
            case unknown:
                request.reply.fail(LookupError(f"unknown operation: {unknown}"))


class Client:
    """The caller's side, on any thread."""

    def __init__(self, server: CounterServer) -> None:
        self.server = server
        self.closed: CloseScope = server.scope
        self.ids = count(1)

    def ask(self, op: str, amount: int = 0) -> int:
        def send(reply: ReplyHandle[int, int]) -> None:
            self.server.requests.send_nowait(Request(op, amount, reply))

        return self.server.waiting.request(next(self.ids), send, timeout=SECOND)

    def peek(self) -> int:
        return self.server.call_sync(lambda: self.server.total, timeout=SECOND)


def main() -> None:
    server = CounterServer()
    client = Client(server)

    print("starting server")
    server.start()
    server.wait_started(SECOND)
    print(f"add 3 -> {client.ask('add', 3)}")
    print(f"add 7 -> {client.ask('add', 7)}")
    print(f"get -> {client.ask('get')}")
    print(f"loop-thread peek -> {client.peek()}")
    try:
        print(f"bad request -> answered {client.ask('missing')}")
    except LookupError as error:
        print(f"bad request -> {error}")
    server.stop()
    client.closed.wait(SECOND)
    print(f"closed -> {client.closed.reason}")
    print(f"joined -> {'ok' if server.join_or_log(SECOND) else 'timeout'}")


if __name__ == "__main__":
    main()
