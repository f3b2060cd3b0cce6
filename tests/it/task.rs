//! Tests of `src/rt/task.rs`. The clock is paused: a `sleep` is over when all tasks are idle.

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use microio::{
    CancelScope, Cancelled, Failure, GroupError, Panic, Reason, StartError, Task, TaskGroup, TaskOutcome, TaskStatus,
    channel, checkpoint_if_cancelled, current_cancel_scope, fail_after, move_on_after, shield, sleep, task_group,
};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::yield_now;

use crate::support::{LONG, OnDrop, block_on, poll_once, run, run_threads, within};

const S: Duration = Duration::from_secs(1);

type Never = Result<(), Failure>;

/// Lets everything run until it is idle.
async fn idle() {
    sleep(Duration::from_millis(1)).await;
}

async fn fail(text: &'static str) -> Never {
    Err(Failure::msg(text))
}

fn names(error: &GroupError) -> Vec<String> {
    error.failures.iter().map(|(name, cause)| format!("{name}: {cause}")).collect()
}

fn flag() -> (Arc<AtomicBool>, OnDrop<impl FnMut() + Send>) {
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = OnDrop({
        let dropped = dropped.clone();
        move || dropped.store(true, Ordering::SeqCst)
    });
    (dropped, guard)
}

fn is_set(flag: &AtomicBool) -> bool {
    flag.load(Ordering::SeqCst)
}

#[track_caller]
fn reason(cancelled: Option<Cancelled>) -> String {
    cancelled.expect("cut off").reason.to_string()
}

#[track_caller]
fn aborted<T: std::fmt::Debug>(outcome: TaskOutcome<T>) {
    assert!(matches!(outcome, TaskOutcome::Aborted), "{outcome:?}");
}

// ---- the block

#[test]
fn the_block_returns_its_value_when_all_children_are_joined() {
    run(async {
        let (dropped, guard) = flag();
        let value = task_group(async |tg| {
            tg.start_soon("slow", async move {
                let _guard = guard;
                sleep(S).await;
                Ok(())
            });
            Ok(7)
        });
        assert_eq!(value.await.unwrap(), 7);
        assert!(is_set(&dropped));
    });
}

