//! Stop this work: [`CancelScope`], a durable, tree-shaped request to stop with a reason, and [`ScopeGroup`], the scopes
//! that are live right now. What a cancelled scope does to the code that runs in it is in `ambient.rs`.
//!
//! | scope | `cancel` | `child` | `is_cancelled` |
//! |---|---|---|---|
//! | live | cancelled, `true`; then every descendant that is live | a live child, linked | `false` |
//! | cancelled | `false`, the first reason stays | a cancelled child, not linked | `true` |
//!
//! # Invariants
//!
//! 1. A child is made under its parent's lock: it is linked before its parent is cancelled, or born cancelled.
//! 2. One lock at a time, so there is no lock order.
//! 3. A node keeps its list of children until all of them, and theirs, are cancelled (`settled`). Two cancels that meet in a
//!    subtree both walk it: when the winning `cancel` of a node returns, every descendant reads cancelled, whoever marked it.
//! 4. A child holds its parent (so that a path to the root stays when the handles between are dropped); a parent does not
//!    hold its children. Neither cancel nor drop recurses, so depth is bounded by memory only.

use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::time::Duration;

use crate::close::{CloseError, CloseScope, OnClose};
use crate::error::{Cancelled, Reason, WaitError};
use crate::slab::Slab;
use crate::sync::{Arc, AtomicBool, AtomicUsize, Mutex, Ordering, Weak};
use crate::wait::{Waitable, Waiters, block_on, wait_until, wake_all};

/// A durable request to stop, with a reason, for everything that runs in it or in one of its children.
///
/// Work is put into a scope by [`run`](CancelScope::run), which ends it at its next await once the scope is cancelled. Clones
/// are the same scope; [`child`](CancelScope::child) makes a narrower one. Every method may be called from any thread.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use microio::CancelScope;
/// let scope = CancelScope::new();
/// let inner = scope.child();
/// assert!(scope.cancel("interrupted"));
/// let ended = inner.run(std::future::pending::<()>()).await.unwrap_err();
/// assert_eq!(ended.to_string(), "cancelled: interrupted");
/// # });
/// ```
#[derive(Clone)]
pub struct CancelScope(Arc<Node>);

pub(crate) struct Node {
    /// Release under the lock by the one who cancels, Acquire by readers: who reads true finds the end in `state`.
    cancelled: AtomicBool,
    state: Mutex<NodeState>,
    parent: Option<Parent>,
}

pub(crate) struct NodeState {
    end: Option<Arc<Cancelled>>,
    children: Slab<Weak<Node>>,
    /// Cancelled, and so are all descendants. `children` is empty from then on.
    settled: bool,
    waiters: Waiters,
}

struct Parent {
    node: Arc<Node>,
    /// Where the parent lists this node.
    slot: u32,
}

impl Waitable for Node {
    type State = NodeState;
    fn lock(&self) -> impl DerefMut<Target = NodeState> {
        self.state.lock()
    }
    fn waiters(state: &mut NodeState) -> &mut Waiters {
        &mut state.waiters
    }
}

impl CancelScope {
    /// A scope that is live and has no parent.
    pub fn new() -> Self {
        CancelScope(Arc::new(Node::new(None, None)))
    }

    /// A scope that is cancelled with this one, and can be cancelled alone.
    pub fn child(&self) -> Self {
        let mut state = self.0.lock();
        if let Some(end) = &state.end {
            return CancelScope(Arc::new(Node::new(Some(end.clone()), None)));
        }
        let slot = state.children.insert(Weak::new());
        let child = Arc::new(Node::new(None, Some(Parent { node: self.0.clone(), slot })));
        state.children[slot] = Arc::downgrade(&child);
        CancelScope(child)
    }

    /// Cancels this scope and its descendants. `true` for the call that did; the reason of a later one is not kept.
    ///
    /// When it returns `true`, every descendant reads cancelled and everyone who waits on one has been woken. Takes time
    /// linear in the number of descendants.
    #[track_caller]
    pub fn cancel(&self, why: impl Into<Reason>) -> bool {
        self.cancel_with(Cancelled { reason: why.into(), at: Location::caller() }).is_some()
    }

    /// `cancel` with the caller's location given. Some(how many direct children it cancelled) for the call that won.
    pub(crate) fn cancel_with(&self, end: Cancelled) -> Option<usize> {
        let end = Arc::new(end);
        let root = self.0.mark(&end);
        if !root.won {
            return None;
        }
        let mut direct = 0;
        let mut path = Vec::new(); // each with the slot to go on from
        path.extend(root.unsettled.then(|| (self.0.clone(), 0)));
        while let Some((node, slot)) = path.last_mut() {
            let Some(child) = node.next_child(slot) else {
                node.settle();
                path.pop();
                continue;
            };
            let mark = child.mark(&end);
            direct += usize::from(mark.won && path.len() == 1);
            if mark.unsettled {
                path.push((child, 0));
            }
        }
        Some(direct)
    }

