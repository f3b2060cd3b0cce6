"""What can go wrong, by name."""


class ClosedResourceError(RuntimeError):
    """The channel, registry or scope was closed: it takes nothing more."""


class BrokenResourceError(RuntimeError):
    """It failed; ``__cause__`` says why. Of a send: the loop on the other side is gone."""


class EndOfStream(Exception):
    """Nothing more will come: the channel was closed, and everything sent before has been received."""
