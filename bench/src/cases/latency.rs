//! One item into a loop on another thread: how long it takes.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use microio::{LoopServiceThread, Service};
use rustix::event::{EventfdFlags, epoll, eventfd};
use tokio::task::spawn_local;

use super::channel::{AsyncChannel, Channel, Crossfire, Flume, KanalItems, MicroioItems, TokioItems};
use crate::cpu::{self, Place};
use crate::harness::{Bar, Case, Figure, Run, limit, on_loop, ours, peer};

/// A thread with a loop, on the second place. What it returns waits for the end of the thread.
pub(super) trait Host: 'static {
    fn run<F>(place: Place, body: impl FnOnce() -> F + Send + 'static) -> impl FnOnce()
    where
        F: Future<Output = ()> + 'static;
}

/// What one writes by hand: a thread and a current-thread runtime with its defaults.
pub(super) struct ByHand;
impl Host for ByHand {
    fn run<F>(place: Place, body: impl FnOnce() -> F + Send + 'static) -> impl FnOnce()
    where
        F: Future<Output = ()> + 'static,
    {
        let thread = thread::spawn(move || {
            cpu::pin(place, 1);
            on_loop(body());
        });
        move || thread.join().expect("it does not panic")
    }
}

/// microio's own.
pub(super) struct OnService;
impl Host for OnService {
    fn run<F>(place: Place, body: impl FnOnce() -> F + Send + 'static) -> impl FnOnce()
    where
        F: Future<Output = ()> + 'static,
    {
        let service = LoopServiceThread::new("loop", move |cx| async move {
            cpu::pin(place, 1);
            cx.started();
            body().await;
            Ok(())
        });
        service.start().and_then(|()| service.wait_started(None)).expect("a service");
        move || service.join(None).expect("it does not fail")
    }
}

/// How every contender answers a thread that waits: a flag and a futex.
pub(super) struct Bell(Thread, AtomicBool);

impl Bell {
    /// Wakes the calling thread.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Bell(thread::current(), AtomicBool::new(false)))
    }
    pub(super) fn ring(&self) {
        self.1.store(true, Ordering::Release);
        self.0.unpark();
    }
    pub(super) fn wait(&self) {
        while !self.1.swap(false, Ordering::Acquire) {
            thread::park();
        }
    }
}

/// To an idle loop and back: the item wakes the loop, its receiver wakes the sender.
fn round_trip<C: Channel<u64>, H: Host>(run: Run) -> Figure {
    let (tx, mut rx) = C::open();
    let bell = Bell::new();
    let ringer = bell.clone();
    let join = H::run(run.place, move || async move {
        let mut count = 0;
        while count < run.n {
            C::recv(&mut rx, |_| {
                count += 1;
                ringer.ring();
            })
            .await;
        }
    });
    let figure = run.p50(|nth| {
        C::send(&tx, nth as u64);
        bell.wait();
    });
    join();
    figure
}

/// As few system calls as a loop can do with: one to wake it, one in which it sleeps, one to answer and one to sleep.
pub(super) fn no_abstraction(run: Run, work: impl Fn() + Send + 'static, mut then: impl FnMut()) -> Figure {
    let (event, poll) = (eventfd(0, EventfdFlags::NONBLOCK), epoll::create(epoll::CreateFlags::CLOEXEC));
    let (event, poll) = (Arc::new(event.expect("an eventfd")), poll.expect("an epoll"));
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&poll, &event, epoll::EventData::new_u64(0), flags).expect("watched");
    let bell = Bell::new();
    let ringer = bell.clone();
    let thread = thread::spawn(move || {
        cpu::pin(run.place, 1);
        let mut events = Vec::with_capacity(8);
        for _ in 0..run.n {
            events.clear();
            while epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None).expect("events") == 0 {}
            work();
            ringer.ring();
        }
    });
    let figure = run.p50(|_| {
        rustix::io::write(&event, &1u64.to_ne_bytes()).expect("written");
        bell.wait();
        then();
    });
    thread.join().expect("it does not panic");
    figure
}

