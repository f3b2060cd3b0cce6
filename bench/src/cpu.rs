//! Where the threads of a case run.

use std::fmt;
use std::sync::LazyLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Which of two CPUs the threads of a case are pinned to. The first thread is the one that measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// There is one thread.
    One,
    /// All on one CPU.
    Same,
    /// The first thread on one CPU, all others on the other.
    Cross,
    /// By turns on both.
    Spread,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Place::One => "one",
            Place::Same => "same",
            Place::Cross => "cross",
            Place::Spread => "spread",
        })
    }
}

/// The CPUs that the process may use. Asked first in `main`, before a thread is pinned.
pub(crate) static CPUS: LazyLock<Vec<usize>> = LazyLock::new(|| {
    let allowed = sched_getaffinity(None).expect("an affinity");
    (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect()
});

/// Pins the calling thread, the `nth` of its case.
pub(crate) fn pin(place: Place, nth: usize) {
    let cpu = match place {
        Place::One | Place::Same => 0,
        Place::Cross => nth.min(1),
        Place::Spread => nth % 2,
    };
    let mut only = CpuSet::new();
    only.set(CPUS[cpu % CPUS.len()]);
    sched_setaffinity(None, &only).expect("one of the CPUs that the process had");
}
