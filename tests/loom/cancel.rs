//! The tree of `CancelScope`: cancel against children that come and go, and against another cancel. `ScopeGroup`: cancel
//! against entering.

use loom::thread;
use microio::{CancelScope, ScopeGroup};

use crate::model;

/// Cancel against wait: whoever waits hears of it, with the reason of the cancel that won.
#[test]
fn a_waiter_hears_of_the_cancel() {
    model(|| {
        let scope = CancelScope::new();
        let waiter = thread::spawn({
            let child = scope.child();
            move || child.wait_blocking(None).unwrap().reason.to_string()
        });
        let other = thread::spawn({
            let scope = scope.clone();
            move || scope.cancel("other")
        });
        let won = scope.cancel("stop");
        assert!(won ^ other.join().unwrap());
        assert_eq!(waiter.join().unwrap(), if won { "stop" } else { "other" });
    });
}

/// Cancel against child: a child is linked, or born cancelled.
#[test]
fn no_child_escapes_a_cancel() {
    model(|| {
        let scope = CancelScope::new();
        let maker = thread::spawn({
            let scope = scope.clone();
            move || scope.child()
        });
        scope.cancel("stop");
        assert!(maker.join().unwrap().is_cancelled());
    });
}

/// Two cancels that meet in one subtree: when the winner of a node returns, everything below it is cancelled.
#[test]
fn the_winning_cancel_leaves_no_descendant_live() {
    model(|| {
        let root = CancelScope::new();
        let middle = root.child();
        let leaf = middle.child();
        let other = thread::spawn({
            let (middle, leaf) = (middle.clone(), leaf.clone());
            move || !middle.cancel("middle") || leaf.is_cancelled()
        });
        assert!(root.cancel("root"));
        assert!(middle.is_cancelled() && leaf.is_cancelled());
        assert!(other.join().unwrap());
    });
}

/// A child that goes while its parent is cancelled takes only itself out of the list: its sibling is hit.
#[test]
fn a_child_that_goes_does_not_save_its_sibling() {
    model(|| {
        let scope = CancelScope::new();
        let (child, sibling) = (scope.child(), scope.child());
        let leaver = thread::spawn(move || drop(child));
        scope.cancel("stop");
        assert!(sibling.is_cancelled());
        leaver.join().unwrap();
    });
}

/// Enter and leave against cancel: what is in the group is cancelled and counted; what comes next is live, and what has left
/// is not hit.
#[test]
fn an_interrupt_hits_what_runs_and_nothing_else() {
    model(|| {
        let group = ScopeGroup::new();
        let gone = CancelScope::clone(&group.scope());
        let running = group.scope();
        let leaving = CancelScope::clone(&running);
        let leaver = thread::spawn(move || drop(running));
        let entered = thread::spawn({
            let group = group.clone();
            move || group.scope()
        });
        let hit = group.cancel("interrupt");
        leaver.join().unwrap();
        let entered = entered.join().unwrap();
        assert_eq!(hit, [&leaving, &*entered].into_iter().filter(|scope| scope.is_cancelled()).count());
        assert!(!gone.is_cancelled());
        assert_eq!(group.active(), 1);
        assert!(!group.scope().is_cancelled());
    });
}

/// Enter against a cancel that stays: every scope is hit, until the group is cleared.
#[test]
fn a_latched_cancel_hits_who_comes_later() {
    model(|| {
        let group = ScopeGroup::new();
        let runner = thread::spawn({
            let group = group.clone();
            move || group.scope()
        });
        let other = thread::spawn({
            let group = group.clone();
            move || group.cancel("interrupt")
        });
        group.cancel_latched("stop");
        assert!(group.scope().is_cancelled());
        other.join().unwrap();
        assert!(runner.join().unwrap().is_cancelled());
        group.clear();
        assert!(!group.scope().is_cancelled());
    });
}
