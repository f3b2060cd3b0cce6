"""The wire format of Jupyter messages: signed frames to and from JSON. And the connection file, which has the key.

https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

import hmac
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

from microio import CloseScope

T = TypeVar("T")

PROTOCOL = "5.3"
SESSION = str(uuid4())
PORTS = dict.fromkeys(["shell_port", "control_port", "iopub_port", "stdin_port", "hb_port"], int)
DELIMITER = b"<IDS|MSG>"


class Connection:
    """Where clients find the kernel, and the key that they share with it."""

    def __init__(self, path: str) -> None:
        with open(path, encoding="utf-8") as file:
            info = {"signature_scheme": "hmac-sha256"} | json.load(file)
        for name, kind in {"transport": str, "ip": str, "key": str, "signature_scheme": str, **PORTS}.items():
            if not isinstance(info[name], kind) or name in PORTS and not 0 < info[name] < 65536:
                raise ValueError(f"{name} is {info[name]!r}")
        if info["key"] and info["signature_scheme"] != "hmac-sha256":
            raise ValueError(f"signature scheme {info['signature_scheme']!r} is not hmac-sha256")
        self.info, self.key = info, info["key"].encode()

    def endpoint(self, port: str) -> str:
        transport, ip, number = self.info["transport"], self.info["ip"], self.info[f"{port}_port"]
        return f"{transport}://{ip}{'-' if transport == 'ipc' else ':'}{number}"


@dataclass
class Message:
    """What the kernel sends."""

    identities: list[bytes]
    kind: str
    parent: dict[str, Any]
    content: dict[str, Any]


@dataclass
class Request:
    """What a client has sent. Its identities lead back to the client; the first is its own."""

    identities: list[bytes]
    header: dict[str, Any]
    content: dict[str, Any]
    arrived: float = field(default_factory=time.monotonic)
    connection: CloseScope = field(default_factory=CloseScope)  # closed when the one that it came by has ended

    @property
    def kind(self) -> str:
        """The message type, without its ``_request``."""
        return str(self.header["msg_type"]).removesuffix("_request")

    def reply(self, content: dict[str, Any]) -> Message:
        return Message(self.identities, f"{self.kind}_reply", self.header, content)

    def get(self, name: str, default: T) -> T:
        """A part of the content; the default, if it is not there or of another type."""
        value = self.content.get(name)
        return value if isinstance(value, type(default)) else default

    def publish(self, kind: str, **content: Any) -> Message:
        """A message to all clients, on iopub, where the first frame is a topic."""
        return Message([kind.encode()], kind, self.header, content)

    def status(self, state: str) -> Message:
        """To all clients: whether the kernel works on this request."""
        return self.publish("status", execution_state=state)


class BadMessage(Exception):
    """Frames that are no message of somebody who has the key."""


class Wire:
    """Turns frames into requests and messages into frames, with the key that signs them, if there is one."""

    def __init__(self, connection: Connection) -> None:
        self.key = hmac.new(connection.key, digestmod="sha256") if connection.key else None

    def sign(self, parts: list[bytes]) -> bytes:
        if self.key is None:
            return b""
        key = self.key.copy()
        for part in parts:
            key.update(part)
        return key.hexdigest().encode()

    def read(self, frames: list[bytes]) -> Request:
        try:
            at = frames.index(DELIMITER)
            identities, signature, (header, parent, metadata, content) = frames[:at], frames[at + 1], frames[at + 2 : at + 6]
        except (ValueError, IndexError):
            raise BadMessage("malformed message: frames are missing") from None
        if self.key is not None:
            if not hmac.compare_digest(self.sign([header, parent, metadata, content]), signature):
                raise BadMessage("bad signature")
        try:
            header, content = json.loads(header), json.loads(content)
            json.dumps([header, content], ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise BadMessage(f"malformed message: a part of it is no JSON: {error}") from None
        if not (isinstance(header, dict) and isinstance(header.get("msg_type"), str) and isinstance(content, dict)):
            raise BadMessage("malformed message: it has no type, or no content")
        return Request(identities, header, content)

    def write(self, message: Message) -> list[bytes]:
        header = {
            "msg_id": str(uuid4()),
            "session": SESSION,
            "username": "kernel",
            "date": datetime.now(UTC).isoformat(),
            "msg_type": message.kind,
            "version": PROTOCOL,
        }
        parts = [json.dumps(part).encode() for part in (header, message.parent, {}, message.content)]
        return [*message.identities, DELIMITER, self.sign(parts), *parts]
