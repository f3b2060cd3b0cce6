#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

// Band 1: primitives. They know `std` only: no timer, no spawn, no log.
mod actor;
mod ambient;
mod cancel;
mod channel;
mod close;
mod error;
mod mailbox;
mod registry;
mod slab;
mod sync;
mod wait;

// Band 2: threads. They know band 1 and `std::thread`.
mod log;
mod service;
mod service_group;
mod thread;

// Band 3: tokio. It knows bands 1 and 2.
#[cfg(feature = "tokio")]
mod rt;

pub use actor::{ActorCore, Release, Stopped};
pub use ambient::{checkpoint, checkpoint_if_cancelled, current_cancel_scope, shield};
pub use cancel::{CancelScope, ScopeGroup, ScopeGuard};
pub use channel::{
    ChannelStats, LateSend, Receiver, RecvBlockingError, RecvError, SendBlockingError, SendError, Sender, TryRecvError,
    TrySendError, bounded, channel,
};
pub use close::{CloseError, CloseScope, WorkGuard, WorkTracker};
pub use error::{Cancelled, Failure, Name, Panic, Reason, WaitError};
pub use mailbox::{Floor, Inbox, Mailbox, PriorityMailbox};
pub use registry::{ReplyHandle, RequestError, RequestRegistry, Waiter};
pub use service::{Service, ServiceError, ServiceState};
pub use service_group::{ServiceGroup, StartAllError, StopReport};
pub use thread::{ServiceContext, ServiceThread};

#[cfg(feature = "tokio")]
pub use rt::{
    CallError, GroupError, LoopContext, LoopHandle, LoopServiceThread, ShutdownReport, StartError, Submitted, Task,
    TaskGroup, TaskOutcome, TaskStatus, TimedOut, block_in_place, fail_after, move_on_after, sleep, task_group,
};

/// For those who host the primitives on another loop than tokio's, as this crate's Python package does. Not covered by the
/// crate's promise of compatibility.
#[doc(hidden)]
pub mod host {
    pub use crate::ambient::{Entry, Frame, Host, Scoped, Shields, enter, relay};
    #[cfg(all(loom, feature = "tokio"))]
    pub use crate::rt::loop_by_hand;
    pub use crate::wait::{
        Blocked, Key, LoopMark, Park, Wait, Waitable, Waiters, block_on, block_on_with, current_loop, may_block,
        wait_until, wake_all,
    };
}
