//! What a channel counts, and how its operations can fail. A failed send has the item.

use crate::error::{Failure, WOULD_BLOCK, display};

/// What a channel has seen. All counts are of items.
///
/// While the receiver lives, `sent == received + queued` at every instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Accepted by a send.
    pub sent: u64,
    /// Handed out by a receive or a drain (a priority mailbox: or consumed by its gate).
    pub received: u64,
    /// Sent too late, whether given back or dropped; and those that a dropped receiver left behind.
    pub dropped: u64,
    /// Accepted and not handed out yet.
    pub queued: u64,
    /// Closed or failed.
    pub closed: bool,
}

/// What a send after the end does.
#[derive(Clone, Copy, Debug)]
pub enum LateSend {
    /// Gives the item back in an error. The default.
    Reject,
    /// Says `Ok`, drops the item, and counts it in [`ChannelStats::dropped`]. To be chosen knowingly.
    Drop,
}

/// Why [`Sender::try_send`](crate::Sender::try_send) did not send. It has the item.
pub enum TrySendError<T> {
    /// The channel is bounded and full.
    Full(T),
    /// The channel is closed or failed, or its receiver is gone.
    Closed(T),
}

/// Why [`Sender::send_blocking`](crate::Sender::send_blocking) did not send. It has the item.
pub enum SendBlockingError<T> {
    /// No place came free in time.
    TimedOut(T),
    /// Called on an event loop or inside an async worker.
    WouldBlock(T),
    /// The channel is closed or failed, or its receiver is gone.
    Closed(T),
}

/// The channel is closed or failed, or its receiver is gone. Here is the item.
#[doc(alias = "ClosedResourceError")]
pub struct SendError<T>(pub T);

/// Why there is no item, and will be none.
#[derive(Clone, Debug)]
pub enum RecvError {
    /// Closed, and everything was received.
    EndOfStream,
    /// Failed, and everything was received.
    Failed(Failure),
}

/// Why there is no item now.
#[derive(Clone, Debug)]
pub enum TryRecvError {
    /// Nothing is queued; more may come.
    Empty,
    /// Closed, and everything was received.
    EndOfStream,
    /// Failed, and everything was received.
    Failed(Failure),
}

/// Why a blocking receive ended without an item.
#[derive(Clone, Debug)]
pub enum RecvBlockingError {
    /// Nothing came in time.
    TimedOut,
    /// Called on an event loop or inside an async worker.
    WouldBlock,
    /// Closed, and everything was received.
    EndOfStream,
    /// Failed, and everything was received.
    Failed(Failure),
}

display!(SendError<T> {
    SendError(_) => "the channel is closed",
});

display!(TrySendError<T> {
    TrySendError::Full(_) => "the channel is full",
    TrySendError::Closed(_) => "the channel is closed",
});

display!(SendBlockingError<T> {
    SendBlockingError::TimedOut(_) => "timed out waiting for a place in the channel",
    SendBlockingError::WouldBlock(_) => "{WOULD_BLOCK}",
    SendBlockingError::Closed(_) => "the channel is closed",
});

impl RecvError {
    /// This as a failure: the shared cause itself, where there is one. (`?` and `into` would wrap it in a new one.)
    pub fn into_failure(self) -> Failure {
        match self {
            RecvError::Failed(cause) => cause,
            RecvError::EndOfStream => self.into(),
        }
    }
}

display!(RecvError {
    RecvError::EndOfStream => "end of stream",
    RecvError::Failed(cause) => "{cause}" from cause.source(),
});

display!(TryRecvError {
    TryRecvError::Empty => "the channel is empty",
    TryRecvError::EndOfStream => "end of stream",
    TryRecvError::Failed(cause) => "{cause}" from cause.source(),
});

display!(RecvBlockingError {
    RecvBlockingError::TimedOut => "timed out waiting for an item",
    RecvBlockingError::WouldBlock => "{WOULD_BLOCK}",
    RecvBlockingError::EndOfStream => "end of stream",
    RecvBlockingError::Failed(cause) => "{cause}" from cause.source(),
});
