//! Tests of `src/rt/time.rs`. The clock is paused, except where a busy body needs a real one.

use std::future::{pending, poll_fn};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use microio::{
    Failure, Reason, TaskOutcome, current_cancel_scope, fail_after, move_on_after, shield, sleep, task_group,
};
use tokio::task::{consume_budget, yield_now};
use tokio::time::Instant as Clock;

use crate::support::{LONG, OnDrop, ready, run, run_threads};

const S: Duration = Duration::from_secs(1);

#[test]
fn a_sleep_takes_its_time() {
    run(async {
        let begin = Clock::now();
        sleep(3 * S).await;
        assert!(begin.elapsed() >= 3 * S && begin.elapsed() < 4 * S);
    });
}

#[test]
fn a_body_that_is_ready_at_once_needs_no_clock_and_no_runtime() {
    assert_eq!(ready(fail_after(S, async { 7 })).unwrap(), 7);
    assert_eq!(ready(move_on_after(Duration::ZERO, async { 7 })), Some(7));
    assert!(ready(fail_after(Duration::ZERO, pending::<()>())).is_err(), "zero needs none either");
}

#[test]
fn a_body_that_must_wait_outside_of_a_runtime_panics_as_documented() {
    assert!(catch_unwind(|| ready(fail_after(S, pending::<()>()))).is_err());
}

#[test]
fn zero_polls_once() {
    run(async {
        let polls = AtomicUsize::new(0);
        let body = poll_fn(|_| {
            polls.fetch_add(1, Ordering::SeqCst);
            Poll::<()>::Pending
        });
        assert!(move_on_after(Duration::ZERO, body).await.is_none());
        assert_eq!(polls.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn the_time_counts_from_the_first_pending() {
    run(async {
        let body = fail_after(S, sleep(S / 2));
        sleep(10 * S).await;
        body.await.expect("it had not begun");
        assert_eq!(fail_after(S, sleep(2 * S)).await.unwrap_err().to_string(), "timed out");
    });
}

#[test]
fn a_deadline_in_the_furthest_future_is_none() {
    run(async {
        fail_after(Duration::MAX, sleep(S)).await.unwrap();
        assert_eq!(move_on_after(Duration::MAX, async { 7 }).await, Some(7));
    });
}

#[test]
fn a_body_that_wakes_itself_all_the_time_still_times_out() {
    let begin = Instant::now();
    run_threads(async {
        let busy = poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert!(move_on_after(Duration::from_millis(20), busy).await.is_none());
        let spends = async {
            loop {
                consume_budget().await
            }
        };
        assert!(move_on_after(Duration::from_millis(20), spends).await.is_none(), "though the budget is spent");
    });
    assert!(begin.elapsed() < LONG / 2);
}

#[test]
fn of_two_deadlines_the_shorter_one_ends_its_own_body() {
    run(async {
        let begin = Clock::now();
        assert!(fail_after(3 * S, fail_after(S, pending::<()>())).await.unwrap().is_err(), "the inner one");
        assert!(begin.elapsed() < 2 * S);
        assert!(fail_after(S, fail_after(3 * S, pending::<()>())).await.is_err(), "the outer one");
    });
}

#[test]
fn of_two_deadlines_at_the_same_moment_each_ends_what_it_owns() {
    run(async {
        let inner_only = fail_after(S, fail_after(S, pending::<()>()));
        assert!(inner_only.await.unwrap().is_err(), "the body of the outer one is complete with that");
        let goes_on = fail_after(S, async {
            assert!(move_on_after(S, pending::<()>()).await.is_none());
            pending::<()>().await;
        });
        assert!(goes_on.await.is_err());
    });
}

#[test]
fn a_deadline_is_a_scope_with_the_reason_of_a_deadline() {
    run(async {
        let scope = fail_after(S, async { current_cancel_scope().unwrap() }).await.unwrap();
        assert!(!scope.is_cancelled(), "nothing leaks out of one that was kept");
        let kept = std::sync::Mutex::new(None);
        let body = async {
            *kept.lock().unwrap() = current_cancel_scope();
            pending::<()>().await;
        };
        fail_after(S, body).await.unwrap_err();
        let scope = kept.lock().unwrap().take().unwrap();
        assert!(matches!(scope.reason(), Some(Reason::Deadline)));
    });
}

#[test]
fn a_block_in_a_deadline_hears_that_it_was_a_deadline() {
    run(async {
        let kept = std::sync::Mutex::new(None);
        let block = task_group(async |tg| {
            *kept.lock().unwrap() = Some(tg.scope().clone());
            pending::<Result<(), Failure>>().await
        });
        fail_after(S, block).await.unwrap_err();
        let cancelled = kept.lock().unwrap().take().unwrap().check().unwrap_err();
        assert!(matches!(cancelled.reason, Reason::Deadline));
        assert_eq!(cancelled.at.file(), file!(), "and where it was set");
    });
}

#[test]
fn a_shield_inside_holds_the_deadline_off_and_then_it_counts() {
    run(async {
        let (begin, after) = (Clock::now(), AtomicBool::new(false));
        let body = async {
            shield(sleep(3 * S)).await;
            yield_now().await;
            after.store(true, Ordering::SeqCst);
        };
        assert!(fail_after(S, body).await.is_err());
        assert!(begin.elapsed() >= 3 * S && !after.load(Ordering::SeqCst));
        assert_eq!(
            fail_after(S, shield(async { (sleep(3 * S).await, 7).1 })).await.unwrap(),
            7,
            "complete is complete"
        );
    });
}

#[test]
fn a_block_inside_a_deadline_is_joined_and_its_value_kept_if_it_has_one() {
    run(async {
        let block = task_group(async |tg| {
            let task = tg.create_task("quick", async { Ok(7) });
            let TaskOutcome::Done(n) = task.await else { panic!() };
            Ok(n)
        });
        assert_eq!(fail_after(S, block).await.unwrap().unwrap(), 7);
    });
}

#[test]
fn a_deadline_that_is_dropped_half_way_drops_its_body() {
    run(async {
        let dropped = AtomicBool::new(false);
        let body = async {
            let _guard = OnDrop(|| dropped.store(true, Ordering::SeqCst));
            pending::<()>().await;
        };
        {
            let mut timed = std::pin::pin!(fail_after(S, body));
            tokio::select! { biased; _ = &mut timed => unreachable!(), () = yield_now() => {} }
            assert!(!dropped.load(Ordering::SeqCst));
        }
        assert!(dropped.load(Ordering::SeqCst));
    });
}
