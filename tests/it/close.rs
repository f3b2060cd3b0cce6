//! Tests of `src/close.rs`.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use microio::{CancelScope, CloseError, CloseScope, Failure, Reason, WaitError, WorkTracker};

use crate::support::{BURST, Hand, kept_by, meddler, poll_with, ready, scaled};

const ZERO: Option<Duration> = Some(Duration::ZERO);
const TINY: Option<Duration> = Some(Duration::from_micros(50));

fn cause_in(end: &CloseError) -> &Failure {
    match end {
        CloseError::Failed(cause) => cause,
        CloseError::Closed(reason) => panic!("closed: {reason}"),
    }
}

#[test]
fn an_open_scope_says_so_and_parks_its_waiters() {
    let scope = CloseScope::new();
    let hand = Hand::new();
    assert!(!scope.is_closed() && scope.check().is_ok() && scope.reason().is_none() && scope.cause().is_none());
    let mut closed = pin!(scope.closed());
    assert!(hand.poll(&mut closed).is_pending() && hand.poll(&mut closed).is_pending());
    assert_eq!((hand.wakes(), hand.wakers()), (0, 1), "one place, however often it is polled");
}

#[test]
fn the_first_close_wins_and_stays() {
    let scope = CloseScope::new();
    assert!(scope.close("bye"));
    assert!(!scope.close("again") && !scope.fail(Failure::msg("too late")));
    assert!(scope.clone().is_closed(), "clones are the same scope");
    assert!(matches!(scope.reason(), Some(Reason::Requested(text)) if text == "bye"));
    assert!(scope.cause().is_none(), "a plain close has no cause");
    assert!(matches!(scope.check(), Err(CloseError::Closed(Reason::Requested(text))) if text == "bye"));
    assert_eq!(ready(scope.closed()).to_string(), "bye");
    assert_eq!(scope.wait_blocking(ZERO).unwrap().to_string(), "bye");
}

#[test]
fn the_first_failure_wins_and_its_text_is_the_reason() {
    let (scope, cause) = (CloseScope::new(), Failure::msg("end of file"));
    assert!(scope.fail(cause.clone()));
    assert!(!scope.fail(Failure::msg("again")) && !scope.close("too late"));
    assert!(scope.cause().unwrap().ptr_eq(&cause));
    assert!(matches!(scope.reason(), Some(Reason::Closed(text)) if text == "end of file"));
    assert!(cause_in(&scope.check().unwrap_err()).ptr_eq(&cause));
}

#[test]
fn every_waiter_present_and_future_gets_the_same_cause() {
    let (scope, hand, cause) = (CloseScope::new(), Hand::new(), Failure::msg("the reader died"));
    let mut present = pin!(scope.closed());
    assert!(hand.poll(&mut present).is_pending());
    thread::scope(|threads| {
        let blocked: Vec<_> = (0..4).map(|_| threads.spawn(|| scope.wait_blocking(None).unwrap())).collect();
        scope.fail(cause.clone());
        for blocked in blocked {
            assert!(cause_in(&blocked.join().unwrap()).ptr_eq(&cause));
        }
    });
    assert_eq!(hand.wakes(), 1);
    let Poll::Ready(end) = hand.poll(&mut present) else { panic!("woken for nothing") };
    assert!(cause_in(&end).ptr_eq(&cause));
    assert!(cause_in(&ready(scope.closed())).ptr_eq(&cause));
    assert!(cause_in(&scope.wait_blocking(None).unwrap()).ptr_eq(&cause));
}

