"""Kernels as the tests see them: a program that can be installed, a process that it became, and clients that follow
each request to its end.

Everything waits for an event: the exit of the process, or a message. `PATIENCE` is how long a thing that is expected to
happen may take on a busy machine; it is reached only by a test that fails.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import zmq
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_kernel_test.msgspec_v5 import validate_message

PATIENCE = 30  # seconds
SERVICES = {"shell": "shell", "control": "control", "iopub": "iopub", "stdin": "stdin", "hb": "heartbeat"}


class Program(NamedTuple):
    """A kernel as it lies on the disk."""

    name: str
    """Of its kernelspec."""
    argv: list[str]
    """What runs it."""

    def run(self, *arguments, **options):
        """Runs it to its end."""
        options |= {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": PATIENCE}
        return subprocess.run([*self.argv, *map(str, arguments)], **options)


def find_programs():
    """The two kernels, or why one is not there: a program or a reason for each."""
    binary = os.environ.get("MINIKERNEL")
    module = find_spec("minikernel")
    rust = Program("minikernel", [os.path.abspath(binary)]) if binary else "MINIKERNEL does not name the binary"
    python = Program("minikernel-py", [sys.executable, "-m", "minikernel"])
    return {"rust": rust, "python": python if module and module.origin else "minikernel is not installed"}


class Exit(threading.Thread):
    """Waits for the end of a process: its code, and when it was."""

    def __init__(self, process):
        super().__init__(name=f"exit of {process.pid}", daemon=True)
        self.process, self.code, self.time = process, None, None
        self.start()

    def run(self):
        code = self.process.wait()
        self.time = time.monotonic()
        self.code = code

    def wait(self, timeout=PATIENCE):
        """The exit code."""
        self.join(timeout)
        assert self.code is not None, f"still running after {timeout} s"
        return self.code


class Kernel:
    """A running kernel and its manager, which is jupyter_client's."""

    def __init__(self, program, directory, *arguments, key=None, env=None, **launch):
        self.program = program
        self.clients = []
        self.log = directory / "stderr"
        self.manager = KernelManager(kernel_name=program.name, connection_file=str(directory / "connection.json"))
        self.manager.shutdown_wait_time = 2 * PATIENCE  # the manager is never to send a signal of its own
        if key is not None:
            self.manager.session.key = key
        with self.log.open("ab") as log:
            self.manager.start_kernel(
                extra_arguments=list(map(str, arguments)),
                env={**os.environ, **(env or {})},
                stdout=log,
                stderr=log,
                **launch,
            )
        self.info = json.loads(Path(self.manager.connection_file).read_text())
        self.watch()

    def watch(self):
        """Looks at the process that the manager has now: after a restart it is another."""
        self.process = self.manager.provisioner.process
        self.exit = Exit(self.process)

    def connect(self, session=None, **info):
        """A client with a session of its own, as one in another process. `info` replaces connection information."""
        client = Client(kernel=self)
        client.load_connection_info({**self.info, **info})
        if session:
            client.session.session = session
        client.start_channels()
        self.clients.append(client)
        return client

    def client(self):
        """A client that is connected, and subscribed to iopub."""
        client = self.connect()
        client.ready()
        return client

    def socket(self, channel, kind=zmq.DEALER, **options):
        """A ZeroMQ socket of no client."""
        return connect(self.info, channel, kind, **options)

    def interrupt(self, how):
        """Interrupts by `message`, and waits for the reply; or by `signal`, which has none."""
        if how == "message":
            self.manager.interrupt_kernel()
            assert self.manager._control_socket.poll(PATIENCE * 1000), "no reply to the interrupt"
            self.manager._control_socket.recv_multipart()
        else:
            self.process.send_signal(signal.SIGINT)

    def stderr(self):
        return self.log.read_text(errors="replace")

    def warnings(self):
        return warnings(self.stderr())

    def said(self, *words):
        """How many lines of the log contain all these words."""
        return len(lines_with(self.stderr(), *words))

    def disconnect(self):
        for client in self.clients:
            client.stop_channels()
        self.clients.clear()

    def close(self):
        """Ends it, if it has not ended, and sees that nothing is left of it."""
        try:
            self.disconnect()
            if self.exit.is_alive():
                self.manager.request_shutdown()
                assert self.exit.wait() == 0, "exit code of an orderly shutdown"
            assert taken_ports(self.info) == []
        finally:
            if self.exit.is_alive():
                self.process.kill()
                self.exit.wait()
            self.manager.cleanup_resources()


