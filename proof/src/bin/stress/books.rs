//! The books of one round: every item, waker and guard that it makes is counted in, and counted out once.

use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

/// How a token can end. A token that is dropped by somebody who was not expected to is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lost,
    /// Handed out by a receive, as a reply, to a handler.
    Received,
    /// Given back by an operation that refused it.
    Returned,
    Drained,
    /// In the `Stopped` of an actor.
    Unhandled,
    /// Dropped with a future that was dropped half-way.
    Cut,
    /// Sent after the end, by a sender that has such items dropped.
    Late,
    /// Dropped with the receiver, or with the whole thing.
    Left,
    /// By a gate, or by a panic of the gate or the key.
    Consumed,
    /// The outcome of a request whose waiter never looked.
    Unlooked,
}

const FATES: usize = Fate::Unlooked as usize + 1;

/// A number that all threads count up.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, SeqCst);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

/// What went wrong, in words.
#[derive(Default)]
pub(crate) struct Books(Mutex<Vec<String>>);

impl Books {
    pub(crate) fn wrong(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    /// Both sides of one account.
    #[track_caller]
    pub(crate) fn equal(&self, what: &str, left: u64, right: u64) {
        self.hold(left == right, || format!("{what}: {left} != {right}"));
    }

    #[track_caller]
    pub(crate) fn hold(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let at = std::panic::Location::caller();
            self.wrong(format!("{} ({}:{})", what(), at.file().rsplit('/').next().unwrap_or_default(), at.line()));
        }
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Who was born, and how each ended.
#[derive(Default)]
pub(crate) struct Ledger {
    born: Count,
    ends: [Count; FATES],
}

impl Ledger {
    pub(crate) fn token(self: &Arc<Self>, from: usize, number: u64, bomb: bool) -> Token {
        self.born.one();
        Token { ledger: self.clone(), from, number, fate: None, bomb }
    }

    pub(crate) fn ended(&self, fate: Fate) -> u64 {
        self.ends[fate as usize].get()
    }

    /// To be called when nothing is left that could hold a token.
    #[track_caller]
    pub(crate) fn balance(&self, books: &Books) {
        let ended = self.ends.iter().map(Count::get).sum();
        books.equal("tokens born, tokens ended", self.born.get(), ended);
        books.equal("tokens lost, none", self.ended(Fate::Lost), 0);
    }
}

thread_local! { static FATE: Cell<Fate> = const { Cell::new(Fate::Lost) }; }

/// One item, value or reply. A bomb panics when somebody drops it, unless its thread is panicking already.
pub(crate) struct Token {
    ledger: Arc<Ledger>,
    pub(crate) from: usize,
    pub(crate) number: u64,
    fate: Option<Fate>,
    bomb: bool,
}

impl Token {
    /// Its one end, known to whoever has it in hands.
    pub(crate) fn end(mut self, fate: Fate) {
        self.fate = Some(fate);
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let fate = self.fate.unwrap_or_else(|| FATE.get());
        self.ledger.ends[fate as usize].one();
        if self.bomb && self.fate.is_none() {
            planned_panic();
        }
    }
}

/// What a panic says that is part of the plan; any other ends the program (see `watch`).
pub(crate) const PLANNED: &str = "planned";

/// Panics, unless this thread is panicking already.
pub(crate) fn planned_panic() {
    if !std::thread::panicking() {
        panic!("{PLANNED}");
    }
}

/// Calls `f`. Tokens that are dropped in it meet `fate`; a planned panic ends it: None.
pub(crate) fn expecting<R>(fate: Fate, f: impl FnOnce() -> R) -> Option<R> {
    let before = FATE.replace(fate);
    let output = catch_unwind(AssertUnwindSafe(f)).ok();
    FATE.set(before);
    output
}

/// Something that must be gone in the end: a child's locals, a key, a closure.
pub(crate) struct Live(Arc<AtomicUsize>);

impl Live {
    pub(crate) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Live(count.clone())
    }
}

impl Clone for Live {
    fn clone(&self) -> Self {
        Live::new(&self.0)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Polls by hand, with a waker that counts its wakes, and whose clones are counted. An angry one panics when it is woken.
#[derive(Clone)]
pub(crate) struct Hand {
    bell: Arc<Bell>,
}

struct Bell {
    wakes: AtomicUsize,
    angry: bool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wakes.fetch_add(1, SeqCst);
        if self.angry {
            planned_panic();
        }
    }
}

impl Hand {
    pub(crate) fn new(angry: bool) -> Self {
        Hand { bell: Arc::new(Bell { wakes: AtomicUsize::new(0), angry }) }
    }

    pub(crate) fn poll<F: Future + ?Sized>(&self, future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(&Waker::from(self.bell.clone())))
    }

    pub(crate) fn wakes(&self) -> usize {
        self.bell.wakes.load(SeqCst)
    }

    /// How many clones of the waker somebody holds, besides the other clones of this hand.
    pub(crate) fn wakers(&self, hands: usize) -> usize {
        Arc::strong_count(&self.bell) - hands
    }
}

/// A future that is left standing while others go on: to be looked at when they have stopped.
pub(crate) struct Parked<F: Future> {
    future: Pin<Box<F>>,
    hand: Hand,
    /// The wakes before the last poll; None if that was not Pending.
    seen: Option<usize>,
}

impl<F: Future> Parked<F> {
    pub(crate) fn new(hand: Hand, future: F) -> Self {
        Parked { future: Box::pin(future), hand, seen: None }
    }

    pub(crate) fn poll(&mut self) -> Poll<F::Output> {
        let before = self.hand.wakes();
        let polled = self.hand.poll(self.future.as_mut());
        self.seen = polled.is_pending().then_some(before);
        polled
    }

    /// As `poll`, while no other thread does anything to what is waited for: if it is ready now, it has been woken.
    pub(crate) fn audit(&mut self, what: &str, books: &Books) -> Poll<F::Output> {
        let before = self.seen;
        let woken = before.is_none_or(|seen| self.hand.wakes() > seen);
        let polled = self.poll();
        books.hold(woken || polled.is_pending(), || format!("a wake was lost: {what}"));
        polled
    }
}
