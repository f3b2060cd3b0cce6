//! Tests of `src/service_group.rs`.

use std::error::Error;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use microio::{CancelScope, Failure, Service, ServiceError, ServiceGroup, ServiceState, ServiceThread};

use crate::support::{LONG, Rooted, meddler, poll_with};

/// Long enough for those who are quick on a machine that stands still for a moment (under Miri: whose clock runs ahead).
const SOON: Duration = Duration::from_millis(if cfg!(miri) { 5000 } else { 300 });

type Log = Arc<Mutex<Vec<String>>>;

/// A service that is ready at once, and writes down that it has ended after it was told to stop.
fn good(name: &'static str, log: &Log) -> ServiceThread {
    let log = log.clone();
    ServiceThread::new(name, move |cx| {
        cx.started();
        let end = cx.scope().wait_blocking(None)?;
        log.lock().unwrap().push(format!("{name}: {end}"));
        Ok(())
    })
}

/// A service that hears of no stop until the sender is dropped. `is_ready`: whether it says that it is ready.
fn deaf(name: &'static str, is_ready: bool) -> (ServiceThread, mpsc::Sender<()>) {
    let (release, wait) = mpsc::channel();
    let service = ServiceThread::new(name, move |cx| {
        if is_ready {
            cx.started();
        }
        let _released = wait.recv();
        Ok(())
    });
    (service, release)
}

fn group(services: &[&ServiceThread]) -> ServiceGroup {
    let mut group = ServiceGroup::new("kernel");
    for &service in services {
        group.add(service.clone());
    }
    group
}

/// The original leaves the first one running.
#[test]
fn when_the_fourth_of_five_fails_the_three_before_it_are_stopped_in_reverse_and_joined() {
    let (log, cause) = (Log::default(), Failure::msg("no port"));
    let before = ["one", "two", "three"].map(|name| good(name, &log));
    let four = ServiceThread::new("four", {
        let cause = cause.clone();
        move |_| Err(cause)
    });
    let five = good("five", &log);
    let error = group(&[&before[0], &before[1], &before[2], &four, &five]).start_all(Some(LONG)).unwrap_err();
    assert_eq!(error.stopped, ["three", "two", "one"]);
    assert!(
        matches!(&error.failed, ServiceError::Failed { service, cause: c } if service == "four" && c.ptr_eq(&cause))
    );
    assert_eq!(error.to_string(), "four failed: no port (stopped again: three, two, one)");
    assert!(before.iter().all(|service| service.state() == ServiceState::Done), "joined, not only asked");
    assert_eq!(log.lock().unwrap().len(), 3);
    assert!(log.lock().unwrap().iter().all(|line| line.ends_with("rolled back: four failed: no port")));
    assert_eq!(five.state(), ServiceState::New, "it was not touched");
}

#[test]
fn the_rollback_asks_in_reverse_order() {
    let (ended, asked) = (Log::default(), Log::default());
    let services = ["one", "two", "three"].map(|name| good(name, &ended));
    let mut watched = Vec::new();
    for one in &services {
        // A linked scope is cancelled, and its waker called, inside the close: that is the order of the closes.
        let (scope, asked, name) = (CancelScope::new(), asked.clone(), one.name().to_owned());
        one.scope().link(&scope);
        let mut cancelled = Box::pin(scope.cancelled());
        let waker = meddler(move || {
            let mut asked = asked.lock().unwrap();
            if !asked.contains(&name) {
                asked.push(name.clone());
            }
        });
        assert!(poll_with(&waker, &mut cancelled).is_pending());
        watched.push((scope, cancelled, waker));
    }
    let bad = ServiceThread::new("bad", |_| Ok(()));
    let error = group(&[&services[0], &services[1], &services[2], &bad]).start_all(Some(LONG)).unwrap_err();
    assert!(matches!(error.failed, ServiceError::ExitedBeforeReady { .. }));
    let asked = asked.lock().unwrap().clone();
    assert_eq!((asked, ended.lock().unwrap().len()), (vec!["three".into(), "two".into(), "one".into()], 3));
    drop(watched);
}

