//! Requests that wait for their reply: [`RequestRegistry`], answered by key or by a handle that travels along.
//!
//! | slot | `resolve`, `fail` | reply handle dropped, or (without one) the registry | waiter polled | waiter dropped |
//! |---|---|---|---|---|
//! | pending | done | done: `Abandoned` | parks | free |
//! | done | `Err(value)`, `false` | | takes the outcome, free | free, the outcome is dropped |
//! | free, or another request's (generation) | `Err(value)`, `false` | | | |
//!
//! # Invariants
//!
//! 1. A request is pending from `register` on, before anything is sent, until exactly one of resolve, fail, close, drop of the
//!    handle or drop of the waiter ends it. Only the waiter frees the slot.
//! 2. The key is in the map as long as the request is pending. Who ends it by key takes the entry out; a reply handle does not
//!    look its key up: it leaves a stale entry (`mapped`), which the waiter takes out, or the next request with that key.
//! 3. A generation is never used twice in a shard: a handle or a waiter finds its own request or none.
//! 4. One shard lock at a time. Under it run the key's `Eq` (the documented exception to law 1; a panic there leaves the map
//!    intact) and, in `pending`, its `Clone`; never its `Hash` or its drop. Were they to use the same registry they would wait
//!    for themselves: they panic instead (`KeyCode`). Values, wakers and causes move through and are dropped outside.

mod handle;
mod key;

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash};
use std::ops::DerefMut;
use std::panic::Location;
use std::task::Waker;
use std::time::{Duration, Instant};

pub use handle::{ReplyHandle, RequestError, Waiter};
use key::{ByKey, BySlot, Carried, Entry, KeyCode, find};

use crate::close::{CloseError, CloseScope, OnClose};
use crate::error::{Failure, discard};
use crate::slab::Slab;
use crate::sync::{Arc, Line, Mutex, Weak};
use crate::wait::{WakeBatch, may_block, wake};

/// The requests in flight of a connection or a service, and who waits for each.
///
/// A request is registered before it is sent and ends in exactly one way; the entry goes with its [`Waiter`], whether that gets
/// a reply, times out, is cancelled or dropped. Clones are the same registry. Every method may be called from any thread.
///
/// - [`request`](RequestRegistry::request): the peer answers by key, and a reader calls [`resolve`](RequestRegistry::resolve).
/// - [`ask`](RequestRegistry::ask): a [`ReplyHandle`] travels with the request, and whoever has it answers.
/// - [`close`](RequestRegistry::close), or [`bound_to`](RequestRegistry::bound_to) a scope that ends: all waiters wake with
///   the cause, and so does everyone who comes later.
///
/// ```
/// use microio::{Failure, RequestRegistry};
/// let requests = RequestRegistry::<u32, String>::new();
/// let waiter = requests.register(1).unwrap();
/// assert_eq!(requests.resolve(&1, "pong".to_owned()), Ok(()));
/// assert_eq!(requests.resolve(&1, "late".to_owned()), Err("late".to_owned()));
/// assert_eq!(waiter.wait_blocking(None).unwrap(), "pong");
///
/// requests.close(Failure::msg("connection reset"));
/// assert_eq!(requests.register(2).unwrap_err().to_string(), "connection reset");
/// ```
///
/// # Panics
/// If code of the key does: `Hash`, and `Eq` (in [`pending`](RequestRegistry::pending) `Clone`), which runs under a lock of the
/// registry and panics if it uses the same registry, its handles or its waiters. The registry stays whole. A panic in the drop
/// of the registry's own copy of a key, or of a value that nobody will see, goes no further.
pub struct RequestRegistry<K, V>(Arc<Owner<K, V>>);

/// What the handles of a registry share. Waiters and reply handles do not hold it: when it is dropped, nobody can resolve by key.
struct Owner<K, V>(Arc<Inner<K, V>>);

/// Enough that two threads seldom meet; a power of two.
const SHARDS: usize = if cfg!(loom) { 1 } else { 16 };