#[test]
fn of_many_closers_exactly_one_wins_and_all_see_its_reason() {
    for _ in 0..scaled(200) {
        let (scope, barrier) = (CloseScope::new(), Barrier::new(4));
        let wins: Vec<_> = thread::scope(|threads| {
            let closers = (0..4).map(|n| {
                let (scope, barrier) = (&scope, &barrier);
                threads.spawn(move || {
                    barrier.wait();
                    let won = scope.close(n.to_string());
                    assert!(scope.is_closed(), "it is over when any close has returned");
                    won.then(|| n.to_string())
                })
            });
            let closers: Vec<_> = closers.collect();
            closers.into_iter().filter_map(|closer| closer.join().unwrap()).collect()
        });
        assert_eq!(wins, [scope.reason().unwrap().to_string()]);
    }
}

#[test]
fn a_blocking_wait_ends_by_its_timeout() {
    let scope = CloseScope::new();
    assert_eq!(scope.wait_blocking(ZERO).unwrap_err(), WaitError::TimedOut);
    assert_eq!(scope.wait_blocking(TINY).unwrap_err(), WaitError::TimedOut);
}

#[test]
fn a_blocking_wait_for_ever_or_longer_than_the_clock_can_tell_ends_with_the_close() {
    for timeout in [None, Some(Duration::MAX)] {
        for _ in 0..scaled(200) {
            let (scope, barrier) = (CloseScope::new(), Barrier::new(2));
            thread::scope(|threads| {
                threads.spawn(|| {
                    barrier.wait();
                    scope.close("now");
                });
                barrier.wait();
                assert_eq!(scope.wait_blocking(timeout).unwrap().to_string(), "now");
            });
        }
    }
}

#[test]
fn a_dropped_wait_leaves_no_waker() {
    let (scope, hand) = (CloseScope::new(), Hand::new());
    {
        let mut closed = pin!(scope.closed());
        assert!(hand.poll(&mut closed).is_pending());
        assert_eq!(hand.wakers(), 1);
    }
    assert_eq!(hand.wakers(), 0);
    scope.close("bye");
    assert_eq!(hand.wakes(), 0);
}

#[test]
fn a_wait_that_moves_to_another_waker_lets_the_old_one_go() {
    let (scope, old, new) = (CloseScope::new(), Hand::new(), Hand::new());
    let mut closed = pin!(scope.closed());
    assert!(old.poll(&mut closed).is_pending() && new.poll(&mut closed).is_pending());
    assert_eq!((old.wakers(), new.wakers()), (0, 1));
    scope.close("bye");
    assert_eq!((old.wakes(), new.wakes()), (0, 1));
}

#[test]
fn ten_thousand_waiters_are_woken_once_each_and_left_without_a_waker() {
    let scope = CloseScope::new();
    let hands: Vec<_> = (0..scaled(10_000)).map(|_| Hand::new()).collect();
    let mut waits: Vec<_> = hands.iter().map(|_| Box::pin(scope.closed())).collect();
    for (hand, wait) in hands.iter().zip(&mut waits) {
        assert!(hand.poll(wait).is_pending());
    }
    for gone in (0..hands.len()).step_by(3) {
        waits[gone] = Box::pin(scope.closed()); // drops the old one in the middle of the list
    }
    scope.close("all");
    for (n, (hand, wait)) in hands.iter().zip(&mut waits).enumerate() {
        assert_eq!((hand.wakes(), hand.wakers()), (usize::from(n % 3 != 0), 0), "waiter {n}");
        assert!(hand.poll(wait).is_ready());
    }
}

/// A waker is user code: what it calls when it is woken, replaced or dropped must not find a lock held.
#[test]
fn a_waker_that_uses_its_own_scope_does_not_deadlock() {
    let scope = CloseScope::new();
    let meddling = || {
        let scope = scope.clone();
        meddler(move || {
            assert_eq!(scope.is_closed(), !scope.close("from the waker"));
            let _ = (scope.reason(), Hand::new().poll(&mut pin!(scope.closed())), format!("{scope:?}"));
        })
    };
    let mut replaced = pin!(scope.closed());
    let mut dropped = Box::pin(scope.closed());
    assert!(poll_with(&meddling(), &mut replaced).is_pending());
    assert!(poll_with(&meddling(), &mut dropped).is_pending());
    drop(dropped); // the last clone of its waker: this closes the scope, and so wakes the other one
    assert!(scope.is_closed());
    assert!(poll_with(&meddling(), &mut replaced).is_ready());
}

