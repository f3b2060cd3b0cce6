//! What a case is, how a repetition is timed, and in which order the contenders run.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, LocalOptions};
use tokio::task::spawn_local;

use crate::alloc;
use crate::cpu::{self, Place};

/// A row of the table, or with several `points` a table of its own: the growth of a cost.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    /// Operations of one repetition.
    pub(crate) n: usize,
    pub(crate) places: &'static [Place],
    pub(crate) along: &'static str,
    pub(crate) points: &'static [usize],
    pub(crate) contenders: Vec<Contender>,
    pub(crate) targets: Vec<Target>,
}

pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    run: Box<dyn Fn(Run) -> Figure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Ours,
    Peer,
    /// No abstraction at all: shown, and a bar where the table says so, but not a peer.
    Limit,
}

/// What the table asks of one of ours.
pub(crate) struct Target {
    pub(crate) who: &'static str,
    pub(crate) bar: Bar,
    /// At most.
    pub(crate) most: f64,
    /// Elsewhere the ratio is shown without a verdict, unless another target takes its place.
    pub(crate) judged: Option<&'static [Place]>,
}

impl Target {
    pub(crate) fn is_judged(&self, place: Place) -> bool {
        self.judged.is_none_or(|places| places.contains(&place))
    }
}

#[derive(PartialEq)]
pub(crate) enum Bar {
    /// The ratio to the fastest peer.
    Best,
    /// The ratio to the fastest of these.
    BestOf(&'static [&'static str]),
    /// How much more than this one.
    More(&'static str),
    /// The figure itself.
    Absolute,
    /// Allocations per operation.
    Allocations,
}

impl Case {
    pub(crate) fn new(name: &'static str, what: &'static str, n: usize, contenders: Vec<Contender>) -> Self {
        let (places, points): (&[Place], &[usize]) = (&[Place::One], &[0]);
        Case { name, what, unit: "ns", n, places, along: "", points, contenders, targets: Vec::new() }
    }

    pub(crate) fn unit(self, unit: &'static str) -> Self {
        Case { unit, ..self }
    }

    pub(crate) fn places(self, places: &'static [Place]) -> Self {
        Case { places, ..self }
    }

    pub(crate) fn along(self, along: &'static str, points: &'static [usize]) -> Self {
        Case { along, points, ..self }
    }

    pub(crate) fn target(self, bar: Bar, most: f64) -> Self {
        self.target_of("microio", bar, most)
    }

    pub(crate) fn target_of(self, who: &'static str, bar: Bar, most: f64) -> Self {
        self.target_at(None, who, bar, most)
    }

    pub(crate) fn target_at(
        mut self,
        judged: Option<&'static [Place]>,
        who: &'static str,
        bar: Bar,
        most: f64,
    ) -> Self {
        self.targets.push(Target { who, bar, most, judged });
        self
    }
}

pub(crate) fn ours(name: &'static str, run: impl Fn(Run) -> Figure + 'static) -> Contender {
    Contender { name, role: Role::Ours, run: Box::new(run) }
}

pub(crate) fn peer(name: &'static str, run: impl Fn(Run) -> Figure + 'static) -> Contender {
    Contender { name, role: Role::Peer, run: Box::new(run) }
}

pub(crate) fn limit(name: &'static str, run: impl Fn(Run) -> Figure + 'static) -> Contender {
    Contender { name, role: Role::Limit, run: Box::new(run) }
}

/// One repetition of a contender: what it is asked to do.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) n: usize,
    pub(crate) place: Place,
    /// The point on the axis of a growth.
    pub(crate) x: usize,
}

/// What came of it: the cost of one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) cost: f64,
    pub(crate) allocations: f64,
}

impl Figure {
    pub(crate) fn mean(figures: impl ExactSizeIterator<Item = Figure>) -> Self {
        let n = figures.len() as f64;
        let mean = |mean: Figure, next: Figure| Figure {
            cost: mean.cost + next.cost / n,
            allocations: mean.allocations + next.allocations / n,
        };
        figures.fold(Figure { cost: 0.0, allocations: 0.0 }, mean)
    }
}

