//! Children of task groups.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use microio::{CloseScope, Failure, StartError, Task, TaskGroup, TaskStatus, shield, task_group};
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

use crate::meter::{Meter, Order};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Counts the tasks that have begun.
#[derive(Clone, Default)]
struct Begun(Arc<AtomicUsize>);

impl Begun {
    fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets the tasks of this runtime run until `n` have begun.
    async fn all(&self, n: usize) {
        while self.0.load(Ordering::Relaxed) < n {
            yield_now().await;
        }
    }
}

/// A group on a runtime of its own, with `n` children that have begun and wait.
fn group<F>(n: usize, mut child: impl FnMut(usize) -> F) -> (Runtime, TaskGroup)
where
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let (runtime, begun) = (runtime(), Begun::default());
    let tg = runtime.block_on(async {
        let tg = TaskGroup::new();
        for nth in 0..n {
            let (child, begun) = (child(nth), begun.clone());
            tg.start_soon(format!("child-{nth}"), async move {
                begun.one();
                child.await
            });
        }
        begun.all(n).await;
        tg
    });
    (runtime, tg)
}

pub(crate) fn children(meter: &mut Meter) {
    let waiting = |n| group(n, |_| pending());
    let shielded = |n| group(n, |_| shield(pending()));
    let before = proof::live_bytes();
    let (rt, tg) = meter.build(waiting);
    meter.time("cancel", || tg.cancel("done"));
    meter.time("join", || rt.block_on(tg.join())).expect("a cancel is no error");
    drop(rt);
    meter.weigh("kept by the group when they are gone", before);
    drop(tg);
    let (rt, tg) = meter.build(waiting);
    meter.time("drop the group", || drop(tg));
    meter.time("drop the runtime, aborted", || drop(rt));
    let (rt, tg) = meter.build(waiting);
    meter.time("drop the runtime", || drop(rt));
    meter.time("drop the group, after the runtime", || drop(tg));
    let (rt, tg) = meter.build(shielded);
    let report = meter.time("shutdown, all aborted", || rt.block_on(tg.shutdown("now", Duration::ZERO)));
    // The moment that it waits for the aborted may be over before all of a million are gone.
    assert_eq!(report.aborted.len() + report.stuck.len(), meter.n());
    rt.block_on(tg.join()).expect("an abort is no failure");
    meter.time("drop the report", || drop(report));
}

pub(crate) fn handles(meter: &mut Meter) {
    let make = |n: usize| {
        let (runtime, begun) = (runtime(), Begun::default());
        let tg = runtime.block_on(async { TaskGroup::new() });
        let task = |nth| {
            let begun = begun.clone();
            let child = async move {
                begun.one();
                pending().await
            };
            tg.create_task(format!("task-{nth}"), child)
        };
        let tasks: Vec<Task<()>> = Vec::from_iter((0..n).map(task));
        runtime.block_on(begun.all(n));
        ((tg, runtime), tasks)
    };
    meter.drop_in_every_order(make);
    for order in Order::ALL {
        let ((tg, rt), mut tasks) = meter.build(make);
        order.arrange(&mut tasks);
        let (cancel, end) = match order {
            Order::OldestFirst => ("cancel each, oldest first", "end"),
            Order::NewestFirst => ("cancel each, newest first", "end, newest first"),
            Order::Random => ("cancel each, at random", "end, at random"),
        };
        meter.time(cancel, || tasks.iter().for_each(|task| assert!(task.cancel("enough"))));
        meter.time(end, || rt.block_on(tg.join())).expect("a cancel is no error");
        meter.time("drop, ended", || drop(tasks));
    }
}

/// Children that are not ready yet, each with somebody who waits for that.
pub(crate) fn starting(meter: &mut Meter) {
    let make = |n: usize| {
        let (runtime, begun) = (runtime(), Begun::default());
        let tg = runtime.block_on(async { TaskGroup::new() });
        let start = |_| {
            let (tg, begun) = (tg.clone(), begun.clone());
            let never = async move |_status: TaskStatus<()>| -> Result<(), Failure> {
                begun.one();
                pending().await
            };
            runtime.spawn(async move { tg.start("starting", never).await })
        };
        let starting = Vec::from_iter((0..n).map(start));
        runtime.block_on(begun.all(n));
        (runtime, tg, starting)
    };
    let (rt, tg, starting) = meter.build(make);
    meter.time("cancel", || tg.cancel("enough"));
    meter.time("hear it", || {
        for start in starting {
            let ended = rt.block_on(start).expect("it does not panic");
            assert!(matches!(ended, Err(StartError::Cancelled(_))));
        }
    });
    rt.block_on(tg.join()).expect("a cancel is no error");
    let (rt, tg, starting) = meter.build(make);
    meter.time("give up", || starting.iter().for_each(|start| start.abort()));
    let given_up = async {
        for start in starting {
            assert!(start.await.is_err());
        }
        tg.join().await
    };
    meter.time("join", || rt.block_on(given_up)).expect("a cancel is no error");
}

pub(crate) fn failures(meter: &mut Meter) {
    let gate = CloseScope::new();
    let make = |n| {
        group(n, |_| {
            let opened = gate.closed();
            shield(async move { Err::<(), _>(Failure::msg(opened.await.to_string())) })
        })
    };
    let (rt, tg) = meter.build(make);
    gate.close("no");
    let error = meter.time("fail and join", || rt.block_on(tg.join())).expect_err("all have failed");
    assert_eq!(error.failures.len(), meter.n());
    meter.time("say it", || error.to_string());
    meter.time("say it, in full", || format!("{error:?}"));
    meter.time("as a failure, said with its chain", || format!("{:#}", Failure::from(error)));
    meter.time("drop", || drop(tg));
}

type Nested = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// A group in a child of a group in a child of a group. Each level is a task of its own, so no poll goes deeper than one.
pub(crate) fn nested(meter: &mut Meter) {
    fn nest(left: usize, begun: Begun) -> Nested {
        Box::pin(async move {
            let body = async move |tg: &TaskGroup| {
                begun.one();
                if left > 0 {
                    tg.start_soon("nested", nest(left - 1, begun));
                }
                pending().await
            };
            Ok(task_group(body).await?)
        })
    }
    let make = |n: usize| {
        let begun = Begun::default();
        let (runtime, tg) = group(1, |_| nest(n - 1, begun.clone()));
        runtime.block_on(begun.all(n));
        (runtime, tg)
    };
    let (rt, tg) = meter.build(make);
    meter.time("cancel", || tg.cancel("enough"));
    meter.time("join", || rt.block_on(tg.join())).expect("a cancel is no error");
    let (rt, tg) = meter.build(make);
    meter.time("drop the runtime", || drop(rt));
    meter.time("drop the group, after the runtime", || drop(tg));
    let (rt, tg) = meter.build(make);
    meter.time("drop the group", || drop(tg));
    meter.time("drop the runtime, aborted", || drop(rt));
}
