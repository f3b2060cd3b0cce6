//! Waiting, once: the list of waiters, the future over it, the thread that blocks on a future, and the question whether a
//! thread may block at all.
//!
//! A primitive keeps its state and its [`Waiters`] under one lock. A wait is a predicate on that state: [`Wait`] asks it,
//! and parks a waker in the list until somebody changes the state and calls [`wake_all`]. A blocked thread is the same
//! future, polled with a waker that unparks ([`block_on`]).
//!
//! # Invariants
//!
//! 1. The predicate is asked and the waker is parked under one lock: a change is seen by the predicate or wakes the waker.
//! 2. Wakers are cloned before the lock, and woken and dropped after it: they are user code.
//! 3. A future that ends or is dropped takes its waker out of the list.
//! 4. The list is first in, first out. Registering and leaving are O(1) and allocate nothing in the steady state.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crate::error::{WaitError, catch};
use crate::slab::Slab;
use crate::sync::{Arc, AtomicBool, Ordering, Sleeper, per_thread};

/// The name of one waiter in a [`Waiters`] list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u32);

const NONE: u32 = u32::MAX;

/// A slab of parked wakers, threaded into a queue.
#[derive(Debug)]
pub struct Waiters {
    slots: Slab<Slot>,
    first: u32,
    last: u32,
    queued: usize,
}

#[derive(Debug)]
struct Slot {
    /// Some while it stands in the queue; None once notified.
    waker: Option<Waker>,
    next: u32,
    prev: u32,
}

impl Default for Waiters {
    fn default() -> Self {
        Waiters { slots: Slab::default(), first: NONE, last: NONE, queued: 0 }
    }
}

impl Waiters {
    /// Parks a waker at the end of the queue, or in the place that `key` has in it. The waker that it replaces, if any, is to
    /// be dropped outside the lock.
    #[must_use]
    pub fn park(&mut self, key: &mut Option<Key>, waker: Waker) -> Option<Waker> {
        if let Some(Key(slot)) = *key {
            if let Some(parked) = &mut self.slots[slot].waker {
                return Some(std::mem::replace(parked, waker));
            }
        }
        let entry = Slot { waker: Some(waker), next: NONE, prev: self.last };
        let slot = match *key {
            Some(Key(slot)) => {
                self.slots[slot] = entry;
                slot
            }
            None => self.slots.insert(entry),
        };
        *key = Some(Key(slot));
        match self.last {
            NONE => self.first = slot,
            last => self.slots[last].next = slot,
        }
        self.last = slot;
        self.queued += 1;
        None
    }

    /// Forgets a waiter. None if it had been notified; its waker otherwise, to be dropped outside the lock.
    #[must_use]
    pub fn remove(&mut self, Key(slot): Key) -> Option<Waker> {
        let waker = self.unlink(slot);
        self.slots.remove(slot);
        waker
    }

    /// Takes the longest waiting waker out of the queue; its slot stays with its owner.
    #[must_use]
    pub fn notify_one(&mut self) -> Option<Waker> {
        if self.first == NONE { None } else { self.unlink(self.first) }
    }

    /// Those who wait, the longest waiting first; they stay in the queue.
    pub fn iter(&self) -> impl Iterator<Item = &Waker> {
        let mut next = self.first;
        std::iter::from_fn(move || {
            let slot = (next != NONE).then(|| &self.slots[next])?;
            next = slot.next;
            slot.waker.as_ref()
        })
    }

    /// Whether this waiter is the longest waiting one.
    pub fn is_first(&self, Key(slot): Key) -> bool {
        self.first == slot
    }

    /// Whether this waiter has been taken out of the queue by a notification.
    pub(crate) fn is_notified(&self, Key(slot): Key) -> bool {
        self.slots[slot].waker.is_none()
    }

    pub(crate) fn will_wake(&self, Key(slot): Key, waker: &Waker) -> bool {
        self.slots[slot].waker.as_ref().is_some_and(|parked| parked.will_wake(waker))
    }

    /// How many wakers are parked.
    pub fn queued(&self) -> usize {
        self.queued
    }

    fn unlink(&mut self, slot: u32) -> Option<Waker> {
        let Slot { waker, next, prev } = &mut self.slots[slot];
        let waker = waker.take()?;
        let (next, prev) = (*next, *prev);
        match prev {
            NONE => self.first = next,
            prev => self.slots[prev].next = next,
        }
        match next {
            NONE => self.last = prev,
            next => self.slots[next].prev = prev,
        }
        self.queued -= 1;
        Some(waker)
    }
}

/// A primitive that can be waited for: one lock, and the waiters in the state behind it.
pub trait Waitable {
    /// What the lock guards.
    type State;
    /// Takes the lock.
    fn lock(&self) -> impl DerefMut<Target = Self::State>;
    /// The waiters in the state.
    fn waiters(state: &mut Self::State) -> &mut Waiters;
}

