//! microio beside its peers, in one run on one machine.
//!
//! ```text
//! cargo run --release -p bench -- --quick
//! cargo run --release -p bench -- --cases channel,latency --rounds 15
//! ```
//!
//! # How it measures
//!
//! A case is a row of the table: several contenders do the same work, driven by the same code through one trait, each
//! in the way that its documentation recommends. A *round* runs each contender once; the order rotates from round to
//! round. A round before the first warms up and is dropped, one after the last counts allocations and is not timed. A
//! ratio is the median over the rounds of the ratio inside one round: what disturbs the machine disturbs both. Costs
//! are minimum/median/maximum per operation.
//!
//! Every thread is pinned. The place of a row says where: `one` has one thread; `same` has all threads on one CPU,
//! `cross` the one that measures on one and the others on another, `spread` has them by turns on both. The memory is
//! touched before the first case, and kept.
//!
//! A *peer* is what one would use instead. A *limit* is no abstraction at all, or one that gives less: shown, and a
//! bar only where the target says so. Work cannot be optimised away: items are summed up, replies compared, tasks
//! counted.
//!
//! Only ratios inside one run count. Rows with two threads want three runs. The exit code says whether it ran, not
//! whether the targets were met; it is 2 for arguments that it does not know and 130 after Ctrl-C.
//!
//! # What it writes
//!
//! The table to the standard output; to the directory of `--out` also `bench.json` (every figure), `ratios.svg` and
//! `growth.svg`.
//!
//! # Where is what
//!
//! `harness.rs` has rounds and clocks, `alloc.rs` the allocator that counts, `cpu.rs` the places, `report.rs` and
//! `plot.rs` the output, `cases/` a file for each family. A contender is an implementation of its family's trait; to
//! add one is to write that and one line in `cases()`. There are no other micro benchmarks: everything compiles with
//! `cargo build -p bench`.

mod alloc;
mod cases;
mod cpu;
mod harness;
mod plot;
mod report;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use serde_json::json;

use harness::{Case, INTERRUPTED};
use report::Row;

/// microio beside its peers, in one run: costs, ratios, and the targets that are met or missed.
#[derive(Parser)]
struct Arguments {
    /// Shorter repetitions and fewer rounds: within two minutes on two CPUs
    #[arg(long)]
    quick: bool,
    /// Only the cases with one of these in their names (see --list)
    #[arg(long, value_name = "SUBSTRING", value_delimiter = ',')]
    cases: Vec<String>,
    /// Name the cases and end
    #[arg(long)]
    list: bool,
    /// Where bench.json, ratios.svg and growth.svg go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Rounds that count [default: 9, with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    let wanted =
        |case: &Case| arguments.cases.is_empty() || arguments.cases.iter().any(|part| case.name.contains(part));
    let cases: Vec<Case> = cases::all().into_iter().filter(wanted).collect();
    if cases.is_empty() {
        Arguments::command().error(ErrorKind::InvalidValue, "no case has such a name; --list prints them").exit();
    }
    if arguments.list {
        cases.iter().for_each(|case| println!("{:22} {}, {}", case.name, case.what, case.unit));
        return Ok(ExitCode::SUCCESS);
    }
    fs::create_dir_all(&arguments.out)?; // before the work, not after it
    let rounds = arguments.rounds.map_or(if arguments.quick { 3 } else { 9 }, usize::from);
    let about = about(rounds);
    about.iter().for_each(|(what, value)| println!("{what}: {value}"));
    prepare();

    let begin = Instant::now();
    let rows = run(&cases, arguments.quick, rounds);
    let written = json!({ "about": about, "rows": &rows });
    fs::write(arguments.out.join("bench.json"), serde_json::to_string_pretty(&written)? + "\n")?;
    plot::ratios(&rows, &arguments.out.join("ratios.svg"))?;
    plot::growth(&rows, &arguments.out.join("growth.svg"))?;
    println!(
        "\n{}, in {:.0?}; figures and plots: {}",
        report::summary(&rows),
        begin.elapsed(),
        arguments.out.display()
    );
    Ok(if INTERRUPTED.load(Ordering::Relaxed) { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

fn prepare() {
    alloc::touch();
    crossfire::detect_backoff_cfg(); // as its documentation asks
    std::thread::spawn(|| {
        harness::on_loop(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if INTERRUPTED.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
                eprintln!("\nends after this repetition; again: at once");
            }
        });
    });
}

/// Each case at each place, and at each point of its axis. Ends early when it is interrupted.
fn run(cases: &[Case], quick: bool, rounds: usize) -> Vec<Row> {
    let mut all = Vec::new();
    println!("\n{}", report::head());
    for (nth, case) in cases.iter().enumerate() {
        // By a power of two: what grows by doubling has as much air as at the full size.
        let n = if quick { case.n.div_ceil(8) } else { case.n };
        let mut rows = Vec::new();
        for place in case.places {
            for x in case.points.iter().filter(|x| !quick || **x <= 100_000) {
                progress(&format!("{}/{} {} {place} {}", nth + 1, cases.len(), case.name, if *x > 0 { *x } else { n }));
                let Some(costs) = harness::measure(case, *place, *x, n, rounds) else {
                    report::print(case, &rows);
                    all.append(&mut rows);
                    return all;
                };
                rows.push(Row::new(case, *place, *x, costs));
            }
        }
        progress("");
        report::print(case, &rows);
        all.append(&mut rows);
    }
    all
}

/// On a terminal, one line that changes.
fn progress(what: &str) {
    if stderr().is_terminal() {
        eprint!("\r{what:<72}\r");
    } else if !what.is_empty() {
        eprintln!("{what}");
    }
}

/// The machine and the releases of the peers, as the lock file has them.
fn about(rounds: usize) -> BTreeMap<&'static str, String> {
    let peers = [
        "actix",
        "async-channel",
        "crossfire",
        "dashmap",
        "flume",
        "futures-util",
        "kameo",
        "kanal",
        "parking_lot",
        "ractor",
        "slab",
        "tokio",
        "tokio-util",
        "xtra",
    ];
    let lines: Vec<&str> = include_str!("../../Cargo.lock").lines().collect();
    let version = |peer: &&str| {
        let name = format!("name = \"{peer}\"");
        let at = lines.iter().rposition(|line| *line == name)?; // of two releases, the later
        Some(format!("{peer} {}", lines[at + 1].trim_start_matches("version = ").trim_matches('"')))
    };
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    BTreeMap::from([
        ("cpus", format!("{:?}", *cpu::CPUS)),
        ("kernel", kernel.trim().to_string()),
        ("load", load.trim().to_string()),
        ("peers", peers.iter().filter_map(version).collect::<Vec<_>>().join(", ")),
        ("rounds", rounds.to_string()),
    ])
}
