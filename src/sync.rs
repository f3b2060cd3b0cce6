//! The one door to locks, atomics and thread parking: `std`, or `loom` when the models run.
//!
//! Two kinds of lock, both without poison at the surface: a panic under one of ours cannot leave a broken state, because
//! nothing but our own straight-line code runs there (law 1).
//!
//! - `Mutex`: everywhere.
//! - `BackoffMutex`: the channel's queue only, the one place where it wins (see DESIGN.md, "Locks").
//!
//! `Arc` stays `std`'s under loom: loom's cannot be unsized or become a `Waker`, and reference counts are not what the
//! models are after.

pub(crate) use std::sync::{Arc, Weak};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

#[cfg(loom)]
pub(crate) use loom::thread;
#[cfg(not(loom))]
pub(crate) use std::thread;

/// A thread-local, initialised at compile time where the host can (loom cannot).
macro_rules! per_thread {
    ($name:ident: $type:ty = $init:expr) => {
        #[cfg(not(loom))]
        std::thread_local! { static $name: $type = const { $init }; }
        #[cfg(loom)]
        loom::thread_local! { static $name: $type = $init; }
    };
}
pub(crate) use per_thread;

#[cfg(loom)]
use loom::sync as imp;
#[cfg(not(loom))]
use std::sync as imp;

/// A mutual exclusion lock that does not poison.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> imp::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[cfg(loom)]
    pub(crate) fn try_lock(&self) -> Option<imp::MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

/// A thread that parks, and that others unpark.
#[derive(Debug)]
pub(crate) struct Sleeper {
    thread: thread::Thread,
    /// loom's unpark ends any wait of a thread, for a lock too: it is for those who have parked. (No switch of threads comes
    /// between this flag and the park.)
    #[cfg(loom)]
    parked: std::sync::atomic::AtomicBool,
}

impl Sleeper {
    /// The current thread.
    pub(crate) fn current() -> Self {
        Sleeper {
            thread: thread::current(),
            #[cfg(loom)]
            parked: false.into(),
        }
    }

    /// Parks the current thread, for at most `time`. May return early, as `std`'s does.
    #[cfg(not(loom))]
    pub(crate) fn park(&self, time: Option<std::time::Duration>) {
        match time {
            Some(time) => thread::park_timeout(time),
            None => thread::park(),
        }
    }

    /// loom has no clock: a model in which a deadline decides would be a model of the clock.
    #[cfg(loom)]
    pub(crate) fn park(&self, _time: Option<std::time::Duration>) {
        self.parked.store(true, Ordering::Relaxed);
        thread::park();
        self.parked.store(false, Ordering::Relaxed);
    }

    pub(crate) fn unpark(&self) {
        #[cfg(loom)]
        if !self.parked.load(Ordering::Relaxed) {
            return;
        }
        self.thread.unpark();
    }
}

/// Alone on its cache line (two, as processors fetch them in pairs).
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Line<T>(pub(crate) T);

#[cfg(loom)]
pub(crate) use Mutex as BackoffMutex;

/// A lock for critical sections of a few instructions, whose unlock is a plain store.
///
/// The waiting side backs off (spins briefly, then yields, then sleeps), which lets the holder's side burst and keeps a
/// preempted or lower-priority holder from costing a core. Only a push, a pop or a swap may happen under it.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct BackoffMutex<T>(spin::mutex::SpinMutex<T>);

#[cfg(not(loom))]
impl<T> BackoffMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        BackoffMutex(spin::mutex::SpinMutex::new(value))
    }

    pub(crate) fn lock(&self) -> spin::mutex::SpinMutexGuard<'_, T> {
        match self.0.try_lock() {
            Some(guard) => guard,
            None => self.lock_contended(),
        }
    }

    pub(crate) fn try_lock(&self) -> Option<spin::mutex::SpinMutexGuard<'_, T>> {
        self.0.try_lock()
    }

    #[cold]
    fn lock_contended(&self) -> spin::mutex::SpinMutexGuard<'_, T> {
        const SPINS: u32 = 6; // 2^0 + .. + 2^5 pauses: about a microsecond
        const YIELDS: u32 = 16;
        for round in 0u32.. {
            if round < SPINS {
                (0..1 << round).for_each(|_| std::hint::spin_loop());
            } else if round < SPINS + YIELDS {
                thread::yield_now();
            } else {
                // The holder is off the processor: give it ours, for longer each time, up to a millisecond.
                let micros = 50 << (round - SPINS - YIELDS).min(4);
                thread::sleep(std::time::Duration::from_micros(micros));
            }
            if let Some(guard) = self.0.try_lock() {
                return guard;
            }
        }
        unreachable!("the loop above ends only by returning")
    }
}
