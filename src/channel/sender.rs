//! The sending end: a push under the queue's lock, or the wait for a place.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::DerefMut;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::error::{ChannelStats, LateSend, SendBlockingError, SendError, TrySendError};
use super::{End, Queue, Shared};
use crate::error::{Failure, WaitError};
use crate::sync::{Arc, Ordering};
use crate::wait::{Key, WakeBatch, block_on, poll_budget, wake};

/// The sending end. Clones send into the same channel; when the last one is dropped, the stream ends.
#[doc(alias = "ObjectSendChannel")]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
    late: LateSend,
}

/// Why a push was not accepted.
enum Refused<T> {
    Full(T),
    Late(T),
}

impl<T> Sender<T> {
    /// The first one; it is counted already.
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        Sender { shared, late: LateSend::Reject }
    }

    /// The same channel, with another answer to a send after the end. Clones of the result inherit it.
    pub fn with_late_send(mut self, policy: LateSend) -> Self {
        self.late = policy;
        self
    }

    /// Sends without waiting. An unbounded channel is never `Full`.
    ///
    /// `Ok` means: received, or still queued, or (only with [`LateSend::Drop`]) dropped and counted.
    ///
    /// # Errors
    /// The item comes back.
    #[doc(alias = "send_nowait")]
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        match self.push(item) {
            Ok(()) => Ok(()),
            Err(Refused::Full(item)) => Err(TrySendError::Full(item)),
            Err(Refused::Late(item)) => self.late(item).map_err(TrySendError::Closed),
        }
    }

    /// Sends when there is a place; senders that wait are served in their order.
    ///
    /// # Errors
    /// The channel is closed or failed: the item comes back.
    ///
    /// # Cancel safety
    /// A send that is dropped before it is done has not sent: its item is dropped, its place goes to the next. One that is neither
    /// polled on nor dropped (forgotten, say) keeps the place that came free for it, and those behind it wait.
    pub async fn send(&self, item: T) -> Result<(), SendError<T>> {
        poll_fn(poll_budget).await;
        self.pushing(item).await.or_else(|item| self.late(item)).map_err(SendError)
    }

    /// Sends when there is a place, and blocks this thread until then, for at most `timeout` (None: for ever).
    ///
    /// # Errors
    /// The item comes back.
    pub fn send_blocking(&self, item: T, timeout: Option<Duration>) -> Result<(), SendBlockingError<T>> {
        let mut push = self.pushing(item);
        let blocked = match block_on(&mut push, timeout) {
            Ok(pushed) => return pushed.or_else(|item| self.late(item)).map_err(SendBlockingError::Closed),
            Err(blocked) => blocked,
        };
        let item = push.item.take().expect("still here: it was not sent");
        Err(match blocked {
            WaitError::TimedOut => SendBlockingError::TimedOut(item),
            WaitError::WouldBlock => SendBlockingError::WouldBlock(item),
        })
    }

    /// Ends the stream: what is queued is still received, then comes `EndOfStream`. `true` for the call that did.
    pub fn close(&self) -> bool {
        self.shared.end(End::Closed)
    }

    /// Ends the stream with a failure: what is queued is still received, then comes the cause. `true` for the call that did.
    pub fn fail(&self, cause: impl Into<Failure>) -> bool {
        self.shared.end(End::Failed(cause.into()))
    }

    /// Whether it is closed or failed, or its receiver gone. One atomic load.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// What the channel failed with, for those who come too late. None if it has not failed.
    pub fn cause(&self) -> Option<Failure> {
        match &self.shared.queue.lock().end {
            Some(End::Failed(cause)) => Some(cause.clone()),
            _ => None,
        }
    }

    /// What the channel has seen until now.
    pub fn stats(&self) -> ChannelStats {
        self.shared.stats()
    }

    /// Sends; `false` if it was too late (the item is dropped and counted) or there was no place.
    pub(crate) fn submit(&self, item: T) -> bool {
        self.push(item).is_ok()
    }

    fn late(&self, item: T) -> Result<(), T> {
        match self.late {
            LateSend::Reject => Err(item),
            LateSend::Drop => Ok(()),
        }
    }

    fn push(&self, item: T) -> Result<(), Refused<T>> {
        let mut spare = None;
        loop {
            let mut queue = self.shared.queue.lock();
            if queue.end.is_some() {
                queue.dropped += 1;
                drop(queue);
                return Err(Refused::Late(item));
            }
            if self.shared.places(&queue) == 0 {
                drop(queue);
                return Err(Refused::Full(item));
            }
            let Err(capacity) = queue.make_place(&mut spare) else {
                self.push_locked(queue, item);
                return Ok(());
            };
            drop(queue);
            spare = Some(VecDeque::with_capacity(capacity));
        }
    }

    /// The tail has a place.
    fn push_locked(&self, mut queue: impl DerefMut<Target = Queue<T>>, item: T) {
        queue.tail.push_back(item);
        queue.sent += 1;
        let receiver = queue.receiver.take();
        let attention = &self.shared.attention.0;
        if !attention.load(Ordering::Relaxed) {
            attention.store(true, Ordering::Release);
        }
        drop(queue);
        if let Some(receiver) = receiver {
            wake(receiver);
        }
    }

    fn pushing(&self, item: T) -> Push<'_, T> {
        Push { sender: self, item: Some(item), key: None }
    }
}

