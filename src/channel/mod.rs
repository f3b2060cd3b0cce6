//! Many senders, one receiver, from any thread into a loop: [`channel`] and [`bounded`].
//!
//! | channel | send | receive |
//! |---|---|---|
//! | open | queued; bounded and full: waits, or `Full(item)` | the next item; empty: waits |
//! | closed, items left | `Closed(item)`, or dropped and counted | the next item |
//! | closed, empty | the same | `EndOfStream`, or `Failed(cause)` again and again |
//! | receiver gone | the same | |
//!
//! # How it is fast
//!
//! Moving a cache line between processors is what a channel costs. Senders push into the tail chunk under a lock that backs
//! off; the receiver takes *all* chunks in one swap and then works on memory of its own, giving its empty chunk back for the
//! next round. It looks at a hint on a line of its own before it takes the lock. A sender wakes the receiver only if that has
//! parked, which it does only on an empty queue.
//!
//! # Invariants
//!
//! 1. `sent == received + queued`: an accepted item counts in `sent` under the lock, and in `received` when it is handed out.
//! 2. A parked receiver means an open and empty queue. The push or close that ends this takes the waker along.
//! 3. Bounded: a free place and a queued sender do not stay side by side. A place that comes free is *reserved* for the
//!    sender that has waited longest; one that goes away passes its reservation on.
//! 4. Under the lock: a push, a pop, a swap. Chunks are made, items and wakers dropped, and wakers woken outside it.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::ops::DerefMut;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use crate::error::{Failure, WOULD_BLOCK, WaitError, display};
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, BackoffMutex, Ordering};
use crate::wait::{Key, Waitable, Waiters, WakeBatch, block_on, poll_budget, wake, wake_all};

/// A channel without a bound: many senders, one receiver.
///
/// Sending never waits and works from any thread, before a loop exists too.
///
/// ```
/// let (tx, mut rx) = microio::channel();
/// tx.try_send("hello").unwrap();
/// drop(tx);
/// assert_eq!(rx.recv_blocking(None).unwrap(), "hello");
/// assert!(rx.recv_blocking(None).is_err(), "end of stream");
/// ```
#[doc(alias = "create_channel")]
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    open(None)
}

/// A channel that holds at most `capacity` items; [`Sender::send`] waits for a place.
pub fn bounded<T>(capacity: NonZeroUsize) -> (Sender<T>, Receiver<T>) {
    open(Some(capacity.get()))
}

fn open<T>(capacity: Option<usize>) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        attention: Line(AtomicBool::new(false)),
        received: Line(AtomicU64::new(0)),
        closed: AtomicBool::new(false),
        senders: AtomicUsize::new(1),
        queue: BackoffMutex::new(Queue {
            tail: VecDeque::new(),
            full: VecDeque::new(),
            sent: 0,
            dropped: 0,
            end: None,
            receiver_gone: false,
            receiver: None,
            capacity,
            reserved: 0,
            blocked: Waiters::default(),
        }),
    });
    let sender = Sender { shared: shared.clone(), late: LateSend::Reject };
    (
        sender,
        Receiver {
            shared,
            batch: VecDeque::new(),
            later: VecDeque::new(),
            parked: false,
            bounded: capacity.is_some(),
            credit: CREDIT,
            end_told: false,
        },
    )
}

/// The state that both ends share. Lock: `queue`, a leaf.
struct Shared<T> {
    /// The hint: items may be queued, or the channel has ended. Set under the lock, Release; cleared under the lock by a
    /// receiver that has taken everything. Read without it, Acquire.
    attention: Line<AtomicBool>,
    /// Written by the receiver only (bounded: under the lock). Relaxed is enough for a reader that holds the lock: it cannot
    /// have counted an item whose push comes after the reader's turn.
    received: Line<AtomicU64>,
    /// A copy of `Queue::end.is_some()` for readers without the lock.
    closed: AtomicBool,
    senders: AtomicUsize,
    queue: BackoffMutex<Queue<T>>,
}

/// Alone on its cache line (two, as processors fetch them in pairs).
#[repr(align(128))]
struct Line<T>(T);

struct Queue<T> {
    /// The chunk that is being filled. It never grows: a full one is put behind `full` and another takes its place.
    tail: VecDeque<T>,
    full: VecDeque<VecDeque<T>>,
    sent: u64,
    dropped: u64,
    end: Option<End>,
    receiver_gone: bool,
    receiver: Option<Waker>,
    capacity: Option<usize>,
    /// Places promised to senders that have been notified and have not come yet.
    reserved: usize,
    blocked: Waiters,
}

#[derive(Clone)]
enum End {
    Closed,
    Failed(Failure),
}

/// The first chunk's capacity; each one after it has twice its predecessor's, up to `CHUNK_BYTES`.
const FIRST_CHUNK: usize = 32;
const CHUNK_BYTES: usize = 32 * 1024;
/// Items handed out for one unit of the task's time slice.
const CREDIT: u32 = 64;

impl<T> Waitable for Shared<T> {
    type State = Queue<T>;
    fn lock(&self) -> impl DerefMut<Target = Queue<T>> {
        self.queue.lock()
    }
    fn waiters(queue: &mut Queue<T>) -> &mut Waiters {
        &mut queue.blocked
    }
}

