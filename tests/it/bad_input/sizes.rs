//! Channels of one place or of more than there is memory for; items without a size, larger than a chunk, or that panic
//! when they are dropped; receives of none and of all.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use microio::{ActorCore, LateSend, Mailbox, RecvError, TryRecvError, TrySendError, bounded, channel};
use proptest::prelude::*;

use super::check;
use crate::support::{poll_once, ready, scaled};

#[derive(Clone, Debug)]
enum Step {
    Send,
    Receive,
    TryReceive,
    ReceiveMany(usize),
    Drain(Option<usize>),
    Close,
    Late(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let amount = || prop_oneof![Just(0), Just(1), Just(3), Just(usize::MAX)];
    let step = prop_oneof![
        6 => Just(Step::Send),
        1 => Just(Step::Receive),
        1 => Just(Step::TryReceive),
        1 => amount().prop_map(Step::ReceiveMany),
        1 => prop::option::of(amount()).prop_map(Step::Drain),
        1 => Just(Step::Close),
        1 => any::<bool>().prop_map(Step::Late),
    ];
    prop::collection::vec(step, 0..scaled(100))
}

fn capacities() -> impl Strategy<Value = Option<NonZeroUsize>> {
    prop::option::of(prop::sample::select(vec![NonZeroUsize::MIN, NonZeroUsize::new(5).unwrap(), NonZeroUsize::MAX]))
}

/// Takes the steps with items of that size, beside a queue of their numbers. Each has a token.
fn exercise<const SIZE: usize>(capacity: Option<NonZeroUsize>, steps: Vec<Step>) {
    let token = Arc::new(());
    let (mut tx, mut rx) = capacity.map_or_else(channel, bounded);
    let (mut model, mut out) = (VecDeque::new(), vec![(usize::MAX, [1; SIZE], token.clone())]);
    let (mut sent, mut dropped, mut closed, mut drops) = (0, 0, false, false);
    for step in steps {
        let place = capacity.is_none_or(|capacity| model.len() < capacity.get());
        let before = out.len();
        let expected = match step {
            Step::Send => {
                match tx.try_send((sent, [sent as u8; SIZE], token.clone())) {
                    Ok(()) if closed => {
                        assert!(drops);
                        dropped += 1;
                    }
                    Ok(()) => {
                        assert!(place);
                        model.push_back(sent);
                        sent += 1;
                    }
                    Err(TrySendError::Full(item)) => assert_eq!((item.0, place, closed), (sent, false, false)),
                    Err(TrySendError::Closed(item)) => {
                        assert_eq!((item.0, closed, drops), (sent, true, false));
                        dropped += 1;
                    }
                }
                0
            }
            Step::Receive => {
                match poll_once(&mut pin!(rx.recv())) {
                    Poll::Ready(Ok(item)) => out.push(item),
                    Poll::Ready(Err(end)) => assert!(closed && matches!(end, RecvError::EndOfStream)),
                    Poll::Pending => assert!(!closed),
                }
                1
            }
            Step::TryReceive => {
                match rx.try_recv() {
                    Ok(item) => out.push(item),
                    Err(end) => assert_eq!(matches!(end, TryRecvError::EndOfStream), closed),
                }
                1
            }
            Step::ReceiveMany(max) => {
                let polled = poll_once(&mut pin!(rx.recv_many(&mut out, max)));
                match polled {
                    Poll::Ready(Ok(count)) => assert_eq!(count, out.len() - before),
                    Poll::Ready(Err(_)) => assert!(closed && max > 0 && model.is_empty()),
                    Poll::Pending => assert!(!closed && max > 0 && model.is_empty()),
                }
                max
            }
            Step::Drain(max) => {
                out.append(&mut rx.drain(max));
                max.unwrap_or(usize::MAX)
            }
            Step::Close => {
                assert_eq!(tx.close(), !std::mem::replace(&mut closed, true));
                assert!(!rx.close(), "it was closed just now, or before");
                0
            }
            Step::Late(drop) => {
                drops = drop;
                tx = tx.with_late_send(if drop { LateSend::Drop } else { LateSend::Reject });
                0
            }
        };
        let taken = Vec::from_iter(model.drain(..expected.min(model.len())));
        assert!(out[before..].iter().map(|item| item.0).eq(taken));
        assert!(out[before..].iter().all(|item| item.1 == [item.0 as u8; SIZE]));
        let stats = rx.stats();
        let counted = (stats.sent as usize, stats.received as usize, stats.queued as usize, stats.dropped);
        assert_eq!(counted, (sent, sent - model.len(), model.len(), dropped));
        assert_eq!(Arc::strong_count(&token), 1 + out.len() + model.len());
    }
    drop((tx, rx));
    out.clear();
    assert_eq!(Arc::strong_count(&token), 1);
}

#[test]
fn any_capacity_takes_small_items() {
    check(64, (capacities(), steps()), |(capacity, steps)| exercise::<0>(capacity, steps));
}

#[test]
fn any_capacity_takes_items_larger_than_a_chunk() {
    check(16, (capacities(), steps()), |(capacity, steps)| exercise::<40_000>(capacity, steps));
}

#[test]
fn items_of_a_megabyte_come_through() {
    let steps = [Step::Send, Step::Send, Step::Receive, Step::Send, Step::Drain(None), Step::Close, Step::Send];
    let exercise = move |capacity| exercise::<{ 1 << 20 }>(capacity, steps.to_vec());
    let all = move || [None, Some(NonZeroUsize::MIN), Some(NonZeroUsize::MAX)].map(exercise);
    let roomy = std::thread::Builder::new().stack_size(256 << 20);
    if !cfg!(miri) {
        roomy.spawn(all).unwrap().join().unwrap();
    }
}

#[test]
fn items_that_are_nothing_but_a_count_are_counted_for_ever() {
    check(32, (capacities(), 0..200u64), |(capacity, count)| {
        let (tx, mut rx) = capacity.map_or_else(channel, bounded);
        let taken = (0..count).filter(|_| tx.try_send(()).is_ok()).count();
        assert_eq!(taken as u64, count.min(capacity.map_or(u64::MAX, |capacity| capacity.get() as u64)));
        assert_eq!(rx.drain(None).len(), taken);
        assert_eq!(rx.stats().received, taken as u64);
    });
}

/// Panics when it is dropped, unless it is defused.
struct Bomb(bool, #[allow(dead_code)] Arc<()>);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 && !std::thread::panicking() {
            resume_unwind(Box::new("dropped"));
        }
    }
}

