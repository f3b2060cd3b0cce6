//! A child of a task group, and what the group keeps of it.
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
use std::future::Future;
use std::ops::DerefMut;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll, Wake, Waker};

use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use crate::cancel::CancelScope;
use crate::error::{Cancelled, Caught, Failure, Name, Panic, Reason, catch};
use crate::host::{Entry, Host, Shields, enter};
use crate::log::log;
use crate::slab::Slab;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, Weak};
use crate::wait::{Waitable, Waiters, WakeBatch, wait_until, wake_all};

/// A group of tasks as its handles and its children see it.
pub(super) struct Group {
    /// Release when it rises, before the wakers are taken; Acquire in the children.
    word: AtomicUsize,
    pub(super) scope: CancelScope,
    /// Where the group was made. None outside of runtimes: then children go to where they are started from.
    runtime: Option<Handle>,
    /// It is joined by whoever made it, as a part of that, and its failures are told there.
    is_joined: bool,
    state: Mutex<State>,
    /// Parked on the scope for as long as the group lives, with a waker that raises the word. Never polled again.
    listener: Mutex<Option<Pin<Box<dyn Future<Output = Cancelled> + Send>>>>,
}

const RUNNING: usize = 0;
const CANCEL: usize = 1;
pub(super) const ABORT: usize = 2;

#[derive(Default)]
pub(super) struct State {
    children: Slab<Slot>,
    failures: Vec<(Name, Failure)>,
    /// Joined: there will be no more children.
    closed: bool,
    /// Nobody will ask for the failures that are still to come.
    orphaned: bool,
    waiters: Waiters,
}

struct Slot {
    name: Name,
    /// Parked at the first Pending. A tokio task has one waker for life.
    waker: Option<Waker>,
    shields: Option<Arc<Shields>>,
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

// These look at an outcome and leave it whole: its drop is the user's and may panic, so it comes last.
impl<T> TaskOutcome<T> {
    pub(super) fn failure(&self) -> Option<Failure> {
        match self {
            TaskOutcome::Failed(cause) | TaskOutcome::Panicked(cause) => Some(cause.clone()),
            _ => None,
        }
    }

    /// Some if the failure only says that the child's own scope is cancelled.
    pub(super) fn cancelled_alone(&self, own: &CancelScope) -> Option<Cancelled> {
        match self {
            TaskOutcome::Failed(cause) if is_cancel(cause, own) => own.check().err(),
            _ => None,
        }
    }
}

/// Whether a failure in a cancelled scope only says that it is cancelled.
pub(super) fn is_cancel(cause: &Failure, scope: &CancelScope) -> bool {
    scope.is_cancelled() && cause.chain_has::<Cancelled>()
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
    /// A group with no children. They will run on `runtime`, or else where they are started.
    pub(super) fn new(runtime: Option<Handle>, is_joined: bool) -> Arc<Self> {
        let group = Arc::new(Group {
            word: AtomicUsize::new(RUNNING),
            scope: CancelScope::new(),
            runtime,
            is_joined,
            state: Mutex::default(),
            listener: Mutex::default(),
        });
        let mut listener = Box::pin(group.scope.cancelled());
        let raise = Waker::from(Arc::new(Raise(Arc::downgrade(&group))));
        let _pending = listener.as_mut().poll(&mut Context::from_waker(&raise));
        *group.listener.lock() = Some(listener);
        group
    }

    /// How many children are alive, and whether there will be no more.
    pub(super) fn census(&self) -> (usize, bool) {
        let state = self.lock();
        (state.children.len(), state.closed)
    }

    /// The failures until now. Nobody asks again: those that are still to come are logged.
    pub(super) fn last_failures(&self) -> Vec<(Name, Failure)> {
        let mut state = self.lock();
        state.orphaned = true;
        state.failures.clone()
    }

    /// Waits until no child is alive.
    pub(super) fn empty(&self) -> impl Future<Output = ()> {
        wait_until(self, |state: &mut State| (state.children.len() == 0).then_some(()))
    }

    /// Waits until no child is alive, and closes the group.
    pub(super) fn joined(&self) -> impl Future<Output = Vec<(Name, Failure)>> {
        wait_until(self, |state: &mut State| {
            state.closed |= state.children.len() == 0;
            state.closed.then(|| state.failures.clone())
        })
    }

    /// Gives a child its slot. None if the group takes no more: then the child has been dropped and has reported.
    pub(super) fn admit<F: Body, R: Report<F::Value>>(
        self: &Arc<Self>,
        name: Name,
        body: F,
        report: R,
    ) -> Option<Child<F, R>> {
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
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.orphaned, true);
        let over = before || state.closed;
        let untold = if over { Vec::new() } else { state.failures.clone() };
        drop(state);
        if over {
            return;
        }
        untold.iter().filter(|(_, cause)| !self.tells_at_once(cause)).for_each(|(name, cause)| tell(name, cause));
        let alive = self.names();
        if !alive.is_empty() {
            let names = alive.iter().take(8).map(|(_, name)| &**name).collect::<Vec<_>>().join(", ");
            log!(warn, "a task group lost its owner: {} tasks are aborted ({names})", alive.len());
        }
        self.scope.cancel(Reason::OwnerDropped);
        self.raise(ABORT);
    }

