//! What a cancelled scope does to the code that runs in it: [`CancelScope::run`], [`shield`], [`checkpoint`] and the stack of
//! scopes that the running code is in.
//!
//! Rust cannot unwind a suspended future from outside; it can stop polling it and drop it. So a scope stops its body at a poll
//! boundary, and nothing in the body can swallow that.
//!
//! | scope is | shielded | before a poll of the body | after its Pending | after its Ready |
//! |---|---|---|---|---|
//! | live | | poll | park the waker, look again | `Ok(output)` |
//! | cancelled | no | drop the body, `Err` | drop the body, `Err` | `Ok(output)` |
//! | cancelled | yes | poll | stay Pending until the shield goes | `Ok(output)` |
//!
//! # The stack
//!
//! While a body is polled, its scope stands on a thread-local stack, so that code inside finds it (`checkpoint`,
//! `current_cancel_scope`) and a shield can tell it to wait. Entries are *moved* onto the stack for the poll and moved back
//! after it: a poll costs no reference count. No user code runs while the stack is borrowed.

use std::any::Any;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use pin_project_lite::pin_project;

use crate::cancel::{CancelScope, Node};
use crate::error::{Cancelled, Reason};
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, per_thread};
use crate::wait::{Key, Waitable, poll_budget, wake};

per_thread!(STACK: RefCell<Vec<Entry>> = RefCell::new(Vec::new()));

/// One level of what the running code is in.
#[allow(missing_debug_implementations)]
pub enum Entry {
    /// A body under a scope, in this task.
    Frame(Frame),
    /// A child that its host (a task group) polls, under the host's scope.
    Child(Arc<dyn Host>, u32),
    /// Code inside is protected from what stands below on the stack.
    Shield,
}

/// A scope around a body. A deadline makes its scope only when somebody asks for it, or when it passes.
#[derive(Debug, Default)]
pub struct Frame {
    scope: Option<CancelScope>,
    /// The shields in the body; None while there never was one.
    shields: Option<Arc<Shields>>,
}

