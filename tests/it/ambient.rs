//! Tests of `src/ambient.rs`.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::thread;

use microio::{CancelScope, Cancelled, Failure, checkpoint, checkpoint_if_cancelled, current_cancel_scope, shield};

use crate::support::{Abreast, Hand, meddler, poll_once, poll_with, ready, scaled};

/// A body that is never done, and counts how often it is polled.
fn counted(polls: &Cell<usize>) -> impl Future<Output = ()> {
    poll_fn(|_| {
        polls.set(polls.get() + 1);
        Poll::Pending
    })
}

/// Pending once, without a waker: the next poll by hand goes on behind it.
async fn step() {
    let mut polled = false;
    poll_fn(|_| if std::mem::replace(&mut polled, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// Tells when it is dropped.
struct Gone<'a>(&'a Cell<bool>);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

fn why<T>(outcome: Poll<Result<T, Cancelled>>) -> String {
    match outcome {
        Poll::Ready(Err(cancelled)) => cancelled.reason.to_string(),
        Poll::Ready(Ok(_)) => panic!("it completed"),
        Poll::Pending => panic!("it is pending"),
    }
}

// The table at the top of the file, row by row.

#[test]
fn a_live_scope_polls_its_body_and_gives_its_output() {
    let (scope, hand) = (CancelScope::new(), Hand::new());
    let mut run = pin!(scope.run(async {
        step().await;
        7
    }));
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!(hand.wakers(), 2, "in the scope's list, and to compare with");
    assert!(matches!(hand.poll(&mut run), Poll::Ready(Ok(7))));
    assert_eq!(hand.wakes(), 0);
}

#[test]
fn a_pre_cancelled_scope_drops_its_body_unpolled() {
    let (scope, polls) = (CancelScope::new(), Cell::new(0));
    scope.cancel("before");
    let dropped = Cell::new(false);
    let gone = Gone(&dropped);
    let mut run = pin!(scope.run(async {
        let _gone = gone;
        counted(&polls).await;
    }));
    assert_eq!(why(Hand::new().poll(&mut run)), "before");
    assert!(polls.get() == 0 && dropped.get(), "dropped before `run` returns, not with its future");
}

#[test]
fn a_cancel_between_polls_wakes_and_ends_without_another_poll() {
    let (scope, hand, polls) = (CancelScope::new(), Hand::new(), Cell::new(0));
    let mut run = pin!(scope.run(counted(&polls)));
    assert!(hand.poll(&mut run).is_pending());
    scope.cancel("between");
    assert_eq!(hand.wakes(), 1);
    assert_eq!(why(hand.poll(&mut run)), "between");
    assert_eq!(polls.get(), 1);
}

#[test]
fn a_cancel_during_a_poll_ends_it_at_that_pending() {
    let scope = CancelScope::new();
    let mut run = pin!(scope.run(async {
        scope.cancel("during");
        pending::<()>().await;
    }));
    assert_eq!(why(Hand::new().poll(&mut run)), "during");
}

#[test]
fn a_body_that_completes_keeps_its_output_though_it_was_cancelled_in_that_poll() {
    let scope = CancelScope::new();
    let output = ready(scope.run(async {
        scope.cancel("during");
        "done"
    }));
    assert_eq!(output.unwrap(), "done");
}

#[test]
fn a_shielded_body_is_polled_on_and_stops_at_the_next_await() {
    let (scope, hand) = (CancelScope::new(), Hand::new());
    let reached = Cell::new(0);
    let mut run = pin!(scope.run(async {
        shield(async {
            step().await;
            reached.set(1);
            step().await;
            reached.set(2);
        })
        .await;
        reached.set(3);
        step().await;
        reached.set(4);
    }));
    assert!(hand.poll(&mut run).is_pending());
    scope.cancel("stop");
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!(reached.get(), 1, "the shielded part goes on");
    assert_eq!(why(hand.poll(&mut run)), "stop");
    assert_eq!(reached.get(), 3, "and the next await is the end");
}

#[test]
fn a_shielded_body_that_completes_keeps_its_output() {
    let scope = CancelScope::new();
    let mut run = pin!(scope.run(shield(async {
        scope.cancel("during");
        step().await;
        7
    })));
    let hand = Hand::new();
    assert!(hand.poll(&mut run).is_pending());
    assert!(matches!(hand.poll(&mut run), Poll::Ready(Ok(7))));
}

// Cancelling.

/// tokio#7462: a body that is always ready to go on must not outrun the check.
#[test]
fn a_body_that_is_woken_again_and_again_stops_at_its_next_pending() {
    let (scope, hand, polls) = (CancelScope::new(), Hand::new(), Cell::new(0));
    let mut run = pin!(scope.run(poll_fn(|cx| -> Poll<()> {
        polls.set(polls.get() + 1);
        cx.waker().wake_by_ref();
        if polls.get() == 3 {
            scope.cancel("enough");
        }
        Poll::Pending
    })));
    assert!(hand.poll(&mut run).is_pending() && hand.poll(&mut run).is_pending());
    assert_eq!(why(hand.poll(&mut run)), "enough");
    assert_eq!(polls.get(), 3);
}

/// Each round, one poll and one cancel at the same moment: the poll sees the cancel, or the cancel wakes.
#[test]
fn a_cancel_that_races_the_registration_is_never_lost() {
    let scopes: Vec<_> = (0..scaled(100_000)).map(|_| CancelScope::new()).collect();
    let mut runs: Vec<_> =
        scopes.iter().map(|scope| (Hand::new(), Box::pin(scope.run(pending::<()>())), false)).collect();
    let abreast = Abreast::default();
    thread::scope(|threads| {
        threads.spawn(|| {
            for (round, scope) in scopes.iter().enumerate() {
                abreast.round(0, round);
                scope.cancel("race");
            }
        });
        for (round, (hand, run, parked)) in runs.iter_mut().enumerate() {
            abreast.round(1, round);
            *parked = hand.poll(run).is_pending();
        }
    });
    for (hand, mut run, parked) in runs {
        assert!(!parked || (hand.wakes() == 1 && hand.poll(&mut run).is_ready()), "lost");
    }
}

#[test]
fn an_outer_scope_cancelled_inside_the_inner_one_is_caught_by_the_outer() {
    let (outer, inner) = (CancelScope::new(), CancelScope::new());
    let after_inner = Cell::new(false);
    let mut run = pin!(outer.run(async {
        let _ = inner
            .run(async {
                outer.cancel("outer");
                step().await;
            })
            .await;
        after_inner.set(true);
    }));
    assert_eq!(why(Hand::new().poll(&mut run)), "outer");
    assert!(!after_inner.get() && !inner.is_cancelled());
}

#[test]
fn an_inner_scope_is_caught_by_itself_and_leaks_nothing_outward() {
    let (outer, hand) = (CancelScope::new(), Hand::new());
    let mut run = pin!(outer.run(async {
        let inner = outer.child();
        let ended = inner
            .run(async {
                inner.cancel("inner");
                pending::<()>().await;
            })
            .await;
        assert_eq!(ended.unwrap_err().reason.to_string(), "inner");
        assert!(checkpoint_if_cancelled().is_ok());
        checkpoint().await;
        step().await;
        "goodbye sent"
    }));
    assert!(hand.poll(&mut run).is_pending());
    assert!(matches!(hand.poll(&mut run), Poll::Ready(Ok("goodbye sent"))));
    assert!(!outer.is_cancelled());
}

#[test]
fn when_both_are_cancelled_the_outer_one_ends_it_all() {
    let outer = CancelScope::new();
    let (inner, hand) = (outer.child(), Hand::new());
    let after_inner = Cell::new(false);
    let mut run = pin!(outer.run(async {
        let _ = inner.run(pending::<()>()).await;
        after_inner.set(true);
    }));
    assert!(hand.poll(&mut run).is_pending());
    inner.cancel("inner");
    outer.cancel("outer");
    assert_eq!(why(hand.poll(&mut run)), "outer");
    assert!(!after_inner.get());
}

#[test]
fn a_run_dropped_half_way_drops_its_body_and_leaves_no_waker() {
    let (scope, hand) = (CancelScope::new(), Hand::new());
    let dropped = Cell::new(false);
    let gone = Gone(&dropped);
    let mut run = Box::pin(scope.run(async {
        let _gone = gone;
        shield(pending::<()>()).await;
    }));
    assert!(hand.poll(&mut run).is_pending());
    scope.cancel("shielded");
    assert!(hand.poll(&mut run).is_pending());
    drop(run);
    assert!(dropped.get());
    assert_eq!(hand.wakers(), 0);
}

#[test]
fn a_run_that_moves_to_another_waker_is_woken_through_the_new_one() {
    let (scope, old, new) = (CancelScope::new(), Hand::new(), Hand::new());
    let mut run = pin!(scope.run(pending::<()>()));
    assert!(old.poll(&mut run).is_pending() && new.poll(&mut run).is_pending());
    scope.cancel("now");
    assert_eq!((old.wakes(), old.wakers(), new.wakes()), (0, 0, 1));
}

#[test]
fn a_body_that_panics_after_a_wait_leaves_no_waker_in_its_scope() {
    let (scope, hand) = (CancelScope::new(), Hand::new());
    let body = async {
        step().await;
        panic!("body")
    };
    let mut run = Box::pin(scope.run(body));
    assert!(hand.poll(&mut run).is_pending());
    assert!(catch_unwind(AssertUnwindSafe(|| hand.poll(&mut run))).is_err());
    drop(run);
    assert_eq!(hand.wakers(), 0);
}

#[test]
fn a_body_that_panics_leaves_the_stack_as_it_was() {
    let inner = CancelScope::new();
    let body = || async { panic!("body") };
    let panics = |f: &dyn Fn()| catch_unwind(AssertUnwindSafe(f)).is_err();
    assert!(panics(&|| ready(inner.run(body())).unwrap()));
    assert!(current_cancel_scope().is_none());
    ready(inner.run(async {
        assert!(panics(&|| ready(shield(body()))));
        assert!(current_cancel_scope().is_some(), "nor does a shield stay in the way");
    }))
    .unwrap();
}

#[test]
fn a_waker_that_uses_the_scope_of_its_run_does_not_deadlock() {
    let scope = CancelScope::new();
    let meddling = scope.clone();
    let waker = meddler(move || drop((meddling.cancel("waker"), meddling.child(), current_cancel_scope())));
    let mut run = pin!(scope.run(shield(step())));
    assert!(poll_with(&waker, &mut run).is_pending());
    scope.cancel("first");
    assert!(poll_with(&waker, &mut run).is_ready());
}

// Shields.

#[test]
fn a_pre_cancelled_scope_does_not_enter_a_shield() {
    let scope = CancelScope::new();
    scope.cancel("before");
    let mut run = pin!(scope.run(shield(async { panic!("entered") })));
    assert_eq!(why(Hand::new().poll(&mut run)), "before");
}

#[test]
fn a_shield_dropped_half_way_protects_no_longer() {
    let (scope, hand) = (CancelScope::new(), Hand::new());
    let mut run = pin!(scope.run(async {
        let mut shielded = Some(Box::pin(shield(pending::<()>())));
        poll_fn(|cx| {
            if let Some(shielded) = &mut shielded {
                assert!(shielded.as_mut().poll(cx).is_pending());
            }
            if scope.is_cancelled() {
                shielded = None;
            }
            Poll::<()>::Pending
        })
        .await;
    }));
    assert!(hand.poll(&mut run).is_pending());
    scope.cancel("stop");
    assert_eq!(why(hand.poll(&mut run)), "stop");
}

/// A shielded future that the body has given away: dropped elsewhere, while the run waits for it to end. The run is woken when
/// the future is gone, not before.
#[test]
fn a_shield_dropped_by_another_thread_wakes_the_run_that_it_held() {
    struct Wakes(Hand, mpsc::Sender<usize>);
    impl Drop for Wakes {
        fn drop(&mut self) {
            self.1.send(self.0.wakes()).unwrap();
        }
    }
    let (scope, hand, (report, wakes)) = (CancelScope::new(), Hand::new(), mpsc::channel());
    let given = RefCell::new(None);
    let mut run = pin!(scope.run(poll_fn(|cx| {
        let in_body = Wakes(hand.clone(), report.clone());
        let mut shielded = Box::pin(shield(async move {
            let _in_body = in_body;
            pending::<()>().await;
        }));
        assert!(shielded.as_mut().poll(cx).is_pending());
        scope.cancel("stop");
        given.replace(Some(shielded));
        Poll::<()>::Pending
    })));
    assert!(hand.poll(&mut run).is_pending(), "held");
    let shielded = given.take().unwrap();
    thread::spawn(|| drop(shielded)).join().unwrap();
    assert_eq!((wakes.recv().unwrap(), hand.wakes()), (0, 1));
    assert_eq!(why(hand.poll(&mut run)), "stop");
}

/// The same, but the run goes first: the shield that is left must not keep its waker.
#[test]
fn a_run_dropped_before_a_shield_given_away_leaves_no_waker() {
    let (scope, hand) = (CancelScope::new(), Hand::new());
    let given = RefCell::new(None);
    let mut run = Box::pin(scope.run(poll_fn(|cx| {
        let mut shielded = Box::pin(shield(pending::<()>()));
        assert!(shielded.as_mut().poll(cx).is_pending());
        scope.cancel("stop");
        given.replace(Some(shielded));
        Poll::<()>::Pending
    })));
    assert!(hand.poll(&mut run).is_pending(), "held");
    drop(run);
    assert_eq!(hand.wakers(), 0);
}

#[test]
fn nested_shields_protect_until_the_outer_one_ends() {
    let (scope, hand) = (CancelScope::new(), Hand::new());
    let reached = Cell::new(0);
    let mut run = pin!(scope.run(async {
        shield(async {
            shield(step()).await;
            reached.set(1);
            step().await;
            reached.set(2);
        })
        .await;
        step().await;
        reached.set(3);
    }));
    assert!(hand.poll(&mut run).is_pending());
    scope.cancel("stop");
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!(reached.get(), 1, "the inner one has ended, the outer one still protects");
    assert_eq!(why(hand.poll(&mut run)), "stop");
    assert_eq!(reached.get(), 2);
}

#[test]
fn a_shield_protects_from_all_scopes_around_and_from_none_inside() {
    let (outer, middle, inside, hand) = (CancelScope::new(), CancelScope::new(), CancelScope::new(), Hand::new());
    let ended_inside = Cell::new(false);
    let mut run = pin!(outer.run(middle.run(shield(async {
        let ended = inside.run(pending::<()>()).await;
        ended_inside.set(ended.is_err());
        step().await;
        7
    }))));
    assert!(hand.poll(&mut run).is_pending());
    outer.cancel("outer");
    middle.cancel("middle");
    assert!(hand.poll(&mut run).is_pending() && !ended_inside.get());
    inside.cancel("inside");
    assert!(hand.poll(&mut run).is_pending() && ended_inside.get());
    assert!(matches!(hand.poll(&mut run), Poll::Ready(Ok(Ok(7)))));
}

/// The counter of a shield belongs to its run, not to a thread.
#[test]
fn a_shield_survives_a_task_that_moves_to_another_thread() {
    let scope = CancelScope::new();
    type Run = Pin<Box<dyn Future<Output = Result<(), Cancelled>> + Send>>;
    let polled = |(mut run, hand): (Run, Hand)| {
        thread::spawn(move || {
            let outcome = hand.poll(&mut run);
            assert!(current_cancel_scope().is_none());
            (outcome, (run, hand))
        })
        .join()
        .unwrap()
    };
    let inside = scope.clone();
    let run = Box::pin(async move {
        inside
            .run(async {
                shield(async {
                    step().await;
                    step().await;
                })
                .await;
                pending::<()>().await;
            })
            .await
    });
    let (outcome, task) = polled((run, Hand::new()));
    assert!(outcome.is_pending());
    scope.cancel("stop");
    let (outcome, task) = polled(task);
    assert!(outcome.is_pending(), "the shield holds on the second thread too");
    assert_eq!(why(polled(task).0), "stop");
}

#[test]
fn shielded_tasks_on_a_runtime_with_many_threads_reach_the_end_of_their_shield() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let (scope, reached) = (CancelScope::new(), Arc::new(AtomicUsize::new(0)));
    let (entered, all_entered) = mpsc::channel();
    let tasks: Vec<_> = (0..scaled(50))
        .map(|_| {
            let (scope, reached, entered) = (scope.clone(), reached.clone(), entered.clone());
            runtime.spawn(async move {
                let body = async {
                    shield(async {
                        entered.send(()).unwrap();
                        let cancelled = pin!(scope.cancelled());
                        cancelled.await;
                        for _ in 0..20 {
                            tokio::task::yield_now().await;
                        }
                        reached.fetch_add(1, Ordering::SeqCst);
                    })
                    .await;
                    loop {
                        tokio::task::yield_now().await;
                    }
                };
                let ended: Result<(), Cancelled> = scope.run(body).await;
                ended.unwrap_err()
            })
        })
        .collect();
    all_entered.iter().take(scaled(50)).for_each(drop);
    scope.cancel("stop");
    for task in tasks {
        assert_eq!(runtime.block_on(task).unwrap().reason.to_string(), "stop");
    }
    assert_eq!(reached.load(Ordering::SeqCst), scaled(50));
}

// What the running code can ask.

#[test]
fn outside_of_all_scopes_there_is_nothing_to_ask_and_nothing_to_wait_for() {
    assert!(current_cancel_scope().is_none());
    assert!(checkpoint_if_cancelled().is_ok());
    ready(checkpoint());
    ready(shield(checkpoint()));
}

#[test]
fn the_current_scope_is_the_innermost_one_inside_the_nearest_shield() {
    let (outer, inner) = (CancelScope::new(), CancelScope::new());
    ready(outer.run(async {
        inner.run(async { current_cancel_scope().unwrap().cancel("inner") }).await.unwrap();
        assert!(inner.is_cancelled() && !outer.is_cancelled());
        shield(async {
            assert!(current_cancel_scope().is_none());
            let own = CancelScope::new();
            own.run(async { current_cancel_scope().unwrap().cancel("own") }).await.unwrap();
            assert!(own.is_cancelled());
        })
        .await;
        current_cancel_scope().unwrap().cancel("outer");
    }))
    .unwrap();
    assert!(outer.is_cancelled());
    assert!(current_cancel_scope().is_none());
}

#[test]
fn a_computing_loop_hears_of_a_cancel_of_any_scope_around_but_not_in_a_shield() {
    let outer = CancelScope::new();
    let body = async {
        CancelScope::new()
            .run(async {
                assert!(checkpoint_if_cancelled().is_ok());
                outer.cancel("stop");
                shield(async { assert!(checkpoint_if_cancelled().is_ok()) }).await;
                checkpoint_if_cancelled().unwrap_err().reason.to_string()
            })
            .await
            .unwrap()
    };
    assert_eq!(ready(outer.run(body)).unwrap(), "stop");
}

#[test]
fn the_error_of_a_checkpoint_goes_through_the_question_mark() {
    fn computing() -> Result<(), Failure> {
        checkpoint_if_cancelled()?;
        Ok(())
    }
    let scope = CancelScope::new();
    let failure = ready(scope.run(async {
        scope.cancel("stop");
        computing().unwrap_err()
    }));
    assert!(failure.unwrap().downcast_ref::<Cancelled>().is_some());
}

#[test]
fn a_checkpoint_in_a_cancelled_scope_stops_there() {
    let (scope, after) = (CancelScope::new(), Cell::new(false));
    let mut run = pin!(scope.run(async {
        scope.cancel("stop");
        shield(checkpoint()).await; // does not stop here
        CancelScope::new().run(checkpoint()).await.unwrap();
        after.set(true);
    }));
    assert_eq!(why(Hand::new().poll(&mut run)), "stop");
    assert!(!after.get());
}

/// One thread, a loop of nothing but checkpoints: the other task gets its turn.
#[test]
#[cfg(feature = "tokio")]
fn a_busy_loop_of_checkpoints_lets_other_tasks_run() {
    crate::support::block_on(async {
        let other = Arc::new(AtomicUsize::new(0));
        let seen = other.clone();
        let task = tokio::spawn(async move { seen.store(1, Ordering::SeqCst) });
        for _ in 0..1_000 {
            checkpoint().await;
        }
        assert_eq!(other.load(Ordering::SeqCst), 1);
        task.await.unwrap();
    });
}

/// A checkpoint is cheap: it yields only when the time slice is used up.
#[test]
#[cfg(feature = "tokio")]
fn a_single_checkpoint_does_not_yield() {
    crate::support::block_on(async {
        tokio::task::yield_now().await; // a fresh time slice
        let mut polls = 0;
        let mut body = pin!(async { (checkpoint().await, checkpoint().await) });
        poll_fn(|cx| {
            polls += 1;
            body.as_mut().poll(cx)
        })
        .await;
        assert_eq!(polls, 1);
    });
}

/// A thread-local's destructor may run when the stack of scopes is gone: that is outside of all scopes, and no panic.
#[test]
fn scopes_work_in_the_destructor_of_a_thread_local() {
    struct Last(std::sync::mpsc::Sender<bool>);
    impl Drop for Last {
        fn drop(&mut self) {
            let scope = CancelScope::new();
            let ran = poll_once(&mut Box::pin(scope.run(shield(async { 7 }))));
            let outside = checkpoint_if_cancelled().is_ok() && current_cancel_scope().is_none();
            self.0.send(outside && matches!(ran, Poll::Ready(Ok(7)))).unwrap();
        }
    }
    thread_local!(static LAST: RefCell<Option<Last>> = const { RefCell::new(None) });
    let (tx, rx) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        LAST.set(Some(Last(tx))); // before the stack is first used, so destroyed after it
        assert!(current_cancel_scope().is_none());
        drop(poll_once(&mut Box::pin(CancelScope::new().run(async {}))));
    });
    thread.join().unwrap();
    assert!(rx.recv().unwrap());
}
