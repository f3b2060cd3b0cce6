//! What stands beside the rounds: where they are, the watchdog that finds a hang, Ctrl-C, and the panics that nobody planned.

use std::fmt::Write;
use std::panic;
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::books::PLANNED;

/// Where the program is: enough to do it again.
pub(crate) struct Place {
    pub(crate) kind: &'static str,
    pub(crate) round: String,
    pub(crate) replay: String,
    since: Instant,
}

pub(crate) const MOST_THREADS: usize = 64;

static PLACE: Mutex<Option<Place>> = Mutex::new(None);
static DOING: [Mutex<&str>; MOST_THREADS] = [const { Mutex::new("") }; MOST_THREADS];
static OPERATIONS: AtomicU64 = AtomicU64::new(0);
/// What is allocated more than at the baseline.
static BYTES: AtomicI64 = AtomicI64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A thread of the round begins something.
pub(crate) fn at(thread: usize, what: &'static str) {
    *DOING[thread].lock().unwrap() = what;
    OPERATIONS.fetch_add(1, Relaxed);
}

pub(crate) fn operations() -> u64 {
    OPERATIONS.load(Relaxed)
}

pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Relaxed)
}

pub(crate) fn bytes(more: i64) {
    BYTES.store(more, Relaxed);
}

/// A round begins.
pub(crate) fn enter(kind: &'static str, round: String, replay: String) {
    DOING.iter().for_each(|doing| *doing.lock().unwrap() = "");
    *PLACE.lock().unwrap() = Some(Place { kind, round, replay, since: Instant::now() });
    ROUNDS.fetch_add(1, Relaxed);
}

/// Says what is wrong, where, and how to do it again; ends the program.
pub(crate) fn fail(what: &[String]) -> ! {
    let mut text = String::new();
    // `try_lock`: whoever panics may stand anywhere.
    if let Ok(Some(place)) = PLACE.try_lock().as_deref() {
        let _ = writeln!(text, "stress: round {} ({}) does not balance", place.round, place.kind);
        what.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        let _ = writeln!(text, "replay its choices: {}", place.replay);
    }
    eprint!("{text}");
    process::exit(1)
}

fn doing() -> Vec<String> {
    let all = DOING.iter().enumerate().map(|(n, doing)| (n, doing.try_lock().map_or("?", |doing| *doing)));
    all.filter(|(_, doing)| !doing.is_empty()).map(|(n, doing)| format!("thread {n}: {doing}")).collect()
}

/// One thread for all of it, there before the first round is counted.
pub(crate) fn begin(patience: Duration) {
    panic::set_hook(Box::new(|info| {
        let text = info.payload().downcast_ref::<&str>().copied();
        let text = text.or_else(|| info.payload().downcast_ref::<String>().map(String::as_str));
        if text != Some(PLANNED) {
            let mut what = vec![format!("a panic that nobody planned: {info}")];
            what.extend(doing());
            fail(&what);
        }
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let watch = async move {
        tokio::spawn(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if INTERRUPTED.swap(true, Relaxed) {
                    process::exit(130);
                }
            }
        });
        let begin = Instant::now();
        let mut every = tokio::time::interval(Duration::from_secs(3));
        every.tick().await;
        loop {
            every.tick().await;
            let age = PLACE.lock().unwrap().as_ref().map_or(Duration::ZERO, |place| place.since.elapsed());
            if age > patience {
                let mut what = vec![format!("it hangs: the round began {age:.0?} ago")];
                what.extend(doing());
                fail(&what);
            }
            let (seconds, rounds, operations) = (begin.elapsed().as_secs(), ROUNDS.load(Relaxed), operations());
            let more = BYTES.load(Relaxed);
            eprintln!("stress: {seconds} s, {rounds} rounds, {operations} operations, {more:+} bytes");
        }
    };
    let thread = thread::Builder::new().name("watch".into()).spawn(move || runtime.block_on(watch));
    thread.expect("a thread");
}
