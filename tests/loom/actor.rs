//! `ActorCore`: a baton that is released elsewhere, the wakers of concurrent handlers, and a failure against new items.

use loom::thread;
use microio::{ActorCore, CloseScope, Failure, Mailbox};

use crate::{block_on, model};

/// Release against park: the next item starts, though the baton is released on another thread.
#[test]
fn a_release_elsewhere_starts_the_next_item() {
    model(|| {
        let mut actor = ActorCore::new(Mailbox::new());
        actor.submit(1);
        actor.submit(2);
        actor.close();
        let second = CloseScope::new();
        let handled = block_on(actor.run_concurrent(|item, release| {
            let second = second.clone();
            async move {
                if item == 1 {
                    let nudge = CloseScope::new();
                    let nudged = nudge.closed();
                    thread::spawn(move || {
                        nudge.close("so that the crew is polled as the baton is released");
                        release.release();
                    });
                    nudged.await;
                    second.closed().await;
                }
                second.close("it has begun");
                Ok(())
            }
        }));
        handled.unwrap();
    });
}

/// Wake against poll: a handler that is woken again while it is polled is polled again.
#[test]
fn a_wake_during_a_poll_is_kept() {
    model(|| {
        let mut actor = ActorCore::new(Mailbox::new());
        actor.submit(());
        actor.close();
        let (first, second) = (CloseScope::new(), CloseScope::new());
        let closer = thread::spawn({
            let (first, second) = (first.clone(), second.clone());
            move || first.close("first") && second.close("second")
        });
        let handled = block_on(actor.run_concurrent(|(), _| {
            let (first, second) = (first.closed(), second.closed());
            async move {
                first.await;
                second.await;
                Ok(())
            }
        }));
        handled.unwrap();
        assert!(closer.join().unwrap());
    });
}

/// Submit against a handler's failure: what was accepted has been handled, or comes back.
#[test]
fn what_is_accepted_is_handled_or_comes_back() {
    model(|| {
        let mut actor = ActorCore::new(Mailbox::new());
        let sender = actor.sender();
        let submitter = thread::spawn(move || {
            sender.try_send(1).unwrap();
            sender.try_send(2).unwrap(); // counted as dropped, if it is too late
            sender
        });
        let stopped = block_on(actor.run(async |_| Err(Failure::msg("broken")))).unwrap_err();
        let stats = submitter.join().unwrap().stats();
        assert_eq!(1 + stopped.unhandled.len() as u64, stats.sent);
        assert_eq!((stats.received + stats.dropped, stats.queued), (2, 0));
    });
}
