//! Random sequences of operations beside a simple model: scopes and their trees, groups of them, trackers, tasks,
//! submitted futures and services. (The channel, the mailboxes and the registry have such tests in their own files.)

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use microio::{
    CancelScope, CloseScope, Failure, ScopeGroup, Service, ServiceError, ServiceGroup, ServiceState, ServiceThread,
    WorkTracker,
};
use proptest::prelude::*;
use proptest::sample::Index;

use super::check;
use crate::support::Hand;

/// A sequence of numbered operations, each with a place to pick something by.
fn steps(operations: u8, most: usize) -> impl Strategy<Value = Vec<(u8, Index)>> {
    prop::collection::vec((0..operations, any::<Index>()), 0..most)
}

type Wait<O> = Pin<Box<dyn Future<Output = O> + Send>>;

/// Waits in progress, each polled once, and what they are for.
struct Waits<T, O>(Vec<(T, Wait<O>, Hand)>);

impl<T, O> Waits<T, O> {
    fn add(&mut self, of: T, wait: impl Future<Output = O> + Send + 'static, is_over: bool) {
        let (mut wait, hand): (Wait<O>, _) = (Box::pin(wait), Hand::new());
        let polled = hand.poll(&mut wait);
        assert_eq!(polled.is_ready(), is_over);
        if !is_over {
            self.0.push((of, wait, hand));
        }
    }

    fn drop_one(&mut self, at: Index) {
        if !self.0.is_empty() {
            let (_, wait, hand) = self.0.swap_remove(at.index(self.0.len()));
            drop(wait);
            assert_eq!(hand.wakers(), 0);
        }
    }

    /// Those that are over have been woken once and are ready; the others have not and are not.
    fn look(&mut self, is_over: impl Fn(&T) -> Option<String>, text: impl Fn(O) -> String) {
        self.0.retain_mut(|(of, wait, hand)| {
            let expected = is_over(of);
            assert_eq!(hand.wakes(), usize::from(expected.is_some()));
            if expected.is_none() {
                return true;
            }
            let got = match hand.poll(wait) {
                Poll::Ready(output) => Some(text(output)),
                Poll::Pending => None,
            };
            assert_eq!((got, hand.wakers()), (expected, 0));
            false
        });
    }
}

#[test]
fn a_close_scope_ends_once_with_all_that_waits_for_it_or_is_linked() {
    check(128, steps(6, 30), |steps| {
        let (scope, mut end) = (CloseScope::new(), None::<(String, bool)>);
        let (mut waits, mut linked) = (Waits(Vec::new()), Vec::new());
        for (step, (operation, at)) in steps.into_iter().enumerate() {
            let text = step.to_string();
            match operation {
                0 | 1 if at.index(3) == 0 => {
                    let failed = operation == 1;
                    let won = if failed { scope.fail(Failure::msg(text.clone())) } else { scope.close(text.clone()) };
                    assert_eq!(won, end.is_none());
                    end.get_or_insert((text, failed));
                }
                2 => waits.add((), scope.closed(), end.is_some()),
                3 => waits.drop_one(at),
                4 => {
                    let other = CancelScope::new();
                    scope.link(&other);
                    if at.index(2) == 0 {
                        linked.push(other);
                    }
                }
                _ => {}
            }
            let (expected, failed) = end.clone().map_or((None, false), |(text, failed)| (Some(text), failed));
            assert_eq!((scope.is_closed(), scope.check().is_err()), (expected.is_some(), expected.is_some()));
            assert_eq!(scope.reason().map(|reason| reason.to_string()), expected);
            assert_eq!(scope.cause().map(|cause| cause.to_string()), expected.clone().filter(|_| failed));
            waits.look(|()| expected.clone(), |end| end.to_string());
            for linked in &linked {
                assert_eq!(linked.reason().map(|reason| reason.to_string()), expected);
            }
        }
    });
}

