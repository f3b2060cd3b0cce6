//! How a shard's map finds an entry: by key, or by slot.
//!
//! The hash of a key is made once, outside the lock, and carried along. An entry equals another if it has the same slot, so
//! that what has a slot (a handle, a waiter) needs neither `Hash` nor `Eq` of the key, and the types that users name have no
//! bounds; only a look-up by key compares keys.

use std::borrow::Borrow;
use std::cell::Cell;
use std::hash::{Hash, Hasher};

use crate::sync::per_thread;

/// A key in the map, with its hash (made once, outside the lock) and its slot.
pub(super) struct Entry<K> {
    pub(super) hash: u64,
    pub(super) slot: u32,
    pub(super) key: K,
}

/// How the map finds an entry: by key where the caller has one, or by slot, which needs neither `Hash` nor `Eq` of the key (so
/// that handles and waiters have no bounds).
pub(super) trait Find<K> {
    fn hash(&self) -> u64;
    fn entry(&self) -> Option<&Entry<K>>;
    fn is(&self, entry: &Entry<K>) -> bool;
}

pub(super) struct ByKey<'a, K>(pub(super) u64, pub(super) &'a K);

pub(super) struct BySlot(pub(super) u64, pub(super) u32);

pub(super) fn find<'a, K>(by: &'a (dyn Find<K> + 'a)) -> &'a (dyn Find<K> + 'a) {
    by
}

impl<K> Find<K> for Entry<K> {
    fn hash(&self) -> u64 {
        self.hash
    }
    fn entry(&self) -> Option<&Entry<K>> {
        Some(self)
    }
    fn is(&self, entry: &Entry<K>) -> bool {
        self.slot == entry.slot
    }
}

impl<K: Eq> Find<K> for ByKey<'_, K> {
    fn hash(&self) -> u64 {
        self.0
    }
    fn entry(&self) -> Option<&Entry<K>> {
        None
    }
    fn is(&self, entry: &Entry<K>) -> bool {
        self.0 == entry.hash && *self.1 == entry.key
    }
}

impl<K> Find<K> for BySlot {
    fn hash(&self) -> u64 {
        self.0
    }
    fn entry(&self) -> Option<&Entry<K>> {
        None
    }
    fn is(&self, entry: &Entry<K>) -> bool {
        self.1 == entry.slot
    }
}

impl<'a, K: 'a> Borrow<dyn Find<K> + 'a> for Entry<K> {
    fn borrow(&self) -> &(dyn Find<K> + 'a) {
        self
    }
}

impl<K> Hash for dyn Find<K> + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(Find::hash(self));
    }
}

impl<K> PartialEq for dyn Find<K> + '_ {
    fn eq(&self, other: &Self) -> bool {
        match (self.entry(), other.entry()) {
            (_, Some(entry)) => self.is(entry),
            (Some(entry), None) => other.is(entry),
            (None, None) => false,
        }
    }
}

impl<K> Eq for dyn Find<K> + '_ {}

impl<K> Hash for Entry<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<K> PartialEq for Entry<K> {
    fn eq(&self, other: &Self) -> bool {
        self.slot == other.slot
    }
}

impl<K> Eq for Entry<K> {}

/// Carries the hash that an [`Entry`] was made with.
#[derive(Default)]
pub(super) struct Carried(u64);

impl Hasher for Carried {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("an entry writes its hash only")
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

per_thread!(RUNS: Cell<usize> = Cell::new(0));

/// Code of a key (`Eq`, `Clone`) runs on this thread under a lock of the registry at that address, until dropped.
pub(super) struct KeyCode(usize);

impl KeyCode {
    pub(super) fn enter(registry: usize) -> Self {
        KeyCode(RUNS.with(|runs| runs.replace(registry)))
    }

    /// # Panics
    /// In the code of a key of that registry, which would wait here for itself.
    pub(super) fn forbid(registry: usize) {
        let runs = RUNS.try_with(Cell::get).is_ok_and(|runs| runs == registry);
        assert!(!runs, "a key used its own registry while that compared or cloned it");
    }
}

impl Drop for KeyCode {
    fn drop(&mut self) {
        RUNS.with(|runs| runs.set(self.0));
    }
}
