//! Bad input: what nobody should pass, and somebody will. Each property runs on many inputs, the same in every run, on
//! a thread of its own: what hangs fails.
//!
//! Every public constructor and setter, and every wait that takes a time, is in this table; a new one gets a line.
//!
//! | what takes it | the bad input | where |
//! |---|---|---|
//! | each `.._blocking`, `wait_started`, `join`, `join_or_log`, `call_sync` | times | `durations` |
//! | `start_all`, `stop_join`, `stop_join_async` | times | `durations` |
//! | `sleep`, `move_on_after`, `fail_after`, `shutdown`, `with_grace` | times | `durations` |
//! | `channel`, `bounded`, `Mailbox::new`, `with_late_send`, `drain`, `recv_many` | sizes, amounts | `sizes` |
//! | `PriorityMailbox::new`, `Floor::set` | keys without an order | `order` |
//! | `with_gate`, `ActorCore::new`, `run`, `run_concurrent` | code that uses what calls it | `reentry` |
//! | `RequestRegistry::new`, `bound_to`, `register`, `reply` | keys, values | `keys` |
//! | `resolve`, `fail`, `fail_all`, `close`, `contains`, `pending`, `ReplyHandle` | keys, values | `keys` |
//! | `request`, `ask` (their keys go through `register` and `reply`) | times | `durations` |
//! | `Failure`, `Reason`; `close`, `fail`, `cancel`, `stop` | texts, errors | `names` |
//! | `ServiceThread::new`, `LoopServiceThread::new`, `ServiceGroup::new` | names, bodies | `names`, `reentry` |
//! | `ServiceGroup::add`, `start`, `stop` | members twice or in any state, any order of calls | `sequences` |
//! | `start_soon`, `start_soon_local`, `create_task` | names, use after the end | `names`, `forgotten` |
//! | `start`, `task_group` | names, errors | `names` |
//! | `call_soon`, `submit`, `submit_local`, `block_in_place` | code that uses its own loop | `reentry` |
//! | `call`, `ping`, `Submitted::cancel`, `Task::cancel` | use before the start and after the end | `sequences` |
//! | `CloseScope`, `CancelScope`, `ScopeGroup`, `WorkTracker` | any order of calls | `sequences` |
//! | each future | polled by others, after its end, or forgotten | `forgotten` |

mod durations;
mod forgotten;
mod keys;
mod names;
mod order;
mod reentry;
mod sequences;
mod sizes;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::support::within;

/// Tries `property` on that many inputs (under Miri on a few).
fn check<S>(cases: u32, inputs: S, property: impl Fn(S::Value) + Send + 'static)
where
    S: Strategy + Send + 'static,
{
    within(move || {
        let cases = if cfg!(miri) { cases.min(3) } else { cases };
        let config = Config { cases, rng_seed: RngSeed::Fixed(5), failure_persistence: None, ..Config::default() };
        let tried = TestRunner::new(config).run(&inputs, |input| {
            property(input);
            Ok(())
        });
        if let Err(found) = tried {
            panic!("{found}");
        }
    });
}

/// A time to wait.
#[derive(Clone, Copy, Debug)]
enum Time {
    Exactly(Duration),
    /// So many nanoseconds below the longest time that the clock can still add to now.
    Furthest(u64),
}

impl Time {
    /// As a duration, for a clock that says `now`.
    fn at(self, now: Instant) -> Duration {
        match self {
            Time::Exactly(time) => time,
            Time::Furthest(below) => {
                let steps = (0..63).rev().map(|bit| Duration::from_secs(1 << bit));
                let steps = steps.chain((0..30).rev().map(|bit| Duration::from_nanos(1 << bit)));
                let furthest = steps.fold(Duration::ZERO, |time, step| {
                    let longer = time + step;
                    if now.checked_add(longer).is_some() { longer } else { time }
                });
                furthest - Duration::from_nanos(below)
            }
        }
    }

    fn now(self) -> Duration {
        self.at(Instant::now())
    }
}

/// No time, hardly any, more than anybody has, and what is just within the clock's reach.
fn times() -> impl Strategy<Value = Time> {
    let furthest = prop_oneof![0..3u64, 0..2_000_000u64, Just(3_600_000_000_000)].prop_map(Time::Furthest);
    prop_oneof![short_times(), long_times(), furthest]
}

fn short_times() -> impl Strategy<Value = Time> {
    prop_oneof![Just(0), 1..3u64, 0..2_000u64].prop_map(|nanos| Time::Exactly(Duration::from_nanos(nanos)))
}

/// Longer than any test.
fn long_times() -> impl Strategy<Value = Time> {
    let times = prop_oneof![Just(u64::MAX), Just(u64::MAX >> 1), Just(1 << 32), 1_000_000..u64::MAX];
    let nanos = prop_oneof![Just(0), Just(999_999_999), 0..1_000_000_000u32];
    (times, nanos).prop_map(|(secs, nanos)| Time::Exactly(Duration::new(secs, nanos)))
}