#[test]
fn when_the_second_panics_the_first_is_stopped_and_the_culprit_is_named() {
    let log = Log::default();
    let (first, second) = (good("first", &log), ServiceThread::new("second", |_| panic!("boom")));
    let error = group(&[&first, &second]).start_all(None).unwrap_err();
    assert!(
        matches!(&error.failed, ServiceError::Panicked { service, message } if service == "second" && message == "boom")
    );
    assert_eq!((error.stopped, first.state()), (vec!["first".into()], ServiceState::Done));
}

#[test]
fn an_innocent_service_with_the_name_of_the_culprit_is_in_the_list_too() {
    let (log, bad) = (Log::default(), ServiceThread::new("worker", |_| Ok(())));
    let error = group(&[&good("worker", &log), &bad]).start_all(Some(LONG)).unwrap_err();
    assert_eq!(error.stopped, ["worker"], "one of them was running and was stopped again");
}

#[test]
fn a_service_that_is_not_ready_in_time_is_named_and_the_others_are_stopped_by_the_deadline() {
    let log = Log::default();
    let (first, (slow, release)) = (good("first", &log), deaf("slow", false));
    let begin = Instant::now();
    let error = group(&[&first, &slow]).start_all(Some(SOON)).unwrap_err();
    assert!(begin.elapsed() >= SOON && begin.elapsed() < LONG / 2);
    assert!(
        matches!(&error.failed, ServiceError::TimedOut { service, state: ServiceState::Starting } if service == "slow")
    );
    assert_eq!(error.stopped, ["first"]);
    assert!(first.scope().is_closed() && slow.scope().is_closed(), "the slow one too is asked to stop");
    drop(release);
    first.join(Some(LONG)).unwrap();
    slow.join(Some(LONG)).unwrap();
}

#[test]
fn a_second_start_of_all_is_refused_and_stops_nothing() {
    let log = Log::default();
    let (one, two) = (good("one", &log), good("two", &log));
    let group = group(&[&one, &two]);
    group.start_all(Some(LONG)).unwrap();
    let error = group.start_all(Some(LONG)).unwrap_err();
    assert!(matches!(&error.failed, ServiceError::AlreadyStarted { service } if service == "one"));
    assert!(error.stopped.is_empty());
    assert_eq!((one.state(), two.state()), (ServiceState::Ready, ServiceState::Ready));
    let report = group.stop_join("bye", Some(LONG));
    assert!(report.errors.is_empty() && report.stuck.is_empty(), "{report:?}");
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[test]
fn a_member_that_had_been_started_before_makes_the_start_fail_and_is_left_alone() {
    let log = Log::default();
    let (one, running) = (good("one", &log), good("running", &log));
    running.start().unwrap();
    running.wait_started(Some(LONG)).unwrap();
    let error = group(&[&one, &running]).start_all(Some(LONG)).unwrap_err();
    assert!(matches!(error.failed, ServiceError::AlreadyStarted { .. }));
    assert_eq!((error.stopped, running.state()), (vec!["one".into()], ServiceState::Ready));
    running.stop("bye".into());
    running.join(Some(LONG)).unwrap();
}

/// The original adds the deadlines up.
#[test]
fn many_stuck_services_share_one_deadline_and_all_are_named() {
    let (log, mut members, mut releases) = (Log::default(), Vec::new(), Vec::new());
    for name in ["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8"] {
        let (service, release) = deaf(name, true);
        members.push(service);
        releases.push(release);
    }
    members.insert(3, good("good", &log));
    let group = group(&members.iter().collect::<Vec<_>>());
    group.start_all(Some(LONG)).unwrap();
    let deadline = Duration::from_millis(150);
    let report = group.stop_join("bye", Some(deadline));
    assert!(report.took >= deadline && report.took < 3 * deadline, "{report:?}");
    assert_eq!(report.stuck, ["s8", "s7", "s6", "s5", "s4", "s3", "s2", "s1"]);
    assert!(report.errors.is_empty());
    releases.clear();
    let report = group.stop_join("again", Some(LONG));
    assert!(report.stuck.is_empty() && report.errors.is_empty(), "{report:?}");
}

#[test]
fn what_went_wrong_at_the_stop_is_in_the_report_the_last_started_first() {
    let failing = |name: &'static str| {
        ServiceThread::new(name, move |cx| {
            cx.started();
            cx.scope().wait_blocking(None)?;
            Err(Failure::msg(format!("{name} could not flush")))
        })
    };
    let log = Log::default();
    let group = group(&[&failing("one"), &good("two", &log), &failing("three")]);
    group.start_all(Some(LONG)).unwrap();
    let report = group.stop_join("bye", Some(LONG));
    let texts: Vec<_> = report.errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["three failed: three could not flush", "one failed: one could not flush"]);
    assert!(report.stuck.is_empty());
}

