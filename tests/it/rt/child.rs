//! Tests of `src/rt/child.rs`.

use std::future::{Future, pending, poll_fn};
use std::panic::panic_any;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use microio::{Task, TaskGroup, TaskOutcome, checkpoint_if_cancelled, current_cancel_scope, shield, sleep, task_group};
use tokio::task::yield_now;

use crate::support::{OnDrop, run};

use super::*;

// ---- panics

/// A prototype hung for ever there.
#[test]
fn a_child_whose_locals_panic_when_it_is_cancelled_fails_and_the_group_ends() {
    run(async {
        for with_handle in [false, true] {
            let group = TaskGroup::new();
            let child = async {
                let _local = OnDrop(|| panic!("in drop"));
                pending::<Never>().await
            };
            if with_handle {
                let task = group.create_task("messy", child);
                idle().await;
                group.cancel("stop");
                assert!(matches!(task.await, TaskOutcome::Panicked(_)));
            } else {
                group.start_soon("messy", child);
                idle().await;
                group.cancel("stop");
            }
            assert_eq!(names(&group.join().await.unwrap_err()), ["messy: panicked: in drop"]);
        }
    });
}

#[test]
fn a_panic_payload_that_panics_when_dropped_does_not_hang_the_group() {
    run(async {
        let group = TaskGroup::new();
        group.start_soon("bomb", async { panic_any(OnDrop(|| panic!("again"))) });
        assert_eq!(group.join().await.unwrap_err().failures.len(), 1);
    });
}

#[test]
fn an_output_that_panics_when_dropped_does_not_hang_the_group() {
    run(async {
        let group = TaskGroup::new();
        drop(group.create_task("unwanted", async { Ok(OnDrop(|| panic!("in drop"))) }));
        assert_eq!(names(&group.join().await.unwrap_err()), ["unwanted: panicked: in drop"]);
    });
}

/// The one that is caught first must not let the other one out of the catch.
#[test]
fn a_future_and_its_error_that_both_panic_when_dropped_do_not_hang_the_group() {
    #[derive(Debug)]
    struct Bomb;
    impl std::fmt::Display for Bomb {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bomb")
        }
    }
    impl std::error::Error for Bomb {}
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the error");
        }
    }
    /// An `async` block has dropped its locals when it returns; this one has not.
    struct ByHand<D>(#[allow(dead_code)] D);
    impl<D: Unpin> Future for ByHand<D> {
        type Output = Never;
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Never> {
            Poll::Ready(Err(Bomb.into()))
        }
    }
    run(async {
        let group = TaskGroup::new();
        group.start_soon("both", ByHand(OnDrop(|| panic!("the future"))));
        assert_eq!(names(&group.join().await.unwrap_err()), ["both: panicked: the future"]);
    });
}

/// linera-protocol#6661.
#[test]
fn a_panic_in_a_child_that_nobody_joins_fails_the_group() {
    run(async {
        let error = task_group(async |tg| {
            tg.start_soon("silent", async { panic!("boom") });
            sleep(S).await;
            Ok(())
        });
        assert_eq!(names(&error.await.unwrap_err()), ["silent: panicked: boom"]);
    });
}

// ---- scopes in children

#[test]
fn a_child_is_in_the_scope_of_its_group() {
    run(async {
        task_group(async |tg| {
            let scope = tg.scope().clone();
            let child = tg.create_task("asks", async move {
                let mine = current_cancel_scope().expect("a scope of its own");
                checkpoint_if_cancelled()?;
                scope.cancel("by the scope");
                assert!(checkpoint_if_cancelled().is_err(), "it hears of its group's end without an await");
                assert!(!mine.is_cancelled(), "its own is another");
                Ok(())
            });
            assert!(tg.scope().reason().is_none());
            drop(child);
            Ok(())
        })
        .await
        .unwrap();
        task_group(async |tg| {
            tg.start_soon("asks", async {
                current_cancel_scope().unwrap().cancel("from a child");
                checkpoint_if_cancelled()?;
                unreachable!("cancelled")
            });
            Ok(())
        })
        .await
        .expect("a child that passes the cancel on has not failed");
    });
}

#[test]
fn a_shield_in_a_child_holds_the_cancel_off_until_it_closes() {
    run(async {
        let (group, reached) = (TaskGroup::new(), Arc::new(AtomicUsize::new(0)));
        let (step, begin) = (reached.clone(), tokio::time::Instant::now());
        let task: Task<()> = group.create_task("commits", async move {
            shield(sleep(2 * S)).await;
            step.fetch_add(1, Ordering::SeqCst);
            yield_now().await;
            step.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        idle().await;
        group.cancel("stop");
        assert!(matches!(task.await, TaskOutcome::Cancelled(_)));
        assert_eq!(reached.load(Ordering::SeqCst), 1, "it stopped at the next await after the shield");
        assert!(begin.elapsed() >= 2 * S);
    });
}

#[test]
fn a_child_that_is_woken_again_and_again_stops_at_its_next_pending() {
    run(async {
        let group = TaskGroup::new();
        group.start_soon(
            "busy",
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::Pending
            }),
        );
        yield_now().await;
        yield_now().await;
        group.cancel("stop");
        group.join().await.unwrap();
    });
}