    /// A failure of somebody who has no slot.
    pub(super) fn fail(&self, name: Name, cause: Failure) {
        self.lock().failures.push((name.clone(), cause.clone()));
        self.failed(name, cause);
    }

    /// A failure has been kept: the siblings are cancelled.
    fn failed(&self, name: Name, cause: Failure) {
        if self.lock().orphaned || self.tells_at_once(&cause) {
            tell(&name, &cause);
        }
        let reason = Reason::ChildFailed(name, cause);
        self.scope.cancel_with(Cancelled { reason, at: Location::caller() });
    }

    /// A panic is a bug: it does not wait for a join that may never come.
    fn tells_at_once(&self, cause: &Failure) -> bool {
        !self.is_joined && cause.downcast_ref::<Panic>().is_some()
    }

    /// Raises the word and wakes the children, a few at a time.
    pub(super) fn raise(&self, word: usize) {
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

    /// How a child must end, if the word says that it must, and no shield objects. Not a method of the child: nobody may have a
    /// reference to a pinned body, which refers to itself (Miri sees that).
    fn due<T>(&self, child: u32, cx: &mut Context<'_>) -> Option<TaskOutcome<T>> {
        match self.word.load(Ordering::Acquire) {
            RUNNING => None,
            CANCEL => {
                let shields = self.lock().children[child].shields.clone();
                let cancelled = || TaskOutcome::Cancelled(self.scope.check().expect_err("the word follows the scope"));
                (!shields.is_some_and(|shields| shields.is_open(cx))).then(cancelled)
            }
            _ => Some(TaskOutcome::Aborted),
        }
    }

    /// Who is alive, by key.
    pub(super) fn names(&self) -> Vec<(u32, Name)> {
        let state = self.lock();
        let children = (0..state.children.end()).filter_map(|key| Some((key, state.children.get(key)?.name.clone())));
        children.collect()
    }
}

/// Says a failure that nobody asks for.
fn tell(name: &Name, cause: &Failure) {
    log!(error, "task {name} failed: {cause}");
}

/// A child's future: anything that ends with a value or a failure.
pub(super) trait Body: Future<Output = Result<Self::Value, Failure>> {
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
pub(super) struct Unwatched;

impl<T> Report<T> for Unwatched {
    fn report(self, outcome: TaskOutcome<T>) -> Option<Failure> {
        match outcome {
            TaskOutcome::Failed(cause) | TaskOutcome::Panicked(cause) => Some(cause),
            _ => None,
        }
    }
}

pin_project! {
    pub(super) struct Child<F, R>
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
    pub(super) fn spawn(self) {
        let group = self.group.clone().expect("not started yet");
        match group.runtime.clone().map_or_else(|| Handle::try_current().ok(), Some) {
            Some(runtime) => drop(runtime.spawn(self)),
            // A model has no runtime: there a child is a thread.
            #[cfg(loom)]
            None => drop(crate::sync::thread::spawn(|| crate::wait::block_on(self, None))),
            #[cfg(not(loom))]
            None => {
                let cause = Failure::msg("no tokio runtime: make the group, or start the task, inside one");
                std::pin::pin!(self).end(&group, TaskOutcome::Failed(cause));
            }
        }
    }
}

impl<F: Body, R: Report<F::Value>> Future for Child<F, R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.as_mut().project();
        let (group, key) = (this.group.take().expect("polled after its end"), *this.key);
        if let Some(outcome) = group.due(key, cx) {
            self.end(&group, outcome);
            return Poll::Ready(());
        }
        let mut entry = None;
        let polled = enter(Entry::Child(group, key), |back| entry = Some(back), || this.body.poll(cx));
        let Some(Entry::Child(host, _)) = entry else { unreachable!("it was pushed above") };
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
                group.due(key, cx)
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
