//! Measures one case: what a unit costs at each size, and whether that is the same at all of them.

use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// By how much a unit may cost more at the largest size than at the smallest, a hundred times smaller (`--quick`: ten times).
///
/// What is quadratic costs that many times as much. What is linear costs more as well: at ten thousand it is in the cache, and at a
/// million a task that is ended at random is fetched from memory, line by line. Measured, that comes to four times.
const GROWTH: f64 = 6.0;

/// The same for memory. A vector that has just doubled holds twice what it must.
const GROWTH_OF_BYTES: f64 = 2.0;

/// What is measured with: the time of the processor, which neighbours on the machine do not disturb; or that of the day, where
/// threads wait for each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Clock {
    Processor,
    Wall,
}

impl Clock {
    /// What costs less than this, in nanoseconds, counts as this: in the caches it is next to nothing, and outside it is this
    /// much. A few fetches from memory; or that a thread goes and another one comes.
    fn little(self) -> f64 {
        match self {
            Clock::Processor => 200.0,
            Clock::Wall => 20_000.0,
        }
    }

    fn now(self) -> Duration {
        let now = clock_gettime(match self {
            Clock::Processor => ClockId::ProcessCPUTime,
            Clock::Wall => ClockId::Monotonic,
        });
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    Nanoseconds,
    Bytes,
}

/// Bytes that do not count: the heads of tables, and what the harness holds.
const LITTLE_MEMORY: f64 = 32.0;

/// One step of a case: what a unit of it costs, at each size.
#[derive(Debug)]
struct Line {
    what: &'static str,
    unit: Unit,
    /// What costs less counts as this much.
    little: f64,
    /// At each size, the least that was measured, because all disturbances add to it.
    costs: [Option<f64>; 3],
}

/// What a case is measured with. It lives through all sizes.
#[derive(Debug)]
pub(crate) struct Meter {
    n: usize,
    /// Which of the sizes `n` is.
    nth: usize,
    clock: Clock,
    lines: Vec<Line>,
}

impl Meter {
    pub(crate) fn new(clock: Clock) -> Self {
        // With places for all lines: it must not look as if the case held them.
        Meter { n: 0, nth: 0, clock, lines: Vec::with_capacity(64) }
    }

    pub(crate) fn set_size(&mut self, nth: usize, n: usize) {
        (self.nth, self.n) = (nth, n);
    }

    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Times `act`, which does something to `n` units.
    pub(crate) fn time<T>(&mut self, what: &'static str, act: impl FnOnce() -> T) -> T {
        let begin = self.clock.now();
        let output = act();
        let took = self.clock.now() - begin;
        self.record(what, Unit::Nanoseconds, took.as_nanos() as f64 / self.n as f64);
        output
    }

    /// Times how `n` units are made, and weighs them.
    pub(crate) fn build<T>(&mut self, make: impl FnOnce(usize) -> T) -> T {
        let (n, before) = (self.n, proof::live_bytes());
        let built = self.time("build", || make(n));
        self.weigh("held", before);
        built
    }

    /// Records how much more is allocated than `before`.
    pub(crate) fn weigh(&mut self, what: &'static str, before: usize) {
        let bytes = proof::live_bytes().saturating_sub(before);
        self.record(what, Unit::Bytes, bytes as f64 / self.n as f64);
    }

    /// A whole and its parts, built anew for each order in which they can go: the parts one by one before the whole, or the whole
    /// first. What is quadratic in one order is often not in another.
    pub(crate) fn drop_in_every_order<W, P>(&mut self, mut make: impl FnMut(usize) -> (W, Vec<P>)) {
        for order in Order::ALL {
            let before = proof::live_bytes();
            let (whole, mut parts) = self.build(&mut make);
            order.arrange(&mut parts);
            self.time(order.drop(), || drop(parts));
            self.weigh("kept when they are gone", before);
            drop(whole);
        }
        let (whole, parts) = self.build(make);
        self.time("drop the whole", || drop(whole));
        self.time("drop, after the whole", || drop(parts));
    }

