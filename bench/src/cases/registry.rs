//! Requests that wait for their replies, by key.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use dashmap::DashMap;
use microio::{Failure, RequestError, RequestRegistry};
use slab::Slab;
use tokio::sync::oneshot;

use crate::cpu::{self, Place};
use crate::harness::{Bar, Case, Contender, Figure, Run, on_loop, ours, peer};

pub(super) type Reply = Result<u64, Failure>;

pub(super) trait Registry: Send + Sync + 'static {
    type Waiter: Future + Unpin;
    fn new() -> Self;
    /// The key is the caller's, except where the registry gives its own.
    fn register(&self, key: u64) -> (u64, Self::Waiter);
    fn resolve(&self, key: u64, value: u64);
    fn fail_all(&self, cause: Failure) -> usize;
    fn reply(output: <Self::Waiter as Future>::Output) -> Reply;
}

impl Registry for RequestRegistry<u64, u64> {
    type Waiter = microio::Waiter<u64, u64>;
    fn new() -> Self {
        RequestRegistry::new()
    }
    fn register(&self, key: u64) -> (u64, Self::Waiter) {
        (key, self.register(key).expect("a new key"))
    }
    fn resolve(&self, key: u64, value: u64) {
        self.resolve(&key, value).expect("somebody waits");
    }
    fn fail_all(&self, cause: Failure) -> usize {
        self.fail_all(cause)
    }
    fn reply(output: Result<u64, RequestError>) -> Reply {
        output.map_err(|error| match error {
            RequestError::Failed(cause) => cause,
            other => other.into(),
        })
    }
}

/// What one writes by hand: a map from keys to the senders of oneshots.
pub(super) type ParkingLot = parking_lot::Mutex<std::collections::HashMap<u64, oneshot::Sender<Reply>>>;
impl Registry for ParkingLot {
    type Waiter = oneshot::Receiver<Reply>;
    fn new() -> Self {
        Default::default()
    }
    fn register(&self, key: u64) -> (u64, Self::Waiter) {
        let (give, take) = oneshot::channel();
        assert!(self.lock().insert(key, give).is_none());
        (key, take)
    }
    fn resolve(&self, key: u64, value: u64) {
        let waiter = self.lock().remove(&key).expect("a request");
        waiter.send(Ok(value)).expect("somebody waits");
    }
    fn fail_all(&self, cause: Failure) -> usize {
        let all = std::mem::take(&mut *self.lock());
        all.into_values().filter_map(|waiter| waiter.send(Err(cause.clone())).ok()).count()
    }
    fn reply(output: Result<Reply, oneshot::error::RecvError>) -> Reply {
        output?
    }
}

pub(super) type Dash = DashMap<u64, oneshot::Sender<Reply>>;
impl Registry for Dash {
    type Waiter = oneshot::Receiver<Reply>;
    fn new() -> Self {
        DashMap::new()
    }
    fn register(&self, key: u64) -> (u64, Self::Waiter) {
        let (give, take) = oneshot::channel();
        assert!(self.insert(key, give).is_none());
        (key, take)
    }
    fn resolve(&self, key: u64, value: u64) {
        let (_, waiter) = self.remove(&key).expect("a request");
        waiter.send(Ok(value)).expect("somebody waits");
    }
    fn fail_all(&self, cause: Failure) -> usize {
        let keys: Vec<u64> = self.iter().map(|entry| *entry.key()).collect();
        let waiters = keys.iter().filter_map(|key| self.remove(key));
        waiters.filter_map(|(_, waiter)| waiter.send(Err(cause.clone())).ok()).count()
    }
    fn reply(output: Result<Reply, oneshot::error::RecvError>) -> Reply {
        output?
    }
}

/// A slab gives the keys: what one writes by hand where they need not be the caller's.
type SlabOnly = parking_lot::Mutex<Slab<oneshot::Sender<Reply>>>;
impl Registry for SlabOnly {
    type Waiter = oneshot::Receiver<Reply>;
    fn new() -> Self {
        Default::default()
    }
    fn register(&self, _: u64) -> (u64, Self::Waiter) {
        let (give, take) = oneshot::channel();
        (self.lock().insert(give) as u64, take)
    }
    fn resolve(&self, key: u64, value: u64) {
        let waiter = self.lock().remove(key as usize);
        waiter.send(Ok(value)).expect("somebody waits");
    }
    fn fail_all(&self, cause: Failure) -> usize {
        let all = std::mem::take(&mut *self.lock());
        all.into_iter().filter_map(|(_, waiter)| waiter.send(Err(cause.clone())).ok()).count()
    }
    fn reply(output: Result<Reply, oneshot::error::RecvError>) -> Reply {
        output?
    }
}

fn one_thread<R: Registry>(run: Run) -> Figure {
    on_loop(async move {
        let registry = R::new();
        run.each_async(async |nth| {
            let (key, waiter) = registry.register(nth as u64);
            registry.resolve(key, nth as u64);
            assert_eq!(R::reply(waiter.await).ok(), Some(nth as u64));
        })
        .await
    })
}