#[test]
fn closing_cancels_a_linked_scope_with_the_same_reason_and_the_callers_place() {
    let (service, work) = (CloseScope::new(), CancelScope::new());
    service.link(&work);
    assert!(!work.is_cancelled());
    service.close("stop");
    let line = line!() - 1;
    let end = work.check().unwrap_err();
    assert!(matches!(end.reason, Reason::Requested(text) if text == "stop"));
    assert_eq!((end.at.file(), end.at.line()), (file!(), line));
}

#[test]
fn a_failure_cancels_a_linked_scope_with_the_text_of_the_cause() {
    let (service, work) = (CloseScope::new(), CancelScope::new());
    service.link(&work);
    service.fail(Failure::msg("end of file"));
    assert!(matches!(work.reason(), Some(Reason::Closed(text)) if text == "end of file"));
}

#[test]
fn linking_to_a_closed_scope_cancels_at_once() {
    let (service, work) = (CloseScope::new(), CancelScope::new());
    service.close("over");
    service.link(&work);
    assert_eq!(work.reason().unwrap().to_string(), "over");
}

#[test]
fn a_linked_scope_is_cancelled_before_the_waiters_wake() {
    let (service, work) = (CloseScope::new(), CancelScope::new());
    service.link(&work);
    let mut closed = pin!(service.closed());
    let (seen, before) = (work.clone(), Arc::new(AtomicBool::new(false)));
    let woken = before.clone();
    let waker = meddler(move || woken.store(seen.is_cancelled(), Ordering::SeqCst));
    assert!(poll_with(&waker, &mut closed).is_pending());
    service.close("bye");
    assert!(before.load(Ordering::SeqCst));
}

/// Links of scopes that are gone are forgotten, and those of the living are not.
#[test]
fn many_links_of_short_lived_scopes_do_not_disturb_the_living() {
    let service = CloseScope::new();
    let living: Vec<_> = (0..100)
        .map(|_| {
            (0..scaled(1_000)).for_each(|_| service.link(&CancelScope::new()));
            let scope = CancelScope::new();
            service.link(&scope);
            scope
        })
        .collect();
    service.close("bye");
    assert!(living.iter().all(CancelScope::is_cancelled));
}

#[test]
fn a_link_of_a_scope_that_is_gone_takes_no_memory() {
    let service = CloseScope::new();
    let kept = kept_by(|| (0..BURST).for_each(|_| service.link(&CancelScope::new())));
    assert!(kept < 4_000, "{kept} bytes for scopes that are gone");
}

/// It would take minutes if each link looked at all before it.
#[test]
fn a_link_costs_the_same_however_many_there_are() {
    let service = CloseScope::new();
    let living: Vec<_> = (0..scaled(100_000)).map(|_| CancelScope::new()).collect();
    living.iter().for_each(|scope| service.link(scope));
    service.close("bye");
    assert!(living.iter().all(CancelScope::is_cancelled));
}

#[test]
fn linking_that_races_the_close_always_cancels() {
    for _ in 0..scaled(300) {
        let (service, barrier) = (CloseScope::new(), Barrier::new(2));
        let linked = thread::scope(|threads| {
            threads.spawn(|| {
                barrier.wait();
                service.close("bye");
            });
            barrier.wait();
            let scopes: Vec<_> = (0..50).map(|_| CancelScope::new()).collect();
            scopes.iter().for_each(|scope| service.link(scope));
            scopes
        });
        assert!(linked.iter().all(CancelScope::is_cancelled));
    }
}

#[test]
fn an_idle_tracker_does_not_wait() {
    let tracker = WorkTracker::new();
    assert!(!tracker.is_busy() && tracker.count() == 0);
    ready(tracker.idle());
    tracker.wait_idle_blocking(ZERO).unwrap();
}