impl<T> Queue<T> {
    /// Makes sure that the tail has a place, from `spare` if it must.
    ///
    /// # Errors
    /// The capacity of the spare chunk that is missing: to be made outside the lock.
    fn make_place(&mut self, spare: &mut Option<VecDeque<T>>) -> Result<(), usize> {
        if self.tail.len() < self.tail.capacity() {
            return Ok(());
        }
        let Some(chunk) = spare.take() else {
            let most = (CHUNK_BYTES / size_of::<T>().max(1)).max(FIRST_CHUNK);
            return Err((self.tail.capacity() * 2).clamp(FIRST_CHUNK, most));
        };
        let full = std::mem::replace(&mut self.tail, chunk);
        if !full.is_empty() {
            self.full.push_back(full);
        }
        Ok(())
    }

    fn pop(&mut self) -> Option<T> {
        while let Some(chunk) = self.full.front_mut() {
            if let Some(item) = chunk.pop_front() {
                return Some(item);
            }
            self.full.pop_front();
        }
        self.tail.pop_front()
    }

    fn is_empty(&self) -> bool {
        self.tail.is_empty() && self.full.is_empty()
    }
}

impl<T> Shared<T> {
    /// Places that are neither taken nor promised. Only a bounded channel has few.
    fn places(&self, queue: &Queue<T>) -> usize {
        let Some(capacity) = queue.capacity else { return usize::MAX };
        let queued = (queue.sent - self.received.0.load(Ordering::Relaxed)) as usize;
        capacity.saturating_sub(queued + queue.reserved)
    }

    /// Reserves free places for the senders that have waited longest: here are their wakers, as many as fit.
    #[must_use]
    fn grant(&self, queue: &mut Queue<T>) -> WakeBatch {
        let mut batch = WakeBatch::default();
        while !batch.is_full() && self.places(queue) > 0 {
            let Some(waker) = queue.blocked.notify_one() else { break };
            queue.reserved += 1;
            batch.push(waker);
        }
        batch
    }

    /// Counts items as received.
    fn count(&self, items: usize) {
        let received = &self.received.0;
        received.store(received.load(Ordering::Relaxed) + items as u64, Ordering::Relaxed);
    }

    fn end(&self, end: End) -> bool {
        let mut queue = self.queue.lock();
        if queue.end.is_some() {
            drop(queue);
            return false;
        }
        queue.end = Some(end);
        self.closed.store(true, Ordering::Release);
        self.attention.0.store(true, Ordering::Release);
        let receiver = queue.receiver.take();
        drop(queue);
        if let Some(receiver) = receiver {
            wake(receiver);
        }
        wake_all(self);
        true
    }

    fn stats(&self) -> ChannelStats {
        let queue = self.queue.lock();
        let received = self.received.0.load(Ordering::Relaxed);
        ChannelStats {
            sent: queue.sent,
            received,
            dropped: queue.dropped,
            queued: if queue.receiver_gone { 0 } else { queue.sent - received },
            closed: queue.end.is_some(),
        }
    }
}

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

/// The sending end. Clones send into the same channel; when the last one is dropped, the stream ends.
#[doc(alias = "ObjectSendChannel")]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
    late: LateSend,
}

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
    #[cfg_attr(not(feature = "stream"), allow(dead_code))]
    end_told: bool,
}

/// Why [`Sender::try_send`] did not send. It has the item.
pub enum TrySendError<T> {
    /// The channel is bounded and full.
    Full(T),
    /// The channel is closed or failed, or its receiver is gone.
    Closed(T),
}

/// Why [`Sender::send_blocking`] did not send. It has the item.
pub enum SendBlockingError<T> {
    /// No place came free in time.
    TimedOut(T),
    /// Called on an event loop or inside an async worker.
    WouldBlock(T),
    /// The channel is closed or failed, or its receiver is gone.
    Closed(T),
}

/// The channel is closed or failed, or its receiver is gone. Here is the item.
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

/// Why a push was not accepted.
enum Refused<T> {
    Full(T),
    Late(T),
}

impl<T> Sender<T> {
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
    /// A send that is dropped before it is done has not sent: its item is dropped, its place goes to the next.
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

impl<T> Receiver<T> {
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
        let item = poll_fn(|cx| parking.0.poll_recv(cx)).await?;
        parking.0.count(1);
        Ok(item)
    }

    /// Receives the next item if there is one.
    ///
    /// # Errors
    /// There is none now, or the channel has ended and everything was received.
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
        let first = poll_fn(|cx| parking.0.poll_recv(cx)).await?;
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
    pub(crate) fn pop(&mut self) -> Result<T, TryRecvError> {
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
    pub(crate) fn count(&self, items: usize) {
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

    /// The next item, not counted yet; parks the waker if there is none.
    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, RecvError>> {
        ready!(self.poll_credit(cx));
        let mut waker = None;
        loop {
            match self.pop() {
                Ok(item) => {
                    self.parked = false;
                    return Poll::Ready(Ok(item));
                }
                Err(TryRecvError::EndOfStream) => return Poll::Ready(Err(RecvError::EndOfStream)),
                Err(TryRecvError::Failed(cause)) => return Poll::Ready(Err(RecvError::Failed(cause))),
                Err(TryRecvError::Empty) => {}
            }
            let mut queue = self.shared.queue.lock();
            if !queue.is_empty() || queue.end.is_some() {
                continue;
            }
            if queue.receiver.as_ref().is_some_and(|parked| parked.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            if let Some(waker) = waker.take() {
                let replaced = queue.receiver.replace(waker);
                drop(queue);
                drop(replaced);
                self.parked = true;
                return Poll::Pending;
            }
            drop(queue);
            waker = Some(cx.waker().clone());
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

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.end_told {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(this.poll_recv(cx)) {
            Ok(item) => {
                this.count(1);
                Some(Ok(item))
            }
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

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("stats", &self.stats()).finish()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("stats", &self.stats()).finish()
    }
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
