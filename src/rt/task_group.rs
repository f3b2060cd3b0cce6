//! Tasks with an owner: [`TaskGroup`], and [`task_group`], which joins every child before it returns. How a child lives and ends
//! is in `child.rs`.

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::child::{ABORT, Group, Report, Unwatched, is_cancel};
use super::oneshot::Oneshot;
use super::task::{StartCell, StartError, Starting, Task, TaskCell, TaskStatus, in_scope};
use super::time::move_on_after;
use crate::ambient::checkpoint;
use crate::cancel::CancelScope;
use crate::error::{Cancelled, Failure, Name, Reason, catch};
use crate::host::relay;
use crate::log::log;
use crate::sync::{Arc, AtomicBool, Ordering};

/// Tasks that belong together: they are started, cancelled and joined as one, and none is forgotten.
///
/// [`task_group`] is the way to one whose life is a block. A group made by [`new`](TaskGroup::new) lives until it is joined, or
/// until its last handle is dropped, which aborts what still runs. Clones are handles to the same group.
#[derive(Clone)]
#[doc(alias = "create_task_group")]
pub struct TaskGroup(Arc<Owner>);

/// What the handles share. The children do not hold it: when it is dropped, no handle is left.
struct Owner(Arc<Group>);

/// A turn for everybody before the abort: on a machine that stood still through the grace, nobody had one.
const TURN: Duration = Duration::from_millis(1);

/// How long a shutdown waits after its abort for the aborted to be gone. What is not gone then is stuck.
const SETTLE: Duration = Duration::from_millis(50);

/// What went wrong in a group. Its `source` is that of the first failure; `failures` has them all.
#[derive(Debug)]
pub struct GroupError {
    /// All failures, in the order in which they happened, with the names of the children (the body's is `body`). A child that
    /// was cancelled before it came to fail has not failed: of two that would fail in the same instant on one loop, the first
    /// cancels the second.
    pub failures: Vec<(Name, Failure)>,
    /// Some if the body was cut off by a cancel.
    pub cancelled: Option<Cancelled>,
}

/// How the shutdown of a group went.
#[derive(Clone, Debug)]
pub struct ShutdownReport {
    /// How many children ended within the grace.
    pub finished: usize,
    /// Who did not, and was aborted.
    pub aborted: Vec<Name>,
    /// Who was aborted and still runs: it does not come to an await.
    pub stuck: Vec<Name>,
    /// How long the shutdown took.
    pub took: Duration,
}

/// Runs `body` with a group of tasks, and joins every one of them before it returns.
///
/// The body may borrow; children are `'static`. The first failure of a child cancels its siblings and the body; all failures
/// are kept. [`TaskGroup::cancel`] is normal shutdown: it stops the children and, at its next await, the body. A body that has
/// ended keeps its `Ok`.
///
/// A cancelled scope or a deadline around it cancels the group with the same reason and waits until the children are joined.
///
/// # Errors
/// What failed, and whether the body was cut off. A body that was only cut off has no failures.
///
/// # Panics
/// If the body does, after the children have been cancelled and joined. Outside a tokio runtime if a child is started.
///
/// # Cancel safety
/// Dropping the future (the loser of a `select!`, an abort) cannot wait: the children are aborted and join nobody.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use microio::{TaskOutcome, task_group};
/// let sum = task_group(async |tg| {
///     let task = tg.create_task("sum", async { Ok(1 + 1) });
///     tg.start_soon("ticker", std::future::pending());
///     let TaskOutcome::Done(sum) = task.await else { panic!("no sum") };
///     tg.cancel("done");
///     Ok(sum)
/// })
/// .await;
/// assert_eq!(sum.unwrap(), 2);
/// # });
/// ```
pub async fn task_group<R, B>(body: B) -> Result<R, GroupError>
where
    B: AsyncFnOnce(&TaskGroup) -> Result<R, Failure>,
{
    let tg = TaskGroup::joined();
    let scope = tg.scope();
    let mut unjoined = Unjoined(Some(tg.group()));
    let life = async {
        let mut body = pin!(Some(body(&tg)));
        // A panic is the caller's own: it goes on, with its payload, when the children are joined.
        let polled = poll_fn(|cx| {
            let body = body.as_mut().as_pin_mut().expect("polled after its end");
            match catch_unwind(AssertUnwindSafe(|| body.poll(cx))) {
                Ok(poll) => poll.map(Ok),
                Err(payload) => Poll::Ready(Err(payload)),
            }
        });
        let ended = scope.run(polled).await;
        // Before the join: the children may wait for what the body holds.
        let ended = match catch_unwind(AssertUnwindSafe(|| body.set(None))) {
            Ok(()) => ended,
            Err(payload) => Ok(Err(payload)),
        };
        match &ended {
            Ok(Ok(Err(cause))) if !is_cancel(cause, scope) => tg.group().fail("body".into(), cause.clone()),
            Ok(Err(_)) => _ = tg.cancel("the body panicked"),
            _ => {}
        }
        (ended, tg.join().await)
    };
    let ((ended, joined), relayed) = relay(scope, life).await;
    unjoined.0 = None;
    let failures = joined.err().map_or_else(Vec::new, |error| error.failures);
    let cancelled = match ended {
        Ok(Err(payload)) => {
            failures.iter().for_each(|(name, cause)| log!(error, "task {name} failed as well: {cause}"));
            resume_unwind(payload)
        }
        Ok(Ok(Ok(output))) if failures.is_empty() => return Ok(output),
        Ok(Ok(Ok(_))) => None,
        Ok(Ok(Err(cause))) if is_cancel(&cause, scope) => scope.check().err(),
        Ok(Ok(Err(_))) => None,
        Err(cancelled) => Some(cancelled),
    };
    if relayed && failures.is_empty() {
        checkpoint().await; // in the cancelled scope around us: that is who ends this, and says why
    }
    Err(GroupError { failures, cancelled })
}

