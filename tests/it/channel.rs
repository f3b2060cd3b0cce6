//! Tests of `src/channel.rs`.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
#[cfg(feature = "tokio")]
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use microio::host::LoopMark;
use microio::{
    ChannelStats, Failure, LateSend, Receiver, RecvBlockingError, RecvError, SendBlockingError, SendError, Sender,
    TryRecvError, TrySendError, channel,
};

use crate::support::{Abreast, BURST, Hand, kept_by, meddler, poll_once, poll_with, ready, scaled};

const ZERO: Option<Duration> = Some(Duration::ZERO);
const TINY: Option<Duration> = Some(Duration::from_micros(50));

fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    microio::bounded(NonZeroUsize::new(capacity).unwrap())
}

fn stats(sent: u64, received: u64, dropped: u64, queued: u64, closed: bool) -> ChannelStats {
    ChannelStats { sent, received, dropped, queued, closed }
}

// The table at the top of the file, row by row.

#[test]
fn an_open_channel_queues_and_hands_out_in_order() {
    let (tx, mut rx) = channel();
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Empty)));
    assert!(matches!(rx.recv_blocking(ZERO), Err(RecvBlockingError::TimedOut)));
    assert!(matches!(rx.recv_blocking(TINY), Err(RecvBlockingError::TimedOut)));
    tx.try_send(1).unwrap();
    ready(tx.send(2)).unwrap();
    tx.send_blocking(3, ZERO).unwrap();
    assert_eq!((ready(rx.recv()).unwrap(), rx.try_recv().unwrap(), rx.recv_blocking(ZERO).unwrap()), (1, 2, 3));
    assert!(!tx.is_closed() && tx.cause().is_none());
}

#[test]
fn close_lets_what_is_queued_through_and_then_ends_the_stream_for_good() {
    let (tx, mut rx) = channel();
    tx.try_send(1).unwrap();
    tx.try_send(2).unwrap();
    assert!(tx.close());
    assert!(!tx.close() && !rx.close() && !tx.fail(Failure::msg("too late")) && !rx.fail(Failure::msg("too late")));
    assert!(tx.is_closed() && tx.cause().is_none());
    assert_eq!((ready(rx.recv()).unwrap(), rx.try_recv().unwrap()), (1, 2));
    for _ in 0..2 {
        assert!(matches!(ready(rx.recv()), Err(RecvError::EndOfStream)));
        assert!(matches!(ready(rx.recv_many(&mut Vec::new(), 9)), Err(RecvError::EndOfStream)));
        assert!(matches!(rx.try_recv(), Err(TryRecvError::EndOfStream)));
        assert!(matches!(rx.recv_blocking(None), Err(RecvBlockingError::EndOfStream)));
        assert_eq!(rx.drain(None), []);
    }
}

#[test]
fn fail_lets_what_is_queued_through_and_then_gives_the_cause_again_and_again() {
    let ((tx, mut rx), cause) = (channel(), Failure::msg("the reader died"));
    tx.try_send(1).unwrap();
    assert!(rx.fail(cause.clone()));
    assert!(!tx.close() && !tx.fail(Failure::msg("another")));
    assert_eq!(ready(rx.recv()).unwrap(), 1);
    for _ in 0..2 {
        assert!(matches!(ready(rx.recv()), Err(RecvError::Failed(seen)) if seen.ptr_eq(&cause)));
        assert!(matches!(rx.try_recv(), Err(TryRecvError::Failed(seen)) if seen.ptr_eq(&cause)));
        assert!(matches!(rx.recv_blocking(None), Err(RecvBlockingError::Failed(seen)) if seen.ptr_eq(&cause)));
    }
    assert!(tx.cause().unwrap().ptr_eq(&cause), "late senders see why");
}

#[test]
fn a_late_send_gives_the_item_back_and_is_counted() {
    let (tx, rx) = channel();
    tx.close();
    assert!(matches!(tx.try_send(1), Err(TrySendError::Closed(1))));
    assert!(matches!(ready(tx.send(2)), Err(SendError(2))));
    assert!(matches!(tx.send_blocking(3, None), Err(SendBlockingError::Closed(3))));
    assert_eq!(rx.stats(), stats(0, 0, 3, 0, true));
}

#[test]
fn a_late_send_that_was_told_to_drop_says_ok_and_is_counted() {
    let (tx, rx) = channel();
    let tx = tx.with_late_send(LateSend::Drop).clone(); // clones inherit it
    tx.close();
    tx.try_send(1).unwrap();
    ready(tx.send(2)).unwrap();
    tx.send_blocking(3, None).unwrap();
    assert_eq!(rx.stats(), stats(0, 0, 3, 0, true));
}

