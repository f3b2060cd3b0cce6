//! The life of a service: started, failed, ended, stopped, and those who wait for either.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use microio::{Failure, Service, ServiceContext, ServiceError, ServiceThread};

use crate::model;

fn until_stopped(cx: &ServiceContext) -> Result<(), Failure> {
    cx.scope().wait_blocking(None)?;
    Ok(())
}

/// Started against stop against wait: readiness is decided once, and the same for everybody.
#[test]
fn a_service_decides_its_readiness_once() {
    model(|| {
        let service = ServiceThread::new("service", |cx| {
            cx.started();
            until_stopped(cx)
        });
        service.start().unwrap();
        let stopper = thread::spawn({
            let service = service.clone();
            move || service.stop("bye".into())
        });
        let verdict = service.wait_started(None);
        assert!(stopper.join().unwrap());
        assert!(matches!(verdict, Ok(()) | Err(ServiceError::Stopped { .. })), "{verdict:?}");
        assert_eq!(service.wait_started(None).is_ok(), verdict.is_ok());
        service.join(None).unwrap();
    });
}

/// Fail against wait: a failure before ready is never seen as success, and its cause is everybody's.
#[test]
fn a_startup_failure_is_seen_by_all() {
    model(|| {
        let service = ServiceThread::new("service", |_| Err(Failure::msg("port taken")));
        let waiter = thread::spawn({
            let service = service.clone();
            move || service.wait_started(None).unwrap_err().to_string()
        });
        service.start().unwrap();
        assert_eq!(service.join(None).unwrap_err().to_string(), "service failed: port taken");
        assert_eq!(waiter.join().unwrap(), "service failed: port taken");
    });
}

/// Started, said by a helper of the body, against its failure: ready and then failed, or failed for everybody.
#[test]
fn a_failure_that_races_readiness_is_not_lost() {
    model(|| {
        let service = ServiceThread::new("service", |cx| {
            let helper = cx.clone();
            thread::spawn(move || helper.started());
            Err(Failure::msg("broken"))
        });
        service.start().unwrap();
        let verdict = service.wait_started(None);
        assert_eq!(service.join(None).unwrap_err().to_string(), "service failed: broken");
        assert_eq!(service.wait_started(None).is_ok(), verdict.is_ok());
    });
}

/// Started, said by a helper of the body, against its return: ready and then done, or neither.
#[test]
fn an_exit_that_races_readiness_is_one_or_the_other() {
    model(|| {
        let service = ServiceThread::new("service", |cx| {
            let helper = cx.clone();
            thread::spawn(move || helper.started());
            Ok(())
        });
        service.start().unwrap();
        let (verdict, end) = (service.wait_started(None), service.join(None));
        assert_eq!(verdict.is_ok(), end.is_ok(), "{verdict:?}, {end:?}");
        assert_eq!(service.wait_started(None).is_ok(), verdict.is_ok());
    });
}

/// Stop against start: a body that was stopped before does not run, and either way everybody hears the end.
#[test]
fn stop_races_start() {
    model(|| {
        let (ran, stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let service = ServiceThread::new("service", {
            let ran = ran.clone();
            move |cx| {
                ran.fetch_add(1, Ordering::Relaxed);
                until_stopped(cx)
            }
        });
        let starter = thread::spawn({
            let (service, stopped) = (service.clone(), stopped.clone());
            move || {
                let stopped = stopped.load(Ordering::Acquire);
                service.start().unwrap();
                stopped
            }
        });
        service.stop("bye".into());
        stopped.store(true, Ordering::Release);
        assert!(matches!(service.wait_started(None), Err(ServiceError::Stopped { .. })));
        let stopped_before = starter.join().unwrap();
        service.join(None).unwrap();
        assert!(ran.load(Ordering::Relaxed) <= usize::from(!stopped_before));
    });
}

/// Join against join against the end: one of them joins the thread, and all hear the same.
#[test]
fn every_joiner_hears_the_same_end() {
    model(|| {
        let service = ServiceThread::new("service", |_| Err(Failure::msg("broken")));
        service.start().unwrap();
        let joiner = thread::spawn({
            let service = service.clone();
            move || service.join(None).unwrap_err().to_string()
        });
        assert_eq!(service.join(None).unwrap_err().to_string(), "service failed: broken");
        assert_eq!(joiner.join().unwrap(), "service failed: broken");
    });
}

/// The drop of the last two handles, on two threads: the service is asked to stop.
#[test]
fn a_service_without_handles_ends() {
    model(|| {
        let service = ServiceThread::new("service", until_stopped);
        service.start().unwrap();
        let other = service.clone();
        let dropper = thread::spawn(move || drop(other));
        drop(service);
        dropper.join().unwrap();
    });
}
