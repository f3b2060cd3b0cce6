//! Items from threads into a loop: throughput.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use crate::cpu::{self, Place};
use crate::harness::{Bar, Case, Contender, Figure, Run, on_loop, ours, peer};

/// One receiver on a loop, senders on threads.
pub(super) trait Channel<T>: 'static {
    type Sender: Clone + Send + 'static;
    type Receiver: Send + 'static;
    fn open() -> (Self::Sender, Self::Receiver);
    fn send(to: &Self::Sender, item: T);
    /// Receives what the contender receives in one go: an item, or a batch.
    fn recv(from: &mut Self::Receiver, each: impl FnMut(T)) -> impl Future<Output = ()>;
}

/// As many as are there.
const MANY: usize = 1 << 20;

pub(super) struct Microio;
impl<T: Send + 'static> Channel<T> for Microio {
    type Sender = microio::Sender<T>;
    type Receiver = (microio::Receiver<T>, Vec<T>);
    fn open() -> (Self::Sender, Self::Receiver) {
        let (tx, rx) = microio::channel();
        (tx, (rx, Vec::new()))
    }
    fn send(to: &Self::Sender, item: T) {
        assert!(to.try_send(item).is_ok());
    }
    async fn recv((from, batch): &mut Self::Receiver, each: impl FnMut(T)) {
        from.recv_many(batch, MANY).await.expect("an item");
        batch.drain(..).for_each(each);
    }
}

pub(super) struct MicroioItems;
impl<T: Send + 'static> Channel<T> for MicroioItems {
    type Sender = microio::Sender<T>;
    type Receiver = microio::Receiver<T>;
    fn open() -> (Self::Sender, Self::Receiver) {
        microio::channel()
    }
    fn send(to: &Self::Sender, item: T) {
        assert!(to.try_send(item).is_ok());
    }
    async fn recv(from: &mut Self::Receiver, mut each: impl FnMut(T)) {
        each(from.recv().await.expect("an item"));
    }
}

pub(super) struct Tokio;
impl<T: Send + 'static> Channel<T> for Tokio {
    type Sender = tokio::sync::mpsc::UnboundedSender<T>;
    type Receiver = (tokio::sync::mpsc::UnboundedReceiver<T>, Vec<T>);
    fn open() -> (Self::Sender, Self::Receiver) {
        let (tx, rx) = tokio::sync::mpsc::unbounded_channel();
        (tx, (rx, Vec::new()))
    }
    fn send(to: &Self::Sender, item: T) {
        assert!(to.send(item).is_ok());
    }
    async fn recv((from, batch): &mut Self::Receiver, each: impl FnMut(T)) {
        assert!(from.recv_many(batch, MANY).await > 0);
        batch.drain(..).for_each(each);
    }
}

pub(super) struct TokioItems;
impl<T: Send + 'static> Channel<T> for TokioItems {
    type Sender = tokio::sync::mpsc::UnboundedSender<T>;
    type Receiver = tokio::sync::mpsc::UnboundedReceiver<T>;
    fn open() -> (Self::Sender, Self::Receiver) {
        tokio::sync::mpsc::unbounded_channel()
    }
    fn send(to: &Self::Sender, item: T) {
        assert!(to.send(item).is_ok());
    }
    async fn recv(from: &mut Self::Receiver, mut each: impl FnMut(T)) {
        each(from.recv().await.expect("an item"));
    }
}

pub(super) struct Kanal;
impl<T: Send + 'static> Channel<T> for Kanal {
    type Sender = kanal::Sender<T>;
    type Receiver = (kanal::AsyncReceiver<T>, Vec<T>);
    fn open() -> (Self::Sender, Self::Receiver) {
        let (tx, rx) = kanal::unbounded();
        (tx, (rx.to_async(), Vec::new()))
    }
    fn send(to: &Self::Sender, item: T) {
        assert!(to.send(item).is_ok());
    }
    async fn recv((from, batch): &mut Self::Receiver, each: impl FnMut(T)) {
        if from.drain_into(batch).expect("an open channel") == 0 {
            batch.push(from.recv().await.expect("an item"));
        }
        batch.drain(..).for_each(each);
    }
}

pub(super) struct KanalItems;
impl<T: Send + 'static> Channel<T> for KanalItems {
    type Sender = kanal::Sender<T>;
    type Receiver = kanal::AsyncReceiver<T>;
    fn open() -> (Self::Sender, Self::Receiver) {
        let (tx, rx) = kanal::unbounded();
        (tx, rx.to_async())
    }
    fn send(to: &Self::Sender, item: T) {
        assert!(to.send(item).is_ok());
    }
    async fn recv(from: &mut Self::Receiver, mut each: impl FnMut(T)) {
        each(from.recv().await.expect("an item"));
    }
}

pub(super) struct Crossfire;
impl<T: Send + Unpin + 'static> Channel<T> for Crossfire {
    type Sender = crossfire::MTx<crossfire::mpsc::List<T>>;
    type Receiver = crossfire::AsyncRx<crossfire::mpsc::List<T>>;
    fn open() -> (Self::Sender, Self::Receiver) {
        crossfire::mpsc::unbounded_async()
    }
    fn send(to: &Self::Sender, item: T) {
        assert!(to.send(item).is_ok());
    }
    async fn recv(from: &mut Self::Receiver, mut each: impl FnMut(T)) {
        each(from.recv().await.expect("an item"));
    }
}