/// Tasks that are always ready, each with half a microsecond to do: the loop never looks for something else by itself.
pub(super) fn keep_busy() {
    for _ in 0..8 {
        spawn_local(poll_fn(|cx| {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_nanos(500) {}
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
    }
}

/// From the send to the receive, on a loop that is never idle. The sender never sleeps, and sends at random times.
fn one_way<C: Channel<Instant>, H: Host>(run: Run) -> Figure {
    let (tx, mut rx) = C::open();
    let received = Arc::new(AtomicUsize::new(0));
    let (counter, (give, take)) = (received.clone(), std::sync::mpsc::channel());
    let join = H::run(run.place, move || async move {
        keep_busy();
        let mut took = Vec::with_capacity(run.n);
        let clock = run.start();
        while took.len() < run.n {
            C::recv(&mut rx, |sent: Instant| took.push(sent.elapsed())).await;
            counter.store(took.len(), Ordering::Release);
        }
        give.send(clock.stop_with(&mut took)).expect("somebody waits");
    });
    for nth in 0..run.n {
        let due = Instant::now() + Duration::from_micros(fastrand::u64(..50));
        while Instant::now() < due {}
        C::send(&tx, Instant::now());
        while received.load(Ordering::Acquire) <= nth {
            std::hint::spin_loop();
        }
    }
    join();
    take.recv().expect("a figure")
}

/// The design that is a step away: a loop that looks for calls of other threads in every tick.
struct EveryTick;
impl Host for EveryTick {
    fn run<F>(place: Place, body: impl FnOnce() -> F + Send + 'static) -> impl FnOnce()
    where
        F: Future<Output = ()> + 'static,
    {
        let thread = thread::spawn(move || {
            cpu::pin(place, 1);
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().global_queue_interval(1).build_local(Default::default());
            runtime.expect("a runtime").block_on(async { spawn_local(body()).await.expect("it does not panic") });
        });
        move || thread.join().expect("it does not panic")
    }
}

pub(super) fn cases() -> Vec<Case> {
    use Place::{Cross, Same};
    let idle = vec![
        ours("microio", round_trip::<MicroioItems, OnService>),
        peer("flume", round_trip::<Flume, ByHand>),
        peer("crossfire", round_trip::<Crossfire, ByHand>),
        peer("kanal", round_trip::<KanalItems, ByHand>),
        peer("tokio", round_trip::<TokioItems, ByHand>),
        peer("async-channel", round_trip::<AsyncChannel, ByHand>),
        limit("eventfd + futex", |run| no_abstraction(run, || {}, || {})),
    ];
    let busy = vec![
        ours("microio", one_way::<MicroioItems, OnService>),
        ours("microio, by hand", one_way::<MicroioItems, ByHand>),
        peer("flume", one_way::<Flume, ByHand>),
        peer("crossfire", one_way::<Crossfire, ByHand>),
        peer("kanal", one_way::<KanalItems, ByHand>),
        peer("tokio", one_way::<TokioItems, ByHand>),
        peer("async-channel", one_way::<AsyncChannel, ByHand>),
        limit("tokio, interval 1", one_way::<TokioItems, EveryTick>),
    ];
    const FUTEX: Bar = Bar::BestOf(&["eventfd + futex"]);
    vec![
        Case::new("latency.idle", "an item wakes an idle loop, which wakes the sender: p50", 10_000, idle)
            .places(&[Same, Cross])
            .target_at(Some(&[Same]), "microio", FUTEX, 1.05)
            .target_at(Some(&[Cross]), "microio", FUTEX, 1.1),
        Case::new("latency.busy", "an item into a loop that is never idle, one way: p50", 2_000, busy)
            .places(&[Cross])
            .target(Bar::Best, 0.06),
    ]
}