class Request:
    """What came back for one request, in order."""

    def __init__(self, client, msg_id):
        self.client, self.id = client, msg_id
        self.reply = None
        self.published = []
        self.inputs = []

    def finish(self):
        """Waits for its reply, and for the `idle` that ends what is published for it."""
        self.client.wait(lambda: self.reply and self.is_idle, f"reply and idle of {self.id}")
        return self

    def answered(self):
        """Waits for its reply."""
        self.client.wait(lambda: self.reply, f"reply to {self.id}")
        return self

    def ended(self):
        """Waits for its `idle`: for those who see a request of another client."""
        self.client.wait(lambda: self.is_idle, f"idle of {self.id}")
        return self

    def running(self, text="go\n"):
        """Waits until it has printed this text."""
        self.client.wait(lambda: self.stdout.endswith(text), f"output {text!r} of {self.id}")
        return self

    def asking(self, number=1):
        """Waits for an input request; returns its prompt."""
        self.client.wait(lambda: len(self.inputs) >= number, f"input request of {self.id}")
        return self.inputs[number - 1]["content"]["prompt"]

    @property
    def is_idle(self):
        return self.published and self.published[-1]["content"].get("execution_state") == "idle"

    @property
    def content(self):
        return self.reply["content"]

    @property
    def status(self):
        return self.content["status"]

    @property
    def ename(self):
        """The name of its error; "" if it went well, "aborted" if it never ran."""
        return {"ok": "", "aborted": "aborted"}.get(self.status) or self.content.get("ename", "")

    @property
    def count(self):
        return self.content["execution_count"]

    @property
    def types(self):
        """The types of what was published, a status by its value."""
        return [message["content"].get("execution_state", message["msg_type"]) for message in self.published]

    def of_type(self, msg_type):
        return [message["content"] for message in self.published if message["msg_type"] == msg_type]

    @property
    def streams(self):
        """What it printed: (stream, text), neighbours of one stream joined."""
        joined = []
        for content in self.of_type("stream"):
            if joined and joined[-1][0] == content["name"]:
                joined[-1] = (content["name"], joined[-1][1] + content["text"])
            else:
                joined.append((content["name"], content["text"]))
        return joined

    @property
    def stdout(self):
        return "".join(content["text"] for content in self.of_type("stream") if content["name"] == "stdout")

    @property
    def result(self):
        """Its result as text, None if there was none."""
        results = self.of_type("execute_result")
        assert len(results) <= 1
        return results[0]["data"]["text/plain"] if results else None


