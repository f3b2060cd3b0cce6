//! Band 3: what needs tokio. Tasks ([`TaskGroup`]), deadlines ([`fail_after`]), a thread that owns a loop
//! ([`LoopServiceThread`]); and the two questions that band 1 asks of tokio.

mod child;
mod loop_handle;
mod loop_thread;
mod oneshot;
mod task;
mod task_group;
mod time;

use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::coop::{RestoreOnPending, poll_proceed};

pub use child::TaskOutcome;
pub use loop_handle::{CallError, LoopHandle, Submitted};
#[cfg(loom)]
pub use loop_thread::loop_by_hand;
pub use loop_thread::{LoopContext, LoopServiceThread, block_in_place};
pub use task::{StartError, Task, TaskStatus};
pub use task_group::{GroupError, ShutdownReport, TaskGroup, task_group};
pub use time::{TimedOut, fail_after, move_on_after, sleep};

use crate::error::Reason;
use crate::service_group::{ServiceGroup, StopReport};

/// Whether this thread is polling a task of tokio's.
///
/// A current handle alone does not tell: `spawn_blocking` and `block_in_place` have one too, and may block. But only a polled
/// task has a budget that runs out. What was spent here to find out is given back: the first guard restores the budget.
/// (Not found out: a future inside `tokio::task::unconstrained`, and the rest of a `block_on`'s poll after a `block_in_place` in
/// it, because tokio gives both a budget without end.)
pub(crate) fn in_async_worker() -> bool {
    const MORE_THAN_A_BUDGET: usize = 256; // tokio's is 128
    if Handle::try_current().is_err() {
        return false;
    }
    let mut cx = Context::from_waker(Waker::noop());
    let mut first: Option<RestoreOnPending> = None;
    for _ in 0..MORE_THAN_A_BUDGET {
        match poll_proceed(&mut cx) {
            Poll::Pending => return true,
            Poll::Ready(spent) if first.is_some() => spent.made_progress(),
            Poll::Ready(spent) => first = Some(spent),
        }
    }
    false
}

/// Spends one unit of the budget of the task that is polled; outside of tasks there is always one.
pub(crate) fn poll_budget(cx: &mut Context<'_>) -> Poll<()> {
    ready!(poll_proceed(cx)).made_progress();
    Poll::Ready(())
}

impl ServiceGroup {
    /// As [`stop_join`](ServiceGroup::stop_join), without blocking.
    ///
    /// # Cancel safety
    /// The services have been asked to stop when it is polled first; dropping the future then only ends the wait.
    pub async fn stop_join_async(&self, why: impl Into<Reason>, timeout: Duration) -> StopReport {
        let begin = Instant::now();
        self.stop(why);
        let _timed_out_is_in_the_report = move_on_after(timeout, self.joined()).await;
        self.report(begin.elapsed())
    }
}
