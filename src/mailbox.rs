//! What an actor receives from: [`Mailbox`], in the order of arrival, and [`PriorityMailbox`], the most urgent first.
//!
//! Both are a channel's two ends in one value, whose senders never fail: what comes too late is dropped and counted.
//!
//! # The priority mailbox
//!
//! Senders only append to the channel. The heap, the key and the gate belong to the receiving side, so no user code runs
//! under a lock; only the [`Floor`] is shared. Each receive first sorts in everything that has arrived, in arrival order:
//! the gate sees an item, then the key, then it is parked in the heap until it is the most urgent and above the floor. Parked
//! items count as queued.

use std::cmp::{Ordering as Order, Reverse};
use std::collections::BinaryHeap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::task::{Context, Poll, Waker, ready};

use crate::channel::{ChannelStats, LateSend, Receiver, RecvError, Sender, TryRecvError, channel};
use crate::error::Failure;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering};
use crate::wait::wake;

/// What an [`ActorCore`](crate::ActorCore) can receive from.
pub trait Inbox {
    /// What is sent to it.
    type Item;
    /// The next item. Must lose nothing when it is dropped.
    fn recv(&mut self) -> impl Future<Output = Result<Self::Item, RecvError>>;
    /// What is there now, at most `max` items, without waiting.
    fn drain(&mut self, max: Option<usize>) -> Vec<Self::Item>;
    /// An end to send into it.
    fn sender(&self) -> Sender<Self::Item>;
}

/// A channel's two ends in one value: many submit, one receives, in the order of arrival.
///
/// Sending to it never fails: what comes after the close is dropped and counted ([`LateSend::Drop`]).
///
/// ```
/// let mut mailbox = microio::Mailbox::new();
/// assert!(mailbox.submit(1));
/// mailbox.close();
/// assert!(!mailbox.submit(2), "too late");
/// assert_eq!(mailbox.drain(None), [1]);
/// ```
pub struct Mailbox<T> {
    sender: Sender<T>,
    receiver: Receiver<T>,
}

impl<T> Mailbox<T> {
    /// An empty mailbox.
    pub fn new() -> Self {
        let (sender, receiver) = channel();
        Mailbox { sender: sender.with_late_send(LateSend::Drop), receiver }
    }

    /// An end to send into it, from any thread. What it sends too late is dropped and counted.
    pub fn sender(&self) -> Sender<T> {
        self.sender.clone()
    }

    /// Sends. `false` if the mailbox is closed: the item is dropped and counted.
    #[doc(alias = "put")]
    pub fn submit(&self, item: T) -> bool {
        self.sender.submit(item)
    }

    /// Receives the next item, or waits for one.
    ///
    /// # Errors
    /// The mailbox is closed or failed, and everything was received.
    ///
    /// # Cancel safety
    /// Dropping the future loses no item and leaves no waker.
    #[doc(alias = "get")]
    pub async fn recv(&mut self) -> Result<T, RecvError> {
        self.receiver.recv().await
    }

    /// Takes what is queued now, at most `max` items (None: all), without waiting.
    pub fn drain(&mut self, max: Option<usize>) -> Vec<T> {
        self.receiver.drain(max)
    }

    /// Closes it: what is queued is still received. `true` for the call that did.
    pub fn close(&self) -> bool {
        self.sender.close()
    }

    /// Closes it with a failure, which comes after what is queued. `true` for the call that did.
    pub fn fail(&self, cause: impl Into<Failure>) -> bool {
        self.sender.fail(cause)
    }

