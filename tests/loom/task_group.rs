//! A group's books of its children: a child that comes, ends, fails, is shielded, against cancel and join. A child is a thread
//! of the model.

use std::future::pending;
use std::sync::Arc;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use microio::{CancelScope, Failure, StartError, TaskGroup, TaskOutcome, channel, shield, task_group};

use crate::{block_on, long_model, model};

/// A future that never ends, and holds something until it is dropped.
async fn holding(_held: Arc<()>) -> Result<(), Failure> {
    pending().await
}

/// Cancel against a child's park: every child ends, and its body is gone when the join returns.
#[test]
fn a_cancel_ends_every_child() {
    long_model(|| {
        let (tg, held) = (TaskGroup::new(), Arc::new(()));
        tg.start_soon("first", holding(held.clone()));
        tg.start_soon("second", holding(held.clone()));
        let canceller = thread::spawn({
            let tg = tg.clone();
            move || tg.cancel("stop")
        });
        block_on(tg.join()).unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(canceller.join().unwrap());
    });
}

/// Start against cancel: a child is admitted and then cancelled, or dropped unpolled.
#[test]
fn no_child_is_admitted_after_the_cancel() {
    model(|| {
        let (tg, held) = (TaskGroup::new(), Arc::new(()));
        let starter = thread::spawn({
            let (tg, held) = (tg.clone(), held.clone());
            move || tg.start_soon("child", holding(held))
        });
        tg.cancel("stop");
        starter.join().unwrap();
        block_on(tg.join()).unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
    });
}

/// Join against the last child's end against start: a child that is admitted is joined.
#[test]
fn no_child_begins_after_the_join() {
    model(|| {
        let (tg, begun, ended) = (TaskGroup::new(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        tg.start_soon("first", async { Ok(()) });
        let starter = thread::spawn({
            let (tg, begun, ended) = (tg.clone(), begun.clone(), ended.clone());
            let second = async move {
                begun.fetch_add(1, Ordering::AcqRel);
                ended.fetch_add(1, Ordering::AcqRel);
                Ok(())
            };
            move || tg.start_soon("second", second)
        });
        block_on(tg.join()).unwrap();
        let joined = begun.load(Ordering::Acquire);
        assert_eq!(ended.load(Ordering::Acquire), joined);
        starter.join().unwrap();
        assert_eq!(begun.load(Ordering::Acquire), joined);
    });
}

/// A child's failure against join: it is there when the last child is gone.
#[test]
fn a_joiner_gets_the_last_childs_failure() {
    model(|| {
        let tg = TaskGroup::new();
        tg.start_soon("failing", async { Err(Failure::msg("broken")) });
        assert_eq!(block_on(tg.join()).unwrap_err().to_string(), "failing failed: broken");
    });
}

/// A child's failure against its sibling's park: the sibling is cancelled.
#[test]
fn a_failure_cancels_the_sibling() {
    model(|| {
        let tg = TaskGroup::new();
        tg.start_soon("failing", async { Err(Failure::msg("broken")) });
        tg.start_soon("sibling", pending());
        assert_eq!(block_on(tg.join()).unwrap_err().to_string(), "failing failed: broken");
    });
}

/// A child's end against cancel: its handle hears one outcome.
#[test]
fn a_task_has_one_outcome() {
    model(|| {
        let tg = TaskGroup::new();
        let task = tg.create_task("task", async { Ok(7) });
        let canceller = thread::spawn({
            let tg = tg.clone();
            move || tg.cancel("stop")
        });
        let outcome = block_on(task);
        assert!(matches!(outcome, TaskOutcome::Done(7) | TaskOutcome::Cancelled(_)), "{outcome:?}");
        assert!(canceller.join().unwrap());
        block_on(tg.join()).unwrap();
    });
}

/// Started against the child's end: what it said first is what its starter hears.
#[test]
fn a_child_that_was_ready_was_ready() {
    model(|| {
        let tg = TaskGroup::new();
        let started = block_on(tg.start("child", async |status| {
            status.started(7);
            Ok(())
        }));
        assert_eq!(started.unwrap(), 7);
        block_on(tg.join()).unwrap();
    });
}

/// Start against join: a child that is refused says so to its starter.
#[test]
fn a_start_on_a_joined_group_ends() {
    model(|| {
        let tg = TaskGroup::new();
        let joiner = thread::spawn({
            let tg = tg.clone();
            move || block_on(tg.join()).unwrap()
        });
        let started = block_on(tg.start("child", async |status| {
            status.started(7);
            Ok(())
        }));
        assert!(matches!(started, Ok(7) | Err(StartError::Cancelled(_))), "{started:?}");
        joiner.join().unwrap();
    });
}

/// Cancel against a child's shield: a child that has begun commits what is shielded.
#[test]
fn a_cancel_waits_for_a_childs_shield() {
    model(|| {
        let (tg, begun, (tx, mut rx)) = (TaskGroup::new(), Arc::new(AtomicUsize::new(0)), channel());
        let task = tg.create_task("task", {
            let begun = begun.clone();
            async move {
                begun.fetch_add(1, Ordering::AcqRel);
                Ok(shield(rx.recv()).await?)
            }
        });
        let sender = thread::spawn(move || drop(tx.try_send(7))); // refused, if the child never began
        tg.cancel("stop");
        match block_on(task) {
            TaskOutcome::Done(7) => {}
            TaskOutcome::Cancelled(_) => assert_eq!(begun.load(Ordering::Acquire), 0),
            other => panic!("{other:?}"),
        }
        sender.join().unwrap();
    });
}

/// The drop of the last handle: the children are aborted, shielded or not.
#[test]
fn the_last_handle_takes_the_children_along() {
    model(|| {
        let tg = TaskGroup::new();
        tg.start_soon("shielded", shield(pending()));
        let other = tg.clone();
        let dropper = thread::spawn(move || drop(other));
        drop(tg);
        dropper.join().unwrap();
    });
}

/// The cancel of a scope around a group: the children are joined before the scope lets go.
#[test]
fn a_group_in_a_cancelled_scope_joins_its_children() {
    model(|| {
        let (scope, held) = (CancelScope::new(), Arc::new(()));
        let canceller = thread::spawn({
            let scope = scope.clone();
            move || scope.cancel("stop")
        });
        let ended = block_on(scope.run(task_group(async |tg| {
            tg.start_soon("child", holding(held.clone()));
            pending::<Result<(), Failure>>().await
        })));
        assert_eq!(ended.unwrap_err().to_string(), "cancelled: stop");
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(canceller.join().unwrap());
    });
}
