//! Tests of `src/cancel.rs`.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use microio::{CancelScope, Cancelled, Reason, ScopeGroup, WaitError};

use crate::support::{Abreast, Hand, meddler, poll_with, ready, scaled};

fn text(scope: &CancelScope) -> String {
    scope.reason().expect("cancelled").to_string()
}

#[test]
fn a_live_scope_says_so_and_parks_its_waiters() {
    let (scope, hand) = (CancelScope::new(), Hand::new());
    assert!(!scope.is_cancelled() && scope.reason().is_none() && scope.check().is_ok());
    assert!(hand.poll(&mut Box::pin(scope.cancelled())).is_pending());
    assert_eq!(hand.wakers(), 0, "a dropped wait leaves nothing");
    assert_eq!(scope.wait_blocking(Some(Duration::ZERO)).unwrap_err(), WaitError::TimedOut);
}

#[test]
fn the_first_reason_and_its_place_stay() {
    let scope = CancelScope::new();
    assert!(scope.cancel("first"));
    let line = line!() - 1;
    assert!(!scope.cancel(Reason::Deadline));
    let Cancelled { reason, at } = scope.check().unwrap_err();
    assert!(matches!(reason, Reason::Requested(text) if text == "first"));
    assert_eq!((at.file(), at.line()), (file!(), line));
    assert!(matches!(ready(scope.cancelled()).reason, Reason::Requested(text) if text == "first"));
}

/// tokio#5249: the reason, and the place, of the scope that `cancel` was called on.
#[test]
fn the_reason_reaches_every_descendant_and_wakes_who_waits_on_one() {
    let (root, hand) = (CancelScope::new(), Hand::new());
    let children: Vec<_> = (0..3).map(|_| root.child()).collect();
    let grandchildren: Vec<_> = children.iter().flat_map(|child| (0..3).map(|_| child.child())).collect();
    let mut waits: Vec<_> = grandchildren.iter().map(|scope| Box::pin(scope.cancelled())).collect();
    assert!(waits.iter_mut().all(|wait| hand.poll(wait).is_pending()));
    assert!(root.cancel("interrupt"));
    assert_eq!(hand.wakes(), 9);
    let at = root.check().unwrap_err().at;
    for scope in children.iter().chain(&grandchildren) {
        let end = scope.check().unwrap_err();
        assert_eq!((end.reason.to_string().as_str(), end.at), ("interrupt", at));
    }
    assert!(waits.iter_mut().all(|wait| hand.poll(wait).is_ready()));
}

#[test]
fn a_child_is_cancelled_alone() {
    let root = CancelScope::new();
    let (one, other) = (root.child(), root.child());
    let grandchild = one.child();
    assert!(one.cancel("only this"));
    assert!(grandchild.is_cancelled() && !other.is_cancelled() && !root.is_cancelled());
    assert!(root.cancel("all"), "the parent is still live");
    assert_eq!((text(&one), text(&grandchild), text(&other)), ("only this".into(), "only this".into(), "all".into()));
}

#[test]
fn a_child_of_a_cancelled_scope_is_born_cancelled_with_its_reason() {
    let root = CancelScope::new();
    let live = root.child();
    root.cancel("over");
    for born in [root.child(), live.child(), root.child().child()] {
        assert_eq!(text(&born), "over");
        assert!(!born.cancel("again"));
    }
}

#[test]
fn a_grandchild_is_reached_though_the_handles_between_are_dropped() {
    let root = CancelScope::new();
    let grandchild = root.child().child().child();
    assert!(root.cancel("far"));
    assert_eq!(text(&grandchild), "far");
}

#[test]
fn a_child_outlives_its_root() {
    let child = CancelScope::new().child();
    assert!(!child.is_cancelled(), "dropping a handle cancels nothing");
    assert!(child.cancel("alone"));
}

#[test]
fn slots_of_children_that_are_gone_are_used_again() {
    let root = CancelScope::new();
    let mut living = Vec::new();
    for n in 0..scaled(2_000) {
        let child = root.child();
        if n % 7 == 0 { living.push(child) } else { drop(child) }
    }
    root.cancel("all");
    assert!(living.iter().all(CancelScope::is_cancelled));
}

#[test]
fn a_blocking_wait_ends_with_a_cancel_from_another_thread() {
    for timeout in [None, Some(Duration::MAX)] {
        for _ in 0..scaled(100) {
            let (scope, barrier) = (CancelScope::new(), Barrier::new(2));
            let child = scope.child();
            thread::scope(|threads| {
                threads.spawn(|| {
                    barrier.wait();
                    scope.cancel("now");
                });
                barrier.wait();
                assert_eq!(child.wait_blocking(timeout).unwrap().reason.to_string(), "now");
            });
        }
    }
}

