//! A thread has a loop do something, and waits for the result.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use microio::{LoopHandle, LoopServiceThread, Service};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::latency::{ByHand, Host, keep_busy, no_abstraction};
use crate::cpu::{self, Place};
use crate::harness::{Bar, Case, Figure, Run, limit, ours, peer};

/// A loop on a thread of its own that can be called. It ends when it is dropped.
trait Callee: Sized {
    /// `load` is called on the loop.
    fn start(place: Place, load: fn()) -> Self;
    fn call(&self, argument: u64) -> u64;
}

struct Microio(LoopServiceThread, LoopHandle);
impl Callee for Microio {
    fn start(place: Place, load: fn()) -> Self {
        let service = LoopServiceThread::new("loop", move |cx| async move {
            cpu::pin(place, 1);
            load();
            cx.started();
            cx.scope().closed().await;
            Ok(())
        });
        service.start().and_then(|()| service.wait_started(None)).expect("a service");
        let handle = service.handle();
        Microio(service, handle)
    }
    fn call(&self, argument: u64) -> u64 {
        self.1.call_sync(move || argument + 1, None).expect("an answer")
    }
}
impl Drop for Microio {
    fn drop(&mut self) {
        self.0.stop("enough".into());
        self.0.join(None).expect("it does not fail");
    }
}

/// What one writes by hand: boxed closures in a channel, the answer in a oneshot.
struct Tokio(UnboundedSender<Box<dyn FnOnce() + Send>>);
impl Callee for Tokio {
    fn start(place: Place, load: fn()) -> Self {
        let (tx, mut rx) = unbounded_channel::<Box<dyn FnOnce() + Send>>();
        let _join = ByHand::run(place, move || async move {
            load();
            while let Some(job) = rx.recv().await {
                job();
            }
        });
        Tokio(tx)
    }
    fn call(&self, argument: u64) -> u64 {
        let (give, take) = oneshot::channel();
        let job = Box::new(move || _ = give.send(argument + 1));
        assert!(self.0.send(job).is_ok());
        take.blocking_recv().expect("an answer")
    }
}

fn calls<C: Callee>(load: fn(), run: Run) -> Figure {
    let callee = C::start(run.place, load);
    run.p50(|nth| assert_eq!(callee.call(nth as u64), nth as u64 + 1))
}

/// The job never moves: the caller waits until it is done.
fn job_in_place(run: Run) -> Figure {
    let job = Arc::new(AtomicU64::new(0));
    let (worker, mut next) = (job.clone(), 0);
    let work = move || _ = worker.fetch_add(1, Ordering::AcqRel);
    no_abstraction(run, work, move || {
        next += 1;
        assert_eq!(job.load(Ordering::Acquire), next);
    })
}

pub(super) fn cases() -> Vec<Case> {
    use Place::{Cross, Same};
    let contenders = |load: fn()| {
        vec![
            ours("microio", move |run| calls::<Microio>(load, run)),
            peer("tokio mpsc + oneshot", move |run| calls::<Tokio>(load, run)),
        ]
    };
    let mut idle = contenders(|| {});
    idle.push(limit("eventfd + futex", job_in_place));
    vec![
        Case::new("call_sync.idle", "a thread calls an idle loop and waits for the result: p50", 10_000, idle)
            .places(&[Same, Cross])
            .target_at(Some(&[Same]), "microio", Bar::Best, 1.0)
            .target_at(Some(&[Cross]), "microio", Bar::Best, 1.05),
        Case::new("call_sync.busy", "the same, and the loop is never idle", 1_000, contenders(keep_busy))
            .places(&[Cross]) // on one CPU the caller comes again before the loop goes on: no wake is needed
            .target(Bar::Best, 0.1),
    ]
}