#[test]
fn a_dropped_receiver_closes_and_counts_what_it_left_behind() {
    let (tx, mut rx) = channel();
    let items = Arc::new(());
    (0..100).for_each(|_| tx.try_send(items.clone()).unwrap());
    rx.try_recv().unwrap();
    tx.try_send(items.clone()).unwrap(); // some in the receiver's batch, one in the queue
    drop(rx);
    assert_eq!(Arc::strong_count(&items), 1, "all were dropped");
    assert!(tx.is_closed() && tx.cause().is_none());
    assert!(matches!(tx.try_send(items), Err(TrySendError::Closed(_))));
    assert_eq!(tx.stats(), stats(101, 1, 101, 0, true));
}

#[test]
fn the_stream_ends_with_the_last_sender() {
    let ((tx, mut rx), hand) = (channel::<u8>(), Hand::new());
    let clone = tx.clone();
    let mut recv = Box::pin(rx.recv());
    assert!(hand.poll(&mut recv).is_pending());
    drop(tx);
    assert_eq!(hand.wakes(), 0, "one is left");
    clone.try_send(1).unwrap();
    drop(clone);
    assert!(matches!(hand.poll(&mut recv), Poll::Ready(Ok(1))));
    drop(recv);
    assert!(matches!(rx.recv_blocking(None), Err(RecvBlockingError::EndOfStream)));
}

#[test]
fn an_error_object_is_an_item_like_any_other() {
    let (tx, mut rx) = channel::<Result<u8, Failure>>();
    tx.try_send(Err(Failure::msg("data"))).unwrap();
    assert_eq!(ready(rx.recv()).unwrap().unwrap_err().to_string(), "data");
    assert!(tx.cause().is_none() && !tx.is_closed());
}

// Receiving.

#[test]
fn a_parked_receiver_is_woken_by_the_first_item_only() {
    let ((tx, mut rx), hand) = (channel(), Hand::new());
    let mut recv = pin!(rx.recv());
    assert!(hand.poll(&mut recv).is_pending() && hand.poll(&mut recv).is_pending());
    assert_eq!(hand.wakers(), 1);
    (0..3).for_each(|n| tx.try_send(n).unwrap());
    assert_eq!((hand.wakes(), hand.wakers()), (1, 0), "the edge, not every item");
    assert!(matches!(hand.poll(&mut recv), Poll::Ready(Ok(0))));
    tx.try_send(3).unwrap();
    assert_eq!(hand.wakes(), 1, "nobody is parked");
}

#[test]
fn the_end_wakes_a_parked_receiver() {
    for fails in [false, true] {
        let ((tx, mut rx), hand) = (channel::<u8>(), Hand::new());
        let mut recv = pin!(rx.recv());
        assert!(hand.poll(&mut recv).is_pending());
        if fails {
            tx.fail(Failure::msg("eof"))
        } else {
            tx.close()
        };
        assert_eq!(hand.wakes(), 1);
        assert!(matches!(hand.poll(&mut recv), Poll::Ready(Err(_))));
    }
}

/// flume#104, kanal#24: dropped before the item, and dropped when the wake is on its way.
#[test]
fn a_receive_dropped_at_any_point_loses_nothing_and_leaves_no_waker() {
    for send_first in [false, true] {
        let ((tx, mut rx), hand) = (channel(), Hand::new());
        drop(rx.recv()); // never polled
        let mut recv = Box::pin(rx.recv());
        assert!(hand.poll(&mut recv).is_pending());
        if send_first {
            tx.try_send(1).unwrap();
        }
        drop(recv);
        assert_eq!(hand.wakers(), 0);
        let mut out = Vec::new();
        if !send_first {
            assert!(hand.poll(&mut Box::pin(rx.recv_many(&mut out, 5))).is_pending());
            assert_eq!(hand.wakers(), 0);
            tx.try_send(1).unwrap();
        }
        assert_eq!((hand.wakes(), ready(rx.recv()).unwrap(), out.len()), (usize::from(send_first), 1, 0));
        assert_eq!(rx.stats(), stats(1, 1, 0, 0, false));
    }
}

#[test]
fn poll_recv_leaves_its_waker_until_it_is_woken() {
    let (tx, mut rx) = channel();
    let hand = Hand::new();
    assert!(hand.poll(&mut pin!(poll_fn(|cx| rx.poll_recv(cx)))).is_pending());
    assert_eq!(hand.wakers(), 1);
    tx.try_send(1).unwrap();
    assert_eq!((hand.wakes(), hand.wakers()), (1, 0));
    assert!(matches!(hand.poll(&mut pin!(poll_fn(|cx| rx.poll_recv(cx)))), Poll::Ready(Ok(1))));
    assert_eq!(rx.stats(), stats(1, 1, 0, 0, false));
}

