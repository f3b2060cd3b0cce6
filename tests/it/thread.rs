//! Tests of `src/service.rs` and `src/thread.rs`.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use microio::{
    CloseError, Failure, Reason, Service, ServiceContext, ServiceError, ServiceState, ServiceThread, WaitError,
};

use crate::alone::without_threads;
use crate::support::{Abreast, Hand, LONG, OnDrop, ready, run_threads, scaled, within};

const SOON: Duration = Duration::from_millis(30);

/// Says that it is ready, waits for its stop, and returns.
fn obedient(cx: &ServiceContext) -> Result<(), Failure> {
    cx.started();
    cx.scope().wait_blocking(None)?;
    Ok(())
}

fn begun(name: &'static str) -> ServiceThread {
    let service = ServiceThread::new(name, obedient);
    service.start().unwrap();
    service.wait_started(Some(LONG)).unwrap();
    service
}

#[track_caller]
fn cause_of(result: Result<(), ServiceError>) -> Failure {
    match result {
        Err(ServiceError::Failed { cause, .. }) => cause,
        other => panic!("not failed: {other:?}"),
    }
}

#[test]
fn a_service_goes_through_its_states_in_order() {
    let step = Arc::new(Barrier::new(2));
    let service = ServiceThread::new("steps", {
        let step = step.clone();
        move |cx| {
            step.wait();
            cx.started();
            step.wait();
            cx.scope().wait_blocking(None)?;
            step.wait();
            Ok(())
        }
    });
    assert_eq!((service.name(), service.state()), ("steps", ServiceState::New));
    service.start().unwrap();
    assert_eq!(service.state(), ServiceState::Starting);
    step.wait();
    step.wait();
    assert_eq!(service.state(), ServiceState::Ready);
    assert!(service.stop("bye".into()));
    assert!(!service.stop("again".into()), "the first stop counts");
    assert_eq!(service.state(), ServiceState::Stopping);
    step.wait();
    service.join(Some(LONG)).unwrap();
    assert_eq!(service.state(), ServiceState::Done);
    assert_eq!(service.scope().reason().unwrap().to_string(), "bye");
}

#[test]
fn the_thread_has_the_name_of_its_service() {
    let service = ServiceThread::new("namely", |cx| {
        assert_eq!(thread::current().name(), Some("namely"));
        assert_eq!(cx.name(), "namely");
        cx.started();
        Ok(())
    });
    service.start().unwrap();
    service.join(Some(LONG)).unwrap();
}

#[test]
fn readiness_is_the_same_for_early_and_late_waiters_and_outlives_the_service() {
    let service = ServiceThread::new("ready", obedient);
    let hand = Hand::new();
    let mut early = Box::pin(service.ready());
    assert!(hand.poll(&mut early).is_pending());
    thread::scope(|threads| {
        let blocked = threads.spawn(|| service.wait_started(Some(LONG)));
        service.start().unwrap();
        blocked.join().unwrap().unwrap();
    });
    assert!(matches!(hand.poll(&mut early), Poll::Ready(Ok(()))));
    assert_eq!(hand.wakes(), 1);
    service.stop("bye".into());
    service.join(Some(LONG)).unwrap();
    service.wait_started(Some(LONG)).expect("it was ready once, and that stays");
    ready(service.ready()).unwrap();
}

#[test]
fn an_error_before_ready_is_the_same_cause_everywhere() {
    let cause = Failure::msg("no socket");
    let service = ServiceThread::new("fails", {
        let cause = cause.clone();
        move |_| Err(cause)
    });
    service.start().unwrap();
    assert!(cause_of(service.wait_started(Some(LONG))).ptr_eq(&cause));
    assert!(cause_of(service.join(Some(LONG))).ptr_eq(&cause));
    assert!(cause_of(ready(service.joined())).ptr_eq(&cause));
    assert!(service.scope().cause().unwrap().ptr_eq(&cause));
    assert_eq!(service.join(None).unwrap_err().to_string(), "fails failed: no socket");
}

#[test]
fn an_error_after_ready_leaves_readiness_as_it_was() {
    let service = ServiceThread::new("fails-later", |cx| {
        cx.started();
        Err(Failure::msg("eof"))
    });
    service.start().unwrap();
    assert_eq!(cause_of(service.join(Some(LONG))).to_string(), "eof");
    service.wait_started(Some(LONG)).unwrap();
}

