//! Times: none, hardly any, and more than the clock can tell.

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use microio::{
    CancelScope, CloseScope, Failure, RecvBlockingError, RequestError, RequestRegistry, SendBlockingError, Service,
    ServiceError, ServiceGroup, ServiceThread, WaitError, WorkTracker, bounded, channel,
};
use proptest::prelude::*;

use super::{check, long_times, short_times, times};

fn sent(_: &u8) -> Result<(), Failure> {
    Ok(())
}

#[test]
fn what_is_ready_is_had_within_any_time() {
    check(64, prop::option::of(times()), |time| {
        let time = time.map(|time| time.now());
        let (closed, cancelled, idle) = (CloseScope::new(), CancelScope::new(), WorkTracker::new());
        closed.close("over");
        assert_eq!(closed.wait_blocking(time).unwrap().to_string(), "over");
        cancelled.cancel("over");
        assert_eq!(cancelled.wait_blocking(time).unwrap().reason.to_string(), "over");
        idle.wait_idle_blocking(time).unwrap();

        let (tx, mut rx) = bounded(NonZeroUsize::MIN);
        tx.send_blocking(7, time).unwrap();
        assert_eq!(rx.recv_blocking(time).unwrap(), 7);
        tx.close();
        assert!(matches!(tx.send_blocking(8, time), Err(SendBlockingError::Closed(8))));
        assert!(matches!(rx.recv_blocking(time), Err(RecvBlockingError::EndOfStream)));

        let requests = RequestRegistry::<u8, u8>::new();
        let waiter = requests.register(1).unwrap();
        requests.resolve(&1, 9).unwrap();
        assert_eq!(waiter.wait_blocking(time).unwrap(), 9);
        let answer = |key: &u8| requests.resolve(key, 10).map_err(|_| Failure::msg("nobody asked"));
        assert_eq!(requests.request_blocking(2, answer, time).unwrap(), 10);
        let asked = requests.ask_blocking(3, |reply| reply.resolve(11).map_err(|_| Failure::msg("gone")), time);
        assert_eq!((asked.unwrap(), requests.len()), (11, 0));

        let service = ServiceThread::new("never started", |_| Ok(()));
        service.join(time).unwrap();
        assert!(service.join_or_log(time));
        service.stop("over".into());
        assert!(matches!(service.wait_started(time), Err(ServiceError::Stopped { .. })));

        let mut group = ServiceGroup::new("never started");
        group.add(service);
        assert!(matches!(group.start_all(time).unwrap_err().failed, ServiceError::Stopped { .. }));
        let report = group.stop_join("over", time);
        assert!(report.errors.is_empty() && report.stuck.is_empty());
    });
}

#[test]
fn what_does_not_come_is_given_up_after_a_short_time_and_leaves_nothing() {
    check(32, short_times(), |time| {
        let time = Some(time.now());
        assert_eq!(CloseScope::new().wait_blocking(time).unwrap_err(), WaitError::TimedOut);
        assert_eq!(CancelScope::new().wait_blocking(time).unwrap_err(), WaitError::TimedOut);
        let busy = WorkTracker::new();
        let _work = busy.track();
        assert_eq!(busy.wait_idle_blocking(time), Err(WaitError::TimedOut));

        let (tx, mut rx) = bounded(NonZeroUsize::MIN);
        assert!(matches!(rx.recv_blocking(time), Err(RecvBlockingError::TimedOut)));
        tx.try_send(1).unwrap();
        assert!(matches!(tx.send_blocking(2, time), Err(SendBlockingError::TimedOut(2))));
        let stats = rx.stats();
        assert_eq!((stats.sent, stats.queued, stats.dropped), (1, 1, 0));

        let requests = RequestRegistry::<u8, u8>::new();
        let waited = [requests.register(1).unwrap().wait_blocking(time), requests.request_blocking(2, sent, time)];
        assert!(waited.iter().all(|waited| matches!(waited, Err(RequestError::TimedOut))));
        let mut kept = None;
        let keep = |reply| {
            kept = Some(reply);
            Ok::<_, Failure>(())
        };
        assert!(matches!(requests.ask_blocking(3, keep, time), Err(RequestError::TimedOut)));
        assert!(!kept.unwrap().is_wanted() && requests.is_empty());

        let service = ServiceThread::new("not started yet", |_| Ok(()));
        assert!(matches!(service.wait_started(time), Err(ServiceError::TimedOut { .. })));
    });
}

#[test]
fn a_group_of_services_is_given_up_after_a_short_time_and_can_still_be_joined() {
    check(16, short_times(), |time| {
        let (release, mut gate) = channel::<()>();
        let deaf = ServiceThread::new("deaf", move |_| {
            let _released = gate.recv_blocking(None);
            Ok(())
        });
        let mut group = ServiceGroup::new("group");
        group.add(deaf.clone());
        let error = group.start_all(Some(time.now())).unwrap_err();
        assert!(matches!(error.failed, ServiceError::TimedOut { .. }) && error.stopped.is_empty());
        assert_eq!(group.stop_join("again", Some(time.now())).stuck, ["deaf"]);
        assert!(matches!(deaf.join(Some(time.now())), Err(ServiceError::TimedOut { .. })));
        assert!(!deaf.join_or_log(Some(time.now())));
        drop(release);
        let report = group.stop_join("at last", None);
        assert!(report.stuck.is_empty(), "{report:?}");
    });
}