    fn record(&mut self, what: &'static str, unit: Unit, cost: f64) {
        let known = self.lines.iter().position(|line| (line.what, line.unit) == (what, unit));
        let at = known.unwrap_or_else(|| {
            assert!(self.lines.len() < self.lines.capacity(), "the lines would be counted as the case's memory");
            let little = if unit == Unit::Bytes { LITTLE_MEMORY } else { self.clock.little() };
            self.lines.push(Line { what, unit, little, costs: [None; 3] });
            self.lines.len() - 1
        });
        let least = &mut self.lines[at].costs[self.nth];
        *least = Some(least.map_or(cost, |least| least.min(cost)));
    }

    /// Whether all steps are linear, up to now.
    pub(crate) fn is_linear(&self) -> bool {
        self.lines.iter().all(|line| line.growth() <= line.limit())
    }

    pub(crate) fn table(&self, sizes: &[usize]) -> String {
        let mut table = format!("  {:<34}", "");
        sizes.iter().for_each(|n| _ = write!(table, "{n:>12}"));
        table.push('\n');
        for line in &self.lines {
            let unit = if line.unit == Unit::Bytes { "bytes" } else { "ns" };
            let _ = write!(table, "  {:<28}{unit:>6}", line.what);
            for cost in &line.costs[..sizes.len()] {
                let _ = match cost {
                    Some(cost) => write!(table, "{cost:>12.1}"),
                    None => write!(table, "{:>12}", "-"),
                };
            }
            let verdict = if line.growth() <= line.limit() { "linear" } else { "NOT LINEAR" };
            let _ = writeln!(table, "   x {:<6.1}{verdict}", line.growth());
        }
        table
    }
}

impl Line {
    /// The most that a unit costs at a larger size, against what it costs at the smallest.
    fn growth(&self) -> f64 {
        let mut costs = self.costs.iter().flatten().map(|cost| cost.max(self.little));
        let smallest = costs.next().unwrap_or(self.little);
        costs.fold(1.0, |growth, cost| growth.max(cost / smallest))
    }

    fn limit(&self) -> f64 {
        if self.unit == Unit::Bytes { GROWTH_OF_BYTES } else { GROWTH }
    }
}

/// The order in which parts are ended, one by one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    OldestFirst,
    NewestFirst,
    Random,
}

impl Order {
    pub(crate) const ALL: [Order; 3] = [Order::OldestFirst, Order::NewestFirst, Order::Random];

    pub(crate) fn arrange<P>(self, parts: &mut [P]) {
        match self {
            Order::OldestFirst => {}
            Order::NewestFirst => parts.reverse(),
            Order::Random => fastrand::Rng::with_seed(7).shuffle(parts),
        }
    }

    fn drop(self) -> &'static str {
        match self {
            Order::OldestFirst => "drop, oldest first",
            Order::NewestFirst => "drop, newest first",
            Order::Random => "drop, at random",
        }
    }
}

/// A waker that counts: everyone who waits is woken, once.
#[derive(Clone, Default)]
pub(crate) struct Bell(Arc<Count>);

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bell {
    /// How often it was rung since it was asked last.
    pub(crate) fn rung(&self) -> usize {
        self.0.0.swap(0, Ordering::Relaxed)
    }

    fn poll<F: Future>(&self, future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(&Waker::from(self.0.clone())))
    }

    /// A future that has been polled, and waits.
    pub(crate) fn start<F: Future>(&self, future: F) -> Pin<Box<F>> {
        let mut future = Box::pin(future);
        assert!(self.poll(future.as_mut()).is_pending(), "nothing to wait for");
        future
    }

    /// The output of a future that has nothing to wait for any more.
    pub(crate) fn end<F: Future>(&self, mut future: Pin<Box<F>>) -> F::Output {
        match self.poll(future.as_mut()) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("woken for nothing"),
        }
    }

    pub(crate) fn park<F: Future>(&self, n: usize, mut make: impl FnMut(usize) -> F) -> Vec<Pin<Box<F>>> {
        Vec::from_iter((0..n).map(|nth| self.start(make(nth))))
    }

    pub(crate) fn hear<F: Future>(&self, futures: Vec<Pin<Box<F>>>) {
        futures.into_iter().for_each(|future| drop(self.end(future)));
    }
}