#[test]
fn receive_many_appends_what_is_there_up_to_its_limit() {
    let (tx, mut rx) = channel();
    (0..100).for_each(|n| tx.try_send(n).unwrap());
    let mut out = vec![-1];
    assert_eq!(ready(rx.recv_many(&mut out, 0)).unwrap(), 0);
    assert_eq!(ready(rx.recv_many(&mut out, 40)).unwrap(), 40);
    assert_eq!(rx.stats(), stats(100, 40, 0, 60, false));
    assert_eq!(ready(rx.recv_many(&mut out, 1000)).unwrap(), 60);
    assert_eq!(out, (-1..100).collect::<Vec<_>>());
    assert!(poll_once(&mut pin!(rx.recv_many(&mut out, 1))).is_pending());
}

#[test]
fn a_drain_takes_what_is_queued_up_to_its_limit() {
    let (tx, mut rx) = channel();
    (0..100).for_each(|n| tx.try_send(n).unwrap());
    assert_eq!(rx.try_recv().unwrap(), 0); // the rest is in the receiver's hands, and still queued
    assert_eq!(rx.stats(), stats(100, 1, 0, 99, false));
    (100..200).for_each(|n| tx.try_send(n).unwrap());
    assert_eq!(rx.drain(Some(0)), []);
    assert_eq!(rx.drain(Some(150)), (1..151).collect::<Vec<_>>());
    assert_eq!(rx.stats(), stats(200, 151, 0, 49, false));
    assert_eq!(rx.drain(None), (151..200).collect::<Vec<_>>());
}

#[test]
fn a_million_items_come_through_in_order() {
    let ((tx, mut rx), count) = (channel(), scaled(1_000_000));
    thread::scope(|threads| {
        threads.spawn(move || (0..count).for_each(|n| tx.try_send(n).unwrap()));
        (0..count).for_each(|n| assert_eq!(rx.recv_blocking(None).unwrap(), n));
    });
    assert_eq!(rx.stats(), stats(count as u64, count as u64, 0, 0, true));
}

#[test]
fn items_of_no_size_are_counted_like_others() {
    let (tx, mut rx) = channel();
    (0..1_000).for_each(|_| tx.try_send(()).unwrap());
    rx.try_recv().unwrap();
    assert_eq!(rx.stats(), stats(1_000, 1, 0, 999, false));
    assert_eq!(rx.drain(None).len(), 999);
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Empty)));
    let (tx, mut rx) = bounded(2);
    (0..2).for_each(|_| tx.try_send(()).unwrap());
    assert!(matches!(tx.try_send(()), Err(TrySendError::Full(()))));
    assert_eq!(rx.drain(None).len(), 2);
}

// A channel with a bound.

#[test]
fn a_full_channel_gives_the_item_back_or_has_the_sender_wait() {
    let ((tx, mut rx), hand) = (bounded(2), Hand::new());
    tx.try_send(1).unwrap();
    ready(tx.send(2)).unwrap();
    assert!(matches!(tx.try_send(3), Err(TrySendError::Full(3))));
    assert!(matches!(tx.send_blocking(4, ZERO), Err(SendBlockingError::TimedOut(4))));
    assert!(matches!(tx.send_blocking(5, TINY), Err(SendBlockingError::TimedOut(5))));
    let mut send = pin!(tx.send(6));
    assert!(hand.poll(&mut send).is_pending() && hand.poll(&mut send).is_pending());
    assert_eq!((rx.stats(), hand.wakers()), (stats(2, 0, 0, 2, false), 1), "Full counts nowhere");
    assert_eq!(rx.try_recv().unwrap(), 1);
    assert_eq!((hand.wakes(), hand.wakers()), (1, 0));
    assert!(matches!(hand.poll(&mut send), Poll::Ready(Ok(()))));
    assert_eq!(rx.drain(None), [2, 6]);
}

#[test]
fn waiting_senders_are_served_in_their_order_and_nobody_overtakes() {
    let (tx, mut rx) = bounded(1);
    tx.try_send(0).unwrap();
    let hands: Vec<_> = (0..3).map(|_| Hand::new()).collect();
    let mut sends: Vec<_> = (1..=3).map(|n| Box::pin(tx.send(n))).collect();
    assert!(sends.iter_mut().zip(&hands).all(|(send, hand)| hand.poll(send).is_pending()));
    for n in 0..3 {
        assert_eq!(rx.try_recv().unwrap(), n);
        let woken: Vec<_> = hands.iter().map(Hand::wakes).collect();
        assert_eq!(woken, (0..3).map(|hand| usize::from(hand <= n)).collect::<Vec<_>>(), "one place, one wake");
        assert!(matches!(tx.try_send(9), Err(TrySendError::Full(9))), "the place is promised");
        assert!(poll_once(&mut Box::pin(tx.send(9))).is_pending());
        assert!(sends[n + 1..].iter_mut().all(|send| poll_once(send).is_pending()), "not their turn");
        assert!(hands[n].poll(&mut sends[n]).is_ready());
        sends[n + 1..].iter_mut().zip(&hands[n + 1..]).for_each(|(send, hand)| _ = hand.poll(send));
    }
    assert_eq!(rx.try_recv().unwrap(), 3);
}