class Client(BlockingKernelClient):
    """jupyter_client's client. Each message that comes is checked, and filed under the request that it belongs to."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel
        self.requests = {}
        self.replies = []
        """The ids of the requests whose replies came, in that order."""
        self.order = []
        """The ids of the requests for which something was published, in that order."""

    def start_channels(self):
        """Without the heartbeat: its thread does not stop if it is told to before it has begun.

        A client whose stdin is not connected cannot be asked. Nothing answers there, so the socket has to tell.
        """
        self.context.setsockopt(zmq.IMMEDIATE, 1)  # of the sockets made from now on: no connection, no POLLOUT
        self.stdin_channel.socket.sndtimeo = PATIENCE * 1000
        self.context.setsockopt(zmq.IMMEDIATE, 0)
        super().start_channels(hb=False)

    def ready(self):
        """Waits until it is connected and subscribed, as `wait_for_ready` does, without its pauses.

        Once it has heard anything on iopub, it hears everything.
        """
        self.ask("kernel_info_request").answered()
        assert self.stdin_channel.socket.poll(PATIENCE * 1000, zmq.POLLOUT), "stdin is not connected"
        while not self.iopub_channel.socket.poll(50):
            self.ask("kernel_info_request").answered()
        self.ask("kernel_info_request").finish()
        self.forget()

    def forget(self):
        """Forgets what has come so far."""
        self.requests.clear()
        self.replies.clear()
        self.order.clear()

    def ask(self, msg_type, content=None, channel="shell"):
        """Sends a request."""
        message = self.session.msg(msg_type, content or {})
        getattr(self, channel + "_channel").send(message)
        return self.follow(message["header"]["msg_id"])

    def begin(self, code, **options):
        """Sends a cell."""
        return self.follow(self.execute(code, **options))

    def run(self, code, **options):
        """Runs a cell to its end."""
        return self.begin(code, **options).finish()

    def interrupt(self):
        """Interrupts, and waits until the kernel says that it has."""
        assert self.ask("interrupt_request", channel="control").answered().content == {"status": "ok"}

    def follow(self, msg_id):
        """A request, of this client or of another."""
        return self.requests.setdefault(msg_id, Request(self, msg_id))

    def wait(self, condition, what):
        """Receives and files messages until the condition holds."""
        channels = [self.shell_channel, self.control_channel, self.stdin_channel, self.iopub_channel]
        poller = zmq.Poller()
        for channel in channels:
            poller.register(channel.socket, zmq.POLLIN)
        deadline = time.monotonic() + PATIENCE
        while not condition():
            ended = not self.kernel.exit.is_alive()  # asked first: what it has sent to its end is heard
            ready = dict(poller.poll(500))
            assert ready or not ended, f"no {what}: the kernel ended\n{self.kernel.stderr()[-2000:]}"
            assert time.monotonic() < deadline, f"no {what} within {PATIENCE} s"
            for channel in channels:
                if channel.socket in ready:
                    self.file(channel, channel.get_msg(timeout=0))

    def file(self, channel, message):
        validate(message)
        request = self.follow(message["parent_header"].get("msg_id"))
        if channel is self.iopub_channel:
            request.published.append(message)
            self.order.append(request.id)
        elif channel is self.stdin_channel:
            request.inputs.append(message)
        else:
            assert not (request.reply and request.id), f"a second reply: {message}"
            request.reply = message
            self.replies.append(request.id)


def validate(message):
    """Checks the message against the schema of jupyter_kernel_test, where that schema is right.

    It is not for an aborted reply (the protocol says "aborted", the schema "abort"), for the error reply to an
    is_complete request (the schema knows none) and for the password of an input request (a boolean, the schema says
    number).
    """
    content = message["content"]
    if content.get("status") == "aborted":
        assert message["msg_type"].endswith("_reply")
    elif content.get("status") == "error":
        assert {"ename", "evalue", "traceback"} <= content.keys()
    elif message["msg_type"] == "input_request":
        assert content.keys() == {"prompt", "password"} and content["password"] is False
    else:
        validate_message(message, message["msg_type"])


def warnings(log):
    """The lines of a log that somebody should look at."""
    return [line for line in log.splitlines() if re.search("WARN|ERROR|panic|Traceback|Exception", line)]


def lines_with(log, *words):
    """The lines of a log that contain all these words, in any case."""
    return [line for line in log.splitlines() if all(word.lower() in line.lower() for word in words)]


def connect(info, channel, kind, **options):
    """A ZeroMQ socket that is connected to a kernel."""
    socket = zmq.Context.instance().socket(kind)
    for name, value in {"linger": 0, "rcvtimeo": PATIENCE * 1000, **options}.items():
        setattr(socket, name, value)
    socket.connect(f"tcp://{info['ip']}:{info[channel + '_port']}")
    return socket


def taken_ports(info):
    """The services whose ports somebody listens on."""
    taken = []
    for port, service in SERVICES.items():
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((info["ip"], info[port + "_port"]))
            except OSError:
                taken.append(service)
    return taken
