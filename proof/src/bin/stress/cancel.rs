//! Trees of cancel scopes, bodies in them, shields, deadlines, and groups of scopes. The books:
//!
//! - Of all that cancel one scope, at most one wins; when it returns, every descendant reads cancelled.
//! - A body ends in one way: completed, cancelled in a cancelled scope, cut by hand, or with its own panic.
//! - A cancel never cuts a shield off.
//! - A group's `active` is the guards that are held; it hits each of them at most once, and none after it was left.
//! - Who was left waiting for a cancel has been woken.

use std::cell::Cell;
use std::sync::Mutex;
use std::time::Duration;

use microio::{
    CancelScope, Cancelled, ScopeGroup, ScopeGuard, checkpoint, checkpoint_if_cancelled, current_cancel_scope,
    fail_after, move_on_after, shield,
};
use tokio::runtime::Builder;

use crate::books::{Count, Fate, expecting, planned_panic};
use crate::crew::{Polled, Round, Worker, yields};

/// A scope of the tree, and the way from its root to it.
#[derive(Clone)]
struct Node {
    scope: CancelScope,
    path: Vec<usize>,
}

#[derive(Default)]
struct Tree {
    nodes: Mutex<Vec<Node>>,
    /// How often a cancel of a node has won, by the number at the end of its path.
    wins: Mutex<Vec<u32>>,
}

#[derive(Default)]
struct Tally {
    entered: Count,
    left: Count,
    hit: Count,
}

const MOST_NODES: usize = 48;

pub(crate) fn round(round: &Round) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime");
    let (tree, group, tally) = (Tree::default(), ScopeGroup::new(), Tally::default());
    round.crew(|worker| {
        let _timers = runtime.enter();
        let mut guards = Vec::new();
        for _ in 0..worker.steps() {
            match worker.rng.u32(..100) {
                0..20 => grow(worker, &tree),
                20..26 => cancel(worker, &tree),
                26..60 => run(worker, &tree),
                60..75 => wait(worker, &tree),
                _ => interrupt(worker, &group, &mut guards, &tally),
            }
        }
        worker.at("left waiting");
        let scope = tree.pick(worker).map_or_else(CancelScope::new, |node| node.scope);
        let mut cancelled = worker.park(scope.cancelled(), drop);
        let mut body = worker.park(scope.run(std::future::pending::<()>()), drop);
        worker.meet();
        let alone = worker.alone();
        worker.audit(&mut cancelled, "cancelled()", drop);
        worker.audit(&mut body, "run", drop);
        drop(alone);
        worker.meet();
        if worker.me == 0 {
            worker.books().equal(
                "active, entered and not left",
                group.active() as u64,
                tally.entered.get() - tally.left.get(),
            );
        }
        worker.meet();
        scope.cancel("the end");
        worker.meet();
        let alone = worker.alone();
        worker.audit(&mut cancelled, "cancelled(), in the end", drop);
        worker.audit(&mut body, "run, in the end", drop);
        drop(alone);
        worker.books().hold(cancelled.is_none() && body.is_none(), || "somebody waits in a cancelled scope".into());
        leave(guards.len(), &mut guards, &tally);
    });
    drop(runtime);

    let books = &round.books;
    books.equal("active, none", group.active() as u64, 0);
    books.hold(tally.hit.get() <= tally.entered.get(), || "the group hit more scopes than were entered".into());
    let most = tree.wins.lock().unwrap().iter().copied().max().unwrap_or(0);
    books.hold(most <= 1, || format!("{most} cancels of one scope have won"));
}

impl Tree {
    fn pick(&self, worker: &mut Worker) -> Option<Node> {
        worker.rng.choice(&*self.nodes.lock().unwrap()).cloned()
    }
}

fn grow(worker: &mut Worker, tree: &Tree) {
    worker.at("child, or drop a scope");
    let parent = if worker.one_in(10) { None } else { tree.pick(worker) };
    let scope = parent.as_ref().map_or_else(CancelScope::new, |parent| parent.scope.child());
    let mut path = parent.map_or_else(Vec::new, |parent| parent.path);
    path.push({
        let mut wins = tree.wins.lock().unwrap();
        wins.push(0);
        wins.len() - 1
    });
    let mut nodes = tree.nodes.lock().unwrap();
    nodes.push(Node { scope, path });
    let old = (nodes.len() > MOST_NODES).then(|| nodes.swap_remove(worker.rng.usize(..MOST_NODES)));
    drop(nodes);
    drop(old);
}

