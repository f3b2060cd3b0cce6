//! Many tasks that are joined together.

use std::cell::Cell;
use std::future::pending;
use std::pin::Pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use microio::TaskGroup;
use tokio::task::{JoinHandle, JoinSet, yield_now};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::harness::{Bar, Case, Figure, Run, limit, on_loop, ours, peer};

pub(super) trait Group: 'static {
    fn open() -> Self;
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static);
    fn cancel(&mut self);
    fn join(self) -> impl Future<Output = ()>;
}

impl Group for TaskGroup {
    fn open() -> Self {
        TaskGroup::new()
    }
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.start_soon("child", async {
            task.await;
            Ok(())
        });
    }
    fn cancel(&mut self) {
        TaskGroup::cancel(self, "enough");
    }
    async fn join(self) {
        TaskGroup::join(&self).await.expect("a cancel is no error");
    }
}

/// Tasks without a group: no names, no cancellation but the abort of each.
pub(super) struct Plain(Vec<JoinHandle<()>>);
impl Group for Plain {
    fn open() -> Self {
        Plain(Vec::new())
    }
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push(tokio::spawn(task));
    }
    fn cancel(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
    async fn join(self) {
        for task in self.0 {
            let _cancelled = task.await;
        }
    }
}

impl Group for JoinSet<()> {
    fn open() -> Self {
        JoinSet::new()
    }
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        JoinSet::spawn(self, task);
    }
    fn cancel(&mut self) {
        self.abort_all();
    }
    async fn join(mut self) {
        while self.join_next().await.is_some() {}
    }
}

/// No cancellation.
impl Group for TaskTracker {
    fn open() -> Self {
        TaskTracker::new()
    }
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        TaskTracker::spawn(self, task);
    }
    fn cancel(&mut self) {}
    async fn join(self) {
        self.close();
        self.wait().await;
    }
}

/// Tracked, and cancelled by one token that all have.
pub(super) struct Token(TaskTracker, CancellationToken);
impl Group for Token {
    fn open() -> Self {
        Token(TaskTracker::new(), CancellationToken::new())
    }
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(self.1.clone().run_until_cancelled_owned(task));
    }
    fn cancel(&mut self) {
        self.1.cancel();
    }
    async fn join(self) {
        self.0.join().await;
    }
}

/// Tracked, and each cancelled by a token of its own, too.
struct ChildToken(Token);
impl Group for ChildToken {
    fn open() -> Self {
        ChildToken(Token::open())
    }
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.0.spawn(self.0.1.child_token().run_until_cancelled_owned(task));
    }
    fn cancel(&mut self) {
        self.0.cancel();
    }
    async fn join(self) {
        self.0.join().await;
    }
}

/// Futures inside one task.
impl Group for FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>> {
    fn open() -> Self {
        FuturesUnordered::new()
    }
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.push(Box::pin(task));
    }
    fn cancel(&mut self) {
        self.clear();
    }
    async fn join(mut self) {
        while self.next().await.is_some() {}
    }
}

type Unordered = FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>;

thread_local!(static RUN: Cell<usize> = const { Cell::new(0) });

/// Counts the tasks that ran, on the one thread that there is.
fn count() {
    RUN.set(RUN.get() + 1);
}

fn spawn_join<G: Group>(yields: usize, run: Run) -> Figure {
    let figure = on_loop(async move {
        let mut group = G::open();
        let clock = run.start();
        for _ in 0..run.n {
            group.spawn(async move {
                for _ in 0..yields {
                    yield_now().await;
                }
                count();
            });
        }
        group.join().await;
        clock.stop(run.n)
    });
    assert_eq!(RUN.take(), run.n);
    figure
}

fn box_and_poll(run: Run) -> Figure {
    on_loop(async move {
        run.each_async(async |_| {
            let task: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async { count() });
            task.await;
        })
        .await
    })
}

