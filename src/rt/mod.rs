//! Band 3: what needs tokio. So far, the two questions that band 1 asks of tokio.

use std::task::{Context, Poll, Waker, ready};

use tokio::runtime::Handle;
use tokio::task::coop::{RestoreOnPending, poll_proceed};

/// Whether this thread is polling a task of tokio's.
///
/// A current handle alone does not tell: `spawn_blocking` and `block_in_place` have one too, and may block. But only a polled
/// task has a budget that runs out. What was spent here to find out is given back: the first guard restores the budget.
/// (A future inside `tokio::task::unconstrained` is not found out.)
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