fn cancel(worker: &mut Worker, tree: &Tree) {
    worker.at("cancel");
    let Some(node) = tree.pick(worker) else { return };
    let before = tree.nodes.lock().unwrap().clone();
    let own = *node.path.last().expect("itself");
    if node.scope.cancel("stress") {
        tree.wins.lock().unwrap()[own] += 1;
        let live = before.iter().filter(|below| below.path.contains(&own) && !below.scope.is_cancelled()).count();
        worker.books().equal("descendants that live on, none", live as u64, 0);
    }
    worker.books().hold(node.scope.is_cancelled() && node.scope.reason().is_some(), || "cancelled, and not".into());
}

fn run(worker: &mut Worker, tree: &Tree) {
    let Some(Node { scope, .. }) = tree.pick(worker) else { return };
    let live = worker.round.live();
    let shielded = [Cell::new(0), Cell::new(0)]; // begun, completed
    let (times, what) = (worker.rng.u32(..4), worker.rng.u8(..10));
    let moment = if worker.rng.bool() { Duration::ZERO } else { Duration::from_micros(worker.rng.u64(..300)) };
    worker.at(["run", "run with a shield", "run with a deadline", "run that panics"][usize::from(what % 4)]);
    let body = async {
        let _live = live;
        match what % 4 {
            1 => {
                let inner = async {
                    shielded[0].set(shielded[0].get() + 1);
                    if what == 5 {
                        scope.cancel("from the shield");
                    }
                    let here = checkpoint_if_cancelled().is_ok() && current_cancel_scope().is_none();
                    yields(times).await;
                    shielded[1].set(shielded[1].get() + 1);
                    here
                };
                let here = shield(inner).await;
                assert!(here, "a shield lets the scopes around it through");
                checkpoint().await;
                yields(1).await;
            }
            2 if what == 2 => drop(fail_after(moment, yields(times + 2)).await),
            2 => drop(move_on_after(moment, shield(yields(times))).await),
            3 => {
                yields(times).await;
                planned_panic();
            }
            _ if what == 0 => {
                let own = current_cancel_scope().expect("its own");
                let inner = own.child();
                let _ended = inner.run(async { yields(times).await }).await;
            }
            _ => {
                checkpoint().await;
                std::future::pending::<()>().await;
            }
        }
    };
    // Its waker goes to tokio's timers, too.
    let hand = if what % 4 == 2 { worker.lend_hand() } else { worker.hand() };
    let ended = worker.polls_with(&hand, Fate::Lost, Fate::Lost, scope.run(body));
    if let Polled::Ready(Err(Cancelled { .. })) = ended {
        worker.books().hold(scope.is_cancelled(), || "a body was cancelled in a scope that is not".into());
        worker.books().equal("shields begun, completed", shielded[0].get(), shielded[1].get());
    }
    let panicked = matches!(ended, Polled::Panicked);
    worker.books().hold(!panicked || what % 4 == 3, || "a body panicked that should not".into());
}

fn wait(worker: &mut Worker, tree: &Tree) {
    let Some(Node { scope, .. }) = tree.pick(worker) else { return };
    match worker.rng.u8(..3) {
        0 => {
            worker.at("cancelled(), polled by hand");
            let _ = worker.polls(Fate::Lost, Fate::Lost, scope.cancelled());
        }
        1 => {
            worker.at("wait_blocking");
            let time = worker.moment();
            let ended = scope.wait_blocking(Some(time));
            worker.books().hold(ended.is_err() || scope.is_cancelled(), || "waited for a cancel that was none".into());
        }
        _ => {
            worker.at("check");
            let cancelled = scope.is_cancelled();
            worker.books().hold(!cancelled || scope.check().is_err(), || "cancelled, and alive again".into());
        }
    }
}

fn interrupt(worker: &mut Worker, group: &ScopeGroup, guards: &mut Vec<ScopeGuard>, tally: &Tally) {
    match worker.rng.u8(..20) {
        0..8 => {
            worker.at("enter a group's scope");
            let guard = group.scope();
            tally.entered.one();
            if worker.rng.bool() {
                let _ = worker.polls(Fate::Lost, Fate::Lost, guard.run(yields(2)));
            }
            guards.push(guard);
        }
        8..16 => {
            worker.at("leave a group's scope");
            leave(1, guards, tally);
        }
        16 => {
            worker.at("cancel a group, latched");
            tally.hit.add(group.cancel_latched("stress"));
            if worker.rng.bool() {
                group.clear();
            }
        }
        17 => {
            worker.at("clear a group");
            group.clear();
        }
        _ => {
            worker.at("cancel a group");
            let hit = group.cancel("stress");
            tally.hit.add(hit);
        }
    }
}

fn leave(most: usize, guards: &mut Vec<ScopeGuard>, tally: &Tally) {
    for guard in guards.drain(guards.len() - most.min(guards.len())..) {
        let _never = expecting(Fate::Lost, || drop(guard));
        tally.left.one();
    }
}