/// Runs from `start` to a `stop`; what was set up before does not count.
pub(crate) struct Clock {
    allocated: (usize, isize),
    begin: Instant,
}

impl Run {
    pub(crate) fn start(self) -> Clock {
        let allocated = alloc::counted();
        Clock { allocated, begin: Instant::now() }
    }

    /// A clock that is only asked for its weight.
    pub(crate) fn weigh(self) -> Clock {
        alloc::count_from_now(true);
        self.start()
    }

    /// The mean time of `op`.
    pub(crate) fn each(self, mut op: impl FnMut(usize)) -> Figure {
        let clock = self.start();
        for nth in 0..self.n {
            op(nth);
        }
        clock.stop(self.n)
    }

    pub(crate) async fn each_async(self, mut op: impl AsyncFnMut(usize)) -> Figure {
        let clock = self.start();
        for nth in 0..self.n {
            op(nth).await;
        }
        clock.stop(self.n)
    }

    /// The median time of `op`.
    pub(crate) fn p50(self, mut op: impl FnMut(usize)) -> Figure {
        let mut took = Vec::with_capacity(self.n);
        let clock = self.start();
        for nth in 0..self.n {
            let begin = Instant::now();
            op(nth);
            took.push(begin.elapsed());
        }
        clock.stop_with(&mut took)
    }
}

impl Clock {
    pub(crate) fn stop(self, operations: usize) -> Figure {
        let took = self.begin.elapsed();
        self.figure(took.as_nanos() as f64 / operations as f64, operations)
    }

    /// The median of times that were taken one by one.
    pub(crate) fn stop_with(self, took: &mut [Duration]) -> Figure {
        took.sort_unstable();
        self.figure(took[took.len() / 2].as_nanos() as f64, took.len())
    }

    /// The bytes that are still allocated, per unit.
    pub(crate) fn stop_weighing(self, units: usize) -> Figure {
        let bytes = alloc::counted().1 - self.allocated.1;
        alloc::count_from_now(false);
        self.figure(bytes as f64 / units as f64, units)
    }

    fn figure(self, cost: f64, operations: usize) -> Figure {
        let allocations = alloc::counted().0 - self.allocated.0;
        Figure { cost, allocations: allocations as f64 / operations as f64 }
    }
}

/// Runs `body` as a task of a loop of its own on this thread. (What `block_on` itself runs is polled more rarely.)
pub(crate) fn on_loop<F: Future<Output: 'static> + 'static>(body: F) -> F::Output {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).expect("a runtime");
    runtime.block_on(async { spawn_local(body).await.expect("it does not panic") })
}

/// The repetitions of one contender: its costs by round, and the allocations of a round of their own.
#[derive(serde::Serialize)]
pub(crate) struct Costs {
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    pub(crate) costs: Vec<f64>,
    pub(crate) allocations: f64,
}

/// Set by Ctrl-C, looked at between repetitions.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Rounds in which each contender runs once, in an order that rotates. A round before them warms up, one after them
/// counts allocations. `None`: interrupted.
pub(crate) fn measure(case: &Case, place: Place, x: usize, n: usize, rounds: usize) -> Option<Vec<Costs>> {
    let blank = |of: &Contender| Costs { name: of.name, role: of.role, costs: Vec::new(), allocations: 0.0 };
    let mut all: Vec<Costs> = case.contenders.iter().map(blank).collect();
    let run = Run { n, place, x };
    for round in 0..=rounds + 1 {
        let counts = round == rounds + 1;
        for nth in 0..all.len() {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return None;
            }
            let at = (round + nth) % all.len();
            cpu::pin(place, 0);
            alloc::count_from_now(counts);
            let contender = &case.contenders[at];
            let figure = catch_unwind(AssertUnwindSafe(|| (contender.run)(run))).unwrap_or_else(|panic| {
                eprintln!("{}, {place}: it was {}", case.name, contender.name);
                resume_unwind(panic)
            });
            alloc::count_from_now(false);
            match round {
                0 => {}
                _ if counts => all[at].allocations = figure.allocations,
                _ => all[at].costs.push(figure.cost),
            }
        }
    }
    Some(all)
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}