/// A waker for a thread that spins: the cost of a system call to wake it is not the registry's.
#[derive(Default)]
struct Spin(AtomicBool);

impl Wake for Spin {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

fn spin_until<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    for turn in 1.. {
        if let Some(value) = ready() {
            return value;
        }
        if turn % 4096 == 0 { thread::yield_now() } else { std::hint::spin_loop() }
    }
    unreachable!("it spins for ever")
}

/// One thread keeps 64 requests in flight, another answers them in order; 64 words of memory carry the keys.
fn two_threads<R: Registry>(run: Run) -> Figure {
    let registry = Arc::new(R::new());
    let wire: Arc<[AtomicU64; 64]> = Arc::new(std::array::from_fn(|_| AtomicU64::new(0)));
    let (answers, answered) = (registry.clone(), wire.clone());
    let responder = thread::spawn(move || {
        cpu::pin(run.place, 1);
        for nth in 0..run.n {
            let slot = &answered[nth % 64];
            let key = spin_until(|| Some(slot.load(Ordering::Acquire)).filter(|key| *key > 0));
            slot.store(0, Ordering::Release);
            answers.resolve(key - 1, key);
        }
    });
    let spin = Arc::new(Spin::default());
    let waker = Waker::from(spin.clone());
    let mut cx = Context::from_waker(&waker);
    let mut wait = |(key, mut waiter): (u64, R::Waiter)| {
        let output = loop {
            match Pin::new(&mut waiter).poll(&mut cx) {
                Poll::Ready(output) => break output,
                Poll::Pending => spin_until(|| spin.0.swap(false, Ordering::Acquire).then_some(())),
            }
        };
        assert_eq!(R::reply(output).ok(), Some(key + 1));
    };
    let mut flying = VecDeque::with_capacity(64);
    let clock = run.start();
    for nth in 0..run.n {
        if flying.len() == 64 {
            flying.pop_front().map(&mut wait);
        }
        let (key, waiter) = registry.register(nth as u64);
        flying.push_back((key, waiter));
        spin_until(|| (wire[nth % 64].load(Ordering::Relaxed) == 0).then_some(()));
        wire[nth % 64].store(key + 1, Ordering::Release);
    }
    flying.into_iter().for_each(wait);
    let figure = clock.stop(run.n);
    responder.join().expect("it does not panic");
    figure
}

/// In batches of ten thousand.
fn fail_all<R: Registry>(run: Run) -> Figure {
    const BATCH: usize = 10_000;
    Figure::mean((0..run.n / BATCH).map(|_| fail_batch::<R>(Run { n: BATCH, ..run })))
}

/// Each waiter waits: its waker is in the registry.
fn fail_batch<R: Registry>(run: Run) -> Figure {
    let registry = R::new();
    let mut cx = Context::from_waker(Waker::noop());
    let mut waiters: Vec<_> = (0..run.n).map(|nth| registry.register(nth as u64).1).collect();
    assert!(waiters.iter_mut().all(|waiter| Pin::new(waiter).poll(&mut cx).is_pending()));
    let cause = Failure::msg("the reader died");
    let clock = run.start();
    let failed = registry.fail_all(cause.clone());
    let figure = clock.stop(run.n);
    assert_eq!(failed, run.n);
    for mut waiter in waiters {
        let Poll::Ready(output) = Pin::new(&mut waiter).poll(&mut cx) else { panic!("it still waits") };
        assert!(R::reply(output).is_err_and(|error| error.ptr_eq(&cause)));
    }
    figure
}

pub(super) fn cases() -> Vec<Case> {
    let one = vec![
        ours("microio", one_thread::<RequestRegistry<u64, u64>>),
        peer("parking_lot + oneshot", one_thread::<ParkingLot>),
        peer("DashMap + oneshot", one_thread::<Dash>),
    ];
    let two: Vec<Contender> = vec![
        ours("microio", two_threads::<RequestRegistry<u64, u64>>),
        peer("DashMap + oneshot", two_threads::<Dash>),
        peer("parking_lot + oneshot", two_threads::<ParkingLot>),
    ];
    let fail = vec![
        ours("microio", fail_all::<RequestRegistry<u64, u64>>),
        peer("parking_lot + oneshot", fail_all::<ParkingLot>),
        peer("DashMap + oneshot", fail_all::<Dash>),
        peer("Slab + oneshot", fail_all::<SlabOnly>),
    ];
    const KEYED: Bar = Bar::BestOf(&["parking_lot + oneshot", "DashMap + oneshot"]);
    vec![
        Case::new("registry.one", "register + resolve + wait, one thread", 1_000_000, one)
            .target(Bar::Best, 0.85)
            .target(Bar::Allocations, 0.0),
        Case::new("registry.two", "64 in flight, two threads", 500_000, two)
            .places(&[Place::Cross])
            .target(Bar::Best, 0.5)
            .target(Bar::Allocations, 0.0),
        Case::new("registry.fail_all", "fail_all, per waiter", 200_000, fail).target(KEYED, 0.6),
    ]
}