#[test]
fn a_notified_sender_that_is_dropped_passes_its_place_on() {
    let (tx, mut rx) = bounded(1);
    tx.try_send(0).unwrap();
    let hands = [(); 3].map(|()| Hand::new());
    let mut sends = [1, 2, 3].map(|n| Some(Box::pin(tx.send(n))));
    assert!(sends.iter_mut().zip(&hands).all(|(send, hand)| hand.poll(send.as_mut().unwrap()).is_pending()));
    rx.try_recv().unwrap();
    sends[0] = None;
    assert_eq!((hands[0].wakes(), hands[1].wakes(), hands[2].wakes()), (1, 1, 0));
    sends[1] = None;
    assert_eq!(hands[2].wakes(), 1);
    sends[2] = None;
    assert!(hands.iter().all(|hand| hand.wakers() == 0));
    tx.try_send(4).unwrap(); // nobody waits: the place is free again
    assert_eq!(rx.drain(None), [4]);
}

#[test]
fn a_waiting_sender_that_is_dropped_leaves_no_waker_and_no_item() {
    let ((tx, mut rx), hand) = (bounded(1), Hand::new());
    tx.try_send(0).unwrap();
    assert!(hand.poll(&mut Box::pin(tx.send(1))).is_pending());
    assert_eq!(hand.wakers(), 0);
    assert_eq!(rx.drain(None), [0]);
    assert_eq!((hand.wakes(), tx.stats()), (0, stats(1, 1, 0, 0, false)));
}

#[test]
fn the_end_wakes_every_waiting_sender_and_gives_its_item_back() {
    for by_drop in [false, true] {
        let ((tx, rx), hand) = (bounded(1), Hand::new());
        tx.try_send(0).unwrap();
        let mut sends: Vec<_> = (1..=50).map(|n| Box::pin(tx.send(n))).collect();
        assert!(sends.iter_mut().all(|send| hand.poll(send).is_pending()));
        let rx = (!by_drop).then_some(rx); // otherwise it is dropped here
        tx.close();
        assert_eq!((hand.wakes(), hand.wakers()), (50, 0));
        for (n, send) in (1..=50).zip(&mut sends) {
            assert!(matches!(hand.poll(send), Poll::Ready(Err(SendError(item))) if item == n));
        }
        let left = if by_drop { stats(1, 0, 51, 0, true) } else { stats(1, 0, 50, 1, true) };
        assert_eq!(tx.stats(), left);
        drop(rx);
    }
}

/// A sender that was promised a place when the channel ended has not sent.
#[test]
fn a_promise_ends_with_the_channel() {
    let (tx, mut rx) = bounded(1);
    tx.try_send(0).unwrap();
    let (mut polled, mut dropped) = (Box::pin(tx.send(1)), Box::pin(tx.send(2)));
    assert!(poll_once(&mut polled).is_pending() && poll_once(&mut dropped).is_pending());
    rx.try_recv().unwrap();
    tx.close();
    assert!(matches!(poll_once(&mut polled), Poll::Ready(Err(SendError(1)))));
    drop(dropped);
    assert!(matches!(rx.try_recv(), Err(TryRecvError::EndOfStream)));
}

#[test]
fn many_threads_through_a_narrow_channel_never_exceed_its_capacity() {
    let ((tx, mut rx), count) = (bounded(3), scaled(5_000));
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        for sender in 0..4 {
            let tx = tx.clone();
            threads.spawn(move || (0..count).for_each(|n| tx.send_blocking((sender, n), None).unwrap()));
        }
        threads.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let stats = tx.stats();
                assert!(stats.queued <= 3 && stats.sent == stats.received + stats.queued, "{stats:?}");
                thread::yield_now();
            }
        });
        let mut next = [0; 4];
        for _ in 0..4 * count {
            let (sender, n): (usize, usize) = rx.recv_blocking(None).unwrap();
            assert_eq!(n, next[sender], "first in, first out for each sender");
            next[sender] += 1;
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(rx.stats(), stats(4 * count as u64, 4 * count as u64, 0, 0, false));
}

// From many threads.