    /// Whether it is cancelled. One atomic load, however deep the scope.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Why it is cancelled: the reason of the scope that `cancel` was called on. None while it is live.
    pub fn reason(&self) -> Option<Reason> {
        self.ended().map(|end| end.reason.clone())
    }

    /// `Ok` while it is live.
    ///
    /// # Errors
    /// Why it is cancelled, and where.
    pub fn check(&self) -> Result<(), Cancelled> {
        match self.ended() {
            None => Ok(()),
            Some(end) => Err((*end).clone()),
        }
    }

    fn ended(&self) -> Option<Arc<Cancelled>> {
        if !self.is_cancelled() {
            return None;
        }
        self.0.lock().end.clone()
    }

    /// Waits until it is cancelled.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub fn cancelled(&self) -> impl Future<Output = Cancelled> + Send + 'static + use<> {
        wait_until(self.0.clone(), |state: &mut NodeState| state.end.as_deref().cloned())
    }

    /// Blocks this thread until it is cancelled, for at most `timeout` (None: for ever).
    ///
    /// # Errors
    /// `TimedOut`; `WouldBlock` on an event loop or inside an async worker.
    pub fn wait_blocking(&self, timeout: Option<Duration>) -> Result<Cancelled, WaitError> {
        block_on(self.cancelled(), timeout)
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.0
    }
}

/// What [`Node::mark`] found.
struct Mark {
    /// This call cancelled it.
    won: bool,
    /// It has descendants that may not be cancelled yet.
    unsettled: bool,
}

impl Node {
    fn new(end: Option<Arc<Cancelled>>, parent: Option<Parent>) -> Self {
        let cancelled = AtomicBool::new(end.is_some());
        let state = NodeState { settled: end.is_some(), end, children: Slab::default(), waiters: Waiters::default() };
        Node { cancelled, state: Mutex::new(state), parent }
    }

    /// Cancels this node alone, and wakes who waits on it.
    fn mark(&self, end: &Arc<Cancelled>) -> Mark {
        let mut state = self.lock();
        let won = state.end.is_none();
        if won {
            state.end = Some(end.clone());
            state.settled = state.children.len() == 0;
            self.cancelled.store(true, Ordering::Release);
        }
        let unsettled = !state.settled;
        let wake = won && state.waiters.queued() > 0;
        drop(state);
        if wake {
            wake_all(self);
        }
        Mark { won, unsettled }
    }

    /// The next living child at or after `slot`, which is moved past it.
    fn next_child(&self, slot: &mut u32) -> Option<Arc<Node>> {
        let state = self.lock();
        while *slot < state.children.end() {
            let child = state.children.get(*slot).and_then(Weak::upgrade);
            *slot += 1;
            if child.is_some() {
                return child;
            }
        }
        None
    }

    fn settle(&self) {
        let mut state = self.lock();
        state.settled = true;
        let children = std::mem::take(&mut state.children);
        drop(state);
        drop(children);
    }
}

impl Parent {
    /// Takes a child out of the list, unless it has left before: then its slot is empty, or another's.
    fn forget(&self, child: *const Node) {
        let mut state = self.node.lock();
        let listed = state.children.get(self.slot).is_some_and(|listed| std::ptr::eq(listed.as_ptr(), child));
        let left = listed.then(|| state.children.remove(self.slot));
        drop(state);
        drop(left);
    }
}

impl Drop for Node {
    /// Leaves the parent's list; then does the same for each ancestor that only this path kept alive.
    fn drop(&mut self) {
        let (mut child, mut parent): (*const Node, _) = (self, self.parent.take());
        let mut _address = Weak::new();
        while let Some(link) = parent {
            link.forget(child);
            _address = Arc::downgrade(&link.node); // keeps it from being another's while it is compared
            child = _address.as_ptr();
            parent = Arc::into_inner(link.node).and_then(|mut last| last.parent.take());
        }
    }
}

impl CloseScope {
    /// From now on closing this scope cancels `scope`: with the same reason, or with the cause's text. If it is over
    /// already, `scope` is cancelled before this returns.
    #[track_caller]
    pub fn link(&self, scope: &CancelScope) {
        let hook: Weak<Node> = Arc::downgrade(&scope.0);
        self.on_close(hook);
    }
}

impl OnClose for Node {
    fn on_close(self: Arc<Self>, end: &CloseError, at: &'static Location<'static>) {
        CancelScope(self).cancel_with(Cancelled { reason: end.clone().into_reason(), at });
    }
}