/// A send that waits for a place.
struct Push<'a, T> {
    sender: &'a Sender<T>,
    item: Option<T>,
    key: Option<Key>,
}

/// The item is never pinned.
impl<T> Unpin for Push<'_, T> {}

impl<T> Future for Push<'_, T> {
    /// The item, if it was too late.
    type Output = Result<(), T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Push { sender, item, key } = self.get_mut();
        let shared = &*sender.shared;
        let (mut spare, mut waker) = (None, None);
        loop {
            let mut queue = shared.queue.lock();
            if queue.end.is_some() {
                queue.dropped += 1;
                let parked = key.take().and_then(|key| queue.blocked.remove(key));
                drop(queue);
                drop(parked);
                return Poll::Ready(Err(item.take().expect("polled after its end")));
            }
            let reserved = key.is_some_and(|key| queue.blocked.is_notified(key));
            if reserved || (key.is_none() && shared.places(&queue) > 0) {
                let Err(capacity) = queue.make_place(&mut spare) else {
                    if let Some(key) = key.take() {
                        queue.reserved -= 1;
                        let _notified = queue.blocked.remove(key);
                    }
                    sender.push_locked(queue, item.take().expect("polled after its end"));
                    return Poll::Ready(Ok(()));
                };
                drop(queue);
                spare = Some(VecDeque::with_capacity(capacity));
                continue;
            }
            if key.is_some_and(|key| queue.blocked.will_wake(key, cx.waker())) {
                return Poll::Pending;
            }
            if let Some(waker) = waker.take() {
                let replaced = queue.blocked.park(key, waker);
                drop(queue);
                drop(replaced);
                return Poll::Pending;
            }
            drop(queue);
            waker = Some(cx.waker().clone());
        }
    }
}

impl<T> Drop for Push<'_, T> {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let shared = &*self.sender.shared;
        let mut queue = shared.queue.lock();
        let parked = queue.blocked.remove(key);
        let mut next = WakeBatch::default();
        if parked.is_none() && queue.end.is_none() {
            // It had been notified: its place is the next one's now.
            queue.reserved -= 1;
            next = shared.grant(&mut queue);
        }
        drop(queue);
        drop(parked);
        next.wake();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Sender { shared: self.shared.clone(), late: self.late }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // AcqRel: what other senders did before they went is done before the end.
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.end(End::Closed);
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("stats", &self.stats()).finish()
    }
}