#[test]
fn idle_comes_with_the_last_guard() {
    let (tracker, hand) = (WorkTracker::new(), Hand::new());
    let (first, second) = (tracker.track(), tracker.clone().track());
    let mut idle = pin!(tracker.idle());
    assert!(hand.poll(&mut idle).is_pending());
    assert_eq!(tracker.wait_idle_blocking(TINY).unwrap_err(), WaitError::TimedOut);
    drop(first);
    assert_eq!((tracker.count(), hand.wakes()), (1, 0), "one is still at work");
    drop(second);
    assert_eq!((tracker.is_busy(), hand.wakes(), hand.wakers()), (false, 1, 0));
    assert!(hand.poll(&mut idle).is_ready());
}

#[test]
fn an_idle_moment_is_seen_though_it_is_busy_again() {
    let (tracker, hand) = (WorkTracker::new(), Hand::new());
    let work = tracker.track();
    let mut idle = pin!(tracker.idle());
    assert!(hand.poll(&mut idle).is_pending());
    drop(work);
    let _busy_again = tracker.track();
    assert!(hand.poll(&mut idle).is_ready());
    assert!(hand.poll(&mut pin!(tracker.idle())).is_pending(), "who comes later waits for the next");
}

#[test]
fn more_work_wakes_nobody_who_waits_for_the_end_of_it() {
    let (tracker, hand) = (WorkTracker::new(), Hand::new());
    let work = tracker.track();
    let mut idle = pin!(tracker.idle());
    assert!(hand.poll(&mut idle).is_pending());
    let more = tracker.track();
    assert_eq!(hand.wakes(), 0);
    drop((work, more));
    assert!(hand.wakes() == 1 && hand.poll(&mut idle).is_ready());
}

#[test]
fn busy_comes_with_the_first_guard_and_is_seen_though_it_is_idle_again() {
    let (tracker, hand) = (WorkTracker::new(), Hand::new());
    let mut busy = pin!(tracker.busy());
    assert!(hand.poll(&mut busy).is_pending());
    drop(tracker.track());
    assert_eq!((hand.wakes(), hand.wakers()), (1, 0));
    assert!(hand.poll(&mut busy).is_ready());
    assert!(hand.poll(&mut pin!(tracker.busy())).is_pending(), "who comes later waits for the next");
    let _work = tracker.track();
    ready(tracker.busy());
}

#[test]
fn an_idle_wait_that_is_dropped_leaves_no_waker() {
    let (tracker, hand) = (WorkTracker::new(), Hand::new());
    let _work = tracker.track();
    assert!(hand.poll(&mut Box::pin(tracker.idle())).is_pending());
    assert_eq!(hand.wakers(), 0);
}

#[test]
fn work_that_ends_on_other_threads_ends_the_blocking_wait() {
    for _ in 0..scaled(100) {
        let (tracker, barrier) = (WorkTracker::new(), Barrier::new(5));
        thread::scope(|threads| {
            for _ in 0..4 {
                let work = tracker.track();
                threads.spawn(|| {
                    let work = work;
                    barrier.wait();
                    drop(work);
                });
            }
            assert_eq!(tracker.count(), 4);
            barrier.wait();
            tracker.wait_idle_blocking(None).unwrap();
            assert_eq!(tracker.count(), 0);
        });
    }
}

#[test]
fn a_waker_that_uses_its_own_tracker_does_not_deadlock() {
    let tracker = WorkTracker::new();
    let work = tracker.track();
    let mut idle = pin!(tracker.idle());
    let meddling = tracker.clone();
    let waker = meddler(move || drop((meddling.track(), meddling.count())));
    assert!(poll_with(&waker, &mut idle).is_pending());
    drop(work);
    assert!(poll_with(&waker, &mut idle).is_ready());
}