/// Wakes everyone who is parked when it is called, a small batch at a time and outside the lock.
pub fn wake_all<W: Waitable>(source: &W) {
    let mut left = W::waiters(&mut source.lock()).queued();
    while left > 0 {
        let mut batch = WakeBatch::default();
        {
            let mut state = source.lock();
            while left > 0 && !batch.is_full() {
                let Some(waker) = W::waiters(&mut state).notify_one() else {
                    left = 0; // the rest has left meanwhile
                    break;
                };
                batch.push(waker);
                left -= 1;
            }
        }
        batch.wake();
    }
}

/// Wakes. A waker that panics (the panic hook has reported it) must not keep the others from being woken, nor break the books
/// of whoever wakes.
pub(crate) fn wake(waker: Waker) {
    let _reported = catch(|| waker.wake());
}

/// A few wakers between the lock and their wake.
#[derive(Debug, Default)]
pub(crate) struct WakeBatch {
    wakers: [Option<Waker>; 16],
    len: usize,
}

impl WakeBatch {
    pub(crate) fn is_full(&self) -> bool {
        self.len == self.wakers.len()
    }

    pub(crate) fn push(&mut self, waker: Waker) {
        self.wakers[self.len] = Some(waker);
        self.len += 1;
    }

    pub(crate) fn wake(mut self) {
        self.wakers.iter_mut().take(self.len).filter_map(Option::take).for_each(wake);
    }
}

/// Waits until `ready` says so. See [`wait_until`].
#[must_use = "futures do nothing unless awaited"]
#[allow(missing_debug_implementations)]
pub struct Wait<S, P>
where
    S: Deref<Target: Waitable>,
{
    source: S,
    ready: P,
    key: Option<Key>,
}

/// A future that ends when `ready` returns Some. `ready` runs under the lock: our own straight-line code only.
pub fn wait_until<S, P, T>(source: S, ready: P) -> Wait<S, P>
where
    S: Deref<Target: Waitable>,
    P: FnMut(&mut <S::Target as Waitable>::State) -> Option<T>,
{
    Wait { source, ready, key: None }
}

impl<S, P, T> Future for Wait<S, P>
where
    S: Deref<Target: Waitable> + Unpin,
    P: FnMut(&mut <S::Target as Waitable>::State) -> Option<T> + Unpin,
{
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Wait { source, ready, key } = self.get_mut();
        let mut waker = None;
        loop {
            let mut state = source.lock();
            let output = ready(&mut state);
            let waiters = <S::Target as Waitable>::waiters(&mut state);
            if let Some(output) = output {
                let parked = key.take().and_then(|key| waiters.remove(key));
                drop(state);
                drop(parked);
                return Poll::Ready(output);
            }
            if key.is_some_and(|key| waiters.will_wake(key, cx.waker())) {
                return Poll::Pending;
            }
            if let Some(waker) = waker.take() {
                let replaced = waiters.park(key, waker);
                drop(state);
                drop(replaced);
                return Poll::Pending;
            }
            drop(state);
            waker = Some(cx.waker().clone());
        }
    }
}

impl<S, P> Drop for Wait<S, P>
where
    S: Deref<Target: Waitable>,
{
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let parked = <S::Target as Waitable>::waiters(&mut self.source.lock()).remove(key);
            drop(parked);
        }
    }
}

/// How a thread sleeps until its waker is called.
///
/// Threads of Rust use [`std::thread::park`]; another host puts its own here (a lock that Ctrl-C interrupts, say).
pub trait Park {
    /// Why a park can end the whole wait: never for plain threads.
    type Stop;
    /// A waker that ends the current or the next `park`.
    fn waker(&self) -> Waker;
    /// Sleeps until the waker is called or `until` has come. It may return early.
    fn park(&self, until: Option<Instant>) -> Result<(), Self::Stop>;
}

/// Why [`block_on_with`] ended without an output.
#[derive(Debug)]
pub enum Blocked<S> {
    /// The time ran out.
    TimedOut,
    /// This thread must not block here.
    WouldBlock,
    /// The host ended the wait.
    Stopped(S),
}

/// Drives `future` on this thread, for at most `timeout`; `host` says how the thread sleeps.
///
/// The future is polled once even with a timeout of zero, and once more when the time is up.
pub fn block_on_with<F: Future, H: Park>(
    host: &H,
    future: F,
    timeout: Option<Duration>,
) -> Result<F::Output, Blocked<H::Stop>> {
    if !may_block() {
        return Err(Blocked::WouldBlock);
    }
    // A deadline that the clock cannot express is one that never comes.
    let deadline = timeout.and_then(|time| Instant::now().checked_add(time));
    let waker = host.waker();
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        let expired = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Ok(output);
        }
        if expired {
            return Err(Blocked::TimedOut);
        }
        host.park(deadline).map_err(Blocked::Stopped)?;
    }
}

