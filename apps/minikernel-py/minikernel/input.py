"""Input requests, which travel back: from a cell, by the loop of the stdin service, to the client that has sent the cell."""

import logging
from concurrent.futures import CancelledError

import zmq.asyncio
from microio import CancelScope, CloseScope, RequestRegistry, create_task_group

from .language import Error
from .message import Connection, Message, Request
from .sockets import Router

log = logging.getLogger("minikernel")


class Stdin(Router):
    """The way to a client's keyboard. ``asked`` has the clients that are asked, by identity."""

    def __init__(self, context: zmq.asyncio.Context, connection: Connection) -> None:
        super().__init__(context, connection, "stdin")
        self.asked: RequestRegistry[bytes, str] = RequestRegistry()
        # Questions to clients that have not connected yet: they were quick with their first cells.
        self.unsent: list[Message] = []

    def ask(self, request: Request, prompt: str, cell: CancelScope) -> str:
        """Asks the client of this request. Blocks until it answers or is gone, or the cell is interrupted."""
        content = {"prompt": prompt, "password": False}
        question = Message(request.identities, "input_request", request.header, content)
        try:
            return self.submit(self.answer(question, request.connection, cell)).result()
        except CancelledError:
            raise Error("EOFError", "the kernel ends") from None

    async def answer(self, question: Message, connection: CloseScope, cell: CancelScope) -> str:
        client = question.identities[0]

        async def watch() -> None:
            await connection.wait_async()
            if self.asked.fail(client, EOFError(connection.reason)):
                log.warning("stdin: no answer: %s", connection.reason)

        answer: str | EOFError | None = None
        with cell:
            async with create_task_group() as tasks:
                tasks.start_soon(watch)
                try:
                    answer = await self.asked.request_async(client, lambda _: self.outbox.send_nowait(question))
                except EOFError as gone:
                    answer = gone
                tasks.cancel()
        if answer is None:
            raise Error("KeyboardInterrupt", str(cell.reason))
        if isinstance(answer, EOFError):
            raise Error("EOFError", str(answer))
        return answer

    async def on_request(self, answer: Request) -> None:
        text = answer.content.get("value")
        if not isinstance(text, str):
            log.warning("stdin: malformed message: an answer without a value")
        elif not self.asked.resolve(answer.identities[0], text):
            log.info("stdin: an answer that nobody waits for any more")

    def on_unsent(self, question: Message) -> None:
        self.unsent.append(question)

    def on_connect(self) -> None:
        questions, self.unsent = self.unsent, []
        for question in questions:
            if question.identities[0] in self.asked:
                self.outbox.send_nowait(question)