/// `Ok` from send means received. In the original a close could overtake a send that had succeeded.
#[test]
fn eight_senders_racing_close_lose_nothing_that_was_accepted() {
    for round in 0..scaled(60) {
        let (tx, mut rx) = if round % 2 == 0 { channel() } else { bounded(4) };
        let barrier = Barrier::new(9);
        thread::scope(|threads| {
            let senders: Vec<_> = (0..8)
                .map(|sender| {
                    let (tx, barrier) = (tx.clone(), &barrier);
                    threads.spawn(move || {
                        barrier.wait();
                        (0..200).take_while(|n| tx.send_blocking((sender, *n), None).is_ok()).count()
                    })
                })
                .collect();
            let closer = tx.clone();
            threads.spawn({
                let barrier = &barrier;
                move || {
                    barrier.wait();
                    (0..round).for_each(|_| thread::yield_now());
                    closer.close();
                }
            });
            let mut received: Vec<Vec<i32>> = vec![Vec::new(); 8];
            while let Ok((sender, n)) = rx.recv_blocking(None) {
                let of_sender: &mut Vec<i32> = &mut received[sender];
                of_sender.push(n);
            }
            for (sender, received) in senders.into_iter().zip(received) {
                let accepted = sender.join().unwrap() as i32;
                assert_eq!(received, (0..accepted).collect::<Vec<_>>(), "each once, in order");
            }
        });
        let stats = tx.stats();
        assert!(stats.sent == stats.received && stats.queued == 0, "{stats:?}");
    }
}

/// The same, each round a single send beside a single close: what is accepted after the receiver saw the end would be lost.
#[test]
fn an_item_accepted_beside_a_close_is_received() {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..scaled(50_000)).map(|_| channel()).unzip();
    let abreast = Abreast::default();
    let (accepted, received) = thread::scope(|threads| {
        let received = threads.spawn(|| {
            let drain = |(round, mut rx): (usize, Receiver<()>)| {
                abreast.round(0, round);
                rx.close();
                let received = rx.drain(None).len();
                (received, rx) // dropped later
            };
            receivers.into_iter().enumerate().map(drain).collect::<Vec<_>>()
        });
        let send = |(round, tx): (usize, &Sender<()>)| {
            abreast.round(1, round);
            usize::from(tx.try_send(()).is_ok())
        };
        let accepted: Vec<_> = senders.iter().enumerate().map(send).collect();
        (accepted, received.join().unwrap())
    });
    assert!(accepted.iter().zip(&received).all(|(accepted, (received, _))| accepted == received));
}

#[test]
fn a_receiver_dropped_in_a_race_counts_every_item_as_received_or_dropped() {
    for _ in 0..scaled(100) {
        let ((tx, mut rx), barrier) = (channel(), Barrier::new(2));
        thread::scope(|threads| {
            let sender = threads.spawn(|| {
                barrier.wait();
                (0..300).filter(|n| tx.try_send(*n).is_ok()).count() as u64
            });
            barrier.wait();
            let received = (0..100).filter(|_| rx.try_recv().is_ok()).count() as u64;
            drop(rx);
            let accepted = sender.join().unwrap();
            assert_eq!(tx.stats(), stats(accepted, received, (accepted - received) + (300 - accepted), 0, true));
        });
    }
}

#[test]
fn stats_add_up_at_every_instant_for_an_observer_on_another_thread() {
    let (tx, mut rx) = channel();
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        let observer = threads.spawn(|| {
            let mut last = ChannelStats::default();
            while !done.load(Ordering::SeqCst) {
                let now = tx.stats();
                assert_eq!(now.sent, now.received + now.queued);
                assert!(now.sent >= last.sent && now.received >= last.received, "{last:?} before {now:?}");
                last = now;
            }
        });
        let sender = tx.clone();
        threads.spawn(move || (0..scaled(50_000)).for_each(|n| sender.try_send(n).unwrap()));
        let mut out = Vec::new();
        while out.len() < scaled(50_000) {
            match out.len() % 3 {
                0 => out.push(rx.recv_blocking(None).unwrap()),
                1 => out.extend(rx.drain(Some(10))),
                _ => _ = crate::support::block_on(rx.recv_many(&mut out, 100)).unwrap(),
            }
        }
        done.store(true, Ordering::SeqCst);
        observer.join().unwrap();
    });
}

#[test]
fn a_blocked_receiver_is_woken_by_each_of_many_single_sends() {
    let ((there, mut from_there), (back, mut from_back)) = (channel(), channel());
    thread::scope(|threads| {
        threads.spawn(move || {
            while let Ok(n) = from_there.recv_blocking(None) {
                back.try_send(n).unwrap();
            }
        });
        for n in 0..scaled(5_000) {
            there.try_send(n).unwrap();
            assert_eq!(from_back.recv_blocking(None).unwrap(), n);
        }
        drop(there);
    });
}