/// Who polls many children under one scope, and keeps what is seldom needed of each in its own books.
pub trait Host: Send + Sync {
    /// The scope that its children are in.
    fn scope(&self) -> &CancelScope;
    /// The shields in that child, made now if there never was one.
    fn shields(&self, child: u32) -> Arc<Shields>;
    /// Itself, to be found again after a poll.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// How many shields are open under one body, and who waits for the last to close.
#[derive(Debug, Default)]
pub struct Shields {
    open: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

/// Takes what `enter` pushed back, also when the code inside panics.
struct Popper<B: FnMut(Entry)> {
    /// Some if there is no stack.
    entry: Option<Entry>,
    back: B,
}

impl<B: FnMut(Entry)> Drop for Popper<B> {
    fn drop(&mut self) {
        let popped = || STACK.try_with(|stack| stack.borrow_mut().pop()).ok().flatten();
        if let Some(entry) = self.entry.take().or_else(popped) {
            (self.back)(entry);
        }
    }
}

/// Runs `f` with `entry` on the stack, and hands the entry `back`, also when `f` panics. A thread whose thread-locals are being
/// destroyed has no stack any more: there `f` runs as it would outside of all scopes.
pub fn enter<R>(entry: Entry, back: impl FnMut(Entry), f: impl FnOnce() -> R) -> R {
    let mut popper = Popper { entry: Some(entry), back };
    let _no_stack = STACK.try_with(|stack| stack.borrow_mut().extend(popper.entry.take()));
    f()
}

/// The scopes that the running code is in, from the innermost out to the nearest shield, at most `max`.
fn around(max: usize) -> Vec<CancelScope> {
    let around = STACK.try_with(|stack| {
        let mut stack = stack.borrow_mut();
        let entries = stack.iter_mut().rev().take(max).map_while(|entry| match entry {
            Entry::Frame(frame) => Some(frame.scope().clone()),
            Entry::Child(host, _) => Some(host.scope().clone()),
            Entry::Shield => None,
        });
        entries.collect()
    });
    around.unwrap_or_default()
}

/// The first that `find` finds in the entries that concern the running code, from the innermost out to the nearest shield.
fn find<T>(find: impl FnMut(&Entry) -> Option<T>) -> Option<T> {
    let found = STACK.try_with(|stack| {
        stack.borrow().iter().rev().take_while(|entry| !matches!(entry, Entry::Shield)).find_map(find)
    });
    found.ok().flatten()
}

impl Entry {
    fn scope(&self) -> Option<&CancelScope> {
        match self {
            Entry::Frame(frame) => frame.scope.as_ref(),
            Entry::Child(host, _) => Some(host.scope()),
            Entry::Shield => None,
        }
    }
}

/// The scope that the running code is in: the innermost that was entered inside the nearest shield. None outside of all.
/// Inside a deadline it is the deadline's.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use microio::{CancelScope, current_cancel_scope};
/// let scope = CancelScope::new();
/// let name = scope.run(async { current_cancel_scope().map(|inner| inner.cancel("from inside")) }).await;
/// assert!(scope.is_cancelled() && current_cancel_scope().is_none());
/// # });
/// ```
pub fn current_cancel_scope() -> Option<CancelScope> {
    around(1).pop()
}

/// Whether one of the scopes that the running code is in has been cancelled: for loops that compute and never await.
///
/// # Errors
/// Why, and where it was cancelled. Outside of all scopes, and inside a [`shield`], it is `Ok`.
///
/// ```
/// # use microio::{Cancelled, checkpoint_if_cancelled};
/// fn count(to: u64) -> Result<u64, Cancelled> {
///     for _ in 0..to {
///         checkpoint_if_cancelled()?;
///     }
///     Ok(to)
/// }
/// assert_eq!(count(1000).unwrap(), 1000);
/// ```
pub fn checkpoint_if_cancelled() -> Result<(), Cancelled> {
    match find(|entry| entry.scope().filter(|scope| scope.is_cancelled()).cloned()) {
        None => Ok(()),
        Some(scope) => scope.check(),
    }
}

fn is_cancelled() -> bool {
    find(|entry| entry.scope().is_some_and(CancelScope::is_cancelled).then_some(())).is_some()
}

/// A point where a cancelled task stops, and where a busy one lets the others run.
///
/// In a cancelled scope it does not return: the body of the scope is dropped there. Otherwise it spends a unit of the task's
/// time slice (feature `tokio`) and yields only when that is used up, so it can stand in an inner loop.
///
/// # Cancel safety
/// It has no state.
pub fn checkpoint() -> impl Future<Output = ()> + Send {
    // Pending without a waker: whoever runs a cancelled scope drops its body on this very Pending.
    poll_fn(|cx| if is_cancelled() { Poll::Pending } else { poll_budget(cx) })
}

impl CancelScope {
    /// Runs `body` in this scope: to its end, or until the scope is cancelled.
    ///
    /// Every poll of the body is a checkpoint. A scope that is cancelled already never polls its body; a body that is
    /// cancelled is dropped, and what follows the `run` goes on: that is where a goodbye is sent. A body that completes keeps
    /// its output, also in the poll in which its scope was cancelled. [`shield`] inside the body puts the end off.
    ///
    /// # Errors
    /// The scope was cancelled before the body completed: why, and where.
    ///
    /// # Panics
    /// If the body does.
    ///
    /// # Cancel safety
    /// Dropping the future drops the body and leaves nothing behind.
    pub async fn run<F: Future>(&self, body: F) -> Result<F::Output, Cancelled> {
        Scoped::new(Some(self.clone()), body).await
    }
}

pin_project! {
    /// A body in a scope, polled as the table at the top says.
    pub struct Scoped<F> {
        #[pin]
        body: Option<F>,
        frame: Frame,
        // Our place among the waiters of the scope, and what stands there, to tell without the lock that it is the right one.
        key: Option<Key>,
        waker: Option<Waker>,
    }

    impl<F> PinnedDrop for Scoped<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let (Some(scope), Some(key)) = (&this.frame.scope, *this.key) {
                let mut state = scope.node().lock();
                let parked = Node::waiters(&mut state).remove(key);
                drop(state);
                drop(parked);
            }
            if let Some(shields) = &this.frame.shields {
                shields.unpark(); // one may live on elsewhere: it must not keep our waker
            }
        }
    }
}

impl<F> Scoped<F> {
    /// Without a scope the body is in one too, which is made when somebody asks for it.
    pub fn new(scope: Option<CancelScope>, body: F) -> Self {
        Scoped { body: Some(body), frame: Frame { scope, shields: None }, key: None, waker: None }
    }

    /// Cancels the scope.
    pub fn cancel(self: Pin<&mut Self>, reason: Reason, at: &'static Location<'static>) {
        self.project().frame.scope().cancel_with(Cancelled { reason, at });
    }

    /// The end, if the scope is cancelled and no shield objects: then the body has been dropped. A shield that objects wakes
    /// `cx` when the last one closes.
    pub fn cut(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Option<Cancelled> {
        let mut this = self.project();
        let end = this.frame.scope.as_ref().filter(|scope| scope.is_cancelled())?.check().err();
        if this.frame.shields.as_ref().is_some_and(|shields| shields.is_open(cx)) {
            return None;
        }
        this.body.set(None);
        end
    }

    /// Parks the waker on the scope, if there is one.
    fn park(self: Pin<&mut Self>, cx: &mut Context<'_>) {
        let this = self.project();
        let Some(scope) = &this.frame.scope else { return };
        if this.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return;
        }
        *this.waker = Some(cx.waker().clone());
        let waker = cx.waker().clone();
        let mut state = scope.node().lock();
        let replaced = Node::waiters(&mut state).park(this.key, waker);
        drop(state);
        drop(replaced);
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = Result<F::Output, Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(end) = self.as_mut().cut(cx) {
            return Poll::Ready(Err(end));
        }
        let mut this = self.as_mut().project();
        let body = this.body.as_mut().as_pin_mut().expect("polled after its end");
        let frame = this.frame;
        let entry = Entry::Frame(std::mem::take(frame));
        let back = |entry| {
            if let Entry::Frame(polled) = entry {
                *frame = polled;
            }
        };
        let output = enter(entry, back, || body.poll(cx));
        if let Poll::Ready(output) = output {
            this.body.set(None);
            return Poll::Ready(Ok(output));
        }
        self.as_mut().park(cx); // before the check: a cancel is seen by the check, or wakes the waker
        match self.cut(cx) {
            Some(end) => Poll::Ready(Err(end)),
            None => Poll::Pending,
        }
    }
}