#[test]
fn the_body_may_borrow() {
    run(async {
        let (mut count, text) = (0, String::from("borrowed"));
        task_group(async |tg| {
            for n in 1..=3 {
                let TaskOutcome::Done(n) = tg.create_task("n", async move { Ok(n) }).await else { panic!() };
                count += n * text.len();
            }
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(count, 48);
    });
}

#[test]
fn the_first_failure_cancels_the_siblings_and_the_body() {
    run(async {
        let (sibling, guard) = flag();
        let error = task_group(async |tg| {
            tg.start_soon("parked", async move {
                let _guard = guard;
                pending().await
            });
            tg.start_soon("bad", fail("eof"));
            pending::<Never>().await
        })
        .await
        .unwrap_err();
        assert_eq!(names(&error), ["bad: eof"]);
        assert!(is_set(&sibling));
        let Some(Cancelled { reason: Reason::ChildFailed(name, cause), .. }) = error.cancelled else { panic!() };
        assert!(name == "bad" && cause.ptr_eq(&error.failures[0].1));
    });
}

#[test]
fn all_failures_are_kept_with_their_names_in_order() {
    run(async {
        let error = task_group(async |tg| {
            for name in ["one", "two"] {
                let stopped = tg.scope().cancelled();
                tg.start_soon(name, shield(async move { panic!("{}", stopped.await.reason) }));
            }
            tg.start_soon("three", fail("eof"));
            Ok(())
        })
        .await
        .unwrap_err();
        assert_eq!(
            names(&error),
            ["three: eof", "one: panicked: three failed: eof", "two: panicked: three failed: eof"]
        );
        assert!(error.cancelled.is_none(), "the body had ended");
    });
}

#[test]
fn an_error_of_the_body_is_named_body_and_cancels_the_children() {
    run(async {
        let cause = Failure::msg("config");
        let error = task_group(async |tg| {
            tg.start_soon("parked", pending());
            yield_now().await;
            Err::<(), _>(cause.clone())
        })
        .await
        .unwrap_err();
        assert!(error.failures[0].0 == "body" && error.failures[0].1.ptr_eq(&cause) && error.cancelled.is_none());
    });
}

#[test]
fn a_cancel_cuts_the_body_off_at_its_next_await_and_is_no_failure() {
    run(async {
        let error = task_group(async |tg| {
            tg.start_soon("parked", pending());
            assert!(tg.cancel("enough"));
            assert!(!tg.cancel("again"));
            assert!(checkpoint_if_cancelled().is_err(), "the body is in the scope");
            yield_now().await;
            unreachable!("cut off");
            #[allow(unreachable_code)]
            Ok(())
        })
        .await
        .unwrap_err();
        assert!(error.failures.is_empty());
        let cancelled = error.cancelled.unwrap();
        assert_eq!((cancelled.reason.to_string().as_str(), cancelled.at.file()), ("enough", file!()));
    });
}

#[test]
fn a_body_that_passes_the_cancel_on_with_a_question_mark_has_not_failed() {
    run(async {
        let ended = task_group(async |tg| {
            tg.cancel("enough");
            checkpoint_if_cancelled()?;
            Ok(())
        });
        let error = ended.await.unwrap_err();
        assert!(error.failures.is_empty() && reason(error.cancelled) == "enough");
    });
}

#[test]
fn a_body_that_had_ended_keeps_its_ok() {
    run(async {
        let group = Arc::new(Mutex::new(None));
        let ended = task_group(async |tg| {
            *group.lock().unwrap() = Some(tg.clone());
            tg.start_soon("canceller", {
                let tg = tg.clone();
                async move {
                    sleep(S).await;
                    tg.cancel("from a child");
                    pending().await
                }
            });
            Ok(7)
        });
        assert_eq!(ended.await.unwrap(), 7);
        assert!(group.lock().unwrap().as_ref().unwrap().scope().is_cancelled());
    });
}

#[test]
fn a_cancel_from_another_thread_ends_the_block() {
    run_threads(async {
        let error = task_group(async |tg| {
            let remote = tg.clone();
            tg.start_soon("parked", pending());
            thread::spawn(move || assert!(remote.cancel("remote")));
            pending::<Never>().await
        });
        assert_eq!(reason(error.await.unwrap_err().cancelled), "remote");
    });
}

#[test]
fn a_panic_of_the_body_goes_on_with_its_payload_after_the_children_are_joined() {
    let (dropped, guard) = flag();
    let payload = catch_unwind(AssertUnwindSafe(|| {
        run(async {
            let _ = task_group(async |tg| {
                tg.start_soon("cleans-up", async move {
                    let _guard = guard;
                    shield(sleep(S)).await;
                    pending().await
                });
                yield_now().await;
                panic_any(4711_u32);
                #[allow(unreachable_code)]
                Ok(())
            })
            .await;
        });
    }))
    .unwrap_err();
    assert_eq!(payload.downcast_ref::<u32>(), Some(&4711));
    assert!(is_set(&dropped));
}

/// A child under a shield may wait for something that the body holds: the body goes first.
#[test]
fn a_body_that_is_cut_off_is_dropped_before_the_children_are_joined() {
    run(async {
        let (tx, mut rx) = channel::<u8>();
        let group = task_group(async |tg| {
            let _tx = tx;
            tg.start_soon("flush", async move {
                shield(async { while rx.recv().await.is_ok() {} }).await;
                Ok(())
            });
            idle().await;
            tg.cancel("done");
            pending::<Never>().await
        });
        assert_eq!(reason(group.await.unwrap_err().cancelled), "done");
    });
}

#[test]
fn a_block_that_is_dropped_aborts_its_children() {
    run(async {
        let (dropped, guard) = flag();
        let group = task_group(async |tg| {
            tg.start_soon("child", async move {
                let _guard = guard;
                shield(pending()).await
            });
            pending::<Never>().await
        });
        tokio::select! { _ = group => unreachable!(), () = sleep(S) => {} }
        idle().await;
        assert!(is_set(&dropped), "the loser of a select: its shielded child too");
    });
}

/// A child that starts others holds a handle to the group it is in: it must not keep itself alive with it.
#[test]
fn a_block_that_is_dropped_aborts_children_that_hold_its_handle() {
    run(async {
        let (dropped, guard) = flag();
        let group = task_group(async |tg| {
            let handle = tg.clone();
            tg.start_soon("acceptor", async move {
                let _guards = (guard, handle);
                pending().await
            });
            pending::<Never>().await
        });
        tokio::select! { _ = group => unreachable!(), () = sleep(S) => {} }
        idle().await;
        assert!(is_set(&dropped));
    });
}

#[test]
fn a_body_whose_locals_panic_when_it_is_cut_off_panics_after_the_children_are_joined() {
    let (dropped, guard) = flag();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        run(async {
            let _ = task_group(async |tg| {
                let _local = OnDrop(|| panic!("in drop"));
                tg.start_soon("cleans-up", async move {
                    let _guard = guard;
                    shield(sleep(S)).await;
                    Ok(())
                });
                idle().await;
                tg.cancel("done");
                pending::<Never>().await
            })
            .await;
        });
    }));
    assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"in drop"));
    assert!(is_set(&dropped));
}