#[test]
fn a_wait_for_longer_than_the_clock_can_tell_parks_until_it_is_woken() {
    check(16, prop_oneof![long_times(), times()], |time| {
        let (scope, tracker, (tx, mut rx)) = (CloseScope::new(), WorkTracker::new(), channel());
        let (work, (there, is_there)) = (tracker.track(), std::sync::mpsc::channel());
        let time = Some(time.now().max(Duration::from_secs(1 << 20)));
        let waits = thread::spawn({
            let (scope, tracker) = (scope.clone(), tracker.clone());
            move || {
                there.send(()).unwrap();
                let items: [u8; 1] = [rx.recv_blocking(time).unwrap()];
                tracker.wait_idle_blocking(time).unwrap();
                (items, scope.wait_blocking(time).unwrap())
            }
        });
        is_there.recv().unwrap();
        tx.try_send(1).unwrap();
        drop(work);
        scope.close("over");
        assert_eq!(waits.join().unwrap().1.to_string(), "over");
    });
}

#[cfg(feature = "tokio")]
mod tokio_clock {
    use std::future::pending;

    use microio::{CallError, LoopServiceThread, TaskGroup, TaskOutcome, fail_after, move_on_after, shield, sleep};
    use tokio::time::Instant;

    use super::*;
    use crate::support::run;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_deadline_ends_what_never_ends_if_it_comes_and_only_then() {
        check(128, times(), |time| {
            run(async move {
                let time = time.at(Instant::now().into_std());
                let comes = time < DAY;
                assert_eq!(fail_after(time, async { 1 }).await.unwrap(), 1, "ready at once");
                assert_eq!(move_on_after(time, async { 1 }).await, Some(1), "ready at once");
                let half = DAY / 4;
                assert_eq!(move_on_after(half, sleep(time)).await.is_some(), comes);
                assert_eq!(move_on_after(half, move_on_after(time, pending::<()>())).await.is_some(), comes);
                let failed = move_on_after(half, fail_after(time, pending::<()>())).await;
                assert_eq!(failed.is_some_and(|failed| failed.is_err()), comes);
            });
        });
    }

    #[test]
    fn a_shutdown_with_any_grace_ends_every_child_and_says_how() {
        check(64, times(), |grace| {
            run(async move {
                let grace = grace.at(Instant::now().into_std());
                let group = TaskGroup::new();
                let report = group.shutdown("nobody there", grace).await;
                assert!(report.finished == 0 && report.aborted.is_empty() && report.stuck.is_empty());

                let group = TaskGroup::new();
                let tame = group.create_task("tame", pending::<Result<(), _>>());
                let deaf = group.create_task(
                    "deaf",
                    shield(async {
                        sleep(DAY / 2).await;
                        Ok(7)
                    }),
                );
                sleep(Duration::from_millis(1)).await;
                let report = group.shutdown("over", grace).await;
                assert!(matches!(tame.await, TaskOutcome::Cancelled(_) | TaskOutcome::Aborted));
                match deaf.await {
                    TaskOutcome::Done(7) => assert_eq!((grace > DAY / 2, report.finished), (true, 2)),
                    TaskOutcome::Aborted => assert!(grace < DAY && report.aborted.contains(&"deaf".into())),
                    other => panic!("{other:?}"),
                }
                assert!(report.stuck.is_empty());
                group.join().await.unwrap();
            });
        });
    }

    #[test]
    fn services_are_stopped_within_any_time_without_blocking() {
        check(32, times(), |time| {
            run(async move {
                let mut group = ServiceGroup::new("group");
                group.add(ServiceThread::new("never started", |_| Ok(())));
                let report = group.stop_join_async("over", time.at(Instant::now().into_std())).await;
                assert!(report.errors.is_empty() && report.stuck.is_empty());
            });
        });
    }

    #[test]
    fn a_loop_with_any_grace_runs_and_ends() {
        check(16, (times(), times()), |(grace, time)| {
            let service = LoopServiceThread::new("loop", |cx| async move {
                cx.started();
                pending().await
            });
            let service = service.with_grace(grace.now());
            service.start().unwrap();
            service.wait_started(None).unwrap();
            match service.handle().call_sync(|| 1, Some(time.now())) {
                Ok(1) => {}
                Err(CallError::TimedOut) => assert!(time.now() < DAY),
                other => panic!("{other:?}"),
            }
            match service.handle().submit(async { 2 }).wait_blocking(Some(time.now())) {
                Ok(2) => {}
                Err(CallError::TimedOut) => assert!(time.now() < DAY),
                other => panic!("{other:?}"),
            }
            service.stop("over".into());
            service.join(None).unwrap();
        });
    }
}
