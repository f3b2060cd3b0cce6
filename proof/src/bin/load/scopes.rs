//! Close scopes, cancel scopes, scope groups, work trackers.

use std::future::{Future, pending};
use std::pin::Pin;

use microio::{CancelScope, CloseScope, RequestRegistry, ScopeGroup, WorkTracker, shield};

use crate::meter::{Bell, Meter, Order};

pub(crate) fn close_waiters(meter: &mut Meter) {
    let bell = Bell::default();
    let make = |n| {
        let scope = CloseScope::new();
        let waiters = bell.park(n, |_| scope.closed());
        (scope, waiters)
    };
    meter.drop_in_every_order(make);
    let (scope, waiters) = meter.build(make);
    meter.time("close", || scope.close("over"));
    assert_eq!(bell.rung(), meter.n());
    meter.time("hear it", || bell.hear(waiters));
    let (scope, waiters) = meter.build(make);
    scope.close("over");
    meter.time("drop, woken", || drop(waiters));
}

pub(crate) fn linked(meter: &mut Meter) {
    let make = |n| {
        let service = CloseScope::new();
        let link = |_| {
            let scope = CancelScope::new();
            service.link(&scope);
            scope
        };
        let scopes = Vec::from_iter((0..n).map(link));
        (service, scopes)
    };
    meter.drop_in_every_order(make);
    let (service, scopes) = meter.build(make);
    meter.time("close", || service.close("over"));
    assert!(scopes.iter().all(CancelScope::is_cancelled));
    let (n, service) = (meter.n(), CloseScope::new());
    meter.time("link and drop, each in turn", || (0..n).for_each(|_| service.link(&CancelScope::new())));
}

pub(crate) fn bound(meter: &mut Meter) {
    let make = |n| {
        let service = CloseScope::new();
        let registries = Vec::from_iter((0..n).map(|_| RequestRegistry::<u32, u32>::bound_to(&service)));
        (service, registries)
    };
    meter.drop_in_every_order(make);
    let (service, registries) = meter.build(make);
    meter.time("close", || service.close("over"));
    assert!(registries.iter().all(|registry| registry.register(1).is_err()));
}

pub(crate) fn cancel_waiters(meter: &mut Meter) {
    let bell = Bell::default();
    let make = |n| {
        let scope = CancelScope::new();
        let waiters = bell.park(n, |_| scope.cancelled());
        (scope, waiters)
    };
    meter.drop_in_every_order(make);
    let (scope, waiters) = meter.build(make);
    meter.time("cancel", || scope.cancel("enough"));
    assert_eq!(bell.rung(), meter.n());
    meter.time("hear it", || bell.hear(waiters));
}

pub(crate) fn bodies(meter: &mut Meter) {
    let bell = Bell::default();
    let make = |n| {
        let scope = CancelScope::new();
        let run = |_| {
            let scope = scope.clone();
            async move { scope.run(pending::<()>()).await }
        };
        let bodies = bell.park(n, run);
        (scope, bodies)
    };
    meter.drop_in_every_order(make);
    let (scope, bodies) = meter.build(make);
    meter.time("cancel", || scope.cancel("enough"));
    assert_eq!(bell.rung(), meter.n());
    meter.time("end", || bell.hear(bodies));
}

/// A child of a child of a child. The root is the whole.
pub(crate) fn deep(meter: &mut Meter) {
    let make = |n| {
        let root = CancelScope::new();
        let scopes = Vec::from_iter(std::iter::successors(Some(root.child()), |scope| Some(scope.child())).take(n));
        (root, scopes)
    };
    meter.drop_in_every_order(make);
    let (root, mut scopes) = meter.build(make);
    let deepest = scopes.pop();
    drop((root, scopes));
    meter.time("drop the last handle", || drop(deepest));
    let (root, scopes) = meter.build(make);
    meter.time("cancel", || root.cancel("enough"));
    assert!(scopes.iter().all(CancelScope::is_cancelled));
    meter.time("drop, cancelled", || drop(scopes));
    let bell = Bell::default();
    let (_root, mut scopes) = meter.build(make);
    let waiter = bell.start(scopes[scopes.len() - 1].cancelled());
    scopes.reverse();
    meter.time("cancel, deepest first", || scopes.iter().for_each(|scope| _ = scope.cancel("enough")));
    assert_eq!(bell.rung(), 1);
    drop(waiter);
    each_cancelled(meter, make);
}