/// The original's `wait_started()` reports success here.
#[test]
fn a_body_that_returns_without_started_is_exited_before_ready() {
    let service = ServiceThread::new("silent", |_| Ok(()));
    service.start().unwrap();
    for result in [service.wait_started(Some(LONG)), service.join(Some(LONG)), ready(service.ready())] {
        assert!(
            matches!(&result, Err(ServiceError::ExitedBeforeReady { service }) if service == "silent"),
            "{result:?}"
        );
    }
    assert_eq!(service.scope().cause().unwrap().to_string(), "silent ended before it was ready");
}

/// The original can report success in a race.
#[test]
fn a_failure_before_ready_is_never_seen_as_success() {
    for round in 0..scaled(300) {
        let service =
            ServiceThread::new("racer", move |_| if round % 2 == 0 { Ok(()) } else { Err(Failure::msg("x")) });
        let meet = Barrier::new(2);
        thread::scope(|threads| {
            let waiter = threads.spawn(|| {
                meet.wait();
                service.wait_started(Some(LONG))
            });
            meet.wait();
            service.start().unwrap();
            assert!(waiter.join().unwrap().is_err());
        });
    }
}

#[test]
fn a_panic_is_told_with_its_message_before_and_after_ready() {
    for is_ready in [false, true] {
        let service = ServiceThread::new("panics", move |cx| {
            if is_ready {
                cx.started();
            }
            panic!("boom {}", 7)
        });
        service.start().unwrap();
        let end = service.join(Some(LONG)).unwrap_err();
        assert!(matches!(&end, ServiceError::Panicked { message, .. } if message == "boom 7"), "{end:?}");
        assert_eq!(service.wait_started(Some(LONG)).is_ok(), is_ready);
        assert_eq!(service.scope().cause().unwrap().to_string(), "panicked: boom 7");
    }
}

