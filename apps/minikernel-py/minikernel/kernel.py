"""Who owns what: the services of the kernel, how they start, and how they end."""

import logging
import time

import zmq.asyncio
from microio import ClosedResourceError, ObjectSendChannel, ScopeGroup, ServiceGroup, ServiceThread, create_channel

from .control import Control, signals
from .input import Stdin
from .message import Connection, Message, Request
from .session import Session
from .sockets import SETTLE, Heartbeat, Publisher, Router

log = logging.getLogger("minikernel")

START = 10  # seconds that a start may take
MOMENT = 0.05  # seconds that what is cancelled at the deadline may take to end; and then the services, all together


class Stuck(Exception):
    """Services have not ended in time. They never may: the process is to be left without waiting for anything."""


class Shell(Router):
    """Takes requests, and passes them on: while a cell runs, they are queued."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        connection: Connection,
        requests: ObjectSendChannel[Request],
        iopub: ObjectSendChannel[Message],
    ) -> None:
        super().__init__(context, connection, "shell")
        self.requests, self.iopub = requests, iopub

    async def on_request(self, request: Request) -> None:
        try:
            self.requests.send_nowait(request)
        except ClosedResourceError:
            self.iopub.send_nowait(request.status("busy"))
            self.outbox.send_nowait(request.reply({"status": "aborted"}))
            self.iopub.send_nowait(request.status("idle"))


def run(connection: Connection, drain: float) -> None:
    """Runs the kernel until a client, a signal or a failure ends it. Then what is queued may run on, for ``drain`` seconds.

    Raises what did not start, what failed, or what was stuck when the time was up.
    """
    services = ServiceGroup()
    end = services.scope  # closed by whoever ends the kernel
    cells = ScopeGroup()  # the cell that runs, if one does
    requests, queue = create_channel()
    context = zmq.asyncio.Context()
    iopub = Publisher(context, connection, "iopub")
    stdin = Stdin(context, connection)
    shell = Shell(context, connection, requests, iopub.outbox)
    interpreter = Session(queue, cells, stdin, iopub.outbox, shell.outbox)
    control = Control(context, connection, end, requests, cells, iopub.outbox)
    services.add(Heartbeat(context, connection, "heartbeat", "hb"), iopub, stdin, interpreter, shell, control)
    signals(end, cells)
    try:
        services.start().wait_started(START)
        end.wait()
        log.info("ending: %s", end.reason)
        if not requests.stats().closed:
            time.sleep(SETTLE)
            requests.close()  # what is queued is done, and then the interpreter ends
        drain = max(drain - SETTLE, 0)
        time_is_up = time.monotonic() + drain + 2 * MOMENT
        interpreter.join(drain)
        if interpreter.is_alive():
            cells.cancel("the kernel ends", latch=True, wake=True)
            interpreter.join(MOMENT)
        services.stop_join(time_is_up - time.monotonic())
    except BaseException:
        services.stop_join(START)
        raise
    sending = ServiceThread(name="what is not sent", target=lambda service: context.term())
    sending.start()
    sending.join(max(time_is_up - time.monotonic(), 0))
    stuck = [service.name for service in [*services.services, sending] if service.is_alive()]
    if stuck:
        raise Stuck(f"stuck: {', '.join(stuck)}")
    if end.exc is not None:
        raise end.exc