#[test]
fn a_tree_of_cancel_scopes_is_cancelled_from_each_node_down() {
    check(128, steps(8, 50), |steps| {
        let mut tree = vec![(CancelScope::new(), None::<usize>, None::<String>)]; // scope, parent, reason
        let mut dropped = vec![false];
        let mut waits = Waits(Vec::new());
        for (step, (operation, at)) in steps.into_iter().enumerate() {
            let node = at.index(tree.len());
            if dropped[node] {
                continue;
            }
            match operation {
                0..3 => {
                    let child = (tree[node].0.child(), Some(node), tree[node].2.clone());
                    tree.push(child);
                    dropped.push(false);
                }
                3 => {
                    let text = step.to_string();
                    assert_eq!(tree[node].0.cancel(text.clone()), tree[node].2.is_none());
                    for below in node..tree.len() {
                        let above = std::iter::successors(Some(below), |of| tree[*of].1).any(|of| of == node);
                        if above {
                            tree[below].2.get_or_insert(text.clone());
                        }
                    }
                }
                4 | 5 => waits.add(node, tree[node].0.cancelled(), tree[node].2.is_some()),
                6 => waits.drop_one(at),
                // Its children live on, and a wait on it.
                _ if node > 0 => {
                    tree[node].0 = CancelScope::new();
                    dropped[node] = true;
                }
                _ => {}
            }
            for (number, (scope, _, reason)) in tree.iter().enumerate().filter(|(number, _)| !dropped[*number]) {
                assert_eq!(scope.is_cancelled(), reason.is_some(), "node {number}");
                assert_eq!(scope.reason().map(|reason| reason.to_string()), *reason, "node {number}");
            }
            waits.look(|node| tree[*node].2.clone(), |end| end.reason.to_string());
        }
    });
}

#[test]
fn a_scope_group_cancels_what_is_in_it_and_counts_it() {
    check(128, steps(8, 60), |steps| {
        let group = ScopeGroup::new();
        let (mut inside, mut left) = (Vec::new(), Vec::new()); // with whether each is cancelled
        let mut latched = false;
        for (operation, at) in steps {
            match operation {
                0..3 => inside.push((group.scope(), latched)),
                3 if !inside.is_empty() => {
                    let (guard, cancelled) = inside.swap_remove(at.index(inside.len()));
                    left.push((CancelScope::clone(&guard), cancelled));
                }
                4 if !inside.is_empty() => {
                    let at = at.index(inside.len());
                    assert_eq!(inside[at].0.cancel("alone"), !std::mem::replace(&mut inside[at].1, true));
                }
                5 | 6 => {
                    let live = inside.iter().filter(|(_, cancelled)| !cancelled).count();
                    let hit = if operation == 5 { group.cancel("now") } else { group.cancel_latched("from now on") };
                    assert_eq!(hit, live);
                    inside.iter_mut().for_each(|(_, cancelled)| *cancelled = true);
                    latched |= operation == 6;
                }
                7 => {
                    group.clear();
                    latched = false;
                }
                _ => {}
            }
            assert_eq!(group.active(), inside.len());
            assert!(inside.iter().all(|(guard, cancelled)| guard.is_cancelled() == *cancelled));
            assert!(left.iter().all(|(scope, cancelled)| scope.is_cancelled() == *cancelled), "they had left");
        }
        inside.clear();
        assert_eq!(group.active(), 0);
    });
}