/// Native abort: it is tokio's, and takes the children along.
#[test]
fn a_block_whose_task_is_aborted_aborts_its_children() {
    run(async {
        let (dropped, guard) = flag();
        let block = tokio::spawn(task_group(async move |tg| {
            tg.start_soon("child", async move {
                let _guard = guard;
                pending().await
            });
            pending::<Never>().await
        }));
        idle().await;
        block.abort();
        assert!(block.await.unwrap_err().is_cancelled(), "and is not a panic");
        idle().await;
        assert!(is_set(&dropped));
    });
}

// ---- blocks in scopes, deadlines and blocks

#[test]
fn a_scope_that_is_cancelled_from_outside_joins_the_children_before_its_run_returns() {
    run(async {
        let (scope, (dropped, guard)) = (CancelScope::new(), flag());
        let outer = scope.clone();
        tokio::spawn(async move {
            sleep(S).await;
            outer.cancel("from outside");
        });
        let ended = scope.run(task_group(async |tg| {
            tg.start_soon("cleans-up", async move {
                let _guard = guard;
                shield(sleep(5 * S)).await;
                Ok(())
            });
            pending::<Never>().await
        }));
        assert_eq!(ended.await.unwrap_err().reason.to_string(), "from outside");
        assert!(is_set(&dropped));
    });
}

#[test]
fn a_child_that_fails_while_it_is_cancelled_from_outside_is_not_swallowed() {
    run(async {
        let scope = CancelScope::new();
        let outer = scope.clone();
        let ended = scope.run(task_group(async move |tg| {
            tg.start_soon("bad-goodbye", async {
                shield(sleep(S)).await;
                fail("commit lost").await
            });
            idle().await;
            outer.cancel("from outside");
            pending::<Never>().await
        }));
        let error = ended.await.expect("the block had something to say").unwrap_err();
        assert_eq!(
            (names(&error), reason(error.cancelled)),
            (vec!["bad-goodbye: commit lost".into()], "from outside".into())
        );
    });
}

#[test]
fn a_block_inside_a_deadline_joins_its_children() {
    run(async {
        let begin = tokio::time::Instant::now();
        let (dropped, guard) = flag();
        let body = task_group(async |tg| {
            tg.start_soon("cleans-up", async move {
                let _guard = guard;
                shield(sleep(3 * S)).await;
                Ok(())
            });
            pending::<Never>().await
        });
        fail_after(S, body).await.unwrap_err();
        assert!(is_set(&dropped) && begin.elapsed() >= 3 * S);
        assert!(move_on_after(S, task_group(async |_| pending::<Never>().await)).await.is_none());
    });
}

