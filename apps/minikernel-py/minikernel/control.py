"""What is heard while a cell runs: interrupts, and the call to end. By message and by signal."""

import asyncio
import logging
import os
import signal
from typing import Any

import zmq.asyncio
from microio import CloseScope, ObjectSendChannel, ScopeGroup, sleep

from .message import PROTOCOL, Connection, Message, Request
from .sockets import SETTLE, Router

log = logging.getLogger("minikernel")


class Control(Router):
    """The control channel."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        connection: Connection,
        end: CloseScope,
        requests: ObjectSendChannel[Request],
        cells: ScopeGroup,
        iopub: ObjectSendChannel[Message],
    ) -> None:
        super().__init__(context, connection, "control")
        self.end, self.requests, self.cells, self.iopub = end, requests, cells, iopub

    async def run_async(self) -> None:
        watch_parent(self.end)
        await super().run_async()

    async def on_request(self, request: Request) -> None:
        self.iopub.send_nowait(request.status("busy"))
        match request.kind:
            case "kernel_info":
                self.outbox.send_nowait(request.reply(kernel_info()))
            case "interrupt":
                self.cells.cancel("interrupted by a client", wake=True)
                self.outbox.send_nowait(request.reply({"status": "ok"}))
            case "shutdown":
                await sleep(SETTLE)
                self.requests.close()  # before the reply: what is sent after that is refused
                content = {"status": "ok", "restart": request.get("restart", False)}
                self.outbox.send_nowait(request.reply(content))
                self.iopub.send_nowait(request.publish("shutdown_reply", **content))
                self.end.close("shut down by a client")
            case unknown:
                log.warning("control: ignored a message of type %r", unknown)
        self.iopub.send_nowait(request.status("idle"))


def signals(end: CloseScope, cells: ScopeGroup) -> None:
    """SIGINT interrupts, SIGTERM ends the kernel. The main thread must be free to run the handlers."""
    signal.signal(signal.SIGINT, lambda *_: cells.cancel("interrupted by SIGINT", wake=True))
    signal.signal(signal.SIGTERM, lambda *_: end.close("SIGTERM"))


def watch_parent(end: CloseScope) -> None:
    """Ends the kernel when the process ends that Jupyter's launcher names. To be called on the loop that is to watch."""
    gone = "the process that started the kernel is gone"
    try:
        process = os.pidfd_open(int(os.environ["JPY_PARENT_PID"]))
        asyncio.get_running_loop().add_reader(process, end.close, gone)
    except ProcessLookupError:
        end.close(gone)
    except (KeyError, ValueError, AttributeError, OSError):
        pass  # there is none, or it cannot be watched


def kernel_info() -> dict[str, Any]:
    version = "0.2.0"
    language = {"name": "mini", "version": version, "mimetype": "text/plain", "file_extension": ".mini"}
    return {
        "status": "ok",
        "protocol_version": PROTOCOL,
        "implementation": "minikernel-py",
        "implementation_version": version,
        "language_info": language,
        "banner": "minikernel-py: a small Jupyter kernel, built on microio",
        "help_links": [],
    }