/// Tasks that have begun, and wait for ever.
async fn park<G: Group>(n: usize) -> G {
    let mut group = G::open();
    for _ in 0..n {
        group.spawn(async {
            count();
            pending().await
        });
    }
    while RUN.get() < n {
        yield_now().await;
    }
    RUN.set(0);
    group
}

pub(super) fn parked_time<G: Group>(run: Run) -> Figure {
    on_loop(async move {
        let clock = run.start();
        let mut group = park::<G>(run.n).await;
        let figure = clock.stop(run.n);
        group.cancel();
        group.join().await;
        figure
    })
}

pub(super) fn parked_bytes<G: Group>(run: Run) -> Figure {
    on_loop(async move {
        let scale = run.weigh();
        let mut group = park::<G>(run.n).await;
        let figure = scale.stop_weighing(run.n);
        group.cancel();
        group.join().await;
        figure
    })
}

fn cancel_parked<G: Group>(run: Run) -> Figure {
    on_loop(async move {
        let mut group = park::<G>(run.n).await;
        let clock = run.start();
        group.cancel();
        group.join().await;
        clock.stop(run.n)
    })
}

pub(super) fn cases() -> Vec<Case> {
    let spawns = vec![
        ours("microio", |run| spawn_join::<TaskGroup>(0, run)),
        peer("plain spawn", |run| spawn_join::<Plain>(0, run)),
        peer("TaskTracker", |run| spawn_join::<TaskTracker>(0, run)),
        peer("JoinSet", |run| spawn_join::<JoinSet<()>>(0, run)),
        peer("TaskTracker + token", |run| spawn_join::<Token>(0, run)),
        peer("TaskTracker + child_token", |run| spawn_join::<ChildToken>(0, run)),
        limit("FuturesUnordered", |run| spawn_join::<Unordered>(0, run)),
        limit("Box and poll", |run| {
            let figure = box_and_poll(run);
            RUN.set(0);
            figure
        }),
    ];
    let yields = vec![
        ours("microio", |run| spawn_join::<TaskGroup>(10, run)),
        peer("plain spawn", |run| spawn_join::<Plain>(10, run)),
        peer("TaskTracker", |run| spawn_join::<TaskTracker>(10, run)),
        peer("JoinSet", |run| spawn_join::<JoinSet<()>>(10, run)),
        peer("TaskTracker + token", |run| spawn_join::<Token>(10, run)),
        limit("FuturesUnordered", |run| spawn_join::<Unordered>(10, run)),
    ];
    let bytes = vec![
        ours("microio", parked_bytes::<TaskGroup>),
        peer("plain spawn", parked_bytes::<Plain>),
        peer("JoinSet", parked_bytes::<JoinSet<()>>),
        peer("TaskTracker + token", parked_bytes::<Token>),
        peer("TaskTracker + child_token", parked_bytes::<ChildToken>),
    ];
    let cancels = vec![
        ours("microio", cancel_parked::<TaskGroup>),
        peer("plain abort", cancel_parked::<Plain>),
        peer("JoinSet", cancel_parked::<JoinSet<()>>),
        peer("TaskTracker + token", cancel_parked::<Token>),
        peer("TaskTracker + child_token", cancel_parked::<ChildToken>),
    ];
    vec![
        Case::new("group.spawn-join", "spawn and join a million, named and cancellable", 1_000_000, spawns)
            .target(Bar::BestOf(&["TaskTracker"]), 1.1)
            .target(Bar::BestOf(&["JoinSet"]), 0.65),
        Case::new("group.yields", "tasks that yield 10 times, per task, with the ambient scope", 100_000, yields)
            .target(Bar::BestOf(&["plain spawn"]), 1.2),
        Case::new("group.parked-bytes", "heap per parked task, name included", 1_000_000, bytes)
            .unit("B")
            .target(Bar::More("plain spawn"), 48.0),
        Case::new("group.parked-cancel", "cancel and join a million parked tasks", 1_000_000, cancels)
            .target(Bar::BestOf(&["plain abort"]), 0.9),
    ]
}
