//! Tasks with an owner: [`TaskGroup`], and [`task_group`], which joins every child before it returns.
//!
//! | word | children | new children |
//! |---|---|---|
//! | `RUNNING` | are polled | are spawned |
//! | `CANCEL` | are dropped at their next poll, unless shielded | are dropped unpolled |
//! | `ABORT` | are dropped at their next poll | are dropped unpolled |
//!
//! The word only rises: to `CANCEL` when the group's scope is cancelled, by whoever; to `ABORT` after a grace, or when the last
//! handle is dropped.
//!
//! | child | handle gets | group gets |
//! |---|---|---|
//! | returns `Ok` | `Done` | |
//! | returns `Err` | `Failed` | the failure, with the child's name |
//! | panics, also in a drop | `Panicked` | the failure, with the child's name |
//! | is cancelled, alone or with the group | `Cancelled` | |
//! | is aborted, or dropped with its runtime | `Aborted` | |
//! | fails before `started` | `start`'s caller gets it | |
//!
//! # Invariants
//!
//! 1. A child is one tokio task: its group, its key, its future. What is seldom needed (name, waker, shields) stands in the
//!    group's slab, under its one lock, a leaf.
//! 2. A child checks the word before each poll and after each Pending, and parks its waker before it checks: it sees the word
//!    rise or is woken.
//! 3. Every child ends exactly once, in `Child::end`, whatever panics: the body is polled and dropped, and its outcome handed
//!    over, inside a catch; then the slot is freed.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::DerefMut;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::oneshot::Oneshot;
use super::time::move_on_after;
use crate::ambient::checkpoint;
use crate::cancel::CancelScope;
use crate::error::{Cancelled, Caught, Failure, Name, Panic, Reason, catch, display};
use crate::host::{Entry, Host, Shields, enter, relay};
use crate::log::log;
use crate::slab::Slab;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, Weak};
use crate::wait::{Waitable, Waiters, WakeBatch, wait_until, wake_all};

/// Tasks that belong together: they are started, cancelled and joined as one, and none is forgotten.
///
/// [`task_group`] is the way to one whose life is a block. A group made by [`new`](TaskGroup::new) lives until it is joined, or
/// until its last handle is dropped, which aborts what still runs. Clones are handles to the same group.
#[derive(Clone)]
#[doc(alias = "create_task_group")]
pub struct TaskGroup(Arc<Owner>);

/// What the handles share. The children do not hold it: when it is dropped, no handle is left.
struct Owner(Arc<Group>);

struct Group {
    /// Release when it rises, before the wakers are taken; Acquire in the children.
    word: AtomicUsize,
    scope: CancelScope,
    /// Where the group was made. None outside of runtimes: then children go to where they are started from.
    runtime: Option<Handle>,
    state: Mutex<State>,
    /// Parked on the scope for as long as the group lives, with a waker that raises the word. Never polled again.
    listener: Mutex<Option<Pin<Box<dyn Future<Output = Cancelled> + Send>>>>,
}

const RUNNING: usize = 0;
const CANCEL: usize = 1;
const ABORT: usize = 2;

/// How long a shutdown waits after its abort for the aborted to be gone. What is not gone then is stuck.
const SETTLE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct State {
    children: Slab<Slot>,
    failures: Vec<(Name, Failure)>,
    /// Joined: there will be no more children.
    closed: bool,
    /// No handle is left: nobody will ask for the failures.
    orphaned: bool,
    waiters: Waiters,
}

struct Slot {
    name: Name,
    /// Parked at the first Pending. A tokio task has one waker for life.
    waker: Option<Waker>,
    shields: Option<Arc<Shields>>,
}

