//! `CloseScope`: close against fail, wait, hooks. `WorkTracker`: work against the waits for idle and for busy.

use loom::thread;
use microio::{CancelScope, CloseScope, Failure, WorkTracker};

use crate::{block_on, model, poll_once};

/// The first end wins, and everybody hears the same one.
#[test]
fn close_and_fail_agree_on_one_end() {
    model(|| {
        let scope = CloseScope::new();
        let failer = thread::spawn({
            let scope = scope.clone();
            move || scope.fail(Failure::msg("broken"))
        });
        let waiter = thread::spawn({
            let scope = scope.clone();
            move || scope.wait_blocking(None).unwrap().to_string()
        });
        let closed = scope.close("bye");
        assert!(closed ^ failer.join().unwrap());
        let end = if closed { "bye" } else { "broken" };
        assert_eq!(waiter.join().unwrap(), end);
        assert_eq!(scope.check().unwrap_err().to_string(), end);
    });
}

/// Who reads "closed" finds the reason there, and who waits only then gets it too.
#[test]
fn a_late_waiter_gets_the_end() {
    model(|| {
        let scope = CloseScope::new();
        let late = thread::spawn({
            let scope = scope.clone();
            move || !scope.is_closed() || scope.reason().is_some_and(|reason| reason.to_string() == "bye")
        });
        scope.close("bye");
        assert!(late.join().unwrap());
        assert_eq!(scope.wait_blocking(None).unwrap().to_string(), "bye");
    });
}

/// A hook against the close: it is called by the close, or at once.
#[test]
fn what_is_linked_during_the_close_ends_too() {
    model(|| {
        let (scope, linked) = (CloseScope::new(), CancelScope::new());
        let linker = thread::spawn({
            let (scope, linked) = (scope.clone(), linked.clone());
            move || scope.link(&linked)
        });
        scope.close("bye");
        linker.join().unwrap();
        assert_eq!(linked.check().unwrap_err().to_string(), "cancelled: bye");
    });
}

/// The last piece of work wakes who waits for idle.
#[test]
fn the_last_work_wakes_who_waits_for_idle() {
    model(|| {
        let tracker = WorkTracker::new();
        let (first, second) = (tracker.track(), tracker.track());
        let workers = [thread::spawn(move || drop(first)), thread::spawn(move || drop(second))];
        tracker.wait_idle_blocking(None).unwrap();
        assert_eq!(tracker.count(), 0);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
}

/// An idle moment counts for who waited then, though there is work again when it looks.
#[test]
fn an_idle_moment_is_not_missed() {
    model(|| {
        let tracker = WorkTracker::new();
        let work = tracker.track();
        let mut idle = Box::pin(tracker.idle());
        assert!(poll_once(idle.as_mut()).is_pending());
        let worker = thread::spawn({
            let tracker = tracker.clone();
            move || {
                drop(work);
                tracker.track()
            }
        });
        block_on(idle);
        drop(worker.join().unwrap());
    });
}

/// The first piece of work wakes who waits for busy, also if it has ended when that looks.
#[test]
fn the_first_work_wakes_who_waits_for_busy() {
    model(|| {
        let tracker = WorkTracker::new();
        let mut busy = Box::pin(tracker.busy());
        assert!(poll_once(busy.as_mut()).is_pending());
        let worker = thread::spawn(move || drop(tracker.track()));
        block_on(busy);
        worker.join().unwrap();
    });
}