struct Inner<K, V> {
    hasher: RandomState,
    /// Each lock beside what it guards. In a box, because the memory of the `Inner` itself stays for as long as a scope that
    /// the registry was bound to remembers it.
    shards: Box<[Lock<K, V>; SHARDS]>,
}

type Lock<K, V> = Line<Mutex<Shard<K, V>>>;

/// Empty until used: neither table allocates before its first entry.
struct Shard<K, V> {
    keys: HashSet<Entry<K>, BuildHasherDefault<Carried>>,
    slots: Slab<Slot<V>>,
    pending: usize,
    next_generation: u64,
    closed: Option<Failure>,
}

struct Slot<V> {
    generation: u64,
    /// The map has an entry for it.
    mapped: bool,
    /// A reply handle can answer it.
    by_handle: bool,
    since: Instant,
    state: State<V>,
}

enum State<V> {
    Pending(Option<Waker>),
    Done(Result<V, RequestError>),
}

/// Where a request is: enough to find its slot, and to know if it is still its own.
#[derive(Clone, Copy)]
struct Place {
    hash: u64,
    slot: u32,
    generation: u64,
}

impl<K, V> Clone for RequestRegistry<K, V> {
    fn clone(&self) -> Self {
        RequestRegistry(self.0.clone())
    }
}

impl<K, V> Default for RequestRegistry<K, V> {
    fn default() -> Self {
        let shard = |_| {
            let (keys, slots) = (HashSet::default(), Slab::default());
            Line(Mutex::new(Shard { keys, slots, pending: 0, next_generation: 0, closed: None }))
        };
        let inner = Inner { hasher: RandomState::new(), shards: Box::new(std::array::from_fn(shard)) };
        RequestRegistry(Arc::new(Owner(Arc::new(inner))))
    }
}

impl<K, V> Drop for Owner<K, V> {
    /// Who waits for a reply by key would wait in vain.
    fn drop(&mut self) {
        self.0.sweep(&RequestError::Abandoned, |slot| !slot.by_handle);
    }
}

impl<K: Eq + Hash + Clone, V> RequestRegistry<K, V> {
    /// A registry that is open and empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// A registry that closes when `scope` does, with its cause, or with the text of its reason.
    pub fn bound_to(scope: &CloseScope) -> Self
    where
        K: Send + 'static,
        V: Send + 'static,
    {
        let registry = Self::new();
        let hook: Weak<Inner<K, V>> = Arc::downgrade(&registry.0.0);
        scope.on_close(hook);
        registry
    }

    fn inner(&self) -> &Arc<Inner<K, V>> {
        &self.0.0
    }

    /// Registers a request that is answered by its key. To be called before the request is sent.
    ///
    /// # Errors
    /// `Duplicate`, `Closed`.
    pub fn register(&self, key: K) -> Result<Waiter<K, V>, RequestError> {
        let place = self.inner().insert(&key, false)?;
        Ok(Waiter { registry: self.inner().clone(), key, place, done: false })
    }

    /// Registers a request that is answered by the handle, which is sent along; the key answers too.
    ///
    /// # Errors
    /// `Duplicate`, `Closed`.
    #[allow(clippy::type_complexity)]
    pub fn reply(&self, key: K) -> Result<(ReplyHandle<K, V>, Waiter<K, V>), RequestError> {
        let handle_key = key.clone();
        let place = self.inner().insert(&key, true)?;
        let handle = ReplyHandle { registry: self.inner().clone(), key: handle_key, place, answered: false };
        Ok((handle, Waiter { registry: self.inner().clone(), key, place, done: false }))
    }

    /// Answers the request with that key. `Ok` means that its waiter gets the value, if it still looks.
    ///
    /// # Errors
    /// The value comes back: there is no such request, or no longer.
    pub fn resolve(&self, key: &K, value: V) -> Result<(), V> {
        self.inner().finish_key(key, Ok(value)).map_err(|outcome| match outcome {
            Ok(value) => value,
            Err(_) => unreachable!("what comes back is what was given"),
        })
    }

