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

mod error;
mod receiver;
mod sender;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::DerefMut;
use std::task::Waker;

pub use error::{
    ChannelStats, LateSend, RecvBlockingError, RecvError, SendBlockingError, SendError, TryRecvError, TrySendError,
};
pub use receiver::Receiver;
pub use sender::Sender;

use crate::error::Failure;
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, BackoffMutex, Line, Ordering};
use crate::wait::{Waitable, Waiters, WakeBatch, wake, wake_all};

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
    (Sender::new(shared.clone()), Receiver::new(shared))
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

/// The first chunk's capacity; each one after it has twice its predecessor's. None is larger than `CHUNK_BYTES`, or one item.
const FIRST_CHUNK: usize = 32;
const CHUNK_BYTES: usize = 32 * 1024;
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
            let most = (CHUNK_BYTES / size_of::<T>().max(1)).max(1);
            return Err((self.tail.capacity() * 2).clamp(FIRST_CHUNK.min(most), most));
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