#[test]
fn a_work_tracker_tells_of_every_moment_without_work_and_with() {
    check(128, steps(6, 60), |steps| {
        let (tracker, mut work) = (WorkTracker::new(), Vec::new());
        let (mut idles, mut starts) = (0, 0);
        let mut waits = Waits(Vec::new()); // whether for idle, and the count of such moments then
        for (operation, at) in steps {
            match operation {
                0 | 1 => {
                    starts += usize::from(work.is_empty());
                    work.push(tracker.track());
                }
                2 | 3 if !work.is_empty() => {
                    drop(work.swap_remove(at.index(work.len())));
                    idles += usize::from(work.is_empty());
                }
                4 if at.index(2) == 0 => waits.add((true, idles), tracker.idle(), work.is_empty()),
                4 => waits.add((false, starts), tracker.busy(), !work.is_empty()),
                5 => waits.drop_one(at),
                _ => {}
            }
            assert_eq!((tracker.count(), tracker.is_busy()), (work.len(), !work.is_empty()));
            // A wake that finds nothing is allowed here: a tracker wakes both kinds. Who looks late has missed nothing.
            let looks_late = at.index(3) > 0;
            waits.0.retain_mut(|((for_idle, seen), wait, hand)| {
                let over = if *for_idle { idles != *seen } else { starts != *seen };
                assert!(!over || hand.wakes() > 0);
                let ended = !looks_late && hand.poll(wait).is_ready();
                assert_eq!(ended, over && !looks_late);
                !ended
            });
        }
    });
}

/// What a body is told to do; it says when it has done it.
#[derive(Clone, Copy, Debug)]
enum Order {
    Started,
    Return,
    Fail,
    Panic,
}

#[test]
fn a_service_goes_only_where_its_table_says_and_answers_the_same_for_ever() {
    let operations = steps(9, 10);
    check(96, operations, |steps| {
        let ((tell, orders), (say, said)) = (mpsc::channel(), mpsc::channel());
        let service = ServiceThread::new("model", move |cx| {
            for order in orders {
                match order {
                    Order::Started => cx.started(),
                    Order::Return => return Ok(()),
                    Order::Fail => return Err(Failure::msg("failed")),
                    Order::Panic => std::panic::resume_unwind(Box::new("panicked")),
                }
                say.send(()).unwrap();
            }
            Ok(())
        });
        use ServiceState::*;
        let (mut state, mut begun, mut stopped) = (New, false, false);
        let (mut readiness, mut outcome) = (None::<&str>, None::<&str>);
        for (operation, at) in steps {
            let runs = !matches!(state, New | Done);
            match operation {
                0..3 => match service.start() {
                    Ok(()) => {
                        assert!(!begun);
                        begun = true;
                        state = if state == New { Starting } else { Done };
                    }
                    Err(error) => assert!(begun && matches!(error, ServiceError::AlreadyStarted { .. })),
                },
                3 => {
                    assert_eq!(service.stop("stop".into()), !stopped && outcome.is_none());
                    if outcome.is_none() && !stopped {
                        readiness.get_or_insert("stopped");
                        stopped = true;
                        if state == New {
                            outcome = Some("ok");
                        }
                        state = if state == New { Done } else { Stopping };
                    }
                }
                4..7 if runs => {
                    tell.send(Order::Started).unwrap();
                    said.recv().unwrap();
                    if state == Starting {
                        (state, readiness) = (Ready, Some("ok"));
                    }
                }
                7 | 8 if runs => {
                    let order = [Order::Return, Order::Fail, Order::Panic][at.index(3)];
                    tell.send(order).unwrap();
                    let end = match order {
                        Order::Fail => "failed",
                        Order::Panic => "panicked",
                        _ if stopped || readiness == Some("ok") => "ok",
                        _ => "exited",
                    };
                    readiness.get_or_insert(end);
                    (state, outcome) = (Done, Some(end));
                    let _answered_below = service.join(None);
                }
                _ => {}
            }
            let none = Some(Duration::ZERO);
            assert_eq!(service.state(), state);
            assert_eq!(text(service.wait_started(none)), readiness.unwrap_or("timed out"));
            let expected = if state == New { "ok" } else { outcome.unwrap_or("timed out") };
            assert_eq!(text(service.join(if outcome.is_some() { None } else { none })), expected);
            assert_eq!(service.scope().is_closed(), stopped || outcome.is_some());
        }
        drop((tell, service));
    });
}