/// [`block_on_with`] for a plain thread.
pub fn block_on<F: Future>(future: F, timeout: Option<Duration>) -> Result<F::Output, WaitError> {
    let parker = ThreadParker::take();
    block_on_with(&parker, future, timeout).map_err(|blocked| match blocked {
        Blocked::TimedOut => WaitError::TimedOut,
        Blocked::WouldBlock => WaitError::WouldBlock,
        Blocked::Stopped(never) => match never {},
    })
}

/// One per thread, kept for the next wait. A wait inside a wait (a waker or a drop that blocks) finds it taken and makes
/// another: their flags are apart, so neither eats the other's wake.
struct ThreadParker(Option<(Arc<Unpark>, Waker)>);

struct Unpark {
    woken: AtomicBool,
    sleeper: Sleeper,
}

per_thread!(PARKER: RefCell<Option<(Arc<Unpark>, Waker)>> = RefCell::new(None));

impl ThreadParker {
    fn take() -> Self {
        let kept = PARKER.try_with(|parker| parker.borrow_mut().take()).ok().flatten();
        ThreadParker(Some(kept.unwrap_or_else(|| {
            let unpark = Arc::new(Unpark { woken: AtomicBool::new(false), sleeper: Sleeper::current() });
            (unpark.clone(), Waker::from(unpark))
        })))
    }
}

impl Drop for ThreadParker {
    fn drop(&mut self) {
        let kept = self.0.take();
        let _ = PARKER.try_with(|parker| *parker.borrow_mut() = kept);
    }
}

impl Park for ThreadParker {
    type Stop = std::convert::Infallible;

    fn waker(&self) -> Waker {
        self.0.as_ref().expect("taken only by drop").1.clone()
    }

    fn park(&self, until: Option<Instant>) -> Result<(), Self::Stop> {
        let (unpark, _) = self.0.as_ref().expect("taken only by drop");
        // Acquire: pairs with the Release in `wake`; what was written before the wake is seen by the poll after it.
        while !unpark.woken.swap(false, Ordering::Acquire) {
            match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                left => unpark.sleeper.park(left),
            }
        }
        Ok(())
    }
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::Release) {
            self.sleeper.unpark();
        }
    }
}

per_thread!(LOOP: Cell<u64> = Cell::new(0));

/// Marks this thread as the one that runs an event loop, until dropped: blocking waits are refused on it.
#[derive(Debug)]
pub struct LoopMark {
    outer: u64,
    _thread_bound: std::marker::PhantomData<*const ()>,
}

impl LoopMark {
    /// Marks the current thread. `id` is any number but 0 that tells this loop from others.
    pub fn enter(id: u64) -> Self {
        LoopMark { outer: LOOP.with(|current| current.replace(id)), _thread_bound: std::marker::PhantomData }
    }
}

impl Drop for LoopMark {
    fn drop(&mut self) {
        let _ = LOOP.try_with(|current| current.set(self.outer));
    }
}

/// The loop that this thread runs: the id of its innermost [`LoopMark`], 0 if there is none.
pub fn current_loop() -> u64 {
    LOOP.try_with(Cell::get).unwrap_or(0)
}

per_thread!(STANDS: Cell<bool> = Cell::new(false));

/// Calls `f` with blocking waits allowed, on a thread whose loop stands still meanwhile.
#[cfg(feature = "tokio")]
pub(crate) fn stand_still<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = STANDS.try_with(|stands| stands.set(self.0));
        }
    }
    let _restore = Restore(STANDS.with(|stands| stands.replace(true)));
    f()
}

/// Whether this thread may block here. The one place that answers; asked on every blocking call, also when the value is
/// ready, so that the answer does not depend on timing.
pub fn may_block() -> bool {
    STANDS.try_with(Cell::get).unwrap_or(false) || current_loop() == 0 && !in_async_worker()
}

#[cfg(feature = "tokio")]
fn in_async_worker() -> bool {
    crate::rt::in_async_worker()
}

#[cfg(not(feature = "tokio"))]
fn in_async_worker() -> bool {
    false
}

/// Spends one unit of the task's time slice; Pending when it is used up (the task has been woken already, to go on later).
///
/// For operations that may be ready again and again: without it they would starve the other tasks of their loop.
pub(crate) fn poll_budget(cx: &mut Context<'_>) -> Poll<()> {
    #[cfg(feature = "tokio")]
    return crate::rt::poll_budget(cx);
    #[cfg(not(feature = "tokio"))]
    {
        let _ = cx;
        Poll::Ready(())
    }
}
