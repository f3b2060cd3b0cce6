//! What a process holds right now: threads, file descriptors, memory. As the system counts them, and the allocator.

use std::alloc::System;
use std::fs;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What the process holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    /// Live threads, the caller's among them.
    pub threads: usize,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Bytes that are allocated and not freed.
    pub bytes: usize,
}

impl Census {
    /// Counts now.
    ///
    /// # Panics
    /// Where there is no `/proc/self`.
    pub fn take() -> Self {
        let entries = |path| fs::read_dir(path).expect("Linux has it").count();
        Census { threads: entries("/proc/self/task"), descriptors: entries("/proc/self/fd") - 1, bytes: live_bytes() }
    }
}

/// Bytes that are allocated and not freed.
pub fn live_bytes() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated // a realloc counts in these, too
}
