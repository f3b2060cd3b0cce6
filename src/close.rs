//! Is it over, and is it busy: [`CloseScope`], the durable end of a service, and [`WorkTracker`], the count of its work.
//!
//! | `CloseScope` | `close` | `fail` | waiters get |
//! |---|---|---|---|
//! | open | closed, `true` | failed, `true` | parked |
//! | closed(reason) | `false` | `false` | `CloseError::Closed(reason)` |
//! | failed(cause) | `false` | `false` | `CloseError::Failed(cause)`, the same cause for all |

use std::fmt;
use std::future::Future;
use std::ops::DerefMut;
use std::panic::Location;
use std::time::Duration;

use crate::error::{Failure, Reason, WaitError, display};
use crate::sync::{Arc, AtomicBool, AtomicUsize, Mutex, Ordering, Weak};
use crate::wait::{Waitable, Waiters, block_on, wait_until, wake_all};

/// The durable end of a service: open, then closed with a [`Reason`] or failed with a [`Failure`], once and for good.
///
/// It says *that* a service is over and why; it stops nothing by itself ([`link`](CloseScope::link) makes it cancel a
/// [`CancelScope`](crate::CancelScope)). Clones are the same scope. Every method may be called from any thread.
///
/// ```
/// use microio::{CloseScope, Failure};
/// let scope = CloseScope::new();
/// assert!(scope.fail(Failure::msg("end of file")));
/// assert!(!scope.close("too late"), "the first one wins");
/// assert_eq!(scope.wait_blocking(None).unwrap().to_string(), "end of file");
/// ```
#[derive(Clone, Default)]
pub struct CloseScope(Arc<Inner>);

/// Lock: `state`, a leaf. Hooks run and waiters wake after it is released.
#[derive(Default)]
struct Inner {
    /// True from the winning `close` on. Release in `end`, Acquire in `is_closed`: who reads true finds the end in `state`.
    closed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    end: Option<CloseError>,
    waiters: Waiters,
    /// Called once, by the winner, before the waiters wake; the last one first: a service's own, which wakes those who wait for
    /// the service, is the first of its scope. Weak: a hook does not keep its owner alive.
    hooks: Vec<Weak<dyn OnClose>>,
}

/// Something that ends with a [`CloseScope`]: a linked scope, a bound registry, a service that was not started.
pub(crate) trait OnClose: Send + Sync {
    fn on_close(self: Arc<Self>, end: &CloseError, at: &'static Location<'static>);
}

/// How a [`CloseScope`] ended.
#[derive(Clone, Debug)]
pub enum CloseError {
    /// It was closed, for that reason.
    Closed(Reason),
    /// It failed, with that cause.
    Failed(Failure),
}

impl CloseError {
    /// The end as a failure: the shared cause itself, or the reason's text.
    pub fn into_failure(self) -> Failure {
        match self {
            CloseError::Closed(reason) => Failure::msg(reason.to_string()),
            CloseError::Failed(cause) => cause,
        }
    }

    /// The end as a reason: the reason itself, or the cause's text.
    pub(crate) fn into_reason(self) -> Reason {
        match self {
            CloseError::Closed(reason) => reason,
            CloseError::Failed(cause) => Reason::Closed(cause.to_string().into()),
        }
    }
}

/// The end of one thing as the reason for another's.
impl From<CloseError> for Reason {
    fn from(end: CloseError) -> Self {
        end.into_reason()
    }
}

display!(CloseError {
    CloseError::Closed(reason) => "{reason}",
    CloseError::Failed(cause) => "{cause}" from cause.source(),
});

impl Waitable for Inner {
    type State = State;
    fn lock(&self) -> impl DerefMut<Target = State> {
        self.state.lock()
    }
    fn waiters(state: &mut State) -> &mut Waiters {
        &mut state.waiters
    }
}

impl CloseScope {
    /// A scope that is open.
    pub fn new() -> Self {
        Self::default()
    }

    /// Closes it. `true` for the call that did; later ones change nothing and return `false`.
    #[track_caller]
    pub fn close(&self, why: impl Into<Reason>) -> bool {
        self.end(CloseError::Closed(why.into()))
    }

    /// Closes it with the failure that every waiter, present and future, will see. `true` for the call that did.
    #[track_caller]
    pub fn fail(&self, cause: impl Into<Failure>) -> bool {
        self.end(CloseError::Failed(cause.into()))
    }

    #[track_caller]
    fn end(&self, end: CloseError) -> bool {
        let hooks = {
            let mut state = self.0.lock();
            if state.end.is_some() {
                drop(state);
                return false; // `end`, a user's failure, is dropped outside the lock
            }
            state.end = Some(end.clone());
            self.0.closed.store(true, Ordering::Release);
            std::mem::take(&mut state.hooks)
        };
        for hook in hooks.iter().rev().filter_map(Weak::upgrade) {
            hook.on_close(&end, Location::caller());
        }
        wake_all(&*self.0);
        true
    }

    /// Whether it is over. One atomic load.
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Why it is over: the reason of `close`, or the text of the cause of `fail`. None while it is open.
    pub fn reason(&self) -> Option<Reason> {
        self.ended().map(CloseError::into_reason)
    }

    /// The cause it failed with. None while it is open, and after a plain `close`.
    pub fn cause(&self) -> Option<Failure> {
        match self.ended()? {
            CloseError::Failed(cause) => Some(cause),
            CloseError::Closed(_) => None,
        }
    }

    /// `Ok` while it is open.
    ///
    /// # Errors
    /// How it ended.
    #[doc(alias = "raise_if_closed")]
    pub fn check(&self) -> Result<(), CloseError> {
        match self.ended() {
            None => Ok(()),
            Some(end) => Err(end),
        }
    }