#[test]
fn a_stop_before_the_start_is_kept_and_the_body_is_dropped_unrun() {
    let (ran, dropped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let guard = OnDrop({
        let dropped = dropped.clone();
        move || dropped.store(true, Ordering::SeqCst)
    });
    let service = ServiceThread::new("early-stop", {
        let ran = ran.clone();
        move |_| {
            let _guard = &guard;
            ran.store(true, Ordering::SeqCst);
            Ok(())
        }
    });
    assert!(service.stop("never mind".into()));
    assert_eq!(service.state(), ServiceState::Done);
    assert!(dropped.load(Ordering::SeqCst), "its captures are free at once");
    service.start().expect("the stop counts, and is no error of start");
    let end = service.wait_started(Some(LONG)).unwrap_err();
    assert!(matches!(&end, ServiceError::Stopped { reason: Reason::Requested(why), .. } if why == "never mind"));
    service.join(Some(LONG)).unwrap();
    assert!(!ran.load(Ordering::SeqCst));
    assert!(matches!(service.start(), Err(ServiceError::AlreadyStarted { .. })));
}

#[test]
fn a_failure_of_the_scope_before_the_start_is_how_it_ended() {
    let (service, cause) = (ServiceThread::new("doomed", obedient), Failure::msg("bad config"));
    service.scope().fail(cause.clone());
    service.start().unwrap();
    assert!(cause_of(service.wait_started(Some(LONG))).ptr_eq(&cause));
    assert!(cause_of(service.join(Some(LONG))).ptr_eq(&cause));
}

/// The body of a service that was never started is dropped by whoever stops it; what panics there must strand nobody.
#[test]
fn a_body_that_panics_when_dropped_unrun_does_not_strand_the_waiters() {
    let guard = OnDrop(|| panic!("in drop"));
    let service = ServiceThread::new("bad-drop", move |_| {
        let _guard = &guard;
        Ok(())
    });
    let hand = Hand::new();
    let (mut ready, mut closed) = (Box::pin(service.ready()), Box::pin(service.scope().closed()));
    assert!(hand.poll(&mut ready).is_pending() && hand.poll(&mut closed).is_pending());
    let stopped = catch_unwind(AssertUnwindSafe(|| service.stop("bye".into())));
    assert_eq!(hand.wakes(), 2, "both waiters are woken");
    assert!(stopped.is_ok(), "stop does not panic");
}

#[test]
fn a_stop_right_after_the_start_wins_or_loses_and_never_hangs() {
    within(|| {
        for _ in 0..scaled(500) {
            let service = Arc::new(ServiceThread::new("race", obedient));
            let meet = Barrier::new(2);
            let early = thread::scope(|threads| {
                let stopper = threads.spawn(|| {
                    meet.wait();
                    assert!(service.stop("now".into()));
                    service.wait_started(Some(LONG))
                });
                meet.wait();
                service.start().unwrap();
                stopper.join().unwrap()
            });
            let late = service.wait_started(Some(LONG));
            assert_eq!(early.is_ok(), late.is_ok(), "decided once");
            assert!(late.is_ok() || matches!(late, Err(ServiceError::Stopped { .. })), "{late:?}");
            service.join(Some(LONG)).unwrap();
        }
    });
}

#[test]
fn started_after_a_stop_counts_for_nothing() {
    let service = ServiceThread::new("late", |cx| {
        cx.scope().wait_blocking(None)?;
        cx.started();
        Ok(())
    });
    service.start().unwrap();
    service.stop("bye".into());
    service.join(Some(LONG)).expect("it stopped in order");
    assert!(matches!(service.wait_started(Some(LONG)), Err(ServiceError::Stopped { .. })));
}

#[test]
fn a_second_start_is_refused_and_harms_nothing() {
    let service = begun("once");
    assert!(matches!(service.start(), Err(ServiceError::AlreadyStarted { service }) if service == "once"));
    assert_eq!(service.state(), ServiceState::Ready);
    service.stop("bye".into());
    service.join(Some(LONG)).unwrap();
}

#[test]
fn a_service_that_was_never_started_is_done_for_those_who_join() {
    let service = ServiceThread::new("idle", obedient);
    service.join(Some(LONG)).unwrap();
    ready(service.joined()).unwrap();
    assert_eq!(service.state(), ServiceState::New, "joining does not end it");
    service.start().unwrap();
    service.wait_started(Some(LONG)).unwrap();
    service.stop("bye".into());
    service.join(Some(LONG)).unwrap();
}

/// ractor#466.
#[test]
fn all_who_join_return_at_once_or_late() {
    for cause in [None, Some(Failure::msg("eof"))] {
        let service = begun("joined");
        let barrier = Barrier::new(9);
        thread::scope(|threads| {
            let joiners: Vec<_> = (0..8)
                .map(|_| {
                    threads.spawn(|| {
                        barrier.wait();
                        service.join(Some(LONG))
                    })
                })
                .collect();
            barrier.wait();
            match &cause {
                None => service.scope().close("bye"),
                Some(cause) => service.scope().fail(cause.clone()),
            };
            for end in joiners.into_iter().map(|joiner| joiner.join().unwrap()).chain([service.join(Some(LONG))]) {
                match &cause {
                    None => end.unwrap(),
                    Some(cause) => assert!(cause_of(end).ptr_eq(cause)),
                }
            }
        });
    }
}

type LastBreath = OnDrop<Box<dyn FnMut()>>;

thread_local! {
    static LAST_BREATH: RefCell<Option<LastBreath>> = const { RefCell::new(None) };
}

#[test]
fn after_a_join_the_thread_is_gone_with_its_thread_locals() {
    for _ in 0..scaled(200) {
        let gone = Arc::new(AtomicBool::new(false));
        let service = ServiceThread::new("gone", {
            let gone = gone.clone();
            move |cx| {
                let breath: Box<dyn FnMut()> = Box::new(move || {
                    (0..10).for_each(|_| thread::yield_now());
                    gone.store(true, Ordering::SeqCst);
                });
                LAST_BREATH.with(|last| *last.borrow_mut() = Some(OnDrop(breath)));
                cx.started();
                Ok(())
            }
        });
        service.start().unwrap();
        thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    service.join(Some(LONG)).unwrap();
                    assert!(gone.load(Ordering::SeqCst));
                });
            }
        });
    }
}

#[test]
fn a_wait_on_the_own_thread_is_refused_and_its_stop_is_not() {
    let (send, receive) = mpsc::channel::<ServiceThread>();
    let service = ServiceThread::new("selfish", move |cx| {
        let me = receive.recv()?;
        assert!(matches!(me.wait_started(None), Err(ServiceError::WouldBlock { .. })));
        cx.started();
        assert!(matches!(me.wait_started(None), Err(ServiceError::WouldBlock { .. })), "though it is ready");
        assert!(matches!(me.join(None), Err(ServiceError::WouldBlock { service }) if service == "selfish"));
        assert!(!me.join_or_log(None));
        assert!(me.stop("enough".into()));
        Ok(())
    });
    service.start().unwrap();
    send.send(service.clone()).unwrap();
    service.join(Some(LONG)).unwrap();
}

