//! Futures that are polled by whom nobody expects: with another waker each time, from another thread, after their end;
//! and those that are polled once and forgotten, without a drop.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;
use std::thread;

use microio::{
    CancelScope, CloseScope, Failure, Floor, PriorityMailbox, RequestRegistry, Service, ServiceThread, WorkTracker,
    bounded, channel,
};
use proptest::prelude::*;

use super::check;
use crate::support::{Hand, ready};

type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A primitive: how to wait for it, as often as one likes, and what ends all of that.
struct Source {
    wait: Box<dyn FnMut() -> Wait>,
    end: Box<dyn FnOnce()>,
}

fn source(wait: impl FnMut() -> Wait + 'static, end: impl FnOnce() + 'static) -> Source {
    Source { wait: Box::new(wait), end: Box::new(end) }
}

const SOURCES: usize = 8;

fn make(nth: usize) -> Source {
    match nth {
        0 => {
            let scope = CloseScope::new();
            source(
                {
                    let scope = scope.clone();
                    move || {
                        let closed = scope.closed();
                        Box::pin(async { drop(closed.await) })
                    }
                },
                move || assert!(scope.close("over")),
            )
        }
        1 => {
            let scope = CancelScope::new();
            source(
                {
                    let scope = scope.clone();
                    move || {
                        let cancelled = scope.child().cancelled();
                        Box::pin(async { drop(cancelled.await) })
                    }
                },
                move || assert!(scope.cancel("over")),
            )
        }
        2 => {
            let scope = CancelScope::new();
            source(
                {
                    let scope = scope.clone();
                    move || {
                        let scope = scope.clone();
                        Box::pin(async move { assert!(scope.run(std::future::pending::<()>()).await.is_err()) })
                    }
                },
                move || assert!(scope.cancel("over")),
            )
        }
        3 => {
            let tracker = WorkTracker::new();
            let work = tracker.track();
            source(move || Box::pin(tracker.idle()), move || drop(work))
        }
        4 => {
            let tracker = WorkTracker::new();
            source(
                {
                    let tracker = tracker.clone();
                    move || Box::pin(tracker.busy())
                },
                move || drop(tracker.track()),
            )
        }
        5 => {
            let (requests, mut key) = (RequestRegistry::<u32, u8>::new(), 0);
            source(
                {
                    let requests = requests.clone();
                    move || {
                        key += 1;
                        let waiter = requests.register(key).unwrap();
                        Box::pin(async { assert!(waiter.await.is_err()) })
                    }
                },
                move || assert!(requests.close(Failure::msg("over")) > 0),
            )
        }
        6 => {
            let service = ServiceThread::new("never started", |_| Ok(()));
            source(
                {
                    let service = service.clone();
                    move || {
                        let service = service.clone();
                        Box::pin(async move { assert!(service.ready().await.is_err()) })
                    }
                },
                move || assert!(service.stop("over".into())),
            )
        }
        _ => {
            let (tx, rx) = bounded(std::num::NonZeroUsize::MIN);
            tx.try_send(0).unwrap();
            source(
                move || {
                    let tx = tx.clone();
                    Box::pin(async move { assert!(tx.send(1).await.is_err()) })
                },
                move || drop(rx),
            )
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Wait,
    Poll { elsewhere: bool },
    Drop,
    Forget,
}

fn acts() -> impl Strategy<Value = Vec<(Act, prop::sample::Index)>> {
    let act = prop_oneof![
        3 => Just(Act::Wait),
        3 => any::<bool>().prop_map(|elsewhere| Act::Poll { elsewhere }),
        1 => Just(Act::Drop),
        1 => Just(Act::Forget),
    ];
    prop::collection::vec((act, any::<prop::sample::Index>()), 1..30)
}

/// The last waker that each of them was polled with is woken once, and no other is kept.
#[test]
fn the_end_reaches_every_wait_whoever_polled_it_last_and_whatever_was_forgotten() {
    check(128, (0..SOURCES, acts()), |(nth, acts)| {
        let Source { mut wait, end } = make(nth);
        let mut waits = vec![(wait(), Hand::new())];
        let mut forgotten = Vec::new();
        for (act, index) in acts {
            if waits.is_empty() {
                waits.push((wait(), Hand::new()));
            }
            let at = index.index(waits.len());
            match act {
                Act::Wait => waits.push((wait(), Hand::new())),
                Act::Poll { elsewhere } => {
                    let (wait, hand) = &mut waits[at];
                    let before = std::mem::take(hand);
                    let polled = if elsewhere {
                        thread::scope(|threads| threads.spawn(|| hand.poll(wait)).join().unwrap())
                    } else {
                        hand.poll(wait)
                    };
                    assert!(polled.is_pending());
                    assert_eq!((before.wakers(), before.wakes()), (0, 0));
                }
                Act::Drop => {
                    let (wait, hand) = waits.swap_remove(at);
                    drop(wait);
                    assert_eq!(hand.wakers(), 0);
                }
                Act::Forget => {
                    let (wait, hand) = waits.swap_remove(at);
                    std::mem::forget(wait);
                    forgotten.push(hand);
                }
            }
        }
        for (wait, hand) in &mut waits {
            assert!(hand.poll(wait).is_pending());
        }
        end();
        for (wait, hand) in &mut waits {
            assert_eq!(hand.wakes(), 1);
            assert!(hand.poll(wait).is_ready());
            assert_eq!(hand.wakers(), 0);
        }
    });
}

#[test]
fn a_receive_that_is_forgotten_leaves_the_next_one_all_items() {
    check(64, (any::<bool>(), 0..4u8, 0..4u8), |(priority, before, after)| {
        let hands = [(); 2].map(|()| Hand::new());
        let receive = |send: &dyn Fn(u8), forget: &mut dyn FnMut(&Hand), next: &mut dyn FnMut(&Hand) -> Option<u8>| {
            (0..before).for_each(send);
            (0..before).for_each(|_| assert!(next(&hands[1]).is_some()));
            forget(&hands[0]);
            assert_eq!(next(&hands[1]), None);
            (0..after).for_each(send);
            assert_eq!((hands[0].wakes(), hands[1].wakes()), (0, 0), "the second was dropped, the first replaced");
            assert_eq!((0..after).filter_map(|_| next(&hands[1])).count(), usize::from(after));
        };
        let item = |poll| match poll {
            Poll::Ready(Ok(item)) => Some(item),
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Pending => None,
        };
        if priority {
            let mailbox = std::cell::RefCell::new(PriorityMailbox::new(|item: &u8| *item));
            let tx = mailbox.borrow().sender();
            let _floor: Floor<u8> = mailbox.borrow().floor();
            receive(
                &|n| tx.try_send(n).unwrap(),
                &mut |hand| {
                    let mut mailbox = mailbox.borrow_mut();
                    let mut recv = Box::pin(mailbox.recv());
                    assert!(hand.poll(&mut recv).is_pending());
                    std::mem::forget(recv);
                },
                &mut |hand| item(hand.poll(&mut Box::pin(mailbox.borrow_mut().recv()))),
            );
        } else {
            let (tx, rx) = channel();
            let rx = std::cell::RefCell::new(rx);
            receive(
                &|n| tx.try_send(n).unwrap(),
                &mut |hand| {
                    let mut rx = rx.borrow_mut();
                    let mut recv = Box::pin(rx.recv());
                    assert!(hand.poll(&mut recv).is_pending());
                    std::mem::forget(recv);
                },
                &mut |hand| item(hand.poll(&mut Box::pin(rx.borrow_mut().recv()))),
            );
        }
    });
}

/// As documented: it is not dropped, so its entry stays, and that is all that stays.
#[test]
fn a_forgotten_waiter_keeps_its_own_key_and_no_other() {
    let requests = RequestRegistry::<u8, u8>::new();
    let (handle, mut waiter) = requests.reply(1).unwrap();
    assert!(Hand::new().poll(&mut waiter).is_pending());
    std::mem::forget(waiter);
    assert!(requests.register(1).is_err() && requests.register(2).is_ok());
    assert!(handle.is_wanted());
    handle.resolve(7).unwrap();
    let mut again = requests.register(1).unwrap();
    assert_eq!(requests.fail_all(Failure::msg("over")), 1);
    assert!(ready(&mut again).is_err() && requests.is_empty());
}

#[test]
fn a_wait_for_what_stays_can_be_polled_again_and_one_that_gave_its_outcome_away_panics() {
    let (closed, cancelled, tracker) = (CloseScope::new(), CancelScope::new(), WorkTracker::new());
    closed.close("over");
    cancelled.cancel("over");
    let (mut one, mut two, mut three) = (closed.closed(), cancelled.cancelled(), tracker.idle());
    for _ in 0..3 {
        let _ends = (ready(&mut one), ready(&mut two), ready(&mut three));
    }
    let requests = RequestRegistry::<u8, u8>::new();
    let (handle, mut waiter) = requests.reply(1).unwrap();
    handle.resolve(7).unwrap();
    assert_eq!(ready(&mut waiter).unwrap(), 7);
    assert!(catch_unwind(AssertUnwindSafe(|| ready(&mut waiter))).is_err(), "documented");
    drop(waiter);
    assert!(requests.is_empty() && requests.register(1).is_ok());
}

#[cfg(feature = "tokio")]
mod tasks {
    use std::sync::Arc;
    use std::time::Duration;

    use microio::{CallError, LoopServiceThread, TaskGroup, TaskOutcome};

    use super::*;
    use crate::support::run;

    #[test]
    fn the_handle_of_a_task_or_submission_polled_after_its_end_panics_and_breaks_nothing() {
        run(async {
            let group = TaskGroup::new();
            let mut task = group.create_task("one", async { Ok(1) });
            assert!(matches!((&mut task).await, TaskOutcome::Done(1)));
            assert!(catch_unwind(AssertUnwindSafe(|| Hand::new().poll(&mut task))).is_err(), "documented");
            assert!(!task.cancel("too late"));
            let mut forgotten = group.create_task("forgotten", std::future::pending::<Result<(), _>>());
            assert!(Hand::new().poll(&mut forgotten).is_pending());
            std::mem::forget(forgotten);
            group.cancel("over");
            group.join().await.unwrap();
        });
        let service = LoopServiceThread::new("loop", |_| std::future::pending());
        let (handle, mut pending) = (service.handle(), service.handle().submit(async { 1 }));
        assert!(Hand::new().poll(&mut pending).is_pending());
        let mut forgotten = handle.submit(async { 2 });
        assert!(Hand::new().poll(&mut forgotten).is_pending());
        std::mem::forget(forgotten);
        service.stop("over".into());
        assert!(matches!(ready(&mut pending), Err(CallError::Closed(_))));
        assert!(catch_unwind(AssertUnwindSafe(|| Hand::new().poll(&mut pending))).is_err(), "documented");
        assert!(!pending.cancel("too late"));
    }

    #[test]
    fn a_group_that_was_shut_down_or_joined_can_be_shut_down_and_joined_again_and_takes_no_more() {
        check(32, (any::<bool>(), prop::collection::vec(0..4u8, 1..6)), |(joined, acts)| {
            run(async move {
                let group = TaskGroup::new();
                if joined {
                    group.start_soon("child", async { Ok(()) });
                    group.join().await.unwrap();
                } else {
                    group.start_soon("child", std::future::pending());
                    group.shutdown("over", Duration::ZERO).await;
                }
                for act in acts {
                    match act {
                        0 => group.join().await.unwrap(),
                        1 => {
                            let report = group.shutdown("again", Duration::MAX).await;
                            assert_eq!((report.finished, report.aborted.len(), report.stuck.len()), (0, 0, 0));
                        }
                        2 => {
                            let guard = Arc::new(());
                            let late = |guard: Arc<()>| async move {
                                drop(guard);
                                panic!("it was polled")
                            };
                            group.start_soon("late", late(guard.clone()));
                            group.start_soon_local("late", late(guard.clone()));
                            assert_eq!(Arc::strong_count(&guard), 1, "dropped at once");
                        }
                        _ => {
                            let live = !group.scope().is_cancelled();
                            assert_eq!(group.cancel("again"), live);
                        }
                    }
                }
                group.join().await.unwrap();
            });
        });
    }
}
