//! The list of waiters, and how a thread parks: seen through the simplest thing that can be waited for.

use std::future::{Future, poll_fn, ready};
use std::pin::pin;

use loom::thread;
use microio::CloseScope;

use crate::{block_on, model, poll_once};

/// Wake against park: a waiter that comes before, during or after the change ends.
#[test]
fn every_waiter_is_woken() {
    model(|| {
        let scope = CloseScope::new();
        let wait = || {
            let scope = scope.clone();
            thread::spawn(move || scope.wait_blocking(None).unwrap())
        };
        let waiters = [wait(), wait()];
        scope.close("bye");
        waiters.into_iter().for_each(|waiter| drop(waiter.join().unwrap()));
    });
}

/// Wake against leave: a waiter that goes takes its own waker out of the list, and only that.
#[test]
fn a_waiter_that_leaves_takes_only_its_own_wake() {
    model(|| {
        let scope = CloseScope::new();
        let mut leaving = Box::pin(scope.closed());
        assert!(poll_once(leaving.as_mut()).is_pending());
        let waiter = thread::spawn({
            let scope = scope.clone();
            move || scope.wait_blocking(None).unwrap()
        });
        let closer = thread::spawn(move || scope.close("bye"));
        drop(leaving);
        waiter.join().unwrap();
        closer.join().unwrap();
    });
}

/// Many are woken in batches: who leaves between two of them, or comes, keeps nobody asleep.
#[test]
fn the_second_batch_is_woken_too() {
    model(|| {
        let scope = CloseScope::new();
        let mut batch: Vec<_> = (0..16).map(|_| Box::pin(scope.closed())).collect();
        assert!(batch.iter_mut().all(|parked| poll_once(parked.as_mut()).is_pending()));
        let waiter = thread::spawn({
            let scope = scope.clone();
            move || scope.wait_blocking(None).unwrap()
        });
        let closer = thread::spawn(move || scope.close("bye"));
        drop(batch.swap_remove(0));
        waiter.join().unwrap();
        closer.join().unwrap();
    });
}

/// A wait inside a wait has a parker of its own: it does not eat the wake of the outer one.
#[test]
fn a_wait_inside_a_wait_eats_no_wake() {
    model(|| {
        block_on(ready(())); // so that the thread has kept a parker
        let (outer, inner) = (CloseScope::new(), CloseScope::new());
        let closer = thread::spawn({
            let (outer, inner) = (outer.clone(), inner.clone());
            move || outer.close("bye") && inner.close("bye")
        });
        let mut closed = pin!(outer.closed());
        block_on(poll_fn(|cx| {
            let polled = closed.as_mut().poll(cx);
            inner.wait_blocking(None).unwrap();
            polled
        }));
        assert!(closer.join().unwrap());
    });
}