#[test]
fn a_group_whose_members_were_never_started_stops_at_once() {
    let log = Log::default();
    let (one, two) = (good("one", &log), good("two", &log));
    one.start().unwrap();
    let group = group(&[&one, &two]);
    let report = group.stop_join("bye", Some(LONG));
    assert!(report.errors.is_empty() && report.stuck.is_empty(), "{report:?}");
    assert_eq!(two.state(), ServiceState::Done);
    assert_eq!(*log.lock().unwrap(), ["one: bye"]);
}

#[test]
fn an_empty_group_starts_and_stops() {
    let group = ServiceGroup::new("empty");
    group.start_all(Some(Duration::ZERO)).unwrap();
    assert!(group.stop_join("bye", None).stuck.is_empty());
}

#[test]
fn a_stop_from_a_members_own_thread_joins_the_others_and_says_so_of_itself() {
    let log = Log::default();
    let (give, take) = mpsc::channel::<Arc<ServiceGroup>>();
    let (tell, told) = mpsc::channel();
    let inner = ServiceThread::new("inner", move |cx| {
        cx.started();
        tell.send(take.recv()?.stop_join("from inside", Some(LONG)))?;
        Ok(())
    });
    let group = Arc::new(group(&[&good("one", &log), &inner, &good("three", &log)]));
    group.start_all(Some(LONG)).unwrap();
    give.send(group.clone()).unwrap();
    let report = told.recv_timeout(LONG).unwrap();
    assert!(
        matches!(report.errors.as_slice(), [ServiceError::WouldBlock { service }] if service == "inner"),
        "{report:?}"
    );
    assert!(report.stuck.is_empty());
    assert_eq!(log.lock().unwrap().len(), 2, "the others have been joined");
    inner.join(Some(LONG)).unwrap();
}

#[test]
fn a_group_that_is_dropped_asks_its_services_to_stop() {
    let (told, hear) = mpsc::channel();
    let mut group = ServiceGroup::new("kernel");
    group.add(ServiceThread::new("only", move |cx| {
        cx.started();
        told.send(cx.scope().wait_blocking(None)?.to_string())?;
        Ok(())
    }));
    group.start_all(Some(LONG)).unwrap();
    drop(group);
    assert_eq!(hear.recv_timeout(LONG).unwrap(), "owner dropped");
}

#[cfg(feature = "tokio")]
mod asynchronous {
    use super::*;
    use crate::support::run_threads;
    use microio::fail_after;

    #[test]
    fn a_start_from_an_async_worker_is_refused_and_starts_nothing() {
        let log = Log::default();
        let service = good("shell", &log);
        let group = group(&[&service]);
        let (error, state) = run_threads({
            let service = service.clone();
            async move { (group.start_all(None).unwrap_err(), service.state()) }
        });
        assert!(matches!(&error.failed, ServiceError::WouldBlock { service } if service == "kernel"));
        assert!(error.stopped.is_empty() && state == ServiceState::New);
    }