impl Frame {
    fn scope(&mut self) -> &CancelScope {
        self.scope.get_or_insert_with(CancelScope::new)
    }
}

impl Shields {
    /// Whether a shield is open; then `cx` is woken when the last one closes.
    pub fn is_open(&self, cx: &mut Context<'_>) -> bool {
        if self.open.load(Ordering::Acquire) == 0 {
            return false;
        }
        let waker = cx.waker().clone();
        let replaced = self.waker.lock().replace(waker);
        drop(replaced);
        // Again, now that the waker is there: whoever closes the last shield counts down before it looks for a waker.
        self.open.load(Ordering::Acquire) > 0
    }

    /// Nobody waits for the last shield any more.
    pub fn unpark(&self) {
        let waker = self.waker.lock().take();
        drop(waker);
    }

    fn close(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            let waker = self.waker.lock().take();
            if let Some(waker) = waker {
                wake(waker);
            }
        }
    }
}

/// Runs `body` to its end although a scope around it is cancelled: the scope waits, and stops its own body at the next await
/// after the shield.
///
/// It protects from the scopes and deadlines of this crate that the shield is in: for a short goodbye, a commit, a rollback.
/// Inside, [`checkpoint_if_cancelled`] and [`current_cancel_scope`] see only what was entered inside.
///
/// It does **not** protect from being dropped by others: the losing branch of a `select!`, an aborted task, a runtime that
/// shuts down, a task group's abort after its grace.
///
/// # Cancel safety
/// Dropping the future drops the body, and the scopes around stop waiting. One that has begun and is forgotten instead of dropped
/// holds them off for ever.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use microio::{CancelScope, shield};
/// let scope = CancelScope::new();
/// let ended = scope.run(async {
///     shield(async {
///         scope.cancel("stop");
///         tokio::task::yield_now().await; // the commit: it is not cut off
///     }).await;
///     tokio::task::yield_now().await; // but this is
/// }).await;
/// assert!(ended.is_err());
/// # });
/// ```
pub fn shield<F: Future>(body: F) -> impl Future<Output = F::Output> {
    Shield { body: Some(body), held: None }
}

pin_project! {
    struct Shield<F> {
        #[pin]
        body: Option<F>,
        held: Option<Vec<Held>>,
    }

    impl<F> PinnedDrop for Shield<F> {
        fn drop(this: Pin<&mut Self>) {
            // The body first: it is protected until it is gone.
            let mut this = this.project();
            this.body.set(None);
        }
    }
}

/// One scope that a shield holds off, until dropped.
struct Held(Arc<Shields>);

impl Held {
    fn new(shields: Arc<Shields>) -> Self {
        shields.open.fetch_add(1, Ordering::Relaxed);
        Held(shields)
    }

    /// Holds off every scope that the running code is in.
    fn all() -> Vec<Held> {
        let (mut held, mut children) = (Vec::new(), Vec::new());
        let _no_stack = STACK.try_with(|stack| {
            for entry in stack.borrow_mut().iter_mut() {
                match entry {
                    Entry::Frame(frame) => held.push(Held::new(frame.shields.get_or_insert_default().clone())),
                    Entry::Child(host, child) => children.push((host.clone(), *child)),
                    Entry::Shield => {}
                }
            }
        });
        held.extend(children.into_iter().map(|(host, child)| Held::new(host.shields(child))));
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<F: Future> Future for Shield<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        this.held.get_or_insert_with(Held::all);
        let body = this.body.as_mut().as_pin_mut().expect("polled after its end");
        let output = enter(Entry::Shield, drop, || body.poll(cx));
        let output = ready!(output);
        this.body.set(None);
        *this.held = None;
        Poll::Ready(output)
    }
}

/// Runs `body`, which must reach its end although a scope around it is cancelled, and tells `scope` instead: it is cancelled
/// with the reason of the first scope around that is. How a task group hears of a cancel from outside and still joins its
/// children. The output says whether that happened; then the caller is due to be dropped at its next Pending.
pub async fn relay<F: Future>(scope: &CancelScope, body: F) -> (F::Output, bool) {
    let mut around: Vec<_> = around(usize::MAX).iter().map(|scope| Box::pin(scope.cancelled())).collect();
    let mut relayed = false;
    let mut body = std::pin::pin!(shield(body));
    let output = poll_fn(|cx| {
        if !relayed {
            let cancelled = around.iter_mut().find_map(|cancelled| match cancelled.as_mut().poll(cx) {
                Poll::Ready(end) => Some(end),
                Poll::Pending => None,
            });
            if let Some(end) = cancelled {
                relayed = true;
                scope.cancel_with(end);
            }
        }
        body.as_mut().poll(cx)
    });
    let output = output.await;
    (output, relayed)
}