#[cfg(feature = "tokio")] // without it nobody knows of tokio's workers
#[test]
fn a_wait_inside_an_async_worker_is_refused_though_all_is_ready() {
    let service = begun("foreign");
    run_threads({
        let service = service.clone();
        async move {
            assert!(matches!(service.wait_started(None), Err(ServiceError::WouldBlock { .. })));
            assert!(matches!(service.join(None), Err(ServiceError::WouldBlock { .. })));
            service.ready().await.unwrap();
            service.stop("bye".into());
            service.joined().await.unwrap();
            assert!(matches!(service.join(None), Err(ServiceError::WouldBlock { .. })));
            tokio::task::spawn_blocking(move || service.join(Some(LONG))).await.unwrap().unwrap();
        }
    });
    service.join(Some(LONG)).unwrap();
}

#[test]
fn a_deadline_that_passes_says_where_the_service_was() {
    let (release, wait) = mpsc::channel::<()>();
    let service = ServiceThread::new("slow", move |cx| {
        wait.recv()?;
        cx.started();
        wait.recv()?;
        Ok(())
    });
    let state = |result| match result {
        Err(ServiceError::TimedOut { service, state }) if service == "slow" => state,
        other => panic!("{other:?}"),
    };
    let begin = Instant::now();
    assert_eq!(state(service.wait_started(Some(Duration::ZERO))), ServiceState::New);
    service.start().unwrap();
    assert_eq!(state(service.wait_started(Some(SOON))), ServiceState::Starting);
    assert_eq!(state(service.join(Some(SOON))), ServiceState::Starting);
    release.send(()).unwrap();
    service.wait_started(Some(LONG)).unwrap();
    service.stop("bye".into());
    assert_eq!(state(service.join(Some(SOON))), ServiceState::Stopping);
    assert!(!service.join_or_log(Some(SOON)), "it is not done");
    assert!(begin.elapsed() >= 4 * SOON && begin.elapsed() < LONG);
    release.send(()).unwrap();
    assert!(service.join_or_log(Some(LONG)), "now it is");
    assert!(service.join_or_log(None), "and stays");
}

#[test]
fn join_or_log_is_true_for_a_service_that_failed() {
    let service = ServiceThread::new("failed", |_| Err(Failure::msg("eof")));
    service.start().unwrap();
    assert!(service.join_or_log(Some(LONG)));
}

#[test]
fn a_failure_of_the_scope_from_outside_is_how_the_service_failed() {
    for returns in [0, 1] {
        let service = ServiceThread::new("told", move |cx| {
            cx.started();
            let end = cx.scope().wait_blocking(None)?;
            if returns == 0 { Ok(()) } else { Err(end.into()) }
        });
        service.start().unwrap();
        service.wait_started(Some(LONG)).unwrap();
        let cause = Failure::msg("the peer is gone");
        assert!(service.scope().fail(cause.clone()));
        assert!(cause_of(service.join(Some(LONG))).ptr_eq(&cause));
    }
}

#[test]
fn a_body_that_only_says_that_it_was_stopped_has_ended_in_order() {
    let service = ServiceThread::new("says-so", |cx| {
        cx.started();
        let end = cx.scope().wait_blocking(None)?;
        assert!(matches!(end, CloseError::Closed(_)));
        cx.scope().check()?;
        unreachable!("closed");
    });
    service.start().unwrap();
    service.wait_started(Some(LONG)).unwrap();
    service.stop("bye".into());
    service.join(Some(LONG)).unwrap();
}

#[test]
fn an_error_after_a_stop_is_not_swallowed() {
    let service = ServiceThread::new("bad-exit", |cx| {
        cx.started();
        cx.scope().wait_blocking(None)?;
        Err(Failure::msg("the flush failed"))
    });
    service.start().unwrap();
    service.wait_started(Some(LONG)).unwrap();
    service.stop("bye".into());
    assert_eq!(cause_of(service.join(Some(LONG))).to_string(), "the flush failed");
    assert_eq!(service.scope().reason().unwrap().to_string(), "bye", "the scope keeps its first end");
}