/// One of the items panics when the receiver or a late send drops it: that panic comes out, and nothing else is lost or
/// left behind.
#[test]
fn an_item_that_panics_when_dropped_takes_no_other_along() {
    check(64, (capacities(), 0..6usize, 0..4u8), |(capacity, bomb, how)| {
        let token = Arc::new(());
        let item = |live| Bomb(live, token.clone());
        let (tx, mut rx) = capacity.map_or_else(channel, bounded);
        let places = capacity.map_or(5, |capacity| capacity.get().min(5));
        let accepted = (0..places).filter(|nth| tx.try_send(item(*nth == bomb && how == 0)).is_ok()).count();
        let went_off = catch_unwind(AssertUnwindSafe(|| match how {
            0 => drop(rx),
            1 => {
                tx.close();
                let _dropped = tx.clone().with_late_send(LateSend::Drop).try_send(item(true));
                drop(rx);
            }
            2 => {
                rx.close();
                drop(tx.try_send(item(true)));
                drop(rx);
            }
            _ => {
                assert_eq!(rx.drain(None).len(), accepted);
                drop(rx);
            }
        }));
        assert_eq!(went_off.is_err(), matches!(how, 1 | 2) || how == 0 && bomb < accepted);
        let stats = tx.stats();
        assert_eq!((stats.sent, stats.closed), (accepted as u64, true));
        drop(tx);
        if how != 1 && how != 2 {
            assert_eq!(Arc::strong_count(&token), 1);
        }
    });
}

#[test]
fn an_actor_whose_items_panic_when_dropped_goes_on() {
    check(32, prop::collection::vec(any::<bool>(), 0..6), |live| {
        let token = Arc::new(());
        let mut actor = ActorCore::new(Mailbox::new());
        for live in &live {
            assert!(actor.submit(Bomb(*live, token.clone())));
        }
        actor.close();
        let ended = ready(actor.run(async |item: Bomb| {
            drop(item);
            Ok(())
        }));
        let first = live.iter().position(|live| *live);
        match ended {
            Ok(()) => assert_eq!(first, None),
            Err(stopped) => {
                assert_eq!(stopped.unhandled.len(), live.len() - first.unwrap() - 1);
                stopped.unhandled.into_iter().for_each(|mut item| item.0 = false);
            }
        }
        drop(actor);
        assert_eq!(Arc::strong_count(&token), 1);
    });
}
