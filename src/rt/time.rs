//! Time, on tokio's clock: [`sleep`], and deadlines as scopes: [`fail_after`], [`move_on_after`].

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::coop::unconstrained;
use tokio::time::Sleep;

use crate::error::Reason;
use crate::host::Scoped;

/// Waits for that time. In a cancelled scope it ends with the scope, like every await.
///
/// # Panics
/// Outside a tokio runtime that has its timer enabled.
///
/// # Cancel safety
/// It has no effect to lose.
pub async fn sleep(time: Duration) {
    tokio::time::sleep(time).await;
}

/// The deadline of [`fail_after`] passed.
#[derive(Clone, Debug)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl Error for TimedOut {}

/// Runs `body` for at most that time; after it, goes on without its output (`None`).
///
/// A deadline is a scope (the body's [`current_cancel_scope`](crate::current_cancel_scope)) that is cancelled with
/// [`Reason::Deadline`], or by whoever else cancels it: a [`shield`](crate::shield) in the body holds it off, and
/// a [`task_group`](crate::task_group) in the body stops and joins its children first. The time counts from the first time that
/// the body is not ready; a body that is ready at once reads no clock, and one that completes keeps its output. Zero polls
/// once.
///
/// # Panics
/// If the body is not ready at once: outside a tokio runtime that has its timer enabled.
///
/// # Cancel safety
/// Dropping the future drops the body.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
/// use std::time::Duration;
/// use microio::{move_on_after, sleep};
/// assert_eq!(move_on_after(Duration::from_secs(1), async { 7 }).await, Some(7));
/// assert_eq!(move_on_after(Duration::from_secs(1), sleep(Duration::from_secs(5))).await, None);
/// # });
/// ```
#[track_caller]
pub fn move_on_after<F: Future>(time: Duration, body: F) -> impl Future<Output = Option<F::Output>> {
    until(time, body)
}

/// As [`move_on_after`], but a deadline that passes is an error.
///
/// # Errors
/// [`TimedOut`]: the deadline passed before the body completed.
///
/// # Panics
/// As [`move_on_after`].
///
/// # Cancel safety
/// Dropping the future drops the body.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
/// use std::time::Duration;
/// let never = std::future::pending::<()>();
/// assert_eq!(microio::fail_after(Duration::from_secs(1), never).await.unwrap_err().to_string(), "timed out");
/// # });
/// ```
#[track_caller]
pub fn fail_after<F: Future>(time: Duration, body: F) -> impl Future<Output = Result<F::Output, TimedOut>> {
    let until = until(time, body);
    async move { until.await.ok_or(TimedOut) }
}

#[track_caller]
fn until<F: Future>(time: Duration, body: F) -> Until<F> {
    Until { scoped: Scoped::new(None, body), timer: None, time, expired: false, at: Location::caller() }
}

pin_project! {
    struct Until<F> {
        #[pin]
        scoped: Scoped<F>,
        // Made at the first Pending of the body.
        #[pin]
        timer: Option<Sleep>,
        time: Duration,
        expired: bool,
        at: &'static Location<'static>,
    }
}

impl<F: Future> Future for Until<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(ended) = this.scoped.as_mut().poll(cx) {
            return Poll::Ready(ended.ok());
        }
        if !*this.expired {
            if this.timer.is_none() && !this.time.is_zero() {
                this.timer.set(Some(tokio::time::sleep(*this.time)));
            }
            if let Some(timer) = this.timer.as_mut().as_pin_mut() {
                // Unconstrained: a body that has used up the task's budget must not keep the deadline from being seen.
                if std::pin::pin!(unconstrained(timer)).poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
            *this.expired = true;
            this.scoped.as_mut().cancel(Reason::Deadline, this.at);
        }
        if this.scoped.cut(cx).is_some() { Poll::Ready(None) } else { Poll::Pending }
    }
}