    /// Ends with `other`, in the same way, unless it has ended before.
    #[track_caller]
    pub(crate) fn follow(&self, other: &CloseScope) {
        let hook: Weak<Inner> = Arc::downgrade(&self.0);
        other.on_close(hook);
    }

    fn ended(&self) -> Option<CloseError> {
        if !self.is_closed() {
            return None;
        }
        self.0.lock().end.clone()
    }

    /// Waits until it is over.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub fn closed(&self) -> impl Future<Output = CloseError> + Send + 'static + use<> {
        wait_until(self.0.clone(), |state: &mut State| state.end.clone())
    }

    /// Blocks this thread until it is over, for at most `timeout` (None: for ever).
    ///
    /// # Errors
    /// `TimedOut`; `WouldBlock` on an event loop or inside an async worker.
    pub fn wait_blocking(&self, timeout: Option<Duration>) -> Result<CloseError, WaitError> {
        block_on(self.closed(), timeout)
    }

    /// Has `hook` called when it closes: at once, on this thread, if it is over already.
    #[track_caller]
    pub(crate) fn on_close(&self, hook: Weak<dyn OnClose>) {
        let end = {
            let mut state = self.0.lock();
            match state.end.clone() {
                Some(end) => end,
                None => {
                    // Hooks whose owner is gone go when the list would grow: it stays within twice the most that lived at once.
                    if state.hooks.len() == state.hooks.capacity() {
                        state.hooks.retain(|hook| hook.strong_count() > 0);
                        let living = state.hooks.len();
                        state.hooks.reserve(living.max(4));
                    }
                    state.hooks.push(hook);
                    return;
                }
            }
        };
        if let Some(hook) = hook.upgrade() {
            hook.on_close(&end, Location::caller());
        }
    }
}

impl OnClose for Inner {
    fn on_close(self: Arc<Self>, end: &CloseError, _at: &'static Location<'static>) {
        CloseScope(self).end(end.clone());
    }
}

impl fmt::Debug for CloseScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CloseScope").field(&self.ended()).finish()
    }
}

/// The count of work in progress, which can be waited down to none.
///
/// A piece of work holds a [`WorkGuard`]; the count cannot go below zero. Clones are the same tracker.
///
/// ```
/// let tracker = microio::WorkTracker::new();
/// let work = tracker.track();
/// assert!(tracker.is_busy());
/// drop(work);
/// tracker.wait_idle_blocking(None).unwrap();
/// ```
#[derive(Clone, Default)]
pub struct WorkTracker(Arc<Work>);

/// One piece of work that a [`WorkTracker`] counts, until dropped.
#[must_use = "the work ends when the guard is dropped"]
pub struct WorkGuard(Arc<Work>);

/// Lock: `state`, a leaf.
#[derive(Default)]
struct Work {
    /// A copy of `WorkState::count` for readers without the lock; written under it.
    count: AtomicUsize,
    state: Mutex<WorkState>,
}

#[derive(Default)]
struct WorkState {
    count: usize,
    /// How often the count came down to zero, and up from it: who waited then has seen it, though it be otherwise again
    /// when it looks.
    idles: u64,
    starts: u64,
    waiters: Waiters,
}

impl Waitable for Work {
    type State = WorkState;
    fn lock(&self) -> impl DerefMut<Target = WorkState> {
        self.state.lock()
    }
    fn waiters(state: &mut WorkState) -> &mut Waiters {
        &mut state.waiters
    }
}

impl WorkTracker {
    /// A tracker that is idle.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one piece of work until the guard is dropped.
    pub fn track(&self) -> WorkGuard {
        let mut state = self.0.lock();
        state.count += 1;
        self.0.count.store(state.count, Ordering::Release);
        let first = state.count == 1;
        state.starts += u64::from(first);
        let waited_for = first && state.waiters.queued() > 0;
        drop(state);
        if waited_for {
            wake_all(&*self.0);
        }
        WorkGuard(self.0.clone())
    }

    /// How much work is in progress. One atomic load.
    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::Acquire)
    }

    /// Whether there is any. One atomic load.
    pub fn is_busy(&self) -> bool {
        self.count() > 0
    }

    /// Waits until the count is zero, or was zero at any moment since the first poll.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub fn idle(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut first_seen = None;
        wait_until(self.0.clone(), move |state: &mut WorkState| {
            let seen = *first_seen.get_or_insert(state.idles);
            (state.count == 0 || state.idles != seen).then_some(())
        })
    }

    /// Waits until there is work, or was at any moment since the first poll.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub fn busy(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut first_seen = None;
        wait_until(self.0.clone(), move |state: &mut WorkState| {
            let seen = *first_seen.get_or_insert(state.starts);
            (state.count > 0 || state.starts != seen).then_some(())
        })
    }

    /// Blocks this thread until idle, for at most `timeout` (None: for ever).
    ///
    /// # Errors
    /// `TimedOut`; `WouldBlock` on an event loop or inside an async worker.
    pub fn wait_idle_blocking(&self, timeout: Option<Duration>) -> Result<(), WaitError> {
        block_on(self.idle(), timeout)
    }
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.count -= 1;
        self.0.count.store(state.count, Ordering::Release);
        let idle = state.count == 0;
        state.idles += u64::from(idle);
        drop(state);
        if idle {
            wake_all(&*self.0);
        }
    }
}

impl fmt::Debug for WorkTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkTracker").field("count", &self.count()).finish()
    }
}

impl fmt::Debug for WorkGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkGuard").finish_non_exhaustive()
    }
}
