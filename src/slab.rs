//! A vector with a free list: values under small stable numbers, O(1) to add and to remove, no allocation in the steady state.
//!
//! Empty after a burst, it gives the memory back, and begins to count from zero: who walks over the keys up to `end` pays for what
//! there is, not for the most that there ever was.

use std::ops::{Index, IndexMut};

#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: u32,
    len: u32,
}

#[derive(Debug)]
enum Entry<T> {
    Used(T),
    /// The next free entry; [`END`] after the last.
    Free(u32),
}

const END: u32 = u32::MAX;

/// What is not a burst: so many entries stay allocated.
const KEPT: usize = 1024;

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { entries: Vec::new(), free: END, len: 0 }
    }
}

impl<T> Slab<T> {
    /// # Panics
    /// With 2^32 - 1 values in it.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if let Some(entry) = self.entries.get_mut(self.free as usize) {
            let key = self.free;
            if let Entry::Free(next) = std::mem::replace(entry, Entry::Used(value)) {
                self.free = next;
            }
            return key;
        }
        assert!(self.entries.len() < END as usize, "more than 2^32 - 1 entries");
        self.entries.push(Entry::Used(value));
        (self.entries.len() - 1) as u32
    }

    /// Takes the value under `key` out.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn remove(&mut self, key: u32) -> T {
        if self.len == 1 && self.entries.len() > KEPT {
            return self.remove_last(key);
        }
        match std::mem::replace(&mut self.entries[key as usize], Entry::Free(self.free)) {
            Entry::Used(value) => {
                self.free = key;
                self.len -= 1;
                value
            }
            Entry::Free(_) => panic!("no value under the key"),
        }
    }

    #[cold]
    fn remove_last(&mut self, key: u32) -> T {
        match std::mem::take(self).entries.swap_remove(key as usize) {
            Entry::Used(value) => value,
            Entry::Free(_) => panic!("no value under the key"),
        }
    }

    pub(crate) fn get(&self, key: u32) -> Option<&T> {
        match self.entries.get(key as usize)? {
            Entry::Used(value) => Some(value),
            Entry::Free(_) => None,
        }
    }

    pub(crate) fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        match self.entries.get_mut(key as usize)? {
            Entry::Used(value) => Some(value),
            Entry::Free(_) => None,
        }
    }

    /// How many values it holds.
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// One more than the largest key given out since it was new or emptied of a burst: the end of a cursor over the keys.
    pub(crate) fn end(&self) -> u32 {
        self.entries.len() as u32
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;
    fn index(&self, key: u32) -> &T {
        self.get(key).expect("no value under the key")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, key: u32) -> &mut T {
        self.get_mut(key).expect("no value under the key")
    }
}