#[test]
fn blocking_calls_are_refused_on_an_event_loop_and_give_the_item_back() {
    let (tx, mut rx) = bounded(2);
    tx.try_send(1).unwrap();
    let _loop = LoopMark::enter(1);
    assert!(matches!(tx.send_blocking(2, None), Err(SendBlockingError::WouldBlock(2))), "though there is a place");
    assert!(matches!(rx.recv_blocking(None), Err(RecvBlockingError::WouldBlock)), "though there is an item");
    assert_eq!(rx.stats(), stats(1, 0, 0, 1, false));
}

#[test]
#[cfg(feature = "tokio")]
fn blocking_calls_are_refused_in_an_async_worker_and_give_the_item_back() {
    let (tx, mut rx) = bounded(2);
    crate::support::block_on(async {
        assert!(matches!(tx.send_blocking(2, None), Err(SendBlockingError::WouldBlock(2))));
        assert!(matches!(rx.recv_blocking(None), Err(RecvBlockingError::WouldBlock)));
    });
}

// User code inside.

/// An item that uses its own channel when it is dropped.
struct Meddling(Option<Sender<Meddling>>);

impl Drop for Meddling {
    fn drop(&mut self) {
        if let Some(tx) = self.0.take() {
            let _ = (tx.stats(), tx.try_send(Meddling(None)), tx.is_closed(), tx.cause(), tx.close());
        }
    }
}

#[test]
fn items_that_use_their_channel_in_their_drop_do_not_deadlock() {
    for open in [true, false] {
        let (tx, mut rx) = if open { channel() } else { bounded(100) };
        (0..50).for_each(|_| tx.try_send(Meddling(Some(tx.clone()))).ok().unwrap());
        if open {
            drop(rx.try_recv()); // closes the channel with the others in the receiver's hands
        }
        assert!(poll_once(&mut pin!(tx.send(Meddling(Some(tx.clone()))))).is_ready());
        drop(rx);
        assert!(matches!(tx.try_send(Meddling(Some(tx.clone()))), Err(TrySendError::Closed(_))));
        assert_eq!(tx.stats().queued, 0);
    }
}

#[test]
fn wakers_that_use_their_channel_do_not_deadlock() {
    let (tx, mut rx) = bounded(1);
    let meddling = || {
        let tx = tx.clone();
        meddler(move || drop((tx.try_send(7).is_ok(), tx.stats(), tx.cause(), tx.clone())))
    };
    let mut recv = Box::pin(rx.recv());
    assert!(poll_with(&meddling(), &mut recv).is_pending());
    assert!(poll_with(&meddling(), &mut recv).is_pending()); // the first one is replaced, and sends: this one is woken
    assert!(matches!(poll_with(&meddling(), &mut recv), Poll::Ready(Ok(7))));
    drop(recv);
    rx.drain(None);
    tx.try_send(1).unwrap();
    let (mut notified, mut waiting) = (Box::pin(tx.send(2)), Box::pin(tx.send(3)));
    assert!(poll_with(&meddling(), &mut notified).is_pending());
    assert!(poll_with(&meddling(), &mut waiting).is_pending());
    assert_eq!(rx.try_recv().unwrap(), 1);
    drop((notified, waiting));
    tx.close();
}

// Sharing a loop.

