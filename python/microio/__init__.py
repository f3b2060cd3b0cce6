"""The layer between threads and event loops, for asyncio.

Task groups whose children report that they are ready, cancel scopes with durable state and a reason, service threads that own
an event loop, channels from any thread into a loop, mailboxes and actors, and a registry of requests that wakes every waiter
when the reader dies.
"""

# "X as X": this is how a typed package says that a name is its own to give.
from ._actor import (
    ActorCore as ActorCore,
    Mailbox as Mailbox,
    PriorityMailbox as PriorityMailbox,
)
from ._channel import (
    ChannelStats as ChannelStats,
    ObjectReceiveChannel as ObjectReceiveChannel,
    ObjectSendChannel as ObjectSendChannel,
    create_channel as create_channel,
)
from ._errors import (
    BrokenResourceError as BrokenResourceError,
    ClosedResourceError as ClosedResourceError,
    EndOfStream as EndOfStream,
)
from ._microio import __version__ as __version__
from ._registry import (
    ReplyHandle as ReplyHandle,
    RequestRegistry as RequestRegistry,
)
from ._scope import CloseScope as CloseScope, WorkTracker as WorkTracker
from ._task import (
    CancelScope as CancelScope,
    ScopeGroup as ScopeGroup,
    TaskGroup as TaskGroup,
    TaskStatus as TaskStatus,
    checkpoint as checkpoint,
    checkpoint_if_cancelled as checkpoint_if_cancelled,
    create_task_group as create_task_group,
    current_cancel_scope as current_cancel_scope,
    fail_after as fail_after,
    move_on_after as move_on_after,
    sleep as sleep,
)
from ._thread import (
    LoopServiceThread as LoopServiceThread,
    ServiceGroup as ServiceGroup,
    ServiceThread as ServiceThread,
)
