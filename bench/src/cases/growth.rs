//! How costs grow: with the number of producers, with the load, with what is pending, parked or queued.

use std::task::Waker;
use std::time::{Duration, Instant};

use microio::{RequestRegistry, TaskGroup};
use tokio::task::JoinSet;

use super::channel::{AsyncChannel, Channel, Crossfire, Flume, Kanal, Microio, Tokio, TokioItems, throughput};
use super::group::{Plain, Token, parked_bytes, parked_time};
use super::latency::{ByHand, Host, OnService};
use super::registry::{Dash, ParkingLot, Registry};
use crate::cpu::Place;
use crate::harness::{Case, Contender, Figure, Run, on_loop, ours, peer};

fn producers() -> Vec<Contender> {
    vec![
        ours("microio", |run| throughput::<u64, Microio>(run.x, run)),
        peer("kanal", |run| throughput::<u64, Kanal>(run.x, run)),
        peer("crossfire", |run| throughput::<u64, Crossfire>(run.x, run)),
        peer("flume", |run| throughput::<u64, Flume>(run.x, run)),
        peer("tokio", |run| throughput::<u64, Tokio>(run.x, run)),
    ]
}

/// Items that are due at fixed times, `run.x` a second. The time from when each was due: who falls behind pays for it.
fn under_load<C: Channel<Instant>, H: Host>(run: Run) -> Figure {
    let n = (run.x / 20).clamp(100, 20_000);
    let (tx, mut rx) = C::open();
    let (give, take) = std::sync::mpsc::channel();
    let join = H::run(run.place, move || async move {
        let mut took = Vec::with_capacity(n);
        let clock = run.start();
        while took.len() < n {
            C::recv(&mut rx, |due: Instant| took.push(due.elapsed())).await;
        }
        give.send(clock.stop_with(&mut took)).expect("somebody waits");
    });
    let (begin, interval) = (Instant::now(), Duration::from_secs(1) / run.x as u32);
    for nth in 0..n {
        let due = begin + interval * nth as u32;
        while Instant::now() < due {}
        C::send(&tx, due);
    }
    join();
    take.recv().expect("a figure")
}

fn load() -> Vec<Contender> {
    vec![
        ours("microio", under_load::<Microio, OnService>),
        peer("kanal", under_load::<Kanal, ByHand>),
        peer("crossfire", under_load::<Crossfire, ByHand>),
        peer("flume", under_load::<Flume, ByHand>),
        peer("async-channel", under_load::<AsyncChannel, ByHand>),
        peer("tokio", under_load::<TokioItems, ByHand>),
    ]
}

/// Registers `run.x` requests, then answers and hears each.
fn pending_time<R: Registry>(run: Run) -> Figure {
    let mut cx = std::task::Context::from_waker(Waker::noop());
    let registry = R::new();
    let mut waiters = Vec::with_capacity(run.x);
    let clock = run.start();
    waiters.extend((0..run.x as u64).map(|nth| registry.register(nth)));
    for (key, waiter) in &mut waiters {
        registry.resolve(*key, 1);
        let std::task::Poll::Ready(output) = std::pin::Pin::new(waiter).poll(&mut cx) else { panic!("no answer") };
        assert_eq!(R::reply(output).ok(), Some(1));
    }
    clock.stop(run.x)
}

fn pending_bytes<R: Registry>(run: Run) -> Figure {
    let scale = run.weigh();
    let registry = R::new();
    let waiters: Vec<_> = (0..run.x as u64).map(|nth| registry.register(nth).1).collect();
    let figure = scale.stop_weighing(run.x);
    drop(waiters);
    figure
}

/// `run.x` items are sent, then received.
fn queued_time<C: Channel<u64>>(run: Run) -> Figure {
    on_loop(async move {
        let (tx, mut rx) = C::open();
        let mut count = 0;
        let clock = run.start();
        (0..run.x as u64).for_each(|nth| C::send(&tx, nth));
        while count < run.x {
            C::recv(&mut rx, |_| count += 1).await;
        }
        clock.stop(run.x)
    })
}

fn queued_bytes<C: Channel<u64>>(run: Run) -> Figure {
    let scale = run.weigh();
    let (tx, rx) = C::open();
    (0..run.x as u64).for_each(|nth| C::send(&tx, nth));
    let figure = scale.stop_weighing(run.x);
    drop(rx);
    figure
}

/// As many tasks as the point of the axis says.
fn sized(park: fn(Run) -> Figure) -> impl Fn(Run) -> Figure {
    move |run| park(Run { n: run.x, ..run })
}

pub(super) fn cases() -> Vec<Case> {
    type Ours = RequestRegistry<u64, u64>;
    const SIZES: &[usize] = &[1_000, 10_000, 100_000, 1_000_000];
    let pending_time = vec![
        ours("microio", pending_time::<Ours>),
        peer("parking_lot + oneshot", pending_time::<ParkingLot>),
        peer("DashMap + oneshot", pending_time::<Dash>),
    ];
    let pending_bytes = vec![
        ours("microio", pending_bytes::<Ours>),
        peer("parking_lot + oneshot", pending_bytes::<ParkingLot>),
        peer("DashMap + oneshot", pending_bytes::<Dash>),
    ];
    let parked_time = vec![
        ours("microio", sized(parked_time::<TaskGroup>)),
        peer("plain spawn", sized(parked_time::<Plain>)),
        peer("JoinSet", sized(parked_time::<JoinSet<()>>)),
        peer("TaskTracker + token", sized(parked_time::<Token>)),
    ];
    let parked_bytes = vec![
        ours("microio", sized(parked_bytes::<TaskGroup>)),
        peer("plain spawn", sized(parked_bytes::<Plain>)),
        peer("JoinSet", sized(parked_bytes::<JoinSet<()>>)),
        peer("TaskTracker + token", sized(parked_bytes::<Token>)),
    ];
    let queued_time = vec![
        ours("microio", queued_time::<Microio>),
        peer("kanal", queued_time::<Kanal>),
        peer("crossfire", queued_time::<Crossfire>),
        peer("tokio", queued_time::<Tokio>),
    ];
    let queued_bytes = vec![
        ours("microio", queued_bytes::<Microio>),
        peer("kanal", queued_bytes::<Kanal>),
        peer("crossfire", queued_bytes::<Crossfire>),
        peer("tokio", queued_bytes::<Tokio>),
    ];
    vec![
        Case::new("growth.producers", "time per item", 400_000, producers())
            .places(&[Place::Spread])
            .along("producers", &[1, 2, 4, 8, 16]),
        Case::new("growth.load", "latency of an item: p50", 1, load())
            .places(&[Place::Cross])
            .along("items/s", &[1_000, 10_000, 100_000, 1_000_000]),
        Case::new("growth.pending-time", "register, resolve, wait", 1, pending_time).along("pending", SIZES),
        Case::new("growth.pending-bytes", "heap per request", 1, pending_bytes).unit("B").along("pending", SIZES),
        Case::new("growth.parked-time", "spawn a task and park it", 1, parked_time).along("parked", SIZES),
        Case::new("growth.parked-bytes", "heap per task", 1, parked_bytes).unit("B").along("parked", SIZES),
        Case::new("growth.queued-time", "send, then receive", 1, queued_time).along("queued", SIZES),
        Case::new("growth.queued-bytes", "heap per item", 1, queued_bytes).unit("B").along("queued", SIZES),
    ]
}