    /// What it has seen until now.
    pub fn stats(&self) -> ChannelStats {
        self.sender.stats()
    }
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Inbox for Mailbox<T> {
    type Item = T;
    fn recv(&mut self) -> impl Future<Output = Result<T, RecvError>> {
        Mailbox::recv(self)
    }
    fn drain(&mut self, max: Option<usize>) -> Vec<T> {
        Mailbox::drain(self, max)
    }
    fn sender(&self) -> Sender<T> {
        Mailbox::sender(self)
    }
}

/// A mailbox that hands out the item with the highest key first, and equal keys in the order of arrival.
///
/// A [`gate`](PriorityMailbox::with_gate) sees every item in the order of arrival and may consume it; a
/// [`floor`](PriorityMailbox::floor) holds back what is not urgent enough for now.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let mut mailbox = microio::PriorityMailbox::new(|text: &&str| text.len());
/// for text in ["b", "long", "a"] {
///     mailbox.sender().try_send(text).unwrap();
/// }
/// assert_eq!(mailbox.recv().await.unwrap(), "long");
/// mailbox.floor().set(Some(1));
/// assert_eq!(mailbox.drain(None), ["b", "a"], "a drain ignores the floor");
/// # });
/// ```
///
/// # Panics
/// If the key or the gate panics, the call that ran it does. The item at hand is consumed; no other is lost. If the order of the
/// keys panics, the call that compared them does, and what it had taken out is lost with it (a receive: one item); it counts as
/// received. An order that is not one makes the sequence arbitrary, and loses nothing.
pub struct PriorityMailbox<T, P> {
    sender: Sender<T>,
    receiver: Receiver<T>,
    key: Box<dyn Fn(&T) -> P + Send>,
    gate: Option<Gate<T>>,
    parked: BinaryHeap<Parked<T, P>>,
    arrivals: u64,
    floor: Floor<P>,
    /// The floor as it was last looked at, and its version then.
    above: (u64, Option<Arc<P>>),
}

/// So many places in the heap stay allocated when it is empty: what a burst took beyond them is given back.
const KEPT: usize = 1024;

type Gate<T> = Box<dyn FnMut(&T) -> bool + Send>;

/// An item in the heap: its key, then the order of arrival.
struct Parked<T, P> {
    key: P,
    arrival: Reverse<u64>,
    item: T,
}

impl<T, P: Ord> Ord for Parked<T, P> {
    fn cmp(&self, other: &Self) -> Order {
        self.key.cmp(&other.key).then_with(|| self.arrival.cmp(&other.arrival))
    }
}

impl<T, P: Ord> PartialOrd for Parked<T, P> {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl<T, P: Ord> PartialEq for Parked<T, P> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T, P: Ord> Eq for Parked<T, P> {}

impl<T, P: Ord + Clone> PriorityMailbox<T, P> {
    /// An empty mailbox; `key` says how urgent an item is. It runs on the receiving side, once for each item.
    pub fn new(key: impl Fn(&T) -> P + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        PriorityMailbox {
            sender: sender.with_late_send(LateSend::Drop),
            receiver,
            key: Box::new(key),
            gate: None,
            parked: BinaryHeap::new(),
            arrivals: 0,
            floor: Floor(Arc::new(FloorState { version: AtomicU64::new(0), state: Mutex::new((None, None)) })),
            above: (0, None),
        }
    }

    /// Has `gate` look at every item, in the order of arrival and on the receiving side; `false` consumes it.
    pub fn with_gate(mut self, gate: impl FnMut(&T) -> bool + Send + 'static) -> Self {
        self.gate = Some(Box::new(gate));
        self
    }

    /// The floor, to be moved from anywhere.
    pub fn floor(&self) -> Floor<P> {
        self.floor.clone()
    }

    /// An end to send into it, from any thread. What it sends too late is dropped and counted.
    pub fn sender(&self) -> Sender<T> {
        self.sender.clone()
    }

    /// Sends. `false` if the mailbox is closed: the item is dropped and counted.
    pub fn submit(&self, item: T) -> bool {
        self.sender.submit(item)
    }

    /// Receives the most urgent item above the floor, or waits for one.
    ///
    /// # Errors
    /// The mailbox is closed or failed, and nothing above the floor is left. What is parked below stays, for a drain or for a
    /// lower floor.
    ///
    /// # Cancel safety
    /// Dropping the future loses no item and leaves no waker.
    pub async fn recv(&mut self) -> Result<T, RecvError> {
        let parking = Parking(self);
        poll_fn(|cx| parking.0.poll_recv(cx)).await
    }

    /// Takes what is there, the most urgent first, at most `max` items (None: all), whatever the floor.
    pub fn drain(&mut self, max: Option<usize>) -> Vec<T> {
        let _end = self.sort_in();
        let count = max.unwrap_or(usize::MAX).min(self.parked.len());
        (0..count).filter_map(|_| self.pop_parked()).collect()
    }

    /// Closes it: what is above the floor is still received. `true` for the call that did.
    pub fn close(&self) -> bool {
        self.sender.close()
    }

    /// Closes it with a failure, which comes after what is above the floor. `true` for the call that did.
    pub fn fail(&self, cause: impl Into<Failure>) -> bool {
        self.sender.fail(cause)
    }

    /// What it has seen until now. Parked items are queued; those that the gate consumed are received.
    pub fn stats(&self) -> ChannelStats {
        self.sender.stats()
    }

    /// Moves everything that has arrived until now into the heap; says why there is no more. What the gate or the key sends
    /// meanwhile waits for the next time.
    fn sort_in(&mut self) -> TryRecvError {
        for refilled in [false, true] {
            while let Some(item) = self.receiver.pop_taken() {
                self.admit(item);
            }
            if let (false, Some(Err(end))) = (refilled, self.receiver.refill()) {
                return end;
            }
        }
        TryRecvError::Empty
    }

    /// Gate, key, heap. Until it is parked the item is in our hands: consumed, if the gate says so or the user's code panics.
    fn admit(&mut self, item: T) {
        let consumed = Consumed(&self.receiver);
        if self.gate.as_mut().is_some_and(|gate| !gate(&item)) {
            return;
        }
        let key = (self.key)(&item);
        std::mem::forget(consumed);
        self.arrivals += 1;
        self.parked.push(Parked { key, arrival: Reverse(self.arrivals), item });
    }