impl Default for CancelScope {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for CancelScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CancelScope").field(&self.ended().map(|end| end.reason.clone())).finish()
    }
}

/// The scopes that are live right now, to be cancelled together: "interrupt what is running".
///
/// [`cancel`](ScopeGroup::cancel) hits the scopes that have been entered and are not left yet, and none that is entered later;
/// [`cancel_latched`](ScopeGroup::cancel_latched) hits the later ones too, until [`clear`](ScopeGroup::clear). Clones are the
/// same group. Every method may be called from any thread.
///
/// ```
/// let cells = microio::ScopeGroup::new();
/// let running = cells.scope();
/// assert_eq!(cells.cancel("interrupt"), 1);
/// assert!(running.is_cancelled());
/// assert!(!cells.scope().is_cancelled(), "the next cell is not hit");
/// ```
#[derive(Clone, Default)]
pub struct ScopeGroup(Arc<Group>);

#[derive(Default)]
struct Group {
    active: AtomicUsize,
    state: Mutex<GroupState>,
}

#[derive(Default)]
struct GroupState {
    /// The parent of the scopes that are entered now. `cancel` puts a new one in its place and cancels the old one, outside
    /// the lock: entering and cancelling are ordered by the exchange, and nothing is walked under the lock.
    root: CancelScope,
    /// The root is cancelled, or about to be, and stays in place until `clear`.
    latched: bool,
}

impl ScopeGroup {
    /// A group with no scopes in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters a scope, which leaves the group when the guard is dropped. It is cancelled from the start while a latched
    /// cancel is in force.
    pub fn scope(&self) -> ScopeGuard {
        self.0.active.fetch_add(1, Ordering::Relaxed);
        loop {
            let state = self.0.state.lock();
            let (root, latched) = (state.root.clone(), state.latched);
            drop(state);
            let scope = root.child();
            // Born cancelled by a cancel that took this root away meanwhile, and did not count it: not what was running then.
            if latched || !scope.is_cancelled() || scope.0.parent.is_some() {
                return ScopeGuard { scope, group: self.0.clone() };
            }
        }
    }

    /// Cancels the scopes that are in the group now. Returns how many it cancelled: 0 if there were none, or if all had been
    /// cancelled before.
    #[track_caller]
    pub fn cancel(&self, why: impl Into<Reason>) -> usize {
        self.cancel_root(why.into(), false, Location::caller())
    }

    /// As [`cancel`](ScopeGroup::cancel), and scopes that are entered later are cancelled too, until [`clear`](ScopeGroup::clear).
    #[track_caller]
    pub fn cancel_latched(&self, why: impl Into<Reason>) -> usize {
        self.cancel_root(why.into(), true, Location::caller())
    }

    fn cancel_root(&self, reason: Reason, latch: bool, at: &'static Location<'static>) -> usize {
        let fresh = CancelScope::new();
        let mut state = self.0.state.lock();
        let root = if latch || state.latched {
            state.latched = true;
            state.root.clone()
        } else {
            std::mem::replace(&mut state.root, fresh)
        };
        drop(state);
        root.cancel_with(Cancelled { reason, at }).unwrap_or(0)
    }

    /// Ends a latched cancel: scopes that are entered from now on are live. Those cancelled stay so.
    pub fn clear(&self) {
        let fresh = CancelScope::new();
        let mut state = self.0.state.lock();
        let latched = std::mem::replace(&mut state.latched, false);
        let cancelled = latched.then(|| std::mem::replace(&mut state.root, fresh));
        drop(state);
        drop(cancelled);
    }

    /// How many scopes are in the group, cancelled or not.
    pub fn active(&self) -> usize {
        self.0.active.load(Ordering::Relaxed)
    }
}

/// A [`CancelScope`] in a [`ScopeGroup`]; it leaves the group when dropped.
#[must_use = "the scope leaves its group when the guard is dropped"]
pub struct ScopeGuard {
    scope: CancelScope,
    group: Arc<Group>,
}

impl Deref for ScopeGuard {
    type Target = CancelScope;
    fn deref(&self) -> &CancelScope {
        &self.scope
    }
}

impl Drop for ScopeGuard {
    /// Clones of the scope may live on: they are not what is running.
    fn drop(&mut self) {
        if let Some(parent) = &self.scope.0.parent {
            parent.forget(Arc::as_ptr(&self.scope.0));
        }
        self.group.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for ScopeGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latched = self.0.state.lock().latched;
        f.debug_struct("ScopeGroup").field("active", &self.active()).field("latched", &latched).finish()
    }
}

impl fmt::Debug for ScopeGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ScopeGuard").field(&self.scope).finish()
    }
}
