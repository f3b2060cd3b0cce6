"""The layer between threads and event loops, for asyncio.

Task groups whose children report that they are ready, cancel scopes with durable state and a reason, service threads that own
an event loop, channels from any thread into a loop, mailboxes and actors, and a registry of requests that wakes every waiter
when the reader dies.
"""

from ._actor import ActorCore, Mailbox, PriorityMailbox
from ._channel import ChannelStats, ObjectReceiveChannel, ObjectSendChannel, create_channel
from ._errors import BrokenResourceError, ClosedResourceError, EndOfStream
from ._microio import __version__
from ._registry import ReplyHandle, RequestRegistry
from ._scope import CloseScope, WorkTracker
from ._task import (
    CancelScope,
    ScopeGroup,
    TaskGroup,
    TaskStatus,
    checkpoint,
    checkpoint_if_cancelled,
    create_task_group,
    current_cancel_scope,
    fail_after,
    move_on_after,
    sleep,
)
from ._thread import LoopServiceThread, ServiceGroup, ServiceThread