    /// Fails the request with that key. `false`: there is no such request, or no longer.
    pub fn fail(&self, key: &K, cause: impl Into<Failure>) -> bool {
        self.inner().finish_key(key, Err(RequestError::Failed(cause.into()))).is_ok()
    }

    /// Fails all requests that are pending now, with one shared cause; the registry stays usable. Returns how many.
    pub fn fail_all(&self, cause: impl Into<Failure>) -> usize {
        self.inner().sweep(&RequestError::Failed(cause.into()), |_| true)
    }

    /// Closes the registry for good: all pending requests end `Closed` with that cause, and later ones are refused with it at
    /// once. Returns how many were pending; a later close changes nothing and returns 0.
    pub fn close(&self, cause: impl Into<Failure>) -> usize {
        self.inner().close(cause.into())
    }

    /// How many requests are pending.
    pub fn len(&self) -> usize {
        self.inner().pending()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a request with that key is pending.
    pub fn contains(&self, key: &K) -> bool {
        let hash = self.inner().hasher.hash_one(key);
        let shard = self.inner().shard(hash);
        let _code = self.inner().key_code();
        shard.keys.get(find(&ByKey(hash, key))).is_some_and(|entry| shard.is_pending(entry.slot))
    }

    /// The pending requests and their ages. A snapshot for people and logs: it clones the keys under the registry's locks.
    pub fn pending(&self) -> Vec<(K, Duration)> {
        let now = Instant::now();
        let mut pending = Vec::new();
        for shard in self.inner().shards.iter() {
            let shard = self.inner().lock(shard);
            let _code = self.inner().key_code();
            let entries = shard.keys.iter().filter(|entry| shard.is_pending(entry.slot));
            let aged =
                entries.map(|entry| (entry.key.clone(), now.saturating_duration_since(shard.slots[entry.slot].since)));
            pending.extend(aged);
        }
        pending
    }

    /// Registers, sends, and waits for the reply, which comes by key.
    ///
    /// # Errors
    /// `Failed` with the cause of `send` if that fails; otherwise how the request ended.
    ///
    /// # Cancel safety
    /// Dropping the future removes the entry: a reply that comes later finds none.
    pub async fn request<E: Into<Failure>>(
        &self,
        key: K,
        send: impl FnOnce(&K) -> Result<(), E>,
    ) -> Result<V, RequestError> {
        let waiter = self.register(key)?;
        send(&waiter.key).map_err(|cause| RequestError::Failed(cause.into()))?;
        waiter.await
    }

    /// As [`request`](RequestRegistry::request), blocking this thread for at most `timeout` (None: for ever).
    ///
    /// # Errors
    /// The same, `TimedOut`, and `WouldBlock` (then nothing was sent).
    pub fn request_blocking<E: Into<Failure>>(
        &self,
        key: K,
        send: impl FnOnce(&K) -> Result<(), E>,
        timeout: Option<Duration>,
    ) -> Result<V, RequestError> {
        if !may_block() {
            return Err(RequestError::WouldBlock);
        }
        let waiter = self.register(key)?;
        send(&waiter.key).map_err(|cause| RequestError::Failed(cause.into()))?;
        waiter.wait_blocking(timeout)
    }

    /// Registers, sends the handle along, and waits for whoever gets it to answer.
    ///
    /// # Errors
    /// `Failed` with the cause of `send` if that fails; otherwise how the request ended.
    ///
    /// # Cancel safety
    /// Dropping the future removes the entry: the handle finds out ([`ReplyHandle::is_wanted`]).
    pub async fn ask<E: Into<Failure>>(
        &self,
        key: K,
        send: impl FnOnce(ReplyHandle<K, V>) -> Result<(), E>,
    ) -> Result<V, RequestError> {
        let (handle, waiter) = self.reply(key)?;
        send(handle).map_err(|cause| RequestError::Failed(cause.into()))?;
        waiter.await
    }

    /// As [`ask`](RequestRegistry::ask), blocking this thread for at most `timeout` (None: for ever).
    ///
    /// # Errors
    /// The same, `TimedOut`, and `WouldBlock` (then nothing was sent).
    pub fn ask_blocking<E: Into<Failure>>(
        &self,
        key: K,
        send: impl FnOnce(ReplyHandle<K, V>) -> Result<(), E>,
        timeout: Option<Duration>,
    ) -> Result<V, RequestError> {
        if !may_block() {
            return Err(RequestError::WouldBlock);
        }
        let (handle, waiter) = self.reply(key)?;
        send(handle).map_err(|cause| RequestError::Failed(cause.into()))?;
        waiter.wait_blocking(timeout)
    }
}

impl<K, V> Inner<K, V> {
    /// Its bits are not those that the shard's map uses: it takes the lowest and the top seven.
    fn shard(&self, hash: u64) -> impl DerefMut<Target = Shard<K, V>> {
        self.lock(&self.shards[(hash >> 48) as usize % SHARDS])
    }