/// What went wrong in a group. Its `source` is that of the first failure; `failures` has them all.
#[derive(Debug)]
pub struct GroupError {
    /// All failures, in the order in which they happened, with the names of the children (the body's is `body`).
    pub failures: Vec<(Name, Failure)>,
    /// Some if the body was cut off by a cancel.
    pub cancelled: Option<Cancelled>,
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

/// How a task ended.
#[derive(Debug)]
pub enum TaskOutcome<T> {
    /// With a value.
    Done(T),
    /// With an error, which its group got too.
    Failed(Failure),
    /// With a panic, which its group got too; the failure downcasts to [`Panic`].
    Panicked(Failure),
    /// It was cancelled, alone or with its group.
    Cancelled(Cancelled),
    /// It was dropped without being asked: by the abort after a grace, or with its runtime.
    Aborted,
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
    let tg = TaskGroup::new();
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

/// Whether a failure in a cancelled scope only says that it is cancelled.
fn is_cancel(cause: &Failure, scope: &CancelScope) -> bool {
    scope.is_cancelled() && cause.chain_has::<Cancelled>()
}

impl TaskGroup {
    /// A group with no children in it. They run on the runtime that is current now, or else on the one where they are started.
    pub fn new() -> Self {
        let group = Arc::new(Group {
            word: AtomicUsize::new(RUNNING),
            scope: CancelScope::new(),
            runtime: Handle::try_current().ok(),
            state: Mutex::default(),
            listener: Mutex::default(),
        });
        let mut listener = Box::pin(group.scope.cancelled());
        let raise = Waker::from(Arc::new(Raise(Arc::downgrade(&group))));
        let _pending = listener.as_mut().poll(&mut Context::from_waker(&raise));
        *group.listener.lock() = Some(listener);
        TaskGroup(Arc::new(Owner(group)))
    }

    /// The scope that the children run in. Cancelling it is [`cancel`](TaskGroup::cancel).
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
    /// # Panics
    /// If the call of `child` does.
    ///
    /// # Cancel safety
    /// Dropping the future cancels that child, and only that.
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
        let cell = Arc::new(StartCell { scope: CancelScope::new(), ready: Oneshot::new() });
        let mut starting = Starting(Some(cell.clone()));
        let child = in_scope(cell.scope.clone(), child(TaskStatus(Some(cell.clone()))));
        if let Some(child) = self.group().admit(name.into(), child, cell.clone()) {
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
            starting.0 = None;
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
        let failures = wait_until(&**self.group(), |state: &mut State| {
            state.closed |= state.children.len() == 0;
            state.closed.then(|| state.failures.clone())
        });
        let failures = failures.await;
        if failures.is_empty() { Ok(()) } else { Err(GroupError { failures, cancelled: None }) }
    }

