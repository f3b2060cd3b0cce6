"""What the interpreter's thread does with the requests of the shell channel, one after the other."""

import logging
import sys
import time
from fnmatch import fnmatchcase
from typing import Any

from microio import CancelScope, LoopServiceThread, ObjectReceiveChannel, ObjectSendChannel, ScopeGroup, sleep

from .control import kernel_info
from .input import Stdin
from .language import Error, Interpreter, completeness, show
from .message import Message, Request
from .sockets import SETTLE

log = logging.getLogger("minikernel")

Json = dict[str, Any]


class Session(LoopServiceThread):
    """The thread that cells run on: it belongs to blocking code, and the interpreter lives and dies on it."""

    def __init__(
        self,
        requests: ObjectReceiveChannel[Request],
        cells: ScopeGroup,
        stdin: Stdin,
        iopub: ObjectSendChannel[Message],
        replies: ObjectSendChannel[Message],
    ) -> None:
        super().__init__(name="interpreter")
        self.requests, self.cells, self.stdin, self.iopub, self.replies = requests, cells, stdin, iopub, replies

    async def run_async(self) -> None:
        self.interpreter = Interpreter()
        self.history: list[tuple[int, str, str | None]] = []  # number, input and result of each cell
        self.count = 0
        self.fences: dict[str, float] = {}  # when each client's last cell failed: what had arrived by then is aborted
        self.started()
        async for request in self.requests:
            self.iopub.send_nowait(request.status("busy"))
            reply = await self.reply(request)
            if reply is not None:
                self.replies.send_nowait(request.reply(reply))
            self.iopub.send_nowait(request.status("idle"))

    async def reply(self, request: Request) -> Json | None:
        code = request.content.get("code")
        cursor = max(request.get("cursor_pos", sys.maxsize), 0)
        match request.kind, code:
            case "kernel_info", _:
                return kernel_info()
            case "comm_info", _:
                return {"status": "ok", "comms": {}}
            case "execute", str(code):
                return await self.execute(request, code)
            case "is_complete", str(code):
                status = completeness(code)
                return {"status": status, "indent": ""} if status == "incomplete" else {"status": status}
            case "complete", str(code):
                word, matches = self.interpreter.complete(code, cursor)
                at = {"cursor_start": word.start, "cursor_end": word.stop}
                return {"status": "ok", "matches": matches, **at, "metadata": {}}
            case "inspect", str(code):
                text = self.interpreter.inspect(code, cursor)
                data = {} if text is None else {"text/plain": text}
                return {"status": "ok", "found": text is not None, "data": data, "metadata": {}}
            case "history", _ if request.get("hist_access_type", ""):
                return {"status": "ok", "history": self.past(request)}
            case ("execute" | "is_complete" | "complete" | "inspect" | "history") as kind, _:
                log.warning("shell: malformed message: a %s request that does not say of what", kind)
                return failure(Error("ValueError", "the request does not say of what"))
            case unknown, _:
                log.warning("shell: ignored a message of type %r", unknown)
                return None

    async def execute(self, request: Request, code: str) -> Json:
        session = str(request.header.get("session", ""))
        if request.arrived < self.fences.get(session, 0):
            return {"status": "aborted", "execution_count": self.count}
        client = Client(self, request)
        stored = request.get("store_history", True) and not client.silent
        self.count = count = self.count + stored
        client.publish("execute_input", code=code, execution_count=count)
        shown: str | None = None
        extra: Json = {}
        error: Error | None = None
        with self.cells.scope() as client.scope:
            # The cell blocks its thread. An interrupt cancels the scope, from another thread, and the cell sees that.
            try:
                shown, extra = self.evaluate(code, request, client)
            except Error as failed:
                error = failed
                client.publish("error", **failure(error))
        if error and request.get("stop_on_error", True):
            with self.cells.scope():
                await sleep(SETTLE)  # what was sent along with it is aborted; what is sent after the reply was seen is not
            self.fences[session] = time.monotonic()
        if shown is not None:
            client.publish("execute_result", data={"text/plain": shown}, metadata={}, execution_count=count)
        if stored:
            self.history.append((count, code, shown))
        reply = failure(error) if error else {"status": "ok", "user_expressions": extra, "payload": []}
        return {**reply, "execution_count": count}

    def evaluate(self, code: str, request: Request, client: "Client") -> tuple[str | None, Json]:
        """Runs a cell, then the expressions that its sender wants to know as well. Their errors are values."""

        def run(code: str) -> str | None:
            value = self.interpreter.run(code, client)
            return None if value is None else show(value)

        shown = run(code)
        values: Json = {}
        expressions: Json = request.get("user_expressions", {})
        for name, expression in expressions.items():
            try:
                data = {"text/plain": run(str(expression)) or ""}
                values[name] = {"status": "ok", "data": data, "metadata": {}}
            except Error as error:
                values[name] = failure(error)
        return shown, values

    def past(self, request: Request) -> list[Any]:
        """The cells that a history request asks for: the last ones, a range, or those that fit a pattern with * and ?."""
        cells, kind, most = self.history, request.get("hist_access_type", ""), request.get("n", len(self.history))
        if kind == "range":
            start, stop = request.get("start", 1), request.get("stop", len(cells) + 1)
            cells = [cell for cell in cells if start <= cell[0] < stop and request.get("session", 0) == 0]
            most = len(cells)
        elif kind == "search":
            cells = [cell for cell in cells if fnmatchcase(cell[1], request.get("pattern", "*"))]
            if request.get("unique", False):
                cells = list({cell[1]: cell for cell in cells}.values())
        output = request.get("output", False)
        last = cells[max(len(cells) - max(most, 0), 0) :]
        return [(0, count, (code, shown) if output else code) for count, code, shown in last]


class Client:
    """The client that a cell runs for."""

    scope: CancelScope  # the cell's

    def __init__(self, session: Session, request: Request) -> None:
        self.session, self.request = session, request
        self.silent = request.get("silent", False)

    def publish(self, kind: str, **content: Any) -> None:
        if not self.silent:
            self.session.iopub.send_nowait(self.request.publish(kind, **content))

    def print(self, text: str) -> None:
        self.publish("stream", name="stdout", text=text)

    def warn(self, text: str) -> None:
        self.publish("stream", name="stderr", text=text)

    def input(self, prompt: str) -> str:
        if not self.request.get("allow_stdin", False):
            raise Error("StdinNotImplementedError", "this client takes no input requests")
        return self.session.stdin.ask(self.request, prompt, self.scope)


def failure(error: Error) -> Json:
    place = "" if error.line is None else f"line {error.line}: "
    return {"status": "error", "ename": error.name, "evalue": error.message, "traceback": [f"{place}{error}"]}