#[test]
fn an_outer_block_joins_the_children_of_the_inner_before_it_returns() {
    run(async {
        let (dropped, guard) = flag();
        let outer = task_group(async |outer| {
            outer.start_soon("inner", async move {
                let inner = task_group(async |tg| {
                    tg.start_soon("leaf", async move {
                        let _guard = guard;
                        shield(sleep(S)).await;
                        pending().await
                    });
                    pending::<Never>().await
                });
                Ok(inner.await?)
            });
            idle().await;
            outer.cancel("all");
            Ok(())
        });
        outer.await.unwrap();
        assert!(is_set(&dropped));
    });
}

// ---- start

async fn listen(status: TaskStatus<u16>) -> Never {
    status.started(4711);
    pending().await
}

#[test]
fn start_returns_the_value_of_started_and_the_child_goes_on() {
    run(async {
        let (seen, tell) = (Arc::new(AtomicBool::new(false)), Duration::from_secs(5));
        task_group(async |tg| {
            let late = seen.clone();
            let port = tg.start("listener", |status: TaskStatus<u16>| async move {
                sleep(S).await;
                status.started(80);
                sleep(tell).await;
                late.store(true, Ordering::SeqCst);
                Ok(())
            });
            assert_eq!(port.await?, 80);
            assert!(!is_set(&seen));
            Ok(())
        })
        .await
        .unwrap();
        assert!(is_set(&seen), "the group has joined it");
    });
}

async fn bind(_status: TaskStatus<u16>) -> Never {
    Err(Failure::msg("in use"))
}

/// The original reports it twice.
#[test]
fn an_error_before_ready_is_the_callers_and_only_the_callers() {
    run(async {
        task_group(async |tg| {
            let error = tg.start("bind", bind).await.unwrap_err();
            assert!(matches!(&error, StartError::Failed(cause) if cause.to_string() == "in use"), "{error:?}");
            let error = tg
                .start("panics", |status: TaskStatus<u16>| async move {
                    let _status = status;
                    panic!("boom")
                })
                .await
                .unwrap_err();
            assert!(
                matches!(&error, StartError::Failed(cause) if cause.downcast_ref::<Panic>().is_some()),
                "{error:?}"
            );
            assert!(!tg.scope().is_cancelled(), "the group goes on");
            Ok(())
        })
        .await
        .unwrap();
    });
}

#[test]
fn a_child_that_ends_without_started_is_exited_before_ready() {
    run(async {
        let group = TaskGroup::new();
        let error = group.start("silent", |_: TaskStatus<()>| async { Ok(()) }).await.unwrap_err();
        assert!(matches!(error, StartError::ExitedBeforeReady));
        assert_eq!(error.to_string(), "the task ended before it was ready");
        group.join().await.unwrap();
    });
}

#[test]
fn a_child_that_drops_its_status_and_goes_on_does_not_keep_its_starter() {
    run(async {
        let (group, (dropped, guard)) = (TaskGroup::new(), flag());
        let error = group.start("goes-on", |status: TaskStatus<()>| async move {
            let _guard = guard;
            drop(status);
            pending().await
        });
        assert!(matches!(error.await, Err(StartError::ExitedBeforeReady)));
        assert!(is_set(&dropped));
        group.join().await.unwrap();
    });
}

#[test]
fn a_status_that_was_sent_elsewhere_and_dropped_there_ends_the_start() {
    run_threads(async {
        let (send, receive) = mpsc::channel::<TaskStatus<()>>();
        let other = thread::spawn(move || drop(receive.recv().unwrap()));
        let group = TaskGroup::new();
        let error = group.start("elsewhere", |status: TaskStatus<()>| async move {
            send.send(status).unwrap();
            pending().await
        });
        assert!(matches!(error.await, Err(StartError::ExitedBeforeReady)));
        other.join().unwrap();
        group.join().await.unwrap();
    });
}

/// trio#2544, trio#2895.
#[test]
fn a_group_that_is_cancelled_while_a_child_starts_tells_the_starter() {
    run(async {
        for shielded in [false, true] {
            let group = TaskGroup::new();
            let remote = group.clone();
            tokio::spawn(async move {
                sleep(S).await;
                remote.cancel("stop");
            });
            let start = group.start("starting", move |status: TaskStatus<()>| async move {
                let _status = status;
                if shielded { shield(pending()).await } else { pending().await }
            });
            let error = shield(start).await.unwrap_err();
            assert!(matches!(&error, StartError::Cancelled(by) if by.reason.to_string() == "stop"), "{error:?}");
            let report = group.shutdown("bye", S).await;
            assert_eq!(report.aborted.len() + report.finished, usize::from(shielded), "{report:?}");
            group.join().await.unwrap();
        }
    });
}