#[test]
#[cfg(feature = "tokio")]
fn a_receiver_that_always_finds_items_lets_other_tasks_run() {
    let lets_others_run = |batches: bool| {
        crate::support::block_on(async {
            let (tx, mut rx) = channel();
            (0..20_000).for_each(|n| tx.try_send(n).unwrap());
            drop(tx);
            let turns = Arc::new(AtomicUsize::new(0));
            let other = tokio::spawn({
                let turns = turns.clone();
                async move {
                    loop {
                        turns.fetch_add(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                    }
                }
            });
            let mut out = Vec::new();
            while if batches { rx.recv_many(&mut out, 1).await.is_ok() } else { rx.recv().await.is_ok() } {}
            other.abort();
            turns.load(Ordering::SeqCst)
        })
    };
    for batches in [false, true] {
        let turns = lets_others_run(batches);
        assert!(turns > 1, "{turns}");
        assert!(turns < 2_000, "but not at every item: {turns}");
    }
}

#[test]
#[cfg(feature = "tokio")]
fn a_sender_that_always_finds_a_place_lets_other_tasks_run() {
    crate::support::block_on(async {
        let (tx, _rx) = channel();
        let other = tokio::spawn(async {});
        for n in 0..1_000 {
            tx.send(n).await.unwrap();
        }
        assert!(other.is_finished());
    });
}

#[cfg(feature = "stream")]
mod stream {
    use super::*;
    use futures_core::Stream;
    use std::future::poll_fn;

    fn next<T>(rx: &mut Receiver<T>) -> impl Future<Output = Option<Result<T, Failure>>> + Unpin {
        poll_fn(|cx| Pin::new(&mut *rx).poll_next(cx))
    }

    #[test]
    fn a_stream_yields_items_and_ends_after_close() {
        let ((tx, mut rx), hand) = (channel(), Hand::new());
        assert!(hand.poll(&mut next(&mut rx)).is_pending());
        tx.try_send(1).unwrap();
        assert_eq!(hand.wakes(), 1);
        assert!(matches!(ready(next(&mut rx)), Some(Ok(1))));
        assert_eq!(rx.stats(), stats(1, 1, 0, 0, false));
        tx.close();
        assert!(ready(next(&mut rx)).is_none() && ready(next(&mut rx)).is_none());
    }

    #[test]
    fn a_stream_yields_the_failure_once_and_then_ends() {
        let ((tx, mut rx), cause) = (channel::<u8>(), Failure::msg("eof"));
        tx.fail(cause.clone());
        assert!(matches!(ready(next(&mut rx)), Some(Err(seen)) if seen.ptr_eq(&cause)));
        assert!(ready(next(&mut rx)).is_none());
        assert!(matches!(ready(rx.recv()), Err(RecvError::Failed(_))), "a receive still tells");
    }
}

/// Random use against a queue and a list of waiting senders; what each call says and what the stats say, at every step.
#[test]
fn it_behaves_like_a_queue_under_random_use() {
    type Sending = Pin<Box<dyn Future<Output = Result<(), SendError<usize>>>>>;
    for seed in 0..scaled(600) {
        let mut rng = fastrand::Rng::with_seed(seed as u64);
        let capacity = [usize::MAX, 1, 3][seed % 3];
        let drops = rng.bool();
        let (tx, rx) = if capacity == usize::MAX { channel() } else { bounded(capacity) };
        let tx = tx.with_late_send(if drops { LateSend::Drop } else { LateSend::Reject });
        let mut rx = Some(rx);
        let mut queue = VecDeque::new();
        let mut waiting: Vec<(usize, Sending)> = Vec::new(); // the longest first
        let (mut sent, mut received, mut dropped) = (0, 0, 0);
        let mut end: Option<Option<Failure>> = None;
        for step in 0..scaled(400) {
            let at = format!("seed {seed}, step {step}");
            let free = capacity - queue.len();
            let ended = |failed: Option<Option<&Failure>>| match (&end, failed) {
                (Some(None), Some(None)) => {}
                (Some(Some(cause)), Some(Some(seen))) => assert!(seen.ptr_eq(cause), "{at}"),
                other => panic!("{at}: {other:?}"),
            };
            match rng.u8(..16) {
                0..4 => match tx.try_send(step) {
                    Ok(()) if end.is_none() => {
                        assert!(free > waiting.len(), "{at}");
                        queue.push_back(step);
                        sent += 1;
                    }
                    Ok(()) => {
                        assert!(drops, "{at}");
                        dropped += 1;
                    }
                    Err(TrySendError::Full(item)) => {
                        assert!(item == step && end.is_none() && free <= waiting.len(), "{at}")
                    }
                    Err(TrySendError::Closed(item)) => {
                        assert!(item == step && end.is_some() && !drops, "{at}");
                        dropped += 1;
                    }
                },
                4..7 => {
                    let tx = tx.clone();
                    let sending: Sending = Box::pin(async move { tx.send(step).await });
                    waiting.push((step, sending));
                    let place = waiting.len() - 1;
                    match poll_once(&mut waiting[place].1) {
                        Poll::Pending => assert!(end.is_none() && free <= place, "{at}"),
                        Poll::Ready(result) => {
                            waiting.pop();
                            assert!(end.is_some() || free > place, "{at}");
                            assert_eq!(result.is_ok(), end.is_none() || drops, "{at}");
                            if end.is_some() {
                                dropped += 1
                            } else {
                                sent += 1
                            }
                            queue.extend(end.is_none().then_some(step));
                        }
                    }
                }
                7..9 if !waiting.is_empty() => {
                    let place = rng.usize(..waiting.len());
                    let (item, mut sending) = waiting.remove(place);
                    if rng.u8(..4) == 0 {
                        continue; // dropped: whether it had a place or not
                    }
                    match poll_once(&mut sending) {
                        Poll::Pending => {
                            assert!(end.is_none() && place >= free, "{at}");
                            waiting.insert(place, (item, sending));
                        }
                        Poll::Ready(_) if end.is_some() => dropped += 1,
                        Poll::Ready(result) => {
                            assert!(result.is_ok() && place < free, "{at}");
                            queue.push_back(item);
                            sent += 1;
                        }
                    }
                }
                9 | 10 => {
                    let Some(rx) = &mut rx else { continue };
                    match (poll_once(&mut pin!(rx.recv())), queue.pop_front()) {
                        (Poll::Ready(Ok(item)), Some(first)) => assert_eq!(item, first, "{at}"),
                        (Poll::Pending, None) => assert!(end.is_none(), "{at}"),
                        (Poll::Ready(Err(RecvError::EndOfStream)), None) => ended(Some(None)),
                        (Poll::Ready(Err(RecvError::Failed(seen))), None) => ended(Some(Some(&seen))),
                        other => panic!("{at}: {other:?}"),
                    }
                    received = sent - queue.len() as u64;
                }
                11 => {
                    let Some(rx) = &mut rx else { continue };
                    match (rx.try_recv(), queue.pop_front()) {
                        (Ok(item), Some(first)) => assert_eq!(item, first, "{at}"),
                        (Err(TryRecvError::Empty), None) => assert!(end.is_none(), "{at}"),
                        (Err(TryRecvError::EndOfStream), None) => ended(Some(None)),
                        (Err(TryRecvError::Failed(seen)), None) => ended(Some(Some(&seen))),
                        other => panic!("{at}: {other:?}"),
                    }
                    received = sent - queue.len() as u64;
                }
                12 | 13 => {
                    let Some(rx) = &mut rx else { continue };
                    let max = rng.usize(1..40);
                    let expected: Vec<_> = queue.drain(..max.min(queue.len())).collect();
                    let mut out = Vec::new();
                    if rng.bool() {
                        out = rx.drain(Some(max));
                    } else if let Poll::Ready(Ok(count)) = poll_once(&mut pin!(rx.recv_many(&mut out, max))) {
                        assert!(count > 0 && count == expected.len(), "{at}");
                    }
                    assert_eq!(out, expected, "{at}");
                    received = sent - queue.len() as u64;
                }
                14 if step > 200 && rng.u8(..20) == 0 => {
                    let cause = rng.bool().then(|| Failure::msg(at.clone()));
                    let won = match &cause {
                        Some(cause) => tx.fail(cause.clone()),
                        None => tx.close(),
                    };
                    assert_eq!(won, end.is_none(), "{at}");
                    end.get_or_insert(cause);
                }
                15 if step > 200 && rng.u8(..40) == 0 && rx.take().is_some() => {
                    dropped += queue.len() as u64;
                    queue.clear();
                    end.get_or_insert(None);
                }
                _ => {}
            }
            assert_eq!(tx.stats(), stats(sent, received, dropped, queue.len() as u64, end.is_some()), "{at}");
            assert_eq!(tx.is_closed(), end.is_some(), "{at}");
        }
    }
}

/// Law 5, seen from the items: each is handed out or dropped, exactly once.
#[test]
fn every_item_is_dropped_exactly_once() {
    struct Counted<'a>(&'a Cell<usize>);
    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let drops = Cell::new(0);
    let (tx, mut rx) = channel();
    (0..200).for_each(|_| tx.try_send(Counted(&drops)).unwrap());
    drop((rx.try_recv(), rx.drain(Some(20))));
    (0..100).for_each(|_| tx.try_send(Counted(&drops)).unwrap());
    assert_eq!(drops.get(), 21);
    drop(rx);
    drop(tx.try_send(Counted(&drops)));
    assert_eq!(drops.get(), 301);
}

