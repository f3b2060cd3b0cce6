//! Threads, loops, and what is sent onto a loop.

use std::future::pending;
use std::thread;

use microio::{CloseScope, LoopServiceThread, Service, ServiceGroup, ServiceThread};

use crate::meter::{Bell, Meter};

pub(crate) fn threads(meter: &mut Meter) {
    group(meter, |nth| {
        ServiceThread::new(format!("thread-{nth}"), |cx| {
            cx.started();
            cx.scope().wait_blocking(None)?;
            Ok(())
        })
    });
}

pub(crate) fn loops(meter: &mut Meter) {
    group(meter, |nth| {
        LoopServiceThread::new(format!("loop-{nth}"), |cx| async move {
            cx.started();
            pending().await
        })
    });
}

fn group<S: Service + 'static>(meter: &mut Meter, service: impl Fn(usize) -> S) {
    let make = |n| {
        let mut group = ServiceGroup::new("many");
        (0..n).for_each(|nth| _ = group.add(service(nth)));
        group
    };
    let all = meter.build(make);
    meter.time("start all", || all.start_all(None)).expect("all start");
    let report = meter.time("stop and join", || all.stop_join("bye", None));
    assert!(report.errors.is_empty() && report.stuck.is_empty(), "{report:?}");
    meter.time("drop", || drop(all));
    let all = meter.build(make);
    meter.time("drop, not started", || drop(all));
    let services = Vec::from_iter((0..meter.n()).map(service));
    meter.time("start each, at once", || services.iter().for_each(|service| service.start().expect("a thread")));
    services.iter().for_each(|service| service.wait_started(None).expect("it starts"));
    meter.time("stop each", || services.iter().for_each(|service| assert!(service.stop("bye".into()))));
    meter.time("join each", || services.iter().for_each(|service| service.join(None).expect("it ends in order")));
    meter.time("drop each", || drop(services));
}

/// Plain threads that all wait for one scope.
pub(crate) fn blocked_threads(meter: &mut Meter) {
    let scope = CloseScope::new();
    let wait = |_| {
        let scope = scope.clone();
        thread::spawn(move || scope.wait_blocking(None).map(drop))
    };
    let n = meter.n();
    let waiting = meter.time("spawn", || Vec::from_iter((0..n).map(wait)));
    meter.time("close", || scope.close("over"));
    meter.time("join", || waiting.into_iter().for_each(|thread| thread.join().expect("no panic").expect("closed")));
}

/// A loop that begins when it is told, so that what is sent to it stays queued.
fn idle_loop() -> LoopServiceThread {
    LoopServiceThread::new("loop", |cx| async move {
        cx.started();
        pending().await
    })
}

pub(crate) fn calls(meter: &mut Meter) {
    let bell = Bell::default();
    let make = |n: usize| {
        let service = idle_loop();
        let handle = service.handle();
        let call = |nth| {
            let handle = handle.clone();
            async move { handle.call(move || nth).await }
        };
        let calls = bell.park(n, call);
        (service, calls)
    };
    meter.drop_in_every_order(make);
    bell.rung();
    let (service, calls) = meter.build(make);
    let run = || {
        service.start().expect("a thread");
        service.handle().call_sync(|| (), None).expect("it comes after the others");
    };
    meter.time("run", run);
    assert_eq!(bell.rung(), meter.n());
    meter.time("hear it", || bell.hear(calls));
    service.stop("bye".into());
    service.join(None).expect("it ends in order");
    let (service, calls) = meter.build(make);
    meter.time("stop", || service.stop("bye".into()));
    assert_eq!(bell.rung(), meter.n());
    meter.time("hear of the stop", || bell.hear(calls));
    let (n, service) = (meter.n(), idle_loop());
    let soon = || (0..n).for_each(|_| service.handle().call_soon(|| ()).expect("it is open"));
    meter.time("call soon", soon);
    meter.time("drop the service", || drop(service));
}

/// Futures that run on a loop and wait.
pub(crate) fn submitted(meter: &mut Meter) {
    let make = |n: usize| {
        let service = idle_loop();
        let handle = service.handle();
        let futures = Vec::from_iter((0..n).map(|_| handle.submit(pending::<()>())));
        service.start().expect("a thread");
        service.wait_started(None).expect("it starts");
        handle.submit(async {}).wait_blocking(None).expect("it comes after the others");
        (service, futures)
    };
    let (service, futures) = meter.build(make);
    meter.time("drop", || drop(futures));
    let end = |service: &LoopServiceThread| {
        service.stop("bye".into());
        service.join(None).expect("it ends in order");
    };
    meter.time("stop and join", || end(&service));
    let (service, futures) = meter.build(make);
    meter.time("cancel each", || futures.iter().for_each(|future| assert!(future.cancel("enough"))));
    meter.time("hear it", || futures.into_iter().for_each(|future| assert!(future.wait_blocking(None).is_err())));
    end(&service);
}