    /// Cancels the children, gives them the `grace` to end, aborts those that did not, and says who that was.
    ///
    /// It returns at the latest a moment (100 ms) after the grace, unless it runs on the one thread that a child of its never
    /// gives up: call it from another thread, or on a multi-thread runtime, if that can be. Failures are for [`join`](TaskGroup::join).
    ///
    /// # Panics
    /// If a child runs: outside a tokio runtime that has its timer enabled.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the children cancelled, and not aborted.
    pub async fn shutdown(&self, why: impl Into<Reason>, grace: Duration) -> ShutdownReport {
        let (begin, group) = (Instant::now(), self.group());
        let before = group.lock().children.len();
        self.cancel(why);
        let empty = || wait_until(&**group, |state: &mut State| (state.children.len() == 0).then_some(()));
        let mut late = Vec::new();
        if move_on_after(grace, empty()).await.is_none() {
            late = group.names();
            group.raise(ABORT);
            let _named_below = move_on_after(SETTLE, empty()).await;
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

/// The waker that a group parks on its scope.
struct Raise(Weak<Group>);

impl Wake for Raise {
    fn wake(self: Arc<Self>) {
        if let Some(group) = self.0.upgrade() {
            group.raise(CANCEL);
        }
    }
}

impl Waitable for Group {
    type State = State;
    fn lock(&self) -> impl DerefMut<Target = State> {
        self.state.lock()
    }
    fn waiters(state: &mut State) -> &mut Waiters {
        &mut state.waiters
    }
}

impl Host for Group {
    fn scope(&self) -> &CancelScope {
        &self.scope
    }

    fn shields(&self, child: u32) -> Arc<Shields> {
        match self.lock().children.get_mut(child) {
            Some(slot) => slot.shields.get_or_insert_default().clone(),
            None => Arc::default(),
        }
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Group {
    /// Gives a child its slot. None if the group takes no more: then the child has been dropped and has reported.
    fn admit<F: Body, R: Report<F::Value>>(self: &Arc<Self>, name: Name, body: F, report: R) -> Option<Child<F, R>> {
        let mut state = self.lock();
        let closed = state.closed;
        if closed || self.word.load(Ordering::Acquire) != RUNNING {
            drop(state);
            let panic = catch(|| drop(body)).err();
            let over = Cancelled { reason: Reason::Closed("the task group has ended".into()), at: Location::caller() };
            let outcome =
                panic.map_or(TaskOutcome::Cancelled(self.scope.check().err().unwrap_or(over)), TaskOutcome::Panicked);
            if let Ok(Some(cause)) | Err(cause) = catch(|| report.report(outcome)) {
                self.fail(name, cause);
            }
            return None;
        }
        let key = state.children.insert(Slot { name, waker: None, shields: None });
        drop(state);
        Some(Child { group: Some(self.clone()), key, parked: false, report: Some(report), body: Caught::new(body) })
    }

    /// Nobody will join it: what runs is aborted.
    fn abandon(&self) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.orphaned, true);
        let over = before || state.closed;
        drop(state);
        if over {
            return;
        }
        let alive = self.names();
        if !alive.is_empty() {
            let names = alive.iter().take(8).map(|(_, name)| &**name).collect::<Vec<_>>().join(", ");
            log!(warn, "a task group lost its owner: {} tasks are aborted ({names})", alive.len());
        }
        self.scope.cancel(Reason::OwnerDropped);
        self.raise(ABORT);
    }

    /// A failure of somebody who has no slot.
    fn fail(&self, name: Name, cause: Failure) {
        self.lock().failures.push((name.clone(), cause.clone()));
        self.failed(name, cause);
    }

    /// A failure has been kept: the siblings are cancelled.
    fn failed(&self, name: Name, cause: Failure) {
        if self.lock().orphaned || cause.downcast_ref::<Panic>().is_some() {
            log!(error, "task {name} failed: {cause}");
        }
        let reason = Reason::ChildFailed(name, cause);
        self.scope.cancel_with(Cancelled { reason, at: Location::caller() });
    }

    /// Raises the word and wakes the children, a few at a time.
    fn raise(&self, word: usize) {
        if self.word.fetch_max(word, Ordering::AcqRel) >= word {
            return;
        }
        let mut key = 0;
        loop {
            let mut batch = WakeBatch::default();
            let mut state = self.lock();
            while key < state.children.end() && !batch.is_full() {
                let waker = state.children.get_mut(key).and_then(|slot| slot.waker.take());
                waker.into_iter().for_each(|waker| batch.push(waker));
                key += 1;
            }
            let more = key < state.children.end();
            drop(state);
            batch.wake();
            if !more {
                return;
            }
        }
    }

    /// Who is alive, by key.
    fn names(&self) -> Vec<(u32, Name)> {
        let state = self.lock();
        let children = (0..state.children.end()).filter_map(|key| Some((key, state.children.get(key)?.name.clone())));
        children.collect()
    }
}

/// A child's future: anything that ends with a value or a failure.
trait Body: Future<Output = Result<Self::Value, Failure>> {
    type Value;
}

impl<T, F: Future<Output = Result<T, Failure>>> Body for F {
    type Value = T;
}

/// Who hears how a child ended.
pub(super) trait Report<T> {
    /// The failure that the group must keep, if any.
    fn report(self, outcome: TaskOutcome<T>) -> Option<Failure>;
}

/// Nobody but the group.
struct Unwatched;

impl<T> Report<T> for Unwatched {
    fn report(self, outcome: TaskOutcome<T>) -> Option<Failure> {
        match outcome {
            TaskOutcome::Failed(cause) | TaskOutcome::Panicked(cause) => Some(cause),
            _ => None,
        }
    }
}

pin_project! {
    struct Child<F, R>
    where
        F: Body,
        R: Report<F::Value>,
    {
        // None once it has ended, and while it stands on the stack.
        group: Option<Arc<Group>>,
        key: u32,
        // The waker stands in the slot.
        parked: bool,
        report: Option<R>,
        #[pin]
        body: Caught<F>,
    }

    impl<F, R> PinnedDrop for Child<F, R>
    where
        F: Body,
        R: Report<F::Value>,
    {
        fn drop(this: Pin<&mut Self>) {
            // Not by us: its runtime is gone, or never took it.
            if let Some(group) = this.group.clone() {
                this.end(&group, TaskOutcome::Aborted);
            }
        }
    }
}

impl<F: Body, R: Report<F::Value>> Child<F, R> {
    /// The one way out. Nothing in it can panic.
    fn end(self: Pin<&mut Self>, group: &Arc<Group>, outcome: TaskOutcome<F::Value>) {
        let this = self.project();
        *this.group = None;
        let (report, dropped) = (this.report.take(), this.body.cut());
        let outcome = match dropped {
            Ok(()) => outcome,
            Err(panic) => {
                let _ = catch(|| drop(outcome));
                TaskOutcome::Panicked(panic)
            }
        };
        let failure = catch(|| report.and_then(|report| report.report(outcome))).unwrap_or_else(Some);
        let mut state = group.lock();
        let slot = state.children.remove(*this.key);
        let empty = state.children.len() == 0;
        // The failure is there before a joiner can see that the last child is gone.
        state.failures.extend(failure.clone().map(|failure| (slot.name.clone(), failure)));
        drop(state);
        if let Some(cause) = failure {
            group.failed(slot.name, cause);
        }
        drop(slot.waker);
        if let Some(shields) = slot.shields {
            shields.unpark(); // one may live on elsewhere
        }
        if empty {
            wake_all(&**group);
        }
    }

    /// How it must end, if the word says that it must, and no shield objects.
    fn due(&self, group: &Group, cx: &mut Context<'_>) -> Option<TaskOutcome<F::Value>> {
        match group.word.load(Ordering::Acquire) {
            RUNNING => None,
            CANCEL => {
                let shields = group.lock().children[self.key].shields.clone();
                let cancelled = || TaskOutcome::Cancelled(group.scope.check().expect_err("the word follows the scope"));
                (!shields.is_some_and(|shields| shields.is_open(cx))).then(cancelled)
            }
            _ => Some(TaskOutcome::Aborted),
        }
    }

    /// Parks the waker where the group finds it.
    fn park(self: Pin<&mut Self>, group: &Group, cx: &mut Context<'_>) {
        let this = self.project();
        let running = group.word.load(Ordering::Acquire) == RUNNING;
        if !(*this.parked && running) {
            let waker = cx.waker().clone();
            let replaced = group.lock().children[*this.key].waker.replace(waker);
            drop(replaced);
        }
        // A group that is being stopped has taken the wakers: park again each time until it is over.
        *this.parked = running;
    }
}

impl<F, R> Child<F, R>
where
    F: Body + Send + 'static,
    F::Value: Send,
    R: Report<F::Value> + Send + 'static,
{
    /// Onto the group's runtime, or the one that is current.
    fn spawn(self) {
        let group = self.group.clone().expect("not started yet");
        match group.runtime.clone().map_or_else(|| Handle::try_current().ok(), Some) {
            Some(runtime) => drop(runtime.spawn(self)),
            None => {
                let cause = Failure::msg("no tokio runtime: make the group, or start the task, inside one");
                pin!(self).end(&group, TaskOutcome::Failed(cause));
            }
        }
    }
}

impl<F: Body, R: Report<F::Value>> Future for Child<F, R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let group = self.as_mut().project().group.take().expect("polled after its end");
        if let Some(outcome) = self.due(&group, cx) {
            self.end(&group, outcome);
            return Poll::Ready(());
        }
        let this = self.as_mut().project();
        let (polled, entry) = enter(Entry::Child(group, *this.key), || this.body.poll(cx));
        let Entry::Child(host, _) = entry else { unreachable!("it was pushed above") };
        let group = host.into_any().downcast::<Group>().expect("it was pushed above");
        let outcome = match polled {
            Poll::Ready(Ok(Ok(value))) => Some(TaskOutcome::Done(value)),
            Poll::Ready(Ok(Err(cause))) if is_cancel(&cause, &group.scope) => {
                Some(TaskOutcome::Cancelled(group.scope.check().expect_err("just seen")))
            }
            Poll::Ready(Ok(Err(cause))) => Some(TaskOutcome::Failed(cause)),
            Poll::Ready(Err(panic)) => Some(TaskOutcome::Panicked(panic)),
            Poll::Pending => {
                self.as_mut().park(&group, cx);
                self.due(&group, cx)
            }
        };
        match outcome {
            Some(outcome) => {
                self.end(&group, outcome);
                Poll::Ready(())
            }
            None => {
                *self.project().group = Some(group);
                Poll::Pending
            }
        }
    }
}

// These look at an outcome and leave it whole: its drop is the user's and may panic, so it comes last.
impl<T> TaskOutcome<T> {
    fn failure(&self) -> Option<Failure> {
        match self {
            TaskOutcome::Failed(cause) | TaskOutcome::Panicked(cause) => Some(cause.clone()),
            _ => None,
        }
    }