/// anyio#710.
#[test]
fn a_start_that_is_dropped_cancels_that_child_only() {
    run(async {
        task_group(async |tg| {
            let (dropped, guard) = flag();
            let other = tg.create_task("other", sleep_then(5 * S, 9));
            let start = tg.start("slow", |status: TaskStatus<()>| async move {
                let _both = (guard, status);
                pending().await
            });
            assert!(move_on_after(S, start).await.is_none());
            idle().await;
            assert!(is_set(&dropped) && !tg.scope().is_cancelled());
            assert!(matches!(other.await, TaskOutcome::Done(9)));
            Ok(())
        })
        .await
        .unwrap();
    });
}

async fn sleep_then<T>(time: Duration, value: T) -> Result<T, Failure> {
    sleep(time).await;
    Ok(value)
}

#[test]
fn a_start_on_a_group_that_is_over_is_refused_with_the_reason() {
    run(async {
        let group = TaskGroup::new();
        group.cancel("over");
        let error = group.start("late", listen).await.unwrap_err();
        assert!(matches!(&error, StartError::Cancelled(by) if by.reason.to_string() == "over"), "{error:?}");
        let joined = TaskGroup::new();
        joined.join().await.unwrap();
        assert!(matches!(joined.start("late", listen).await, Err(StartError::Cancelled(_))));
    });
}

#[test]
fn a_failure_after_started_is_the_groups() {
    run(async {
        let error = task_group(async |tg| {
            tg.start("fragile", |status: TaskStatus<()>| async move {
                status.started(());
                sleep(S).await;
                fail("eof").await
            })
            .await?;
            Ok(())
        });
        assert_eq!(names(&error.await.unwrap_err()), ["fragile: eof"]);
    });
}

#[test]
fn a_starter_that_is_gone_loses_no_failure() {
    run(async {
        let group = TaskGroup::new();
        let start = group.start("shielded", |status: TaskStatus<()>| async move {
            shield(async move {
                sleep(5 * S).await;
                status.started(()); // nobody waits for it: no panic
                fail("late").await
            })
            .await
        });
        assert!(move_on_after(S, start).await.is_none());
        assert_eq!(names(&group.join().await.unwrap_err()), ["shielded: late"]);
    });
}

// ---- the outcomes of a task

#[test]
fn a_task_tells_how_it_ended_and_the_group_keeps_the_same_failure() {
    run(async {
        let group = TaskGroup::new();
        let panics = group.create_task::<(), _>("panics", shield(async { panic!("boom") }));
        let fails = group.create_task::<(), _>("fails", shield(async { Err(Failure::msg("eof")) }));
        let done = group.create_task("done", shield(async { Ok(7) }));
        let TaskOutcome::Panicked(panic) = panics.await else { panic!() };
        let (fails, done) = (fails.await, done.await);
        let error = group.join().await.unwrap_err();
        assert_eq!(panic.downcast_ref::<Panic>().unwrap().message(), "boom");
        assert!(error.failures[0].1.ptr_eq(&panic));
        // The first failure cancels the group, and the others had not been polled.
        assert!(matches!(fails, TaskOutcome::Cancelled(_)) && matches!(done, TaskOutcome::Cancelled(_)));
        let group = TaskGroup::new();
        let TaskOutcome::Failed(cause) = group.create_task::<(), _>("fails", fail("eof")).await else { panic!() };
        assert!(group.join().await.unwrap_err().failures[0].1.ptr_eq(&cause));
    });
}