pub(super) struct Flume;
impl<T: Send + 'static> Channel<T> for Flume {
    type Sender = flume::Sender<T>;
    type Receiver = flume::Receiver<T>;
    fn open() -> (Self::Sender, Self::Receiver) {
        flume::unbounded()
    }
    fn send(to: &Self::Sender, item: T) {
        assert!(to.send(item).is_ok());
    }
    async fn recv(from: &mut Self::Receiver, mut each: impl FnMut(T)) {
        each(from.recv_async().await.expect("an item"));
    }
}

pub(super) struct AsyncChannel;
impl<T: Send + 'static> Channel<T> for AsyncChannel {
    type Sender = async_channel::Sender<T>;
    type Receiver = async_channel::Receiver<T>;
    fn open() -> (Self::Sender, Self::Receiver) {
        async_channel::unbounded()
    }
    fn send(to: &Self::Sender, item: T) {
        assert!(to.try_send(item).is_ok());
    }
    async fn recv(from: &mut Self::Receiver, mut each: impl FnMut(T)) {
        each(from.recv().await.expect("an item"));
    }
}

/// What is sent: numbered, so that the sum tells whether all came.
pub(super) trait Item: Send + Unpin + 'static {
    fn new(number: u64) -> Self;
    fn number(&self) -> u64;
}

impl Item for u64 {
    fn new(number: u64) -> Self {
        number
    }
    fn number(&self) -> u64 {
        *self
    }
}

/// 64 bytes.
impl Item for [u64; 8] {
    fn new(number: u64) -> Self {
        [number; 8]
    }
    fn number(&self) -> u64 {
        std::hint::black_box(self)[7]
    }
}

/// `run.n` items in all from so many threads.
pub(super) fn throughput<T: Item, C: Channel<T>>(producers: usize, run: Run) -> Figure {
    let each = run.n / producers;
    let (tx, mut rx) = C::open();
    let gate = Arc::new((Barrier::new(producers + 1), AtomicBool::new(false)));
    let threads: Vec<_> = (1..=producers)
        .map(|nth| {
            let (tx, gate) = (tx.clone(), gate.clone());
            thread::spawn(move || {
                cpu::pin(run.place, nth);
                gate.0.wait();
                while !gate.1.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                (0..each).for_each(|number| C::send(&tx, T::new(number as u64)));
            })
        })
        .collect();
    let figure = on_loop(async move {
        let (mut count, mut sum) = (0, 0);
        gate.0.wait();
        let clock = run.start(); // and only then the first item
        gate.1.store(true, Ordering::Release);
        while count < each * producers {
            let each = |item: T| {
                count += 1;
                sum += item.number();
            };
            C::recv(&mut rx, each).await;
        }
        let figure = clock.stop(count);
        assert_eq!(sum as usize, producers * each * each.saturating_sub(1) / 2, "not what was sent");
        figure
    });
    threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    figure
}

fn contenders<T: Item>(producers: usize) -> Vec<Contender> {
    vec![
        ours("microio", move |run| throughput::<T, Microio>(producers, run)),
        ours("microio recv", move |run| throughput::<T, MicroioItems>(producers, run)),
        peer("kanal drain_into", move |run| throughput::<T, Kanal>(producers, run)),
        peer("kanal recv", move |run| throughput::<T, KanalItems>(producers, run)),
        peer("tokio recv_many", move |run| throughput::<T, Tokio>(producers, run)),
        peer("tokio recv", move |run| throughput::<T, TokioItems>(producers, run)),
        peer("crossfire", move |run| throughput::<T, Crossfire>(producers, run)),
        peer("flume", move |run| throughput::<T, Flume>(producers, run)),
        peer("async-channel", move |run| throughput::<T, AsyncChannel>(producers, run)),
    ]
}

const TOKIO: Bar = Bar::BestOf(&["tokio recv_many", "tokio recv"]);

pub(super) fn cases() -> Vec<Case> {
    use Place::{Cross, Same, Spread};
    // The targets were set with two CPUs; on one, no cache line moves, and the ratio is shown without a verdict.
    let across: Option<&[Place]> = Some(&[Cross, Spread]);
    vec![
        Case::new("channel.u64-1", "thread -> loop, u64, 1 producer, batches", 2_000_000, contenders::<u64>(1))
            .places(&[Cross, Same])
            .target_at(across, "microio", Bar::Best, 0.85)
            .target_at(across, "microio recv", Bar::BestOf(&["kanal recv"]), 0.7)
            .target_at(across, "microio", TOKIO, 0.25)
            .target_of("microio recv", Bar::Allocations, 0.0),
        Case::new("channel.64B-1", "64-byte items, 1 producer", 1_000_000, contenders::<[u64; 8]>(1))
            .places(&[Cross, Same])
            .target_at(across, "microio", Bar::Best, 0.85),
        Case::new("channel.u64-4", "u64, 4 producers", 1_000_000, contenders::<u64>(4))
            .places(&[Cross, Spread, Same])
            .target_at(across, "microio", Bar::Best, 0.8)
            .target_at(across, "microio", TOKIO, 0.2),
    ]
}
