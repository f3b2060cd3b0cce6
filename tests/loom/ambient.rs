//! What a cancel does to the code that runs in a scope: cancel against run, shield, and the child that a body makes.

use std::future::{Future, pending, poll_fn};
use std::task::Poll;

use loom::thread;
use microio::{CancelScope, channel, current_cancel_scope, shield};

use crate::{block_on, model};

/// Cancel against run: a body that is pending is not kept, whenever the cancel comes.
#[test]
fn a_cancel_ends_a_run() {
    model(|| {
        let scope = CancelScope::new();
        let runner = thread::spawn({
            let scope = scope.clone();
            move || block_on(scope.run(pending::<()>())).unwrap_err().to_string()
        });
        assert!(scope.cancel("stop"));
        assert_eq!(runner.join().unwrap(), "cancelled: stop");
    });
}

/// Cancel against shield: a body that has begun commits what is shielded; then the run ends, and the child that the body made
/// is cancelled.
#[test]
fn a_shield_is_not_cut_and_a_child_does_not_escape() {
    model(|| {
        let scope = CancelScope::new();
        let (tx, mut rx) = channel();
        let runner = thread::spawn({
            let scope = scope.clone();
            move || {
                let (mut child, mut committed) = (None, None);
                let ended = block_on(scope.run(async {
                    child = current_cancel_scope().map(|scope| scope.child());
                    committed = shield(rx.recv()).await.ok();
                    pending::<()>().await;
                }));
                assert!(ended.is_err());
                assert_eq!(committed, child.as_ref().map(|_| 7));
                child
            }
        });
        let sender = thread::spawn(move || drop(tx.try_send(7))); // refused, if the body never began
        scope.cancel("stop");
        assert!(runner.join().unwrap().is_none_or(|child| child.is_cancelled()));
        sender.join().unwrap();
    });
}

/// A shield may close on another thread: the run that waits for it is woken.
#[test]
fn a_shield_that_closes_elsewhere_lets_the_run_end() {
    model(|| {
        let scope = CancelScope::new();
        let (tx, mut rx) = channel();
        let runner = thread::spawn({
            let scope = scope.clone();
            move || {
                let body = async move {
                    let mut shielded = Box::pin(shield(pending::<()>()));
                    assert!(poll_fn(|cx| Poll::Ready(shielded.as_mut().poll(cx).is_pending())).await);
                    tx.try_send(shielded).unwrap_or_else(|_| panic!("nobody receives"));
                    pending::<()>().await;
                };
                assert!(block_on(scope.run(body)).is_err());
            }
        });
        scope.cancel("stop");
        // None if the cancel came first: then the body was never polled.
        drop(rx.recv_blocking(None).ok());
        runner.join().unwrap();
    });
}