    /// The most urgent item. It counts as received also if comparing its key with others panics, and it is lost to that.
    fn pop_parked(&mut self) -> Option<T> {
        let _counts_on_drop = (!self.parked.is_empty()).then(|| Consumed(&self.receiver));
        let top = self.parked.pop()?;
        if self.parked.is_empty() {
            self.parked.shrink_to(KEPT);
        }
        Some(top.item)
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, RecvError>> {
        ready!(self.receiver.poll_credit(cx));
        loop {
            let end = self.sort_in();
            self.floor.look(&mut self.above);
            let top = self.parked.peek();
            let above = |top: &Parked<T, P>| self.above.1.as_ref().is_none_or(|floor| top.key > **floor);
            if top.is_some_and(above) {
                return Poll::Ready(Ok(self.pop_parked().expect("just seen")));
            }
            match end {
                TryRecvError::EndOfStream => return Poll::Ready(Err(RecvError::EndOfStream)),
                TryRecvError::Failed(cause) => return Poll::Ready(Err(RecvError::Failed(cause))),
                TryRecvError::Empty => {}
            }
            // Two places to be woken from: the channel, and the floor if it holds something back.
            match self.receiver.poll_pop(cx) {
                Poll::Ready(Ok(item)) => self.admit(item),
                Poll::Ready(Err(_)) => {}
                Poll::Pending if self.parked.is_empty() || self.floor.park(self.above.0, cx) => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }
}

impl<T, P: Ord + Clone> Inbox for PriorityMailbox<T, P> {
    type Item = T;
    fn recv(&mut self) -> impl Future<Output = Result<T, RecvError>> {
        PriorityMailbox::recv(self)
    }
    fn drain(&mut self, max: Option<usize>) -> Vec<T> {
        PriorityMailbox::drain(self, max)
    }
    fn sender(&self) -> Sender<T> {
        PriorityMailbox::sender(self)
    }
}

/// Counts an item as received when dropped.
struct Consumed<'a, T>(&'a Receiver<T>);

impl<T> Drop for Consumed<'_, T> {
    fn drop(&mut self) {
        self.0.count(1);
    }
}

/// A receive in progress: leaves no waker behind.
struct Parking<'a, T, P>(&'a mut PriorityMailbox<T, P>);

impl<T, P> Drop for Parking<'_, T, P> {
    fn drop(&mut self) {
        self.0.receiver.unpark();
        self.0.floor.unpark();
    }
}

/// The floor of a [`PriorityMailbox`]: only items with a key *above* it are received. Clones move the same floor.
#[derive(Clone)]
pub struct Floor<P>(Arc<FloorState<P>>);

/// Lock: `state`, a leaf. The floor is behind an `Arc`, so that no `P` is compared, cloned or dropped under it.
struct FloorState<P> {
    /// Counts the moves; written under the lock.
    version: AtomicU64,
    state: Mutex<(Option<Arc<P>>, Option<Waker>)>,
}

impl<P> Floor<P> {
    /// Moves the floor (None: no floor), and wakes a receiver that it held back. Works from any thread; no send.
    pub fn set(&self, above: Option<P>) {
        let above = above.map(Arc::new);
        let mut state = self.0.state.lock();
        let old = std::mem::replace(&mut state.0, above);
        let waker = state.1.take();
        self.0.version.fetch_add(1, Ordering::Release);
        drop(state);
        drop(old);
        if let Some(waker) = waker {
            wake(waker);
        }
    }

    /// Brings a copy of the floor up to date.
    fn look(&self, (version, above): &mut (u64, Option<Arc<P>>)) {
        if *version == self.0.version.load(Ordering::Acquire) {
            return;
        }
        let state = self.0.state.lock();
        let floor = state.0.clone();
        *version = self.0.version.load(Ordering::Relaxed);
        drop(state);
        *above = floor;
    }

    /// Has the receiver woken by the next move; `false` if the floor has moved since `version`.
    fn park(&self, version: u64, cx: &mut Context<'_>) -> bool {
        let waker = cx.waker().clone();
        let mut state = self.0.state.lock();
        if version != self.0.version.load(Ordering::Relaxed) {
            drop(state);
            return false;
        }
        let replaced = state.1.replace(waker);
        drop(state);
        drop(replaced);
        true
    }

    fn unpark(&self) {
        let waker = self.0.state.lock().1.take();
        drop(waker);
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("stats", &self.stats()).finish()
    }
}

impl<T, P> fmt::Debug for PriorityMailbox<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.sender.stats();
        f.debug_struct("PriorityMailbox").field("parked", &self.parked.len()).field("stats", &stats).finish()
    }
}

impl<P> fmt::Debug for Floor<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.0.state.lock().0.is_some();
        f.debug_struct("Floor").field("held", &held).finish_non_exhaustive()
    }
}