#[test]
fn a_task_is_cancelled_alone() {
    run(async {
        task_group(async |tg| {
            let task: Task<()> = tg.create_task("alone", pending());
            let other = tg.create_task("other", sleep_then(S, ()));
            idle().await;
            assert!(task.cancel("not needed") && !task.cancel("again"));
            let TaskOutcome::Cancelled(by) = task.await else { panic!() };
            assert_eq!((by.reason.to_string().as_str(), by.at.file()), ("not needed", file!()));
            assert!(matches!(other.await, TaskOutcome::Done(())));
            Ok(())
        })
        .await
        .unwrap();
    });
}

#[test]
fn a_task_whose_handle_is_dropped_goes_on() {
    run(async {
        let (group, done) = (TaskGroup::new(), Arc::new(AtomicBool::new(false)));
        let done_too = done.clone();
        drop(group.create_task("goes-on", async move {
            sleep(S).await;
            done_too.store(true, Ordering::SeqCst);
            Ok(())
        }));
        group.join().await.unwrap();
        assert!(is_set(&done));
    });
}

#[test]
fn a_task_on_a_group_that_is_over_is_dropped_unpolled_and_ends_cancelled() {
    run(async {
        let (cancelled, joined) = (TaskGroup::new(), TaskGroup::new());
        cancelled.cancel("over");
        joined.join().await.unwrap();
        for (group, why) in [(cancelled, "over"), (joined, "the task group has ended")] {
            let (dropped, guard) = flag();
            let task = group.create_task("late", async move {
                let _guard = guard;
                panic!("it is not polled");
                #[allow(unreachable_code)]
                Ok(())
            });
            assert!(is_set(&dropped), "at once");
            let TaskOutcome::Cancelled(by) = task.await else { panic!() };
            assert_eq!(by.reason.to_string(), why);
            group.start_soon("late", async { panic!("it is not polled") });
            group.join().await.unwrap();
        }
    });
}

/// iroh#4460, omicron#9567.
#[test]
fn joining_a_group_of_cancelled_and_aborted_children_is_neither_panic_nor_failure() {
    run(async {
        let group = TaskGroup::new();
        let meek: Task<()> = group.create_task("meek", pending());
        let stubborn: Task<()> = group.create_task("stubborn", shield(pending()));
        idle().await;
        let report = group.shutdown("bye", S).await;
        assert_eq!((report.finished, report.aborted, report.stuck), (1, vec!["stubborn".into()], vec![]));
        assert!(matches!(meek.await, TaskOutcome::Cancelled(by) if by.reason.to_string() == "bye"));
        aborted(stubborn.await);
        group.join().await.unwrap();
    });
}

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

// ---- shutdown and drop

#[test]
fn children_that_end_within_the_grace_are_counted() {
    run(async {
        let group = TaskGroup::new();
        for _ in 0..3 {
            group.start_soon("tidy", async {
                shield(sleep(S)).await;
                Ok(())
            });
        }
        idle().await;
        let report = group.shutdown("bye", 2 * S).await;
        assert_eq!((report.finished, report.aborted.len(), report.stuck.len()), (3, 0, 0));
        assert!(report.took < 2 * S);
        let again = group.shutdown("bye", S).await;
        assert_eq!((again.finished, again.took), (0, Duration::ZERO));
    });
}

/// Its waker has been taken by the cancel, and it has parked again more than once since.
#[test]
fn a_child_that_woke_under_its_shield_after_the_cancel_is_aborted_too() {
    run(async {
        let group = TaskGroup::new();
        let task: Task<()> = group.create_task(
            "ticks",
            shield(async {
                loop {
                    sleep(S / 4).await
                }
            }),
        );
        idle().await;
        let report = group.shutdown("bye", S).await;
        assert_eq!((report.aborted, report.stuck.len()), (vec!["ticks".into()], 0));
        aborted(task.await);
    });
}

/// ldk-node#1007.
#[test]
fn a_child_that_never_yields_is_reported_stuck_by_the_deadline() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (release, wait) = mpsc::channel::<()>();
    let (running, is_running) = mpsc::channel();
    let (begin, grace) = (Instant::now(), Duration::from_millis(50));
    let group = runtime.block_on(async { TaskGroup::new() });
    group.start_soon("blocks", async move {
        running.send(())?;
        let _released = wait.recv();
        Ok(())
    });
    is_running.recv_timeout(LONG).unwrap();
    let report = runtime.block_on(group.shutdown("bye", grace));
    assert_eq!((report.finished, report.aborted, report.stuck), (0, vec![], vec!["blocks".into()]));
    assert!(report.took >= grace && begin.elapsed() < LONG / 2);
    drop(release);
    runtime.block_on(group.join()).unwrap();
}