    #[test]
    fn a_stop_join_in_an_async_worker_stops_and_says_that_it_may_not_wait() {
        let log = Log::default();
        let service = good("shell", &log);
        let group = group(&[&service]);
        group.start_all(Some(LONG)).unwrap();
        let report = run_threads(async move { group.stop_join("bye", None) });
        assert!(matches!(report.errors.as_slice(), [ServiceError::WouldBlock { .. }]), "{report:?}");
        service.join(Some(LONG)).unwrap();
        assert_eq!(*log.lock().unwrap(), ["shell: bye"]);
    }

    #[test]
    fn services_start_and_stop_without_blocking() {
        let log = Log::default();
        let group = group(&[&good("one", &log), &good("two", &log)]);
        run_threads(async move {
            group.start_all_async().await.unwrap();
            let report = group.stop_join_async("bye", LONG).await;
            assert!(report.errors.is_empty() && report.stuck.is_empty(), "{report:?}");
        });
        let mut ended = log.lock().unwrap().clone();
        ended.sort();
        assert_eq!(ended, ["one: bye", "two: bye"]);
    }

    #[test]
    fn a_failing_start_rolls_back_without_blocking() {
        let log = Log::default();
        let (one, two) = (good("one", &log), good("two", &log));
        let group = group(&[&one, &two, &ServiceThread::new("three", |_| Err(Failure::msg("no port")))]);
        let error = run_threads(async move { group.start_all_async().await.unwrap_err() });
        assert_eq!((error.failed.service(), error.stopped), ("three", vec!["two".into(), "one".into()]));
        assert_eq!((one.state(), two.state()), (ServiceState::Done, ServiceState::Done), "they have ended");
        assert_eq!(log.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_start_that_is_given_up_half_way_asks_those_that_run_to_stop() {
        let log = Log::default();
        let (one, (slow, release), three) = (good("one", &log), deaf("slow", false), good("three", &log));
        let group = Arc::new(group(&[&one, &slow, &three]));
        let shared = group.clone(); // the group lives on: it is the dropped future that asks
        run_threads(async move {
            fail_after(SOON, shared.start_all_async()).await.unwrap_err();
            drop(release);
        });
        assert!(one.scope().reason().unwrap().to_string().contains("given up"));
        assert!(slow.scope().reason().unwrap().to_string().contains("given up"));
        one.join(Some(LONG)).unwrap();
        slow.join(Some(LONG)).unwrap();
        assert_eq!(three.state(), ServiceState::New);
    }

    #[test]
    fn stuck_services_are_named_when_the_time_is_up() {
        let log = Log::default();
        let ((s1, r1), (s2, r2)) = (deaf("s1", true), deaf("s2", true));
        let bad = ServiceThread::new("bad", |cx| {
            cx.started();
            cx.scope().wait_blocking(None)?;
            Err(Failure::msg("flush"))
        });
        let group = group(&[&s1, &good("good", &log), &bad, &s2]);
        group.start_all(Some(LONG)).unwrap();
        let report = run_threads(async move { group.stop_join_async("bye", SOON).await });
        assert_eq!(report.stuck, ["s2", "s1"]);
        assert_eq!(report.errors.iter().map(ServiceError::service).collect::<Vec<_>>(), ["bad"]);
        assert!(report.took >= SOON && report.took < LONG / 2);
        drop((r1, r2));
        s1.join(Some(LONG)).unwrap();
        s2.join(Some(LONG)).unwrap();
    }

    #[test]
    fn a_stop_that_is_given_up_has_asked() {
        let (service, release) = deaf("deaf", true);
        let group = group(&[&service]);
        group.start_all(Some(LONG)).unwrap();
        run_threads(async move {
            fail_after(SOON, group.stop_join_async("bye", LONG)).await.unwrap_err();
        });
        assert_eq!(service.scope().reason().unwrap().to_string(), "bye");
        drop(release);
        service.join(Some(LONG)).unwrap();
    }
}

#[test]
fn the_scope_of_a_group_ends_with_the_first_of_its_services_and_with_its_reason_or_cause() {
    let (log, cause) = (Log::default(), Failure::msg("lost the socket"));
    let (fail, failing) = mpsc::channel::<()>();
    let two = ServiceThread::new("two", {
        let cause = cause.clone();
        move |cx| {
            cx.started();
            let _told = failing.recv();
            Err(cause)
        }
    });
    let one = good("one", &log);
    let group = group(&[&one, &two]);
    group.start_all(Some(LONG)).unwrap();
    assert!(!group.scope().is_closed());
    drop(fail);
    assert!(group.scope().wait_blocking(Some(LONG)).is_ok());
    assert!(group.scope().cause().is_some_and(|seen| seen.ptr_eq(&cause)));
    assert!(!one.scope().is_closed(), "the scope says that it is over; stopping is for who waits for it");
    let report = group.stop_join(group.scope().check().unwrap_err(), Some(LONG));
    assert_eq!(report.errors.len(), 1);
    assert_eq!(*log.lock().unwrap(), ["one: lost the socket"], "the end of the group is the reason of the stop");
}

#[test]
fn the_scope_of_a_group_is_closed_by_a_stop_of_the_group_or_of_one_of_its_services() {
    let log = Log::default();
    let of_one = good("one", &log);
    let alone = group(&[&of_one, &good("two", &log)]);
    of_one.stop("enough of one".into());
    assert_eq!(alone.scope().reason().unwrap().to_string(), "enough of one");
    let all = group(&[&good("three", &log)]);
    all.stop("bye");
    assert_eq!(all.scope().reason().unwrap().to_string(), "bye");
    assert!(!all.scope().close("late"));
}

/// Who hears of it may stop the others at once, as a start that fails does; their end must not come before the cause.
#[test]
fn who_hears_that_a_service_failed_finds_its_cause_in_the_scope_of_the_group() {
    let service = good("fails", &Log::default());
    let group = Arc::new(group(&[&service]));
    let seen = Log::default();
    let waker = meddler({
        let (group, seen) = (group.clone(), seen.clone());
        move || seen.lock().unwrap().push(format!("{:?}", group.scope().reason().map(|why| why.to_string())))
    });
    let mut ready = Box::pin(service.ready());
    assert!(poll_with(&waker, &mut ready).is_pending());
    service.scope().fail(Failure::msg("no port"));
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen[0], r#"Some("no port")"#);
}

#[cfg(feature = "tracing")]
#[test]
#[cfg_attr(miri, ignore = "starts a process")]
fn what_goes_wrong_in_a_rollback_is_logged() {
    if !crate::alone::alone("service_group::what_goes_wrong_in_a_rollback_is_logged") {
        return;
    }
    let rolled_back = |start: fn(ServiceGroup)| {
        let one = ServiceThread::new("one", |cx| {
            cx.started();
            cx.scope().wait_blocking(None)?;
            Err(Failure::msg("the flush failed"))
        });
        crate::logged::take();
        start(group(&[&one, &ServiceThread::new("two", |_| Err(Failure::msg("no port")))]));
        crate::logged::take()
    };
    let lines = [
        rolled_back(|group| _ = group.start_all(Some(LONG)).unwrap_err()),
        #[cfg(feature = "tokio")]
        rolled_back(|group| crate::support::run_threads(async move { _ = group.start_all_async().await.unwrap_err() })),
    ];
    for lines in lines {
        assert!(lines.iter().any(|line| line.starts_with("one failed: the flush failed")), "{lines:#?}");
    }
}

#[test]
fn the_source_of_a_failed_start_is_that_of_its_cause() {
    let culprit = ServiceThread::new("culprit", |_| Err(Rooted.into()));
    let error = group(&[&culprit]).start_all(Some(LONG)).unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "the root");
}
