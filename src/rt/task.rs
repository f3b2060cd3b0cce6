//! What a child is to whoever started it: [`Task`], a handle to await or cancel; [`TaskStatus`], its way to say that it is ready.
//! Either gives the child a scope of its own, inside the group's.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::child::{Group, Report, TaskOutcome};
use super::oneshot::Oneshot;
use crate::cancel::CancelScope;
use crate::error::{Cancelled, Failure, Name, Reason, display};
use crate::sync::{Arc, AtomicBool, Ordering};

/// A child that can be cancelled alone: it fails with the `Cancelled` of its own scope, which its report knows.
pub(super) async fn in_scope<T>(
    scope: CancelScope,
    child: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    scope.run(child).await?
}

/// The handle of a task: await it for the outcome. Dropping it lets the task go on in its group.
///
/// # Panics
/// If it is polled after it has given its outcome.
#[must_use = "dropping the handle lets the task go on; `start_soon` starts one without a handle"]
pub struct Task<T>(pub(super) Arc<TaskCell<T>>);

pub(super) struct TaskCell<T> {
    pub(super) scope: CancelScope,
    pub(super) outcome: Oneshot<TaskOutcome<T>>,
}

impl<T> Task<T> {
    /// Cancels this task alone. `true` for the call that did.
    #[track_caller]
    pub fn cancel(&self, why: impl Into<Reason>) -> bool {
        // A task that has ended is not cancelled any more.
        self.0.outcome.is_open()
            && self.0.scope.cancel_with(Cancelled { reason: why.into(), at: Location::caller() }).is_some()
    }
}

impl<T> Future for Task<T> {
    type Output = TaskOutcome<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TaskOutcome<T>> {
        self.0.outcome.poll(cx)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.outcome.leave();
    }
}

impl<T> Report<T> for Arc<TaskCell<T>> {
    fn report(self, outcome: TaskOutcome<T>) -> Option<Failure> {
        if let Some(cancelled) = outcome.cancelled_alone(&self.scope) {
            let _nobody_asks = self.outcome.set(TaskOutcome::Cancelled(cancelled));
            return None;
        }
        let failure = outcome.failure();
        let _nobody_asks = self.outcome.set(outcome);
        failure
    }
}

/// How a child says that it is ready. A child that drops it unused, and goes on, is ended: [`StartError::ExitedBeforeReady`].
pub struct TaskStatus<V>(pub(super) Option<Arc<StartCell<V>>>);

pub(super) struct StartCell<V> {
    pub(super) scope: CancelScope,
    pub(super) ready: Oneshot<Result<V, StartError>>,
    /// The child's future has been made. A status that went before was not the running child's to drop: the closure did not take
    /// it along. Then the child's own end tells what became of it.
    pub(super) begun: AtomicBool,
}

/// A `start` in progress: dropped, it takes the child along. A failure that has come and that its starter has not seen is the
/// group's then, as it is when it comes later.
pub(super) struct Starting<'a, V> {
    pub(super) cell: Option<Arc<StartCell<V>>>,
    pub(super) group: &'a Group,
    pub(super) name: Name,
}

impl<V> TaskStatus<V> {
    /// The child is ready: its starter goes on, with this value.
    pub fn started(mut self, value: V) {
        if let Some(cell) = self.0.take() {
            let _starter_is_gone = cell.ready.set(Ok(value));
        }
    }
}

impl<V> Drop for TaskStatus<V> {
    fn drop(&mut self) {
        // The child may be about to return an error, which is the better answer: so its scope ends it, at its next await.
        if let Some(cell) = self.0.take().filter(|cell| cell.begun.load(Ordering::Acquire)) {
            cell.scope.cancel("it dropped its TaskStatus without started()");
        }
    }
}

impl<V> Drop for Starting<'_, V> {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            let unseen = cell.ready.leave();
            cell.scope.cancel(Reason::OwnerDropped);
            if let Some(Err(StartError::Failed(cause))) = unseen {
                self.group.fail(std::mem::take(&mut self.name), cause);
            }
        }
    }
}

impl<V> Report<()> for Arc<StartCell<V>> {
    fn report(self, outcome: TaskOutcome<()>) -> Option<Failure> {
        let cancelled_alone = outcome.cancelled_alone(&self.scope).is_some();
        let error = match &outcome {
            TaskOutcome::Done(()) => StartError::ExitedBeforeReady,
            TaskOutcome::Failed(_) if cancelled_alone => StartError::ExitedBeforeReady,
            TaskOutcome::Failed(cause) | TaskOutcome::Panicked(cause) => StartError::Failed(cause.clone()),
            TaskOutcome::Cancelled(cancelled) => StartError::Cancelled(cancelled.clone()),
            TaskOutcome::Aborted => StartError::Failed(Failure::msg("aborted")),
        };
        match self.ready.set(Err(error)) {
            Ok(()) => None, // before it was ready: the starter hears of it, and only the starter
            Err(_) => outcome.failure().filter(|_| !cancelled_alone),
        }
    }
}

/// Why a child did not become ready.
#[derive(Debug)]
pub enum StartError {
    /// It failed or panicked before. The group does not hear of it.
    Failed(Failure),
    /// It ended, or dropped its `TaskStatus`, without having called `started`.
    ExitedBeforeReady,
    /// The group was cancelled.
    Cancelled(Cancelled),
}

impl StartError {
    /// This as a failure: the child's own, where there is one. (`?` and `into` would wrap it in a new one.)
    pub fn into_failure(self) -> Failure {
        match self {
            StartError::Failed(cause) => cause,
            other => other.into(),
        }
    }
}

display!(StartError {
    StartError::Failed(cause) => "{cause}" from cause.source(),
    StartError::ExitedBeforeReady => "the task ended before it was ready",
    StartError::Cancelled(cancelled) => "{cancelled}" from Some(cancelled),
});

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("running", &self.0.outcome.is_open()).field("scope", &self.0.scope).finish()
    }
}

impl<V> fmt::Debug for TaskStatus<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskStatus").finish_non_exhaustive()
    }
}