    /// Some if the failure only says that the child's own scope is cancelled.
    fn cancelled_alone(&self, own: &CancelScope) -> Option<Cancelled> {
        match self {
            TaskOutcome::Failed(cause) if is_cancel(cause, own) => own.check().err(),
            _ => None,
        }
    }
}

/// A child that can be cancelled alone: it fails with the `Cancelled` of its own scope, which its report knows.
async fn in_scope<T>(scope: CancelScope, child: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    scope.run(child).await?
}

/// The handle of a task: await it for the outcome. Dropping it lets the task go on in its group.
#[must_use = "dropping the handle lets the task go on; `start_soon` starts one without a handle"]
pub struct Task<T>(Arc<TaskCell<T>>);

struct TaskCell<T> {
    scope: CancelScope,
    outcome: Oneshot<TaskOutcome<T>>,
}

impl<T> Task<T> {
    /// Cancels this task alone. `true` for the call that did.
    #[track_caller]
    pub fn cancel(&self, why: impl Into<Reason>) -> bool {
        self.0.scope.cancel_with(Cancelled { reason: why.into(), at: Location::caller() }).is_some()
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

/// How a child says that it is ready. Dropped before, it ends the child: [`StartError::ExitedBeforeReady`].
pub struct TaskStatus<V>(Option<Arc<StartCell<V>>>);

struct StartCell<V> {
    scope: CancelScope,
    ready: Oneshot<Result<V, StartError>>,
}

/// A `start` in progress: dropped, it takes the child along.
struct Starting<V>(Option<Arc<StartCell<V>>>);

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
        if let Some(cell) = self.0.take() {
            cell.scope.cancel("it dropped its TaskStatus without started()");
        }
    }
}

impl<V> Drop for Starting<V> {
    fn drop(&mut self) {
        if let Some(cell) = self.0.take() {
            cell.ready.leave();
            cell.scope.cancel(Reason::OwnerDropped);
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

impl fmt::Debug for TaskGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.group().lock();
        let (tasks, closed) = (state.children.len(), state.closed);
        drop(state);
        f.debug_struct("TaskGroup")
            .field("tasks", &tasks)
            .field("closed", &closed)
            .field("scope", self.scope())
            .finish()
    }
}

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