/// The group of a block whose future is dropped half-way: a child may hold a handle, so the drop of ours is not enough.
struct Unjoined<'a>(Option<&'a Arc<Group>>);

impl Drop for Unjoined<'_> {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            group.abandon();
        }
    }
}

impl TaskGroup {
    /// A group with no children in it. They run on the runtime that is current now, or else on the one where they are started.
    pub fn new() -> Self {
        TaskGroup(Arc::new(Owner(Group::new(Handle::try_current().ok(), false))))
    }

    /// A group that its maker joins, come what may.
    pub(super) fn joined() -> Self {
        TaskGroup(Arc::new(Owner(Group::new(Handle::try_current().ok(), true))))
    }

    /// The scope that the children run in. Cancelling it is [`cancel`](TaskGroup::cancel).
    #[doc(alias = "cancel_scope")]
    pub fn scope(&self) -> &CancelScope {
        &self.group().scope
    }

    /// Starts a child that nobody asks for a value. Its failure is the group's. On a group that is cancelled or joined the
    /// future is dropped unpolled.
    ///
    /// Outside of all runtimes, with a group that was made outside of them too, the child fails and the group with it.
    pub fn start_soon<F>(&self, name: impl Into<Name>, child: F)
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        if let Some(child) = self.group().admit(name.into(), child, Unwatched) {
            child.spawn();
        }
    }

    /// As [`start_soon`](TaskGroup::start_soon), for a child that stays on this thread.
    ///
    /// # Panics
    /// Outside a tokio `LocalRuntime` (a [`LoopServiceThread`](crate::LoopServiceThread) is one) or `LocalSet`.
    pub fn start_soon_local<F>(&self, name: impl Into<Name>, child: F)
    where
        F: Future<Output = Result<(), Failure>> + 'static,
    {
        if let Some(child) = self.group().admit(name.into(), child, Unwatched) {
            drop(tokio::task::spawn_local(child));
        }
    }

    /// Starts a child whose outcome the handle gets. A failure is also the group's; a cancel of the handle is not.
    pub fn create_task<T: Send + 'static, F>(&self, name: impl Into<Name>, child: F) -> Task<T>
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let task = Arc::new(TaskCell { scope: CancelScope::new(), outcome: Oneshot::new() });
        let child = in_scope(task.scope.clone(), child);
        if let Some(child) = self.group().admit(name.into(), child, task.clone()) {
            child.spawn();
        }
        Task(task)
    }

    /// Starts a child and waits until it says [`started`](TaskStatus::started): returns the value it said it with.
    ///
    /// # Errors
    /// The child did not become ready, and why. This caller hears of it and the group does not.
    ///
    /// # Cancel safety
    /// Dropping the future cancels that child, and only that. If it had failed already, and nobody heard, the group has failed.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// use microio::{Failure, TaskStatus, task_group};
    /// async fn listen(status: TaskStatus<u16>) -> Result<(), Failure> {
    ///     status.started(4711);
    ///     std::future::pending().await
    /// }
    /// task_group(async |tg| {
    ///     let port = tg.start("listener", listen).await?;
    ///     assert_eq!(port, 4711);
    ///     tg.cancel("done");
    ///     Ok(())
    /// }).await.unwrap();
    /// # });
    /// ```
    pub async fn start<V: Send + 'static, S, F>(&self, name: impl Into<Name>, child: S) -> Result<V, StartError>
    where
        S: FnOnce(TaskStatus<V>) -> F,
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let (scope, ready, begun) = (CancelScope::new(), Oneshot::new(), AtomicBool::new(false));
        let cell = Arc::new(StartCell { scope, ready, begun });
        let name = name.into();
        let mut starting = Starting { cell: Some(cell.clone()), group: self.group(), name: name.clone() };
        let status = TaskStatus(Some(cell.clone()));
        let child = catch(|| child(status)).map_err(StartError::Failed)?;
        cell.begun.store(true, Ordering::Release);
        let child = in_scope(cell.scope.clone(), child);
        if let Some(child) = self.group().admit(name, child, cell.clone()) {
            child.spawn();
        }
        // A child that is shielded, or does not yield, must not keep the caller from hearing of the group's cancel.
        let mut cancelled = pin!(self.scope().cancelled());
        let ready = poll_fn(|cx| match cell.ready.poll(cx) {
            Poll::Ready(ready) => Poll::Ready(ready),
            Poll::Pending => cancelled.as_mut().poll(cx).map(|cancelled| Err(StartError::Cancelled(cancelled))),
        });
        let ready = ready.await;
        if !matches!(ready, Err(StartError::Cancelled(_))) {
            starting.cell = None;
        }
        ready
    }

    /// Cancels the group: normal shutdown, from anywhere. `true` for the call that did.
    #[track_caller]
    pub fn cancel(&self, why: impl Into<Reason>) -> bool {
        self.scope().cancel_with(Cancelled { reason: why.into(), at: Location::caller() }).is_some()
    }

    /// Waits until all children have ended, and closes the group. A cancel is no error here. A child that joins its own group
    /// waits for itself: it ends when the group is cancelled.
    ///
    /// # Errors
    /// All failures, with the names of the children. Every caller gets them.
    ///
    /// # Cancel safety
    /// Dropping the future ends only the wait.
    pub async fn join(&self) -> Result<(), GroupError> {
        GroupError::unless_empty(self.group().joined().await)
    }

    /// What `join` would say if the children that are alive did not matter. Their failures are logged.
    pub(super) fn failed_so_far(&self) -> Result<(), GroupError> {
        GroupError::unless_empty(self.group().last_failures())
    }

    /// Cancels the children, gives them the `grace` to end, aborts those that did not, and says who that was. Who
    /// obeys at its next turn is not aborted, however short the grace.
    ///
    /// It returns at the latest a moment (51 ms) after the grace, unless it runs on the one thread that a child of its never
    /// gives up: call it from another thread, or on a multi-thread runtime, if that can be. Failures are for [`join`](TaskGroup::join).
    ///
    /// # Panics
    /// If a child runs: outside a tokio runtime that has its timer enabled.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the children cancelled, and not aborted.
    pub async fn shutdown(&self, why: impl Into<Reason>, grace: Duration) -> ShutdownReport {
        let (begin, group) = (Instant::now(), self.group());
        let (before, _) = group.census();
        self.cancel(why);
        let mut late = Vec::new();
        let mut ended = move_on_after(grace, group.empty()).await;
        if ended.is_none() {
            ended = move_on_after(TURN, group.empty()).await;
        }
        if ended.is_none() {
            late = group.names();
            group.raise(ABORT);
            let _named_below = move_on_after(SETTLE, group.empty()).await;
        }
        let finished = before.saturating_sub(late.len());
        let still = group.names();
        let is_still = |(key, _): &(u32, Name)| still.binary_search_by_key(key, |(key, _)| *key).is_ok();
        let (stuck, aborted): (Vec<_>, Vec<_>) = late.into_iter().partition(is_still);
        let names = |children: Vec<(u32, Name)>| children.into_iter().map(|(_, name)| name).collect();
        ShutdownReport { finished, aborted: names(aborted), stuck: names(stuck), took: begin.elapsed() }
    }

    fn group(&self) -> &Arc<Group> {
        &self.0.0
    }

    /// Starts a child with a report of its own. For the loop's calls.
    pub(super) fn spawn<T: Send + 'static, F, R>(&self, name: Name, child: F, report: R)
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
        R: Report<T> + Send + 'static,
    {
        if let Some(child) = self.group().admit(name, child, report) {
            child.spawn();
        }
    }

    /// As `spawn`, for a child that stays on this thread.
    pub(super) fn spawn_local<T: 'static, F, R>(&self, name: Name, child: F, report: R)
    where
        F: Future<Output = Result<T, Failure>> + 'static,
        R: Report<T> + 'static,
    {
        if let Some(child) = self.group().admit(name, child, report) {
            drop(tokio::task::spawn_local(child));
        }
    }
}

impl Default for TaskGroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl GroupError {
    fn unless_empty(failures: Vec<(Name, Failure)>) -> Result<(), Self> {
        if failures.is_empty() { Ok(()) } else { Err(GroupError { failures, cancelled: None }) }
    }
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, cause)) in self.failures.iter().enumerate() {
            write!(f, "{}{name} failed: {cause}", if n == 0 { "" } else { "; " })?;
        }
        match &self.cancelled {
            Some(cancelled) if self.failures.is_empty() => cancelled.fmt(f),
            _ => Ok(()),
        }
    }
}

impl Error for GroupError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match (self.failures.first(), &self.cancelled) {
            (Some((_, cause)), _) => cause.source(),
            (None, Some(cancelled)) => Some(cancelled),
            (None, None) => None,
        }
    }
}

impl fmt::Debug for TaskGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tasks, closed) = self.group().census();
        f.debug_struct("TaskGroup")
            .field("tasks", &tasks)
            .field("closed", &closed)
            .field("scope", self.scope())
            .finish()
    }
}