/// Members that were started, stopped or ended before, and members that are in it twice.
#[test]
fn a_group_of_whatever_members_starts_all_of_them_or_names_the_first_that_does_not() {
    check(96, prop::collection::vec((0..4u8, any::<Index>()), 0..6), |members| {
        let mut group = ServiceGroup::new("group");
        let mut services = Vec::<ServiceThread>::new();
        let mut culprit = None;
        for (nth, (before, at)) in members.into_iter().enumerate() {
            let service = match services.get(at.index(8)) {
                Some(again) => again.clone(),
                None => {
                    let service = ServiceThread::new(format!("{nth}"), |cx| {
                        cx.started();
                        cx.scope().wait_blocking(None)?;
                        Ok(())
                    });
                    match before {
                        0 => service.start().unwrap(),
                        1 => assert!(service.stop("before".into())),
                        _ => {}
                    }
                    service
                }
            };
            let is_new =
                service.state() == ServiceState::New && !services.iter().any(|one| one.name() == service.name());
            if !is_new {
                culprit.get_or_insert((nth, service.name().to_owned()));
            }
            group.add(service.clone());
            services.push(service);
        }
        match (group.start_all(None), &culprit) {
            (Ok(()), None) => assert!(services.iter().all(|service| service.state() == ServiceState::Ready)),
            (Err(error), Some((nth, name))) => {
                assert_eq!(error.failed.service(), name);
                assert!(error.stopped.iter().eq(services[..*nth].iter().rev().map(|service| service.name())));
                assert!(services[..*nth].iter().all(|service| service.state() == ServiceState::Done));
            }
            (started, expected) => panic!("{started:?} for {expected:?}"),
        }
        let report = group.stop_join("over", None);
        assert!(report.errors.is_empty() && report.stuck.is_empty(), "{report:?}");
        assert!(services.iter().all(|service| service.state() == ServiceState::Done));
    });
}

fn text(result: Result<(), ServiceError>) -> &'static str {
    match result {
        Ok(()) => "ok",
        Err(ServiceError::Failed { .. }) => "failed",
        Err(ServiceError::Panicked { .. }) => "panicked",
        Err(ServiceError::ExitedBeforeReady { .. }) => "exited",
        Err(ServiceError::Stopped { .. }) => "stopped",
        Err(ServiceError::TimedOut { .. }) => "timed out",
        Err(other) => panic!("{other}"),
    }
}

#[cfg(feature = "tokio")]
mod tasks {
    use microio::{CallError, LoopServiceThread, Task, TaskGroup, TaskOutcome};

    use super::*;
    use crate::support::{ready, run};