#[test]
fn a_receiver_parks_only_if_there_is_nothing_in_its_hands_nor_in_the_queue_nor_to_come() {
    let (tx, mut rx) = channel();
    (0..3).for_each(|n| tx.try_send(n).unwrap());
    assert!(!rx.park(Waker::noop()), "three in the queue");
    assert_eq!(rx.try_recv().unwrap(), 0);
    assert!(!rx.park(Waker::noop()), "two in its hands");
    assert_eq!(rx.drain(None), [1, 2]);
    assert!(rx.park(Waker::noop()));
    tx.close();
    assert!(!rx.park(Waker::noop()), "the end");
}

#[test]
fn a_burst_takes_few_allocations_of_which_none_is_large() {
    let (tx, mut rx) = channel::<u64>();
    let taken = allocation_counter::measure(|| (0..BURST as u64).for_each(|n| tx.try_send(n).unwrap()));
    assert!(taken.count_total < 100, "{taken:?}");
    assert!(rx.drain(None).into_iter().eq(0..BURST as u64));
    drop((tx, rx));
}

#[test]
fn a_large_item_takes_no_room_for_thirty_others() {
    let (tx, mut rx) = channel::<[u8; 64 * 1024]>();
    let kept = kept_by(|| tx.try_send([1; 64 * 1024]).unwrap());
    assert!(kept < 128 * 1024, "{kept} bytes for one item");
    assert_eq!(rx.try_recv().unwrap()[9], 1);
}
