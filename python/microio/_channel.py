"""Channels: from any thread into a loop."""

from dataclasses import dataclass

from ._errors import BrokenResourceError, ClosedResourceError, EndOfStream
from ._microio import ObjectReceiveChannel, ObjectSendChannel, create_channel

__all__ = [
    "BrokenResourceError",
    "ChannelStats",
    "ClosedResourceError",
    "EndOfStream",
    "ObjectReceiveChannel",
    "ObjectSendChannel",
    "create_channel",
]


@dataclass
class ChannelStats:
    """What a channel has seen: ``sent == received + queued`` at every instant; ``dropped`` counts refused sends."""

    sent: int = 0
    received: int = 0
    dropped: int = 0
    queued: int = 0
    closed: bool = False