    fn name(outcome: TaskOutcome<u8>) -> &'static str {
        match outcome {
            TaskOutcome::Done(_) => "done",
            TaskOutcome::Failed(_) => "failed",
            TaskOutcome::Panicked(_) => "panicked",
            TaskOutcome::Cancelled(_) => "cancelled",
            TaskOutcome::Aborted => "aborted",
        }
    }

    #[derive(Debug)]
    enum Tell {
        Done,
        Fail,
        Panic,
    }

    async fn child(order: tokio::sync::oneshot::Receiver<Tell>) -> Result<u8, Failure> {
        match order.await {
            Ok(Tell::Done) => Ok(1),
            Ok(Tell::Fail) => Err(Failure::msg("failed")),
            Ok(Tell::Panic) => std::panic::resume_unwind(Box::new("panicked")),
            Err(_) => std::future::pending().await,
        }
    }

    struct Child {
        task: Option<Task<u8>>,
        hand: Hand,
        tell: Option<tokio::sync::oneshot::Sender<Tell>>,
        ended: Option<&'static str>,
    }

    #[test]
    fn every_task_has_one_outcome_and_the_first_failure_cancels_the_rest() {
        check(128, steps(10, 30), |steps| {
            run(async move {
                let group = TaskGroup::new();
                let (mut children, mut failures, mut cancelled) = (Vec::<Child>::new(), 0, false);
                for (operation, at) in steps {
                    let looks = at.index(3) == 0; // in between, nobody does
                    if operation < 4 || children.is_empty() {
                        let (tell, order) = tokio::sync::oneshot::channel();
                        let task = Some(group.create_task("child", child(order)));
                        let ended = cancelled.then_some("cancelled");
                        children.push(Child { task, hand: Hand::new(), tell: Some(tell), ended });
                    } else {
                        let at = at.index(children.len());
                        let child = &mut children[at];
                        let runs = child.ended.is_none();
                        match operation {
                            4..7 => {
                                let (tell, end) = match operation {
                                    4 => (Tell::Done, "done"),
                                    5 => (Tell::Fail, "failed"),
                                    _ => (Tell::Panic, "panicked"),
                                };
                                if let Some(order) = child.tell.take() {
                                    assert_eq!(order.send(tell).is_ok(), runs);
                                    child.ended.get_or_insert(end);
                                    if runs && end != "done" {
                                        failures += 1;
                                        cancelled = true;
                                    }
                                }
                            }
                            7 => {
                                if let Some(task) = &child.task {
                                    assert_eq!(task.cancel("alone"), runs);
                                    child.ended.get_or_insert("cancelled");
                                }
                            }
                            8 => child.task = None,
                            _ => {
                                assert_eq!(group.cancel("all"), !cancelled);
                                cancelled = true;
                            }
                        }
                    }
                    microio::sleep(Duration::from_millis(1)).await;
                    for child in &mut children {
                        if cancelled {
                            child.ended.get_or_insert("cancelled");
                        }
                        let Some(task) = child.task.as_mut().filter(|_| looks) else { continue };
                        match child.hand.poll(task) {
                            Poll::Ready(outcome) => {
                                assert_eq!(Some(name(outcome)), child.ended);
                                child.task = None;
                            }
                            Poll::Pending => assert_eq!(child.ended, None),
                        }
                    }
                }
                group.cancel("the end");
                let kept = group.join().await.err().map_or(0, |error| error.failures.len());
                assert_eq!(kept, failures);
            });
        });
    }

    #[test]
    fn every_submission_has_one_answer_before_at_and_after_the_life_of_its_loop() {
        check(48, steps(8, 20), |steps| {
            let service = LoopServiceThread::new("loop", |cx| async move {
                cx.started();
                std::future::pending().await
            });
            let handle = service.handle();
            let (mut begun, mut stopped) = (false, false);
            let mut pending = Vec::new();
            for (operation, at) in steps {
                match operation {
                    0 => {
                        assert_eq!(service.start().is_err(), begun);
                        begun = true;
                    }
                    1 => {
                        assert_eq!(service.stop("stop".into()), !stopped);
                        stopped = true;
                    }
                    2..5 => pending.push((handle.submit(std::future::pending::<()>()), false)),
                    5 if !pending.is_empty() => {
                        let at = at.index(pending.len());
                        let won = pending[at].0.cancel("alone");
                        assert!(!(won && std::mem::replace(&mut pending[at].1, true)), "cancelled twice");
                    }
                    6 if !pending.is_empty() => drop(pending.swap_remove(at.index(pending.len()))),
                    _ if begun || stopped => match handle.call_sync(|| 7, None) {
                        Ok(7) => assert!(!stopped),
                        Err(CallError::Closed(reason)) => assert!(stopped && reason.to_string() == "stop"),
                        other => panic!("{other:?}"),
                    },
                    _ => {}
                }
            }
            service.stop("stop".into());
            service.join(None).unwrap();
            let local = handle.submit_local(|| async {}).wait_blocking(None);
            let late = [handle.call_soon(|| ()), ready(handle.call(|| ())), local, ready(handle.ping()).map(drop)];
            assert!(late.iter().all(|late| matches!(late, Err(CallError::Closed(_)))));
            for (submission, cancelled) in pending {
                match submission.wait_blocking(None) {
                    Err(CallError::Closed(_)) => {}
                    Err(CallError::Cancelled(_)) => assert!(cancelled),
                    other => panic!("{other:?}"),
                }
            }
        });
    }
}