#[test]
fn a_body_that_returns_by_itself_closes_its_scope() {
    let service = ServiceThread::new("short", |cx| {
        cx.started();
        Ok(())
    });
    service.start().unwrap();
    service.join(Some(LONG)).unwrap();
    assert!(
        matches!(service.scope().check(), Err(CloseError::Closed(Reason::Closed(why))) if why == "short has ended")
    );
    assert!(!service.stop("late".into()));
}

#[test]
fn the_last_handle_dropped_asks_the_service_to_stop_and_does_not_wait() {
    let (tell, told) = mpsc::channel();
    let (release, wait) = mpsc::channel::<()>();
    let service = ServiceThread::new("orphan", move |cx| {
        cx.started();
        wait.recv()?; // deaf until then: a drop that waited would hang here
        tell.send(cx.scope().wait_blocking(None)?)?;
        Ok(())
    });
    service.start().unwrap();
    service.wait_started(Some(LONG)).unwrap();
    let other = service.clone();
    run_threads(async move {
        drop(service);
        assert!(!other.scope().is_closed(), "a handle is left");
        drop(other);
    });
    release.send(()).unwrap();
    assert!(matches!(told.recv_timeout(LONG).unwrap(), CloseError::Closed(Reason::OwnerDropped)));
}

#[test]
fn a_context_kept_elsewhere_does_not_keep_the_service() {
    let (give, take) = mpsc::channel();
    let service = ServiceThread::new("kept", move |cx| {
        give.send(cx.clone())?;
        cx.started();
        cx.scope().wait_blocking(None)?;
        Ok(())
    });
    service.start().unwrap();
    let cx: ServiceContext = take.recv().unwrap();
    drop(service);
    assert!(matches!(cx.scope().wait_blocking(Some(LONG)), Ok(CloseError::Closed(Reason::OwnerDropped))));
}

#[test]
fn waits_that_are_dropped_leave_nothing_behind() {
    let (service, hand) = (ServiceThread::new("waited", obedient), Hand::new());
    {
        let mut ready = pin!(service.ready());
        assert!(hand.poll(&mut ready).is_pending());
    }
    assert_eq!(hand.wakers(), 0);
    service.start().unwrap();
    {
        let mut joined = pin!(service.joined());
        assert!(hand.poll(&mut joined).is_pending());
    }
    assert_eq!(hand.wakers(), 0);
    service.stop("bye".into());
    service.join(Some(LONG)).unwrap();
    assert_eq!(hand.wakes(), 0);
}

#[test]
fn a_name_that_no_thread_can_have_is_an_error_and_not_a_panic() {
    let service = ServiceThread::new("nul\0byte", obedient);
    let started = catch_unwind(AssertUnwindSafe(|| service.start()));
    let waiter = service.clone();
    let (ready, joined) = within(move || (waiter.wait_started(Some(SOON)), waiter.join(Some(SOON))));
    let timed_out = |result: &Result<(), ServiceError>| matches!(result, Err(ServiceError::TimedOut { .. }));
    assert!(!timed_out(&ready) && !timed_out(&joined), "nobody is left waiting: {ready:?}, {joined:?}");
    let started = started.expect("start does not panic");
    assert!(started.is_ok() || matches!(started, Err(ServiceError::Spawn { .. })), "{started:?}");
    service.stop("bye".into());
}

#[test]
#[cfg_attr(miri, ignore = "starts a process")]
fn a_thread_that_cannot_be_had_is_an_error_for_everyone() {
    if !without_threads("thread::a_thread_that_cannot_be_had_is_an_error_for_everyone") {
        return;
    }
    let service = ServiceThread::new("nowhere", obedient);
    let text = service.start().unwrap_err().to_string();
    assert!(text.starts_with("nowhere could not be spawned: "), "{text}");
    for result in [service.wait_started(Some(SOON)), service.join(Some(SOON))] {
        assert!(matches!(result, Err(ServiceError::Spawn { .. })), "{result:?}");
    }
    assert_eq!(service.state(), ServiceState::Done);
    assert!(matches!(service.start(), Err(ServiceError::AlreadyStarted { .. })));
}

#[test]
fn a_blocked_scope_wait_in_a_body_ends_by_its_own_deadline() {
    let service = ServiceThread::new("beats", |cx| {
        cx.started();
        assert_eq!(cx.scope().wait_blocking(Some(SOON)).unwrap_err(), WaitError::TimedOut);
        Ok(())
    });
    service.start().unwrap();
    service.join(Some(LONG)).unwrap();
}