    /// # Panics
    /// In the code of a key that runs under one of these locks.
    fn lock<'a>(&self, shard: &'a Lock<K, V>) -> impl DerefMut<Target = Shard<K, V>> + use<'a, K, V> {
        KeyCode::forbid(self.address());
        shard.0.lock()
    }

    /// Code of a key runs under a lock, until this is dropped.
    fn key_code(&self) -> KeyCode {
        KeyCode::enter(self.address())
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn pending(&self) -> usize {
        self.shards.iter().map(|shard| self.lock(shard).pending).sum()
    }

    /// Ends the request, if it is still pending; otherwise the outcome comes back.
    fn finish(&self, place: Place, outcome: Result<V, RequestError>) -> Result<(), Result<V, RequestError>> {
        let mut shard = self.shard(place.hash);
        if !shard.is_own(place) || !shard.is_pending(place.slot) {
            drop(shard);
            return Err(outcome);
        }
        let waker = shard.finish(place.slot, outcome);
        drop(shard);
        if let Some(waker) = waker {
            wake(waker);
        }
        Ok(())
    }

    /// Fails what is pending now. Requests that are made during the sweep, by those whom it wakes too, are not hit: their
    /// generations are above the limits.
    fn sweep(&self, error: &RequestError, hit: impl Fn(&Slot<V>) -> bool) -> usize {
        let limits: [_; SHARDS] = std::array::from_fn(|shard| {
            let mut state = self.lock(&self.shards[shard]);
            let (limit, keys) = (state.next_generation, std::mem::take(&mut state.keys));
            drop(state);
            keys.into_iter().for_each(discard);
            limit
        });
        let shards = self.shards.iter().zip(limits);
        shards.map(|(shard, limit)| self.sweep_shard(shard, error, |slot| slot.generation < limit && hit(slot))).sum()
    }

    fn sweep_shard(&self, shard: &Lock<K, V>, error: &RequestError, hit: impl Fn(&Slot<V>) -> bool) -> usize {
        const AT_A_TIME: u32 = 256;
        let (mut failed, mut slot) = (0, 0);
        loop {
            let mut batch = WakeBatch::default();
            let mut state = self.lock(shard);
            let end = state.slots.end().min(slot + AT_A_TIME);
            while slot < end && !batch.is_full() {
                if state.slots.get(slot).is_some_and(&hit) && state.is_pending(slot) {
                    failed += 1;
                    state.finish(slot, Err(error.clone())).into_iter().for_each(|waker| batch.push(waker));
                }
                slot += 1;
            }
            let more = slot < state.slots.end();
            drop(state);
            batch.wake();
            if !more {
                return failed;
            }
        }
    }

    fn close(&self, cause: Failure) -> usize {
        let error = RequestError::Closed(cause.clone());
        // The first shard decides who closes; the others follow. Until a shard is marked it accepts requests, and then sweeps
        // them away: nobody waits in vain.
        for (index, shard) in self.shards.iter().enumerate() {
            let mut shard = self.lock(shard);
            if index == 0 && shard.closed.is_some() {
                return 0;
            }
            shard.closed = Some(cause.clone());
        }
        self.sweep(&error, |_| true)
    }
}