#[test]
fn all_who_join_get_all_failures() {
    run_threads(async {
        let group = TaskGroup::new();
        group.start_soon("bad", async {
            yield_now().await;
            fail("eof").await
        });
        let joiners = (0..100).map(|_| {
            let group = group.clone();
            tokio::spawn(async move { names(&group.join().await.unwrap_err()) })
        });
        for joiner in joiners.collect::<Vec<_>>() {
            assert_eq!(joiner.await.unwrap(), ["bad: eof"]);
        }
        assert_eq!(names(&group.join().await.unwrap_err()), ["bad: eof"]);
    });
}

#[test]
fn the_last_handle_dropped_aborts_what_still_runs() {
    run(async {
        let group = TaskGroup::new();
        let (other, (dropped, guard)) = (group.clone(), flag());
        let task = group.create_task("orphan", async move {
            let _guard = guard;
            shield(pending::<Never>()).await
        });
        idle().await;
        drop(group);
        idle().await;
        assert!(!is_set(&dropped), "a handle is left");
        drop(other);
        aborted(task.await);
        assert!(is_set(&dropped));
    });
}

#[test]
fn a_runtime_that_is_dropped_ends_its_children_aborted_and_nobody_hangs() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let (group, task) = runtime.block_on(async {
        let group = TaskGroup::new();
        let task: Task<()> = group.create_task("cut", pending());
        yield_now().await;
        (group, task)
    });
    drop(runtime);
    run(async move {
        aborted(task.await);
        let late: Task<()> = group.create_task("late", async { panic!("it is not polled") });
        aborted(late.await);
        group.join().await.unwrap();
    });
}

// ---- where children run

#[test]
fn a_group_made_outside_of_runtimes_uses_the_one_where_it_is_used() {
    let group = TaskGroup::new();
    run(async {
        assert!(matches!(group.create_task("inside", async { Ok(1) }).await, TaskOutcome::Done(1)));
        group.join().await.unwrap();
    });
}

#[test]
fn a_group_outside_of_all_runtimes_fails_its_child_with_a_clear_text() {
    let group = TaskGroup::new();
    group.start_soon("lost", async { Ok(()) });
    let error = block_on(group.join()).unwrap_err();
    assert_eq!(names(&error), ["lost: no tokio runtime: make the group, or start the task, inside one"]);
    let group = TaskGroup::new();
    let started = crate::support::ready(group.start("lost", listen));
    assert!(matches!(&started, Err(StartError::Failed(cause)) if cause.to_string().contains("no tokio runtime")));
}

#[test]
fn a_child_may_be_started_from_a_foreign_thread() {
    run_threads(async {
        let group = TaskGroup::new();
        let remote = group.clone();
        let thread = thread::spawn(move || {
            let port = block_on(remote.start("listener", listen)).unwrap(); // on a runtime of this thread's own
            (port, remote.create_task("remote", async { Ok(7) }))
        });
        let (port, task) = tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
        assert!(port == 4711 && matches!(task.await, TaskOutcome::Done(7)));
        group.cancel("done");
        group.join().await.unwrap();
    });
}

#[test]
fn a_local_child_stays_on_the_thread_of_its_loop() {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        let here = thread::current().id();
        let seen = std::rc::Rc::new(Cell::new(false));
        task_group(async |tg| {
            let seen = seen.clone();
            tg.start_soon_local("local", async move {
                yield_now().await;
                seen.set(thread::current().id() == here);
                Ok(())
            });
            Ok(())
        })
        .await
        .unwrap();
        assert!(seen.get());
    });
}

