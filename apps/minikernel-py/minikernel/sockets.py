"""The sockets: each has one owner, the loop of its service. Others reach it through the channel that is its outbox."""

import logging
import os
from contextlib import suppress

import zmq
import zmq.asyncio
from microio import CloseScope, LoopServiceThread, TaskGroup, create_channel, create_task_group
from zmq.utils.monitor import recv_monitor_message

from .message import BadMessage, Connection, Message, Request, Wire

log = logging.getLogger("minikernel")

SETTLE = 0.02  # seconds that what was sent along with something may be on its way: with a cell that fails, before the end


class Socket(LoopServiceThread):
    """A socket as a service. What is put into its outbox goes out in that order, also what is queued when it is stopped."""

    KIND: int

    def __init__(self, context: zmq.asyncio.Context, connection: Connection, name: str, port: str | None = None) -> None:
        super().__init__(name=name)
        self.context, self.endpoint, self.wire = context, connection.endpoint(port or name), Wire(connection)
        self.outbox, self.to_send = create_channel(late_send="drop")

    async def run_async(self) -> None:
        with self.context.socket(self.KIND) as socket:
            socket.linger, socket.sndhwm = -1, 100_000  # the end of the context waits until all is sent
            if self.KIND == zmq.ROUTER:
                socket.router_mandatory = socket.router_handover = True  # a send to nobody is an error; clients come again
            try:
                socket.bind(self.endpoint)
            except zmq.ZMQError as error:
                raise OSError(f"cannot listen on {self.endpoint}: {error}") from None
            try:
                async with create_task_group() as tasks:
                    tasks.start_soon(self.write, socket)
                    self.started()
                    await self.talk(socket, tasks)
            finally:
                if self.endpoint.startswith("ipc://"):  # ZeroMQ leaves it behind
                    os.unlink(self.endpoint.removeprefix("ipc://"))

    async def talk(self, socket: zmq.asyncio.Socket, tasks: TaskGroup) -> None:
        """Deals with what comes in, if anything does."""

    async def write(self, socket: zmq.asyncio.Socket) -> None:
        try:
            async for message in self.to_send:
                await self.put(socket, message)
        finally:
            for message in self.to_send.drain_nowait():
                await self.put(socket, message)

    async def put(self, socket: zmq.asyncio.Socket, message: Message) -> None:
        try:
            await socket.send_multipart(self.wire.write(message))
        except zmq.ZMQError as error:
            log.debug("%s: not sent: %s", self.name, error)
            self.on_unsent(message)

    def on_unsent(self, message: Message) -> None:
        """The client of this message is not connected, or not any more."""


class Publisher(Socket):
    """Tells all clients."""

    KIND = zmq.PUB


class Router(Socket):
    """Hears each client, and sends to each. The ``on_`` methods are called on its loop."""

    KIND = zmq.ROUTER

    async def talk(self, socket: zmq.asyncio.Socket, tasks: TaskGroup) -> None:
        connections: dict[int, CloseScope] = {}  # by their descriptors, which is what ZeroMQ tells when they end
        with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED) as monitor:
            tasks.start_soon(self.watch, monitor, connections)
            while True:
                frames = await socket.recv_multipart(copy=False)
                try:
                    request = self.wire.read([frame.bytes for frame in frames])
                except BadMessage as error:
                    log.warning("%s: dropped a message: %s", self.name, error)
                else:
                    request.connection = connections.setdefault(frames[0].get(zmq.SRCFD), CloseScope())
                    await self.on_request(request)

    async def watch(self, monitor: zmq.asyncio.Socket, connections: dict[int, CloseScope]) -> None:
        while True:
            event = await recv_monitor_message(monitor)
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.on_connect()
            elif event["value"] in connections:
                connections.pop(event["value"]).close("the client is gone")

    def on_connect(self) -> None:
        """There is one more client."""

    async def on_request(self, request: Request) -> None:
        raise NotImplementedError


class Heartbeat(Socket):
    """Sends back what comes in: whether the kernel is alive is told by a loop of its own, whatever the others do."""

    KIND = zmq.ROUTER

    async def talk(self, socket: zmq.asyncio.Socket, tasks: TaskGroup) -> None:
        while True:
            with suppress(zmq.ZMQError):  # the client is gone
                await socket.send_multipart(await socket.recv_multipart())