impl<K: Eq + Hash + Clone, V> Inner<K, V> {
    fn insert(&self, key: &K, by_handle: bool) -> Result<Place, RequestError> {
        let hash = self.hasher.hash_one(key);
        let mut entry = Entry { hash, slot: 0, key: key.clone() };
        let since = Instant::now();
        let mut shard = self.shard(hash);
        if let Some(cause) = shard.closed.clone() {
            drop(shard);
            return Err(RequestError::Closed(cause));
        }
        let mut stale = None;
        let code = self.key_code();
        let found = shard.keys.get(find(&ByKey(hash, key))).map(|entry| entry.slot);
        drop(code);
        if let Some(slot) = found {
            if shard.is_pending(slot) {
                drop(shard);
                return Err(RequestError::Duplicate);
            }
            stale = shard.keys.take(find(&BySlot(hash, slot)));
            shard.slots[slot].mapped = false;
        }
        let generation = shard.next_generation;
        shard.next_generation += 1;
        shard.pending += 1;
        entry.slot =
            shard.slots.insert(Slot { generation, mapped: true, by_handle, since, state: State::Pending(None) });
        let place = Place { hash, slot: entry.slot, generation };
        shard.keys.insert(entry);
        drop(shard);
        discard(stale);
        Ok(place)
    }

    fn finish_key(&self, key: &K, outcome: Result<V, RequestError>) -> Result<(), Result<V, RequestError>> {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash);
        let code = self.key_code();
        let found = shard.keys.take(find(&ByKey(hash, key)));
        drop(code);
        let Some(entry) = found else {
            drop(shard);
            return Err(outcome);
        };
        shard.slots[entry.slot].mapped = false;
        if !shard.is_pending(entry.slot) {
            drop(shard); // stale: its reply handle has answered
            discard(entry);
            return Err(outcome);
        }
        let waker = shard.finish(entry.slot, outcome);
        drop(shard);
        discard(entry);
        if let Some(waker) = waker {
            wake(waker);
        }
        Ok(())
    }
}

impl<K, V> Shard<K, V> {
    fn is_own(&self, place: Place) -> bool {
        self.slots.get(place.slot).is_some_and(|slot| slot.generation == place.generation)
    }

    fn is_pending(&self, slot: u32) -> bool {
        matches!(self.slots[slot].state, State::Pending(_))
    }

    /// A pending request is done; here is the waker of who waits for it.
    #[must_use]
    fn finish(&mut self, slot: u32, outcome: Result<V, RequestError>) -> Option<Waker> {
        self.pending -= 1;
        match std::mem::replace(&mut self.slots[slot].state, State::Done(outcome)) {
            State::Pending(waker) => waker,
            State::Done(_) => unreachable!("only what is pending is finished"),
        }
    }

    /// Frees a slot; what was in it, and in the map, is to be dropped outside the lock.
    #[must_use]
    fn free(&mut self, place: Place) -> (State<V>, Option<Entry<K>>) {
        let slot = self.slots.remove(place.slot);
        self.pending -= usize::from(matches!(slot.state, State::Pending(_)));
        let entry = if slot.mapped { self.keys.take(find(&BySlot(place.hash, place.slot))) } else { None };
        if self.slots.end() == 0 {
            self.keys.shrink_to_fit(); // empty as well: the slots have given the memory of a burst back
        }
        (slot.state, entry)
    }
}

impl<K, V> OnClose for Inner<K, V>
where
    K: Send,
    V: Send,
{
    fn on_close(self: Arc<Self>, end: &CloseError, _at: &'static Location<'static>) {
        self.close(end.clone().into_failure());
    }
}

impl<K, V> fmt::Debug for RequestRegistry<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestRegistry").field("pending", &self.0.0.pending()).finish()
    }
}
