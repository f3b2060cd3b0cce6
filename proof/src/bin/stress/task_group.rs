//! A task group on a tokio runtime, used from threads outside of it, and blocks of children inside of it. The books:
//!
//! - Every child's body and locals are dropped, however it ends.
//! - A handle that is awaited has one outcome, and it is what the child came to.
//! - The failures of the group are the children that failed or panicked, in a drop too, less those that a `start` told its caller.
//! - Who was left waiting for a handle has been woken when the group is joined.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microio::{
    CancelScope, Failure, StartError, Task, TaskGroup, TaskOutcome, TaskStatus, fail_after, shield, sleep, task_group,
};
use tokio::runtime::{Builder, Runtime};

use crate::books::{Count, Fate, Live, planned_panic};
use crate::crew::{Polled, Round, Worker, yields};

#[derive(Default)]
struct Tally {
    /// Children that failed or panicked, as they say themselves.
    failing: Count,
    /// Starts that told their caller of it; and those whose caller may have gone without hearing it.
    told: Count,
    untold: Count,
}

/// What a child came to, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    None,
    Done,
    Failed,
    Panicked,
}

/// What a child holds. The drop of a few panics.
struct Locals {
    _live: Live,
    bomb: bool,
    end: Arc<Mutex<End>>,
    tally: Arc<Tally>,
}

impl Locals {
    fn end(&mut self, end: End) {
        *self.end.lock().unwrap() = end;
        if end != End::Done {
            self.bomb = false;
            self.tally.failing.one();
        }
    }
}

impl Drop for Locals {
    fn drop(&mut self) {
        if self.bomb && !std::thread::panicking() {
            self.end(End::Panicked);
            planned_panic();
        }
    }
}

type Handle = (Task<u8>, Arc<Mutex<End>>);