#[test]
fn of_many_cancels_exactly_one_wins() {
    for _ in 0..scaled(200) {
        let (scope, barrier) = (CancelScope::new(), Barrier::new(3));
        let wins = thread::scope(|threads| {
            let cancellers: Vec<_> = (0..3)
                .map(|n| {
                    let (scope, barrier) = (&scope, &barrier);
                    threads.spawn(move || {
                        barrier.wait();
                        let won = scope.cancel(n.to_string());
                        assert!(scope.is_cancelled());
                        won.then(|| n.to_string())
                    })
                })
                .collect();
            cancellers.into_iter().filter_map(|canceller| canceller.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(wins, [text(&scope)]);
    }
}

/// Whoever wins a node answers for its whole subtree, also for what the other one has marked and not walked yet.
#[test]
fn when_a_winning_cancel_returns_every_descendant_reads_cancelled() {
    for _ in 0..scaled(1_000) {
        let barrier = Barrier::new(2);
        let root = CancelScope::new();
        let middle = root.child();
        let leaves: Vec<_> = (0..30).map(|_| middle.child()).flat_map(|child| [child.child(), child]).collect();
        let cancel = |scope: &CancelScope| {
            barrier.wait();
            !scope.cancel("race") || leaves.iter().all(CancelScope::is_cancelled)
        };
        thread::scope(|threads| {
            let child = threads.spawn(|| cancel(&middle));
            assert!(cancel(&root) & child.join().unwrap());
        });
        assert!(root.is_cancelled() && middle.is_cancelled() && leaves.iter().all(CancelScope::is_cancelled));
    }
}

#[test]
fn children_made_while_the_parent_is_cancelled_are_all_cancelled() {
    for _ in 0..scaled(300) {
        let (root, barrier) = (CancelScope::new(), Barrier::new(2));
        thread::scope(|threads| {
            let made = threads.spawn(|| {
                barrier.wait();
                (0..50).map(|_| root.child().child()).collect::<Vec<_>>()
            });
            barrier.wait();
            root.cancel("race");
            assert!(made.join().unwrap().iter().all(CancelScope::is_cancelled));
        });
    }
}

#[test]
fn children_dropped_while_the_parent_is_cancelled_do_no_harm() {
    for _ in 0..scaled(300) {
        let (root, barrier) = (CancelScope::new(), Barrier::new(2));
        let going: Vec<_> = (0..50).map(|_| root.child().child()).collect();
        let staying = root.child();
        thread::scope(|threads| {
            threads.spawn(|| {
                barrier.wait();
                drop(going);
            });
            barrier.wait();
            root.cancel("race");
            assert!(staying.is_cancelled());
        });
    }
}

/// Neither `child` nor `cancel` nor the drop of the last handle recurses: a test thread's stack of 2 MB is enough.
#[test]
fn a_chain_of_a_million_scopes_is_cancelled_and_dropped() {
    let root = CancelScope::new();
    let mut deepest = root.clone();
    for _ in 0..scaled(1_000_000) {
        deepest = deepest.child();
    }
    assert!(root.cancel("deep"));
    assert_eq!(text(&deepest), "deep");
    drop(deepest);

    let mut live = CancelScope::new();
    for _ in 0..scaled(1_000_000) {
        live = live.child();
    }
    drop(live); // from the inside out, never cancelled
}

#[test]
fn a_hundred_thousand_children_are_cancelled_at_once() {
    let root = CancelScope::new();
    let children: Vec<_> = (0..scaled(100_000)).map(|_| root.child()).collect();
    assert!(root.cancel("wide"));
    assert!(children.iter().all(CancelScope::is_cancelled));
}

#[test]
fn a_waker_that_uses_its_own_tree_does_not_deadlock() {
    let root = CancelScope::new();
    let child = root.child();
    let meddling = || {
        let (root, child) = (root.clone(), child.clone());
        meddler(move || {
            drop((child.child(), root.child().child(), child.reason(), format!("{root:?}")));
            root.cancel("from the waker");
        })
    };
    let (mut one, mut other) = (Box::pin(root.cancelled()), Box::pin(child.cancelled()));
    let mut dropped = Box::pin(child.cancelled());
    assert!(poll_with(&meddling(), &mut one).is_pending() && poll_with(&meddling(), &mut other).is_pending());
    assert!(poll_with(&meddling(), &mut dropped).is_pending());
    drop(dropped); // the last clone of its waker: this cancels the tree, and so wakes the others
    assert_eq!(text(&child), "from the waker");
    assert!(poll_with(&meddling(), &mut one).is_ready() && poll_with(&meddling(), &mut other).is_ready());
}

#[test]
fn a_group_cancels_what_is_in_it_and_nothing_that_comes_later() {
    let cells = ScopeGroup::new();
    assert_eq!(cells.cancel("nothing runs"), 0);
    let (one, two) = (cells.scope(), cells.clone().scope());
    assert!(!one.is_cancelled(), "a cancel of nothing hits nobody");
    assert_eq!(cells.active(), 2);
    assert_eq!(cells.cancel("interrupt"), 2);
    let line = line!() - 1;
    assert_eq!((text(&one), text(&two)), ("interrupt".into(), "interrupt".into()));
    assert_eq!(one.check().unwrap_err().at.line(), line);
    assert_eq!(cells.active(), 2, "cancelled, but not left yet");
    let next = cells.scope();
    assert!(!next.is_cancelled());
    assert_eq!(cells.cancel("again"), 1, "those cancelled before do not count again");
}

#[test]
fn a_scope_leaves_its_group_when_the_guard_is_dropped() {
    let cells = ScopeGroup::new();
    let (gone, stays) = (cells.scope(), cells.scope());
    drop(gone);
    assert_eq!((cells.active(), cells.cancel("interrupt")), (1, 1));
    drop(stays);
    assert_eq!(cells.active(), 0);
}

/// The request is over; work that it left behind with a clone of its scope is not "what is running".
#[test]
fn a_scope_that_has_left_its_group_is_not_hit_though_a_clone_of_it_lives() {
    let cells = ScopeGroup::new();
    let guard = cells.scope();
    let clone = CancelScope::clone(&guard);
    drop(guard);
    assert_eq!((cells.active(), cells.cancel("interrupt")), (0, 0));
    assert!(!clone.is_cancelled());
}

#[test]
fn a_scope_cancelled_alone_does_not_count() {
    let cells = ScopeGroup::new();
    let (one, _two) = (cells.scope(), cells.scope());
    one.cancel("by itself");
    assert_eq!(cells.cancel("interrupt"), 1);
    assert_eq!(text(&one), "by itself");
}

#[test]
fn a_latched_cancel_hits_later_scopes_until_cleared() {
    let cells = ScopeGroup::new();
    let running = cells.scope();
    assert_eq!(cells.cancel_latched("stop all"), 1);
    let late = cells.scope();
    assert_eq!((text(&running), text(&late)), ("stop all".into(), "stop all".into()));
    assert_eq!((cells.cancel("again"), cells.cancel_latched("again")), (0, 0), "all are cancelled already");
    assert_eq!(text(&cells.scope()), "stop all", "and the latch holds, with its reason");
    cells.clear();
    assert!(!cells.scope().is_cancelled() && late.is_cancelled());
    assert_eq!(cells.cancel("not latched any more"), 0);
    assert!(!cells.scope().is_cancelled());
}

#[test]
fn clearing_what_is_not_latched_changes_nothing() {
    let cells = ScopeGroup::new();
    let running = cells.scope();
    cells.clear();
    assert_eq!(cells.cancel("interrupt"), 1);
    assert!(running.is_cancelled());
}

/// Cells come and go; an interrupt hits those that run at that moment, each once, or nothing.
#[test]
fn two_hundred_interrupts_hit_what_runs_or_nothing() {
    let mut rng = fastrand::Rng::with_seed(200);
    let (cells, mut running, mut interrupts) = (ScopeGroup::new(), Vec::new(), 0);
    while (interrupts as usize) < scaled(200) {
        match rng.u8(..3) {
            0 => running.push((cells.scope(), None)),
            1 if !running.is_empty() => drop(running.swap_remove(rng.usize(..running.len()))),
            1 => {}
            _ => {
                interrupts += 1;
                let live = running.iter_mut().filter(|(_, hit)| hit.is_none());
                let expected = live.map(|(_, hit)| *hit = Some(interrupts)).count();
                assert_eq!(cells.cancel(interrupts.to_string()), expected);
            }
        }
        assert_eq!(cells.active(), running.len());
        for (scope, hit) in &running {
            assert_eq!(scope.reason().map(|why| why.to_string()), hit.map(|n: i32| n.to_string()));
        }
    }
}

/// Each round, one that enters beside one that cancels: whoever is hit is counted.
#[test]
fn a_scope_entered_beside_a_cancel_is_hit_and_counted_or_neither() {
    let groups: Vec<_> = (0..scaled(50_000)).map(|_| ScopeGroup::new()).collect();
    let abreast = Abreast::default();
    let (counted, scopes) = thread::scope(|threads| {
        let counted = threads.spawn(|| {
            let cancel = |(round, group): (usize, &ScopeGroup)| {
                abreast.round(0, round);
                group.cancel("now")
            };
            groups.iter().enumerate().map(cancel).collect::<Vec<_>>()
        });
        let enter = |(round, group): (usize, &ScopeGroup)| {
            abreast.round(1, round);
            group.scope()
        };
        let scopes: Vec<_> = groups.iter().enumerate().map(enter).collect();
        (counted.join().unwrap(), scopes)
    });
    let wrong = counted.iter().zip(&scopes).filter(|(counted, scope)| **counted != usize::from(scope.is_cancelled()));
    assert_eq!(wrong.count(), 0);
}

/// The same from another thread, at arbitrary moments: who was hit was counted, and the next cell is live.
#[test]
fn interrupts_from_another_thread_are_counted_and_do_not_stick() {
    let (cells, done) = (ScopeGroup::new(), AtomicBool::new(false));
    thread::scope(|threads| {
        let runner = threads.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::SeqCst) {
                let cell = cells.scope();
                thread::yield_now();
                seen += usize::from(cell.is_cancelled());
            }
            seen
        });
        let counted: usize = (0..scaled(1_000)).map(|_| cells.cancel("now")).sum();
        done.store(true, Ordering::SeqCst);
        assert!(runner.join().unwrap() <= counted);
    });
    assert!(cells.active() == 0 && !cells.scope().is_cancelled());
}
