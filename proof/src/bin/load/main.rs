//! Many of everything: what one costs must not depend on how many there are.
//!
//! Each case builds n of something, ends them in every way and in several orders, and does that for n that grow tenfold. The cost
//! of a unit may not grow with n, in time or in memory; otherwise the program says NOT LINEAR and fails. A size is tried only if the
//! sizes before it were linear: what is quadratic would not come to its end.
//!
//! A case runs on a thread with a stack of 256 KiB. What recurses once per unit, in a drop, a cancel or a wake, needs at least 32
//! bytes each time: it overflows there at ten thousand already, where on a main thread's 8 MiB it would need more than a
//! hundred thousand. And after each size the process holds what it held before: threads, descriptors, memory.

mod channels;
mod meter;
mod requests;
mod scopes;
mod services;
mod tasks;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use meter::{Clock, Meter};
use proof::Census;

/// Builds up to a million of everything, ends them in every way, and says whether time and memory grow linearly.
#[derive(Parser)]
struct Args {
    /// Smaller sizes: a minute, on two cores
    #[arg(long)]
    quick: bool,
    /// Only the cases with this in their name
    #[arg(long)]
    only: Option<String>,
    /// The largest size
    #[arg(long, default_value_t = usize::MAX)]
    max: usize,
}

struct Case {
    name: &'static str,
    sizes: [usize; 3],
    quick: [usize; 3],
    clock: Clock,
    run: fn(&mut Meter),
}

impl Case {
    /// A case of things that are only memory.
    const fn new(name: &'static str, run: fn(&mut Meter)) -> Self {
        Case {
            name,
            sizes: [10_000, 100_000, 1_000_000],
            quick: [1_000, 10_000, 100_000],
            clock: Clock::Processor,
            run,
        }
    }

    const fn sizes(self, sizes: [usize; 3], quick: [usize; 3]) -> Self {
        Case { sizes, quick, ..self }
    }

    const fn wall(self) -> Self {
        Case { clock: Clock::Wall, ..self }
    }
}

const CASES: &[Case] = &[
    Case::new("close scope: waiters", scopes::close_waiters),
    Case::new("close scope: linked scopes", scopes::linked),
    Case::new("close scope: bound registries", scopes::bound).sizes([1_000, 10_000, 100_000], [100, 1_000, 10_000]),
    Case::new("cancel scope: waiters", scopes::cancel_waiters),
    Case::new("cancel scope: bodies", scopes::bodies),
    Case::new("cancel scope: deep", scopes::deep),
    Case::new("cancel scope: wide", scopes::wide),
    Case::new("scope group", scopes::group),
    Case::new("work tracker: waiters", scopes::idle_waiters),
    Case::new("work tracker: work", scopes::work),
    Case::new("requests by key", requests::by_key),
    Case::new("requests by handle", requests::by_handle),
    Case::new("channel: queued", channels::queued),
    Case::new("bounded channel: queued", channels::bounded_queued),
    Case::new("bounded channel: blocked senders", channels::blocked),
    Case::new("priority mailbox: queued", channels::priority),
    Case::new("actor: handlers at once", channels::handlers),
    Case::new("task group: children", tasks::children),
    Case::new("task group: tasks with handles", tasks::handles),
    Case::new("task group: starting", tasks::starting),
    Case::new("task group: failures", tasks::failures),
    Case::new("task groups, nested", tasks::nested),
    Case::new("nested runs", scopes::nested_runs).sizes([10, 30, 100], [10, 30, 100]),
    Case::new("loop: calls queued", services::calls),
    Case::new("loop: submitted", services::submitted),
    Case::new("service threads", services::threads).sizes([10, 100, 1_000], [10, 50, 200]).wall(),
    Case::new("threads that wait", services::blocked_threads).sizes([10, 100, 1_000], [10, 50, 200]).wall(),
    Case::new("loop services", services::loops).sizes([20, 60, 200], [10, 20, 60]).wall(),
];

const SMALL_STACK: usize = 256 * 1024;

fn main() -> ExitCode {
    let args = Args::parse();
    let chosen = |case: &&Case| args.only.as_ref().is_none_or(|part| case.name.contains(part.as_str()));
    let mut failed = Vec::new();
    for case in CASES.iter().filter(chosen) {
        let sizes = if args.quick { case.quick } else { case.sizes };
        let sizes = Vec::from_iter(sizes.into_iter().filter(|n| *n <= args.max));
        println!("{}", case.name);
        let (meter, left) = run(case, &sizes);
        print!("{}", meter.table(&sizes));
        if let Some(left) = &left {
            println!("  LEFT BEHIND {left}");
        }
        println!();
        if left.is_some() || !meter.is_linear() {
            failed.push(case.name);
        }
    }
    match failed.as_slice() {
        [] => println!("all linear, nothing left behind"),
        _ => println!("NOT LINEAR, or something left behind: {}", failed.join("; ")),
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a case at each size, as long as all is well; says what was left behind.
fn run(case: &Case, sizes: &[usize]) -> (Meter, Option<String>) {
    let mut meter = Meter::new(case.clock);
    // What a process allocates once and keeps is not the case's. It is there after a first, small run.
    let mut warm_up = Meter::new(case.clock);
    warm_up.set_size(0, 2);
    measure(&mut warm_up, case);
    for (nth, &n) in sizes.iter().enumerate() {
        meter.set_size(nth, n);
        let before = Census::take();
        // Often, when it is short: the least of the times is the one that nothing disturbed. What looks bad is looked at again.
        let times = (300_000 / n.max(1)).clamp(1, 3);
        (0..times).for_each(|_| measure(&mut meter, case));
        (0..2).for_each(|_| {
            if !meter.is_linear() {
                measure(&mut meter, case)
            }
        });
        let after = settled(before);
        if after != before {
            return (meter, Some(format!("at {n}: {after:?}, before: {before:?}")));
        }
        if !meter.is_linear() {
            break;
        }
    }
    (meter, None)
}

/// The census, when it is as before, or after a second: the system lists a thread for a moment after it was joined.
fn settled(before: Census) -> Census {
    let mut now = Census::take();
    for _ in 0..1000 {
        if now.threads <= before.threads {
            break;
        }
        thread::sleep(Duration::from_millis(1));
        now = Census::take();
    }
    now
}

/// Runs a case once, on a thread of its own with a small stack.
fn measure(meter: &mut Meter, case: &Case) {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(case.name.to_owned()).stack_size(SMALL_STACK);
        thread.spawn_scoped(scope, || (case.run)(meter)).expect("a thread").join().expect("the case holds");
    });
}
