//! An allocator that counts, when it is asked to: the timed repetitions do not pay for it.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering::Relaxed};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ON: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicIsize = AtomicIsize::new(0);

fn count(allocations: usize, bytes: isize) {
    if ON.load(Relaxed) {
        ALLOCATIONS.fetch_add(allocations, Relaxed);
        BYTES.fetch_add(bytes, Relaxed);
    }
}

// SAFETY: every call is the system's, with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size as isize - layout.size() as isize);
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        unsafe { System.dealloc(old, layout) }
    }
}

pub(crate) fn count_from_now(on: bool) {
    ON.store(on, Relaxed);
}

/// Allocations on all threads, and bytes that were not freed, while it counted. Only differences mean something.
pub(crate) fn counted() -> (usize, isize) {
    (ALLOCATIONS.load(Relaxed), BYTES.load(Relaxed))
}

/// Has the process keep the memory that it was given, and touches some: no repetition pays for a first touch.
pub(crate) fn touch() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
    }
    let blocks: Vec<Vec<u8>> = (0..32).map(|_| vec![1; 8 << 20]).collect();
    drop(black_box(blocks));
}
