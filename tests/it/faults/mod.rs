//! The matrix of faults: whatever goes wrong in whatever kind of service, alone or as any member of a group, everybody hears the
//! same cause, each call is back by its deadline, and nothing stays behind. [`MATRIX`] says what must come of each fault;
//! [`drive`] brings it about and looks everywhere.

mod cell;
mod said;
mod script;
mod subject;

use std::panic::catch_unwind;
use std::time::Duration;

use crate::alone::{alone, with_room_for_threads};
use cell::Cell;

/// The service of a cell.
const NAME: &str = "svc";
/// The deadline of what is late or stuck, and the grace of the loops.
const SOON: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Another has its port: a real `bind` fails.
    PortTaken,
    ErrorBeforeReady,
    ReturnBeforeReady,
    PanicBeforeReady,
    /// The system gives no thread.
    NoThread,
    /// It becomes ready long after the deadline of the start.
    NotReadyInTime,
    StopBeforeStart,
    StopWhileStarting,
    PanicAfterReady,
    ErrorWhileRunning,
    StopWhenReady,
    /// It waits, and hears nothing of its stop.
    IgnoresCancel,
    /// It keeps its thread or its loop busy.
    NeverYields,
    /// It has a blocking job of a minute: on its own thread, or in the pool of the loop.
    BlockingJob,
}

/// Where the fault is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// In the body of a `ServiceThread`.
    Thread,
    /// In the main future of a `LoopServiceThread`; in a task of its group; in a future that was submitted to it.
    #[cfg(feature = "tokio")]
    Main,
    #[cfg(feature = "tokio")]
    Task,
    #[cfg(feature = "tokio")]
    Submitted,
}

#[cfg(feature = "tokio")]
const KINDS: [Kind; 4] = [Kind::Thread, Kind::Main, Kind::Task, Kind::Submitted];
#[cfg(not(feature = "tokio"))]
const KINDS: [Kind; 1] = [Kind::Thread];

/// What must come of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// The service fails before it is ready, with this cause.
    Unready(&'static str),
    /// It was ready, and fails with this cause.
    Fails(&'static str),
    /// It was stopped before it was ready, and ends in order.
    Stopped,
    /// The start is given up at its deadline, and the service ends in order.
    Late,
    /// As `Late`, but it hears nothing of its stop either until it gets so far.
    LateAndStuck,
    /// It is ready, and when it is stopped it ends in order.
    Ends,
    /// As `Ends`, but this task had to be aborted at the end of the grace.
    Cut(&'static str),
    /// As `Ends`, but not by the deadline of the stop: it is stuck until it is let go.
    Stuck,
    /// As `Ends`: it is told to the one who submitted the future, and to nobody else.
    Own(&'static str),
}

use Fault::*;
use Outcome::*;

const IN_USE: &str = "Address already in use (os error 98)";
const WORKER_IN_USE: &str = "worker failed: Address already in use (os error 98)";
const SILENT: &str = "svc ended before it was ready";
const NO_THREAD: &str = "svc could not be spawned: Resource temporarily unavailable (os error 11)";

#[rustfmt::skip]
const MATRIX: [(Fault, [Outcome; 4]); 14] = [
    //                  a thread                    the main future             a task of the group                         a submitted future
    (PortTaken,         [Unready(IN_USE),           Unready(IN_USE),            Unready(WORKER_IN_USE),                     Own(IN_USE)]),
    (ErrorBeforeReady,  [Unready("no config"),      Unready("no config"),       Unready("worker failed: no config"),        Own("no config")]),
    (ReturnBeforeReady, [Unready(SILENT),           Unready(SILENT),            Unready(SILENT),                            Own("")]),
    (PanicBeforeReady,  [Unready("panicked: boom"), Unready("panicked: boom"),  Unready("worker failed: panicked: boom"),   Own("panicked: boom")]),
    (NoThread,          [Unready(NO_THREAD),        Unready(NO_THREAD),         Unready(NO_THREAD),                         Unready(NO_THREAD)]),
    (NotReadyInTime,    [LateAndStuck,              Late,                       Late,                                       Late]),
    (StopBeforeStart,   [Stopped,                   Stopped,                    Stopped,                                    Stopped]),
    (StopWhileStarting, [Stopped,                   Stopped,                    Stopped,                                    Stopped]),
    (PanicAfterReady,   [Fails("panicked: boom"),   Fails("panicked: boom"),    Fails("worker failed: panicked: boom"),     Own("panicked: boom")]),
    (ErrorWhileRunning, [Fails("lost the peer"),    Fails("lost the peer"),     Fails("worker failed: lost the peer"),      Own("lost the peer")]),
    (StopWhenReady,     [Ends,                      Ends,                       Ends,                                       Ends]),
    (IgnoresCancel,     [Stuck,                     Cut("svc-main"),            Cut("worker"),                              Cut("submitted")]),
    (NeverYields,       [Stuck,                     Stuck,                      Stuck,                                      Stuck]),
    (BlockingJob,       [Stuck,                     Ends,                       Ends,                                       Ends]),
];

/// Alone, or as the first, the second, the third of three in a group.
type Place = Option<usize>;
const PLACES: [Place; 4] = [None, Some(0), Some(1), Some(2)];

#[test]
fn each_fault_of_each_kind_of_service_ends_as_the_matrix_says() {
    if alone("faults::each_fault_of_each_kind_of_service_ends_as_the_matrix_says") {
        drive(|fault| fault != NoThread, &PLACES);
    }
}

#[test]
fn a_service_that_gets_no_thread_ends_as_the_matrix_says() {
    const TEST: &str = "faults::a_service_that_gets_no_thread_ends_as_the_matrix_says";
    if let Some(room) = with_room_for_threads(0..3, TEST) {
        drive(|fault| fault == NoThread, if room == 0 { &[None, Some(0)] } else { &PLACES[room + 1..][..1] });
    }
}

/// Tries all kinds of services in those rows and places, and tells of all that did not end so.
fn drive(row: impl Fn(Fault) -> bool, places: &[Place]) {
    // The first loop of a process opens descriptors that tokio keeps.
    #[cfg(feature = "tokio")]
    drop(tokio::runtime::Builder::new_current_thread().enable_all().build());
    let mut wrong = Vec::new();
    for (fault, outcomes) in MATRIX.iter().filter(|(fault, _)| row(*fault)) {
        for ((kind, outcome), place) in
            KINDS.iter().zip(outcomes).flat_map(|cell| places.iter().map(move |p| (cell, p)))
        {
            if catch_unwind(|| Cell::new(*fault, *kind, *place, *outcome).play()).is_err() {
                wrong.push(format!("{fault:?} in {kind:?}, {place:?} of a group, to end as {outcome:?}"));
                eprintln!("in the cell {:?}", wrong.last());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

impl Fault {
    fn is_before_ready(self) -> bool {
        !matches!(self, PanicAfterReady | ErrorWhileRunning | StopWhenReady | IgnoresCancel | NeverYields | BlockingJob)
    }
}