pub(crate) fn round(round: &Round) {
    let mut rng = round.rng();
    let mut builder = if rng.bool() { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    let runtime = builder.worker_threads(2).enable_time().build().expect("a runtime");
    let wild = rng.u8(..3) == 0; // some children fail, and that cancels the group
    let tally = Arc::new(Tally::default());
    let group = {
        let _here = runtime.enter();
        TaskGroup::new()
    };
    let (handles, others) = (Mutex::new(Vec::<Handle>::new()), AtomicUsize::new(round.threads - 1));
    let done = CancelScope::new();

    round.crew(|worker| {
        if worker.me == 0 {
            // The thread that a runtime without threads runs on.
            blocks(worker, &runtime);
            worker.at("drive the runtime");
            runtime.block_on(done.cancelled());
            return;
        }
        let _timers = runtime.enter();
        for _ in 0..worker.steps() / 4 {
            match worker.rng.u32(..100) {
                0..30 => {
                    worker.at("start_soon");
                    let (mut locals, plan) = child(worker, wild, &tally);
                    group.start_soon("child", async move { live(&mut locals, plan).await.map(drop) });
                }
                30..55 => {
                    worker.at("create_task");
                    let (mut locals, plan) = child(worker, wild, &tally);
                    let end = locals.end.clone();
                    let task = group.create_task("task", async move { live(&mut locals, plan).await });
                    handles.lock().unwrap().push((task, end));
                }
                55..75 => start(worker, &group, wild, &tally),
                75..97 => {
                    let handle = handles.lock().unwrap().pop();
                    handle.into_iter().for_each(|handle| look(worker, handle, &handles));
                }
                97 if worker.one_in(40) => {
                    worker.at("cancel");
                    group.cancel("stress");
                }
                98 if worker.one_in(40) => {
                    worker.at("shutdown, dropped half-way");
                    let hand = worker.lend_hand();
                    let shutdown = group.shutdown("stress", Duration::from_secs(1));
                    let _ = worker.polls_with(&hand, Fate::Lost, Fate::Lost, shutdown);
                }
                _ => {
                    worker.at("look");
                    let _ = format!("{group:?}");
                }
            }
        }
        if others.fetch_sub(1, SeqCst) == 1 {
            done.cancel("all others are done");
        }
    });

    let (books, grace) = (&round.books, Duration::from_micros(rng.u64(..2000)));
    let parked = handles.into_inner().unwrap();
    let ended = runtime.block_on(async {
        group.shutdown("the end", grace).await;
        let ended = group.join().await;
        for (task, end) in parked {
            judge(&task.await, &end, round);
        }
        ended
    });
    failures_fit(round, ended.err().map_or(0, |error| error.failures.len()), &tally);
    let _here = runtime.enter();
    let (mut locals, plan) = (locals(round.live(), false, &tally), (0, 0));
    group.start_soon("too late", async move { live(&mut locals, plan).await.map(drop) });
    drop((group, done));
    drop(_here);
    drop(runtime);
    books.equal("who knows the tally, but the round", Arc::strong_count(&tally) as u64 - 1, 0);
}

fn failures_fit(round: &Round, failures: usize, tally: &Tally) {
    let (failing, failures) = (tally.failing.get(), failures as u64);
    let (told, untold) = (tally.told.get(), tally.untold.get());
    let fits = failures + told <= failing && failing <= failures + told + untold;
    let what = || format!("{failing} failed: {failures} are in the group, {told} told, at most {untold} unheard");
    round.books.hold(fits, what);
}

fn locals(live: Live, bomb: bool, tally: &Arc<Tally>) -> Locals {
    Locals { _live: live, bomb, end: Arc::new(Mutex::new(End::None)), tally: tally.clone() }
}

/// A child's locals, and its plan: what it does, how often.
fn child(worker: &mut Worker, wild: bool, tally: &Arc<Tally>) -> (Locals, (u8, u32)) {
    let most = if wild { 60 } else { 40 };
    let bomb = wild && worker.one_in(50);
    (locals(worker.round.live(), bomb, tally), (worker.rng.u8(..most), worker.rng.u32(..5)))
}

async fn live(locals: &mut Locals, (what, times): (u8, u32)) -> Result<u8, Failure> {
    match what {
        0..15 => yields(times).await,
        15..20 => shield(yields(times * 3)).await,
        20..24 => drop(fail_after(Duration::from_micros(50), std::future::pending::<()>()).await),
        24..28 => sleep(Duration::from_micros(100)).await,
        28..32 => std::future::pending().await,
        32..34 => shield(std::future::pending()).await, // until it is aborted
        34..36 => loop {
            yields(1).await; // never waits for anything
        },
        36..40 => {
            let inner = CancelScope::new();
            inner.cancel("stress");
            let _cancelled = inner.run(yields(1)).await;
        }
        40..58 => yields(times).await,
        58 => {
            locals.end(End::Failed);
            return Err(Failure::msg("stress"));
        }
        _ => {
            yields(times).await;
            locals.end(End::Panicked);
            planned_panic();
        }
    }
    locals.end(End::Done);
    Ok(what)
}

fn start(worker: &mut Worker, group: &TaskGroup, wild: bool, tally: &Arc<Tally>) {
    worker.at("start, polled by hand");
    let (mut locals, plan) = child(worker, wild, tally);
    let how = worker.rng.u8(..4);
    let child = move |status: TaskStatus<u8>| async move {
        match how {
            0 => drop(status),
            1 => {
                live(&mut locals, plan).await?;
                status.started(1);
            }
            _ => {
                status.started(1);
                live(&mut locals, plan).await?;
            }
        }
        Ok(())
    };
    match worker.polls(Fate::Lost, Fate::Lost, group.start("started", child)) {
        Polled::Ready(Ok(_) | Err(StartError::ExitedBeforeReady)) => {}
        Polled::Ready(Err(StartError::Failed(_))) => tally.told.one(),
        Polled::Ready(Err(StartError::Cancelled(_))) | Polled::Cut => tally.untold.one(),
        Polled::Panicked => worker.books().wrong("a start panicked"),
    }
}

fn look(worker: &mut Worker, (mut task, end): Handle, handles: &Mutex<Vec<Handle>>) {
    match worker.rng.u8(..4) {
        0 => {
            worker.at("drop a handle");
            drop(task);
        }
        1 => {
            worker.at("cancel a task");
            task.cancel("stress");
            handles.lock().unwrap().push((task, end));
        }
        _ => {
            worker.at("a handle, polled by hand");
            match worker.polls(Fate::Lost, Fate::Lost, &mut task) {
                Polled::Ready(outcome) => judge(&outcome, &end, worker.round),
                // Dropped, or its waker would stay: it may never be polled again.
                _ => drop(task),
            }
        }
    }
}

/// The outcome is what the child came to. A child that was done may still panic in a drop.
fn judge(outcome: &TaskOutcome<u8>, end: &Mutex<End>, round: &Round) {
    let end = *end.lock().unwrap();
    let fits = match outcome {
        TaskOutcome::Done(_) => end == End::Done,
        TaskOutcome::Failed(_) => end == End::Failed,
        TaskOutcome::Panicked(_) => end == End::Panicked,
        TaskOutcome::Cancelled(_) | TaskOutcome::Aborted => end == End::None,
    };
    round.books.hold(fits, || format!("the child came to {end:?}, its handle says {outcome:?}"));
}

/// Blocks of children, ended by themselves, by a deadline around them, or dropped.
fn blocks(worker: &mut Worker, runtime: &Runtime) {
    for _ in 0..worker.rng.u32(1..6) {
        let tally = Arc::new(Tally::default());
        let children: Vec<_> = (0..worker.rng.u32(1..6)).map(|_| child(worker, true, &tally)).collect();
        let (how, time) = (worker.rng.u8(..3), Duration::from_micros(worker.rng.u64(..2000)));
        worker.at(["a block that cancels itself", "a block under a deadline", "a block, dropped"][usize::from(how)]);
        let block = task_group(async |tg| {
            for (mut locals, plan) in children {
                tg.start_soon("child", async move { live(&mut locals, plan).await.map(drop) });
            }
            yields(2).await;
            if how == 0 {
                sleep(time).await;
                tg.cancel("done");
            }
            std::future::pending::<Result<(), Failure>>().await
        });
        // Shielded children that wait for ever would hold a block that is not aborted: the runtime drops it then.
        let ended = runtime.block_on(async {
            let limit = Duration::from_millis(5);
            match how {
                1 => tokio::time::timeout(limit, fail_after(time, block)).await.ok().and_then(Result::ok),
                _ => tokio::time::timeout(limit.min(time * (2 - u32::from(how) / 2)), block).await.ok(),
            }
        });
        if let Some(Err(error)) = ended {
            let body = usize::from(error.failures.iter().any(|(name, _)| name == "body"));
            failures_fit(worker.round, error.failures.len() - body, &tally);
        }
    }
}
