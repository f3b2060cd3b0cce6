//! Tests of `src/rt`, and what they share. The clock is paused: a `sleep` is over when all tasks are idle.

mod child;
mod loop_thread;
mod task;
mod task_group;
mod time;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use microio::{Cancelled, Failure, GroupError, TaskOutcome, TaskStatus, sleep};

use crate::support::OnDrop;

pub(crate) const S: Duration = Duration::from_secs(1);

pub(crate) type Never = Result<(), Failure>;

/// Lets everything run until it is idle.
pub(crate) async fn idle() {
    sleep(Duration::from_millis(1)).await;
}

pub(crate) async fn fail(text: &'static str) -> Never {
    Err(Failure::msg(text))
}

pub(crate) fn names(error: &GroupError) -> Vec<String> {
    error.failures.iter().map(|(name, cause)| format!("{name}: {cause}")).collect()
}

pub(crate) fn flag() -> (Arc<AtomicBool>, OnDrop<impl FnMut() + Send>) {
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = OnDrop({
        let dropped = dropped.clone();
        move || dropped.store(true, Ordering::SeqCst)
    });
    (dropped, guard)
}

pub(crate) fn is_set(flag: &AtomicBool) -> bool {
    flag.load(Ordering::SeqCst)
}

#[track_caller]
pub(crate) fn reason(cancelled: Option<Cancelled>) -> String {
    cancelled.expect("cut off").reason.to_string()
}

#[track_caller]
pub(crate) fn aborted<T: std::fmt::Debug>(outcome: TaskOutcome<T>) {
    assert!(matches!(outcome, TaskOutcome::Aborted), "{outcome:?}");
}

pub(crate) async fn listen(status: TaskStatus<u16>) -> Never {
    status.started(4711);
    std::future::pending().await
}
