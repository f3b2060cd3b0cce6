//! The receiving end: takes all that is queued in one swap, and hands it out from memory of its own.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use super::error::{ChannelStats, RecvBlockingError, RecvError, TryRecvError};
use super::{End, Shared};
use crate::error::{Failure, WaitError};
use crate::sync::{Arc, Ordering};
use crate::wait::{block_on, poll_budget};

/// The receiving end. When it is dropped, what was queued is dropped and counted, and senders see the channel closed.
#[doc(alias = "ObjectReceiveChannel")]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// Taken from the queue, oldest first: `batch`, then `later`. Empty for a bounded channel.
    batch: VecDeque<T>,
    later: VecDeque<VecDeque<T>>,
    /// Our waker may stand in the queue.
    parked: bool,
    bounded: bool,
    /// Items left to hand out before the next unit of the task's time slice is due.
    credit: u32,
    /// The stream has told of the failure: it ends now.
    #[cfg(feature = "stream")]
    end_told: bool,
}

/// Items handed out for one unit of the task's time slice.
const CREDIT: u32 = 64;

impl<T> Receiver<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        let bounded = shared.queue.lock().capacity.is_some();
        let (batch, later) = (VecDeque::new(), VecDeque::new());
        Receiver {
            shared,
            batch,
            later,
            parked: false,
            bounded,
            credit: CREDIT,
            #[cfg(feature = "stream")]
            end_told: false,
        }
    }

    /// Receives the next item, or waits for one.
    ///
    /// # Errors
    /// The channel has ended and everything was received. Every later receive says the same.
    ///
    /// # Cancel safety
    /// Dropping the future loses no item and leaves no waker.
    #[doc(alias = "receive")]
    pub async fn recv(&mut self) -> Result<T, RecvError> {
        let parking = Parking(self);
        let item = poll_fn(|cx| parking.0.poll_pop(cx)).await?;
        parking.0.count(1);
        Ok(item)
    }

    /// Receives the next item if there is one.
    ///
    /// # Errors
    /// There is none now, or the channel has ended and everything was received.
    #[doc(alias = "receive_nowait")]
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        let item = self.pop()?;
        self.count(1);
        Ok(item)
    }

    /// Receives the next item, and blocks this thread until there is one, for at most `timeout` (None: for ever).
    ///
    /// # Errors
    /// No item, and why.
    pub fn recv_blocking(&mut self, timeout: Option<Duration>) -> Result<T, RecvBlockingError> {
        match block_on(self.recv(), timeout) {
            Ok(Ok(item)) => Ok(item),
            Ok(Err(RecvError::EndOfStream)) => Err(RecvBlockingError::EndOfStream),
            Ok(Err(RecvError::Failed(cause))) => Err(RecvBlockingError::Failed(cause)),
            Err(WaitError::TimedOut) => Err(RecvBlockingError::TimedOut),
            Err(WaitError::WouldBlock) => Err(RecvBlockingError::WouldBlock),
        }
    }

    /// Appends to `out` what is queued now, at most `max` items, and waits until there is at least one. Returns how many; 0 only
    /// if `max` is 0.
    ///
    /// The way to receive a busy channel: a batch costs little more than an item.
    ///
    /// # Errors
    /// The channel has ended and everything was received.
    ///
    /// # Cancel safety
    /// Dropping the future loses no item and leaves no waker.
    pub async fn recv_many(&mut self, out: &mut Vec<T>, max: usize) -> Result<usize, RecvError> {
        if max == 0 {
            return Ok(0);
        }
        let parking = Parking(self);
        let first = poll_fn(|cx| parking.0.poll_pop(cx)).await?;
        let before = out.len();
        out.push(first);
        parking.0.pop_many(out, max - 1);
        let count = out.len() - before;
        parking.0.count(count);
        parking.0.credit = parking.0.credit.saturating_sub(count.try_into().unwrap_or(u32::MAX));
        Ok(count)
    }

    /// Takes what is queued now, at most `max` items (None: all), without waiting.
    #[doc(alias = "drain_nowait")]
    pub fn drain(&mut self, max: Option<usize>) -> Vec<T> {
        let mut out = Vec::new();
        self.pop_many(&mut out, max.unwrap_or(usize::MAX));
        self.count(out.len());
        out
    }

    /// Ends the stream: what is queued is still received, then comes `EndOfStream`. `true` for the call that did.
    pub fn close(&self) -> bool {
        self.shared.end(End::Closed)
    }

    /// Ends the stream with a failure: what is queued is still received, then comes the cause. `true` for the call that did.
    pub fn fail(&self, cause: impl Into<Failure>) -> bool {
        self.shared.end(End::Failed(cause.into()))
    }

    /// What the channel has seen until now.
    pub fn stats(&self) -> ChannelStats {
        self.shared.stats()
    }

    /// The next item, not counted as received yet: [`count`](Receiver::count) is due when it is handed out.
    #[doc(hidden)]
    pub fn pop(&mut self) -> Result<T, TryRecvError> {
        loop {
            if let Some(item) = self.pop_taken() {
                return Ok(item);
            }
            if let Some(answer) = self.refill() {
                return answer;
            }
        }
    }

    /// The next of the items that a refill has taken.
    pub(crate) fn pop_taken(&mut self) -> Option<T> {
        loop {
            if let Some(item) = self.batch.pop_front() {
                return Some(item);
            }
            self.batch = self.later.pop_front()?;
        }
    }

    /// Takes everything that is queued; or one item, if the channel is bounded. None: look again.
    pub(crate) fn refill(&mut self) -> Option<Result<T, TryRecvError>> {
        if !self.shared.attention.0.load(Ordering::Acquire) {
            return Some(Err(TryRecvError::Empty));
        }
        let mut queue = self.shared.queue.lock();
        if queue.is_empty() {
            return Some(Err(match &queue.end {
                Some(End::Closed) => TryRecvError::EndOfStream,
                Some(End::Failed(cause)) => TryRecvError::Failed(cause.clone()),
                None => {
                    self.shared.attention.0.store(false, Ordering::Relaxed);
                    TryRecvError::Empty
                }
            }));
        }
        if queue.capacity.is_some() {
            let item = queue.pop();
            self.shared.count(1);
            let next = self.shared.grant(&mut queue);
            drop(queue);
            next.wake();
            return item.map(Ok);
        }
        let tail = std::mem::replace(&mut queue.tail, std::mem::take(&mut self.batch));
        std::mem::swap(&mut self.later, &mut queue.full);
        if queue.end.is_none() {
            self.shared.attention.0.store(false, Ordering::Relaxed);
        }
        drop(queue);
        self.later.push_back(tail);
        None
    }

    /// As `pop`, many times: what is queued now, not what is sent meanwhile.
    fn pop_many(&mut self, out: &mut Vec<T>, max: usize) {
        let mut left = max;
        if self.bounded {
            left = left.min(self.stats().queued as usize);
            out.extend(std::iter::from_fn(|| self.pop().ok()).take(left));
            return;
        }
        for refilled in [false, true] {
            while left > 0 {
                if self.batch.is_empty() {
                    let Some(chunk) = self.later.pop_front() else { break };
                    self.batch = chunk;
                }
                let count = left.min(self.batch.len());
                out.extend(self.batch.drain(..count));
                left -= count;
            }
            if left == 0 || refilled || self.refill().is_some() {
                return;
            }
        }
    }

    /// Counts items as received. Bounded: they were counted as they were popped, under the lock.
    #[doc(hidden)]
    pub fn count(&self, items: usize) {
        if !self.bounded {
            self.shared.count(items);
        }
    }

    /// Pays for handing out one item: a unit of the task's time slice for each `CREDIT` of them.
    pub(crate) fn poll_credit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.credit == 0 {
            ready!(poll_budget(cx));
            self.credit = CREDIT;
        }
        self.credit -= 1;
        Poll::Ready(())
    }

    /// Polls for the next item; parks the waker of the last call if there is none.
    ///
    /// Unlike [`recv`](Receiver::recv), which takes its waker along when it is dropped, this leaves it until it is woken,
    /// replaced, or the receiver dropped.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, RecvError>> {
        let item = ready!(self.poll_pop(cx))?;
        self.count(1);
        Poll::Ready(Ok(item))
    }

    /// Shows each item that is queued, in no order, to a garbage collector; false if another thread is at the queue.
    #[doc(hidden)]
    pub fn visit_queued(&self, visit: &mut dyn FnMut(&T)) -> bool {
        let Some(queue) = self.shared.queue.try_lock() else { return false };
        let taken = self.later.iter().chain([&self.batch]);
        let queued = queue.full.iter().chain([&queue.tail]);
        taken.chain(queued).flatten().for_each(visit);
        true
    }

    /// The next item, not counted yet; parks the waker if there is none.
    pub(crate) fn poll_pop(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, RecvError>> {
        ready!(self.poll_credit(cx));
        loop {
            match self.pop() {
                Ok(item) => {
                    self.parked = false;
                    return Poll::Ready(Ok(item));
                }
                Err(TryRecvError::EndOfStream) => return Poll::Ready(Err(RecvError::EndOfStream)),
                Err(TryRecvError::Failed(cause)) => return Poll::Ready(Err(RecvError::Failed(cause))),
                Err(TryRecvError::Empty) if self.park(cx.waker()) => return Poll::Pending,
                Err(TryRecvError::Empty) => {}
            }
        }
    }

    /// Has `waker` woken by the next item or the end; `false` if there is something to receive now.
    #[doc(hidden)]
    pub fn park(&mut self, waker: &Waker) -> bool {
        if !self.batch.is_empty() || !self.later.is_empty() {
            return false;
        }
        let mut clone = None;
        loop {
            let mut queue = self.shared.queue.lock();
            if !queue.is_empty() || queue.end.is_some() {
                return false;
            }
            if queue.receiver.as_ref().is_some_and(|parked| parked.will_wake(waker)) {
                return true;
            }
            if let Some(waker) = clone.take() {
                let replaced = queue.receiver.replace(waker);
                drop(queue);
                drop(replaced);
                self.parked = true;
                return true;
            }
            drop(queue);
            clone = Some(waker.clone());
        }
    }

    /// Takes the waker out of the queue, if it still stands there.
    pub(crate) fn unpark(&mut self) {
        if std::mem::take(&mut self.parked) {
            let waker = self.shared.queue.lock().receiver.take();
            drop(waker);
        }
    }
}