#[cfg(feature = "tracing")]
mod log {
    use super::*;
    use crate::alone::alone;
    use crate::logged;

    #[test]
    #[cfg_attr(miri, ignore = "starts a process")]
    fn the_log_says_once_why_a_service_failed() {
        if !alone("thread::log::the_log_says_once_why_a_service_failed") {
            return;
        }
        logged::take();
        let service = ServiceThread::new("failed", |_| Err(Failure::msg("eof")));
        service.start().unwrap();
        assert!(service.join_or_log(Some(LONG)));
        let (release, wait) = mpsc::channel::<()>();
        let deaf = ServiceThread::new("deaf", move |_| wait.recv().or(Ok(())));
        deaf.start().unwrap();
        deaf.scope().fail(Failure::msg("the peer is gone"));
        assert!(!deaf.join_or_log(Some(Duration::ZERO)));
        let lines = logged::take();
        let said = [
            "failed failed: eof (state Done, ",
            "deaf is still Stopping: timed out (state Stopping, failed: the peer is gone, ",
        ];
        assert!(lines.iter().zip(said).all(|(line, said)| line.starts_with(said)), "{lines:#?}");
        assert_eq!(lines.len(), 2);
        assert!(!lines.iter().any(|line| line.contains("asked to stop")), "nobody did");
        assert_eq!(lines[0].matches("eof").count(), 1);
        assert!(lines[0].contains("ThreadId("), "which one it was: {lines:#?}");
        drop(release);
        deaf.join(Some(LONG)).unwrap_err();
    }

    #[test]
    #[cfg_attr(miri, ignore = "starts a process")]
    fn a_second_failure_of_a_service_is_logged_and_the_first_again_is_not() {
        if !alone("thread::log::a_second_failure_of_a_service_is_logged_and_the_first_again_is_not") {
            return;
        }
        for second in [None, Some("second")] {
            logged::take();
            let service = ServiceThread::new("svc", move |cx| {
                cx.started();
                let first = Failure::msg("first");
                cx.scope().fail(first.clone());
                Err(second.map_or(first, Failure::msg))
            });
            service.start().unwrap();
            service.join(Some(LONG)).unwrap_err();
            let said = second.map(|_| "svc failed after it had failed (first): second".to_owned());
            assert_eq!(logged::take(), Vec::from_iter(said));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "starts a process")]
    fn a_failure_of_a_service_that_nobody_holds_is_logged() {
        if !alone("thread::log::a_failure_of_a_service_that_nobody_holds_is_logged") {
            return;
        }
        logged::take();
        for panics in [false, true] {
            let (over, is_over) = mpsc::channel::<()>();
            let service = ServiceThread::new("orphan", move |cx| {
                LAST_BREATH.with(|last| *last.borrow_mut() = Some(OnDrop(Box::new(move || _ = over.send(())))));
                cx.started();
                cx.scope().wait_blocking(None)?;
                if panics { panic!("boom") } else { Err(Failure::msg("the flush failed")) }
            });
            service.start().unwrap();
            service.wait_started(Some(LONG)).unwrap();
            drop(service);
            is_over.recv_timeout(LONG).unwrap();
        }
        let lines: Vec<_> = logged::take().into_iter().filter(|line| line.ends_with("nobody holds it")).collect();
        assert_eq!(
            lines,
            ["orphan failed: the flush failed, and nobody holds it", "orphan panicked: boom, and nobody holds it"]
        );
    }
}

/// A join that finds a service not started yet is over; it must not find the thread of a start that comes meanwhile, and wait
/// for that one's end.
#[test]
fn a_join_that_races_the_start_keeps_to_its_time() {
    const ROUNDS: usize = 300;
    let services: Vec<_> = (0..ROUNDS).map(|_| ServiceThread::new("raced", obedient)).collect();
    within(move || {
        let abreast = Abreast::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                for (round, service) in services.iter().enumerate() {
                    abreast.round(1, round + 1);
                    service.start().unwrap();
                }
            });
            for (round, service) in services.iter().enumerate() {
                abreast.round(0, round + 1);
                while service.state() == ServiceState::New {
                    let _new_or_running = service.join(Some(Duration::ZERO));
                }
                service.stop("done".into());
            }
        });
    });
}
