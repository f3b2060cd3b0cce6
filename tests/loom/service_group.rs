//! `ServiceGroup`: its scope against the end of a member, its start against a failure and against a stop.

use std::sync::Arc;

use loom::thread;
use microio::{Failure, Service, ServiceContext, ServiceGroup, ServiceState, ServiceThread};

use crate::{long_model, model};

fn until_stopped(cx: &ServiceContext) -> Result<(), Failure> {
    cx.started();
    cx.scope().wait_blocking(None)?;
    Ok(())
}

/// The end of a member against its joining the group: the group's scope hears of it, with the cause.
#[test]
fn the_end_of_a_member_is_the_end_of_its_group() {
    model(|| {
        let service = ServiceThread::new("service", |_| Err(Failure::msg("broken")));
        service.start().unwrap();
        let mut group = ServiceGroup::new("group");
        group.add(service);
        assert_eq!(group.scope().wait_blocking(None).unwrap().to_string(), "broken");
    });
}

/// A member that fails to start: the one before it is stopped, and has ended.
#[test]
fn a_failed_start_takes_the_others_down() {
    model(|| {
        let first = ServiceThread::new("first", until_stopped);
        let mut group = ServiceGroup::new("group");
        group.add(first.clone());
        group.add(ServiceThread::new("second", |_| Err(Failure::msg("port taken"))));
        let error = group.start_all(None).unwrap_err();
        assert_eq!(error.to_string(), "second failed: port taken (stopped again: first)");
        assert_eq!(first.state(), ServiceState::Done);
    });
}

/// Stop against start: nobody is left running, whether the start was done or given up.
#[test]
fn a_stop_during_the_start_leaves_nobody_behind() {
    long_model(|| {
        let mut group = ServiceGroup::new("group");
        group.add(ServiceThread::new("first", until_stopped));
        group.add(ServiceThread::new("second", until_stopped));
        let group = Arc::new(group);
        let stopper = thread::spawn({
            let group = group.clone();
            move || group.stop("bye")
        });
        let started = group.start_all(None);
        stopper.join().unwrap();
        if let Err(error) = started {
            assert!(error.failed.to_string().ends_with("was stopped before it was ready: bye"), "{error}");
        }
        let report = group.stop_join("bye", None);
        assert!(report.errors.is_empty() && report.stuck.is_empty(), "{report:?}");
    });
}
