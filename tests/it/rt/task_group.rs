//! Tests of `src/rt/task_group.rs`.

use std::cell::Cell;
use std::error::Error;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use microio::{
    CancelScope, Cancelled, Failure, GroupError, Reason, StartError, Task, TaskGroup, TaskOutcome, channel,
    checkpoint_if_cancelled, fail_after, move_on_after, shield, sleep, task_group,
};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::yield_now;

use crate::support::{LONG, OnDrop, Rooted, block_on, run, run_threads, scaled, within};

use super::*;

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

/// As after a grace through which the machine stood still.
#[test]
fn a_child_that_obeys_at_its_first_turn_is_not_aborted() {
    run(async {
        let group = TaskGroup::new();
        let obeys: Task<()> = group.create_task("obeys", pending());
        idle().await;
        let report = group.shutdown("bye", Duration::ZERO).await;
        assert_eq!((report.finished, report.aborted.len(), report.stuck.len()), (1, 0, 0));
        assert!(matches!(obeys.await, TaskOutcome::Cancelled(_)));
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
        let joiners = (0..scaled(100)).map(|_| {
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

// ---- many

#[test]
fn many_children_come_and_go() {
    run(async {
        let (group, count) = (TaskGroup::new(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..scaled(100_000) {
            let count = count.clone();
            group.start_soon("one", async move {
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
        }
        group.join().await.unwrap();
        assert_eq!(count.load(Ordering::Relaxed), scaled(100_000));
    });
}

#[test]
fn many_parked_children_are_cancelled() {
    run_threads(async {
        let (group, count) = (TaskGroup::new(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..scaled(20_000) {
            let count = count.clone();
            let guard = OnDrop(move || _ = count.fetch_add(1, Ordering::Relaxed));
            group.start_soon("one", async move {
                let _guard = guard;
                pending().await
            });
        }
        group.cancel("all");
        group.join().await.unwrap();
        assert_eq!(count.load(Ordering::Relaxed), scaled(20_000));
    });
}

#[test]
fn a_cancel_racing_the_start_of_children_loses_none() {
    within(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        for _ in 0..scaled(500) {
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

#[cfg(feature = "tracing")]
#[test]
#[cfg_attr(miri, ignore = "starts a process")]
fn a_failure_is_told_to_who_joins_or_else_logged_and_never_twice() {
    if !crate::alone::alone("rt::task_group::a_failure_is_told_to_who_joins_or_else_logged_and_never_twice") {
        return;
    }
    async fn fails(panics: bool) -> Result<(), Failure> {
        if panics { panic!("boom") } else { Err(Failure::msg("eof")) }
    }
    let lines = |group: bool, joins: bool, panics: bool| {
        crate::logged::take();
        run(async {
            if !group {
                let block: Result<(), _> = task_group(async |tg| {
                    tg.start_soon("child", fails(panics));
                    pending().await
                })
                .await;
                return assert_eq!(block.unwrap_err().failures.len(), 1);
            }
            let group = TaskGroup::new();
            group.start_soon("child", fails(panics));
            group.scope().cancelled().await;
            if joins {
                group.join().await.unwrap_err();
            }
        });
        crate::logged::take()
    };
    assert!(lines(false, true, false).is_empty() && lines(false, true, true).is_empty(), "the block tells");
    assert!(lines(true, true, false).is_empty(), "the join tells");
    assert_eq!(lines(true, false, false), ["task child failed: eof"], "nobody asked");
    for joins in [false, true] {
        let panic = "task child failed: panicked: boom";
        assert_eq!(lines(true, joins, true), [panic], "at once: a join may never come");
    }
}

#[test]
fn the_error_of_a_group_says_its_failures_or_else_why_it_was_cut_off() {
    let scope = CancelScope::new();
    scope.cancel("bye");
    let cancelled = scope.check().err();
    let cut_off = GroupError { failures: vec![], cancelled: cancelled.clone() };
    assert_eq!(cut_off.to_string(), "cancelled: bye");
    assert!(cut_off.source().unwrap().is::<Cancelled>());
    let failed = GroupError { failures: vec![("child".into(), Rooted.into())], cancelled };
    assert_eq!(failed.to_string(), "child failed: rooted");
    assert_eq!(failed.source().unwrap().to_string(), "the root");
}
