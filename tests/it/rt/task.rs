//! Tests of `src/rt/task.rs`.

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use microio::{
    Failure, Panic, StartError, Task, TaskGroup, TaskOutcome, TaskStatus, move_on_after, shield, sleep, task_group,
};
use tokio::task::yield_now;

use crate::support::{Hand, poll_once, run, run_threads};

use super::*;

// ---- start

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

#[test]
fn a_failure_that_a_dropped_start_has_not_heard_is_the_groups() {
    run(async {
        let tg = TaskGroup::new();
        let mut start = Box::pin(tg.start("early", |status: TaskStatus<()>| async move {
            let _status = status;
            Err(Failure::msg("port taken"))
        }));
        assert!(poll_once(&mut start).is_pending());
        idle().await;
        drop(start);
        assert_eq!(tg.join().await.unwrap_err().to_string(), "early failed: port taken");
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

#[test]
fn a_handle_that_is_dropped_leaves_no_waker() {
    run(async {
        let (group, hand) = (TaskGroup::new(), Hand::new());
        let mut task: Task<()> = group.create_task("lives on", pending());
        assert!(hand.poll(&mut task).is_pending());
        assert_eq!(hand.wakers(), 1);
        drop(task);
        assert_eq!(hand.wakers(), 0);
        group.shutdown("bye", S).await;
    });
}