#[test]
fn a_local_child_outside_of_a_local_runtime_panics_and_leaves_the_group_whole() {
    run_threads(async {
        let group = TaskGroup::new();
        assert!(catch_unwind(AssertUnwindSafe(|| group.start_soon_local("nowhere", pending()))).is_err());
        group.join().await.unwrap();
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

// ---- many

#[test]
fn many_children_come_and_go() {
    run(async {
        let (group, count) = (TaskGroup::new(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..100_000 {
            let count = count.clone();
            group.start_soon("one", async move {
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
        }
        group.join().await.unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 100_000);
    });
}

#[test]
fn many_parked_children_are_cancelled() {
    run_threads(async {
        let (group, count) = (TaskGroup::new(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..100_000 {
            let count = count.clone();
            let guard = OnDrop(move || _ = count.fetch_add(1, Ordering::Relaxed));
            group.start_soon("one", async move {
                let _guard = guard;
                pending().await
            });
        }
        group.cancel("all");
        group.join().await.unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 100_000);
    });
}

#[test]
fn a_cancel_racing_the_start_of_children_loses_none() {
    within(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        for _ in 0..500 {
            runtime.block_on(async {
                let group = TaskGroup::new();
                let remote = group.clone();
                let racer = tokio::task::spawn_blocking(move || remote.cancel("now"));
                let tasks: Vec<Task<()>> = (0..20).map(|_| group.create_task("parked", pending())).collect();
                for task in tasks {
                    assert!(matches!(task.await, TaskOutcome::Cancelled(_)));
                }
                group.join().await.unwrap();
                assert!(racer.await.unwrap());
            });
        }
    });
}

#[test]
fn children_that_start_children_while_the_group_is_joined_are_joined_too() {
    run(async {
        let (group, count) = (TaskGroup::new(), Arc::new(AtomicUsize::new(0)));
        fn spread(group: &TaskGroup, count: &Arc<AtomicUsize>, depth: usize) {
            let (tg, count) = (group.clone(), count.clone());
            group.start_soon("spreads", async move {
                yield_now().await;
                count.fetch_add(1, Ordering::SeqCst);
                if depth > 0 {
                    (0..2).for_each(|_| spread(&tg, &count, depth - 1));
                }
                Ok(())
            });
        }
        spread(&group, &count, 7);
        group.join().await.unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 255);
    });
}

/// `|_| async { .. }` drops the status before the child begins: then the child's own end is the answer.
#[test]
fn a_closure_that_does_not_take_its_status_along_ends_as_its_child_does() {
    run(async {
        let group = TaskGroup::new();
        let failed = group.start("failing", |_: TaskStatus<u8>| async {
            yield_now().await;
            Err(Failure::msg("port taken"))
        });
        let Err(StartError::Failed(cause)) = failed.await else { panic!("not failed") };
        assert_eq!(cause.to_string(), "port taken");
        let silent = group.start("silent", |_: TaskStatus<u8>| async { Ok(()) }).await;
        assert!(matches!(silent, Err(StartError::ExitedBeforeReady)));
        let mut starting = Box::pin(group.start("waiting", |_: TaskStatus<u8>| std::future::pending()));
        assert!(poll_once(&mut starting).is_pending());
        group.cancel("stop");
        assert!(matches!(starting.await, Err(StartError::Cancelled(_))));
        group.join().await.unwrap();
    });
}

#[test]
fn a_closure_that_panics_instead_of_making_its_child_has_failed_to_start() {
    fn no_child(_: TaskStatus<u8>) -> std::future::Ready<Result<(), Failure>> {
        panic!("boom")
    }
    run(async {
        let group = TaskGroup::new();
        let Err(StartError::Failed(cause)) = group.start("none", no_child).await else { panic!("not failed") };
        assert_eq!(cause.downcast_ref::<Panic>().unwrap().message(), "boom");
        group.join().await.unwrap();
    });
}

#[test]
fn a_task_that_has_ended_is_not_cancelled() {
    run(async {
        let group = TaskGroup::new();
        let task = group.create_task("done", async { Ok(1) });
        group.join().await.unwrap();
        assert!(!task.cancel("too late"));
        assert!(matches!(task.await, TaskOutcome::Done(1)));
    });
}