/// The children of one.
pub(crate) fn wide(meter: &mut Meter) {
    let make = |n| {
        let root = CancelScope::new();
        let scopes = Vec::from_iter((0..n).map(|_| root.child()));
        (root, scopes)
    };
    meter.drop_in_every_order(make);
    let (root, scopes) = meter.build(make);
    meter.time("cancel", || root.cancel("enough"));
    assert!(scopes.iter().all(CancelScope::is_cancelled));
    each_cancelled(meter, make);
}

fn each_cancelled(meter: &mut Meter, make: impl Fn(usize) -> (CancelScope, Vec<CancelScope>)) {
    let (_root, mut scopes) = meter.build(make);
    Order::Random.arrange(&mut scopes);
    meter.time("cancel each, at random", || scopes.iter().for_each(|scope| _ = scope.cancel("enough")));
}

pub(crate) fn group(meter: &mut Meter) {
    let make = |n| {
        let group = ScopeGroup::new();
        let scopes = Vec::from_iter((0..n).map(|_| group.scope()));
        (group, scopes)
    };
    meter.drop_in_every_order(make);
    let (group, scopes) = meter.build(make);
    assert_eq!(meter.time("cancel", || group.cancel("interrupt")), meter.n());
    meter.time("drop, cancelled", || drop(scopes));
    assert_eq!(group.active(), 0);
    let n = meter.n();
    meter.time("enter and leave, each in turn", || (0..n).for_each(|_| drop(group.scope())));
    meter.time("cancel each, in turn", || {
        for _ in 0..n {
            let scope = group.scope();
            assert_eq!(group.cancel("interrupt"), 1);
            drop(scope);
        }
    });
}

pub(crate) fn idle_waiters(meter: &mut Meter) {
    let bell = Bell::default();
    let make = |n| {
        let tracker = WorkTracker::new();
        let work = tracker.track();
        let waiters = bell.park(n, |_| tracker.idle());
        ((tracker, work), waiters)
    };
    meter.drop_in_every_order(make);
    bell.rung();
    let ((_tracker, work), waiters) = meter.build(make);
    meter.time("the work ends", || drop(work));
    assert_eq!(bell.rung(), meter.n());
    meter.time("hear it", || bell.hear(waiters));
}

pub(crate) fn work(meter: &mut Meter) {
    let make = |n| {
        let tracker = WorkTracker::new();
        let work = Vec::from_iter((0..n).map(|_| tracker.track()));
        (tracker, work)
    };
    meter.drop_in_every_order(make);
}

type Nested = Pin<Box<dyn Future<Output = ()>>>;

/// As deep as the stack allows: a poll of the outermost is a call into the next, and so on. That is the user's own recursion, as
/// with any futures that are nested by hand. One shield, inside all: it counts in each run around it, so that a shield in *each*
/// run would cost the square of the depth, by design (it may be dropped elsewhere than where it was opened).
pub(crate) fn nested_runs(meter: &mut Meter) {
    fn runs(scopes: &[CancelScope], innermost: Nested) -> Nested {
        let Some((scope, inner)) = scopes.split_first() else { return innermost };
        let (scope, inner) = (scope.clone(), runs(inner, innermost));
        Box::pin(async move { _ = scope.run(inner).await })
    }
    let bare: fn() -> Nested = || Box::pin(pending());
    let shielded: fn() -> Nested = || Box::pin(shield(pending()));
    let bell = Bell::default();
    let kinds = [
        (bare, "park, runs", "held, runs", "drop, runs"),
        (shielded, "park, a shield in runs", "held, a shield in runs", "drop, a shield in runs"),
    ];
    for (innermost, park, held, drop_it) in kinds {
        let scopes = Vec::from_iter((0..meter.n()).map(|_| CancelScope::new()));
        let before = proof::live_bytes();
        let nested = meter.time(park, || bell.start(runs(&scopes, innermost())));
        meter.weigh(held, before);
        meter.time(drop_it, || drop(nested));
    }
    let scopes = Vec::from_iter((0..meter.n()).map(|_| CancelScope::new()));
    let nested = bell.start(runs(&scopes, bare()));
    scopes[0].cancel("enough");
    meter.time("end", || bell.end(nested));
}
