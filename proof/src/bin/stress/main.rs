//! Random use from many threads, with books that must balance after every round.

mod actor;
mod books;
mod cancel;
mod channel;
mod close;
mod crew;
mod loop_service;
mod mailbox;
mod registry;
mod service;
mod task_group;
mod watch;

use std::process;
use std::time::{Duration, Instant};

use clap::Parser;
use proof::Census;

use books::Books;
use crew::Round;

/// What there is to stress: the name for `--only`, and one round of it.
type Kind = (&'static str, fn(&Round));

const KINDS: &[Kind] = &[
    ("channel", channel::round),
    ("registry", registry::round),
    ("mailbox", mailbox::round),
    ("actor", actor::round),
    ("cancel", cancel::round),
    ("close", close::round),
    ("group", task_group::round),
    ("service", service::round),
    ("loop", loop_service::round),
];

/// Random use of microio from many threads: random operations, futures dropped half-way, cancels, panics, closes and failures at
/// random moments. After every round the books must balance: each item has one end, each request one outcome, no waker, task,
/// entry, thread, file descriptor or byte is left over.
///
/// All choices come from the seed; a failure prints the line that makes the failing round's choices again. How the threads
/// interleave is not in the seed: repeat that line (--rounds 1000 --again) until it fails again.
#[derive(Parser)]
#[command(name = "stress")]
struct Args {
    /// Where all choices come from; random, and printed, if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// For how long (default: 60, unless there are --rounds).
    #[arg(long)]
    seconds: Option<u64>,
    /// How many rounds.
    #[arg(long)]
    rounds: Option<u64>,
    /// The number of the first round: with --rounds 1, the one round that failed.
    #[arg(long, default_value_t = 0)]
    first_round: u64,
    /// Do the choices of the first round in every round.
    #[arg(long)]
    again: bool,
    /// Only these kinds.
    #[arg(long, value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(KINDS.iter().map(|kind| kind.0)))]
    only: Vec<String>,
    /// How many threads.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=watch::MOST_THREADS as u64))]
    threads: u64,
    /// How many seconds a round may take before it is said to hang.
    #[arg(long, default_value_t = 30)]
    patience: u64,
}

fn main() -> process::ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let kinds: Vec<_> =
        KINDS.iter().filter(|(name, _)| args.only.is_empty() || args.only.iter().any(|only| only == name)).collect();
    let limit = args.seconds.or(args.rounds.is_none().then_some(60)).map(Duration::from_secs);
    eprintln!("stress: seed {seed}");
    watch::begin(Duration::from_secs(args.patience));

    let mut only = args.only.join(",");
    if !only.is_empty() {
        only = format!(" --only {only}");
    }
    let play = |number: u64, warm_up: bool| {
        let (name, round) = kinds[number as usize % kinds.len()];
        let label = if warm_up { "of the warm-up".to_owned() } else { number.to_string() };
        let replay = format!(
            "cargo run --release -p proof --bin stress -- --seed {seed} --first-round {number} --rounds 1 --threads {}{only}",
            args.threads
        );
        watch::enter(name, label, replay);
        let this = Round::new(mix(seed, number), args.threads as usize);
        round(&this);
        this.balance();
        this.books
    };
    let judge = |books: Books| {
        let wrong = books.take();
        if !wrong.is_empty() {
            watch::fail(&wrong);
        }
    };

    // What is made once and kept (thread-locals of this thread, tokio's signal handling) is made in the warm-up.
    for number in 0..2 * kinds.len() as u64 {
        judge(play(args.first_round + number, true));
    }
    let baseline = Census::take();
    let (begin, mut rounds) = (Instant::now(), 0);
    while !watch::interrupted()
        && limit.is_none_or(|limit| begin.elapsed() < limit)
        && args.rounds.is_none_or(|most| rounds < most)
    {
        let books = play(args.first_round + if args.again { 0 } else { rounds }, false);
        census(baseline, &books);
        judge(books);
        rounds += 1;
    }
    let interrupted = if watch::interrupted() { ", interrupted" } else { "" };
    println!("stress: {rounds} rounds, {} operations, 0 imbalances{interrupted}", watch::operations());
    process::ExitCode::SUCCESS
}

/// The seed of one round.
fn mix(seed: u64, round: u64) -> u64 {
    fastrand::Rng::with_seed(seed ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15)).u64(..)
}

/// What may be allocated above the baseline: a line that the watching thread prints, and about one worker's queue (2 KB) that is
/// seen once in many hundreds of task group rounds, each with a runtime of tokio's of its own. The baseline never moves: what
/// leaks a little in each round is found when the sum is above this.
const SLACK: usize = 16 * 1024;

/// Threads, descriptors and memory are back where they were.
fn census(before: Census, books: &Books) {
    // The system takes a joined thread off its list a moment after the join. Nothing of ours is waited for here.
    let patience = Instant::now() + Duration::from_secs(5);
    let mut now = Census::take();
    let back = |now: Census| {
        (now.threads, now.descriptors) == (before.threads, before.descriptors) && now.bytes <= before.bytes + SLACK
    };
    while !back(now) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(1));
        now = Census::take();
    }
    watch::bytes(now.bytes as i64 - before.bytes as i64);
    books.hold(back(now), || format!("left over: {before:?} before, {now:?} now"));
}