/// A receive in progress: leaves no waker behind.
struct Parking<'a, T>(&'a mut Receiver<T>);

impl<T> Drop for Parking<'_, T> {
    fn drop(&mut self) {
        self.0.unpark();
    }
}

/// `Ok(item)` for each item. A failure is the last thing that the stream yields; after `close` it just ends.
#[cfg(feature = "stream")]
impl<T> futures_core::Stream for Receiver<T> {
    type Item = Result<T, Failure>;

    fn poll_next(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.end_told {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(this.poll_recv(cx)) {
            Ok(item) => Some(Ok(item)),
            Err(end) => {
                this.end_told = true;
                match end {
                    RecvError::EndOfStream => None,
                    RecvError::Failed(cause) => Some(Err(cause)),
                }
            }
        })
    }
}

/// Items move by value; nothing is pinned.
impl<T> Unpin for Receiver<T> {}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.end(End::Closed);
        let mut queue = self.shared.queue.lock();
        queue.receiver_gone = true;
        queue.dropped += queue.sent - self.shared.received.0.load(Ordering::Relaxed);
        let left = (std::mem::take(&mut queue.full), std::mem::take(&mut queue.tail), queue.receiver.take());
        drop(queue);
        drop(left);
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("stats", &self.stats()).finish()
    }
}
