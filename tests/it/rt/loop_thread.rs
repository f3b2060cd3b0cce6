//! Tests of `src/rt/loop_thread.rs` and `src/rt/loop_handle.rs`.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use microio::{
    CallError, CloseScope, Failure, GroupError, LoopContext, LoopHandle, LoopServiceThread, Reason, Service,
    ServiceError, ServiceGroup, ServiceState, Submitted, WaitError, block_in_place, shield, sleep,
};
use tokio::task::yield_now;

use crate::alone::without_threads;
use crate::support::{LONG, OnDrop, block_on, poll_once, run_threads, scaled, within};

const SOON: Duration = Duration::from_millis(40);

type Never = Result<(), Failure>;

/// Says that it is ready and waits to be stopped.
async fn idle(cx: LoopContext) -> Never {
    cx.started();
    pending().await
}

fn begun<F: Future<Output = Never> + 'static>(
    name: &'static str,
    body: impl FnOnce(LoopContext) -> F + Send + 'static,
) -> LoopServiceThread {
    let service = LoopServiceThread::new(name, body);
    service.start().unwrap();
    service.wait_started(Some(LONG)).unwrap();
    service
}

fn end(service: &LoopServiceThread) {
    service.stop("bye".into());
    service.join(Some(LONG)).unwrap();
}

#[track_caller]
fn closed<T: std::fmt::Debug>(result: Result<T, CallError>) -> String {
    match result {
        Err(CallError::Closed(reason)) => reason.to_string(),
        other => panic!("not closed: {other:?}"),
    }
}

#[track_caller]
fn cause_of<T: std::fmt::Debug>(result: Result<T, CallError>) -> Failure {
    match result {
        Err(CallError::Failed(cause)) => cause,
        other => panic!("not failed: {other:?}"),
    }
}

#[track_caller]
fn failure(result: Result<(), ServiceError>) -> Failure {
    match result {
        Err(ServiceError::Failed { cause, .. }) => cause,
        other => panic!("not failed: {other:?}"),
    }
}

/// Keeps the loop busy until the sender is dropped.
fn busy(handle: &LoopHandle) -> mpsc::Sender<()> {
    let (release, wait) = mpsc::channel();
    let (running, is_running) = mpsc::channel();
    let job = move || {
        running.send(()).unwrap();
        let _released = wait.recv();
    };
    handle.call_soon(job).unwrap();
    is_running.recv_timeout(LONG).unwrap();
    release
}

// ---- whose thread

#[test]
fn state_that_is_not_send_is_made_used_and_dropped_on_the_loop_thread_however_it_ends() {
    for how in ["returns", "stop", "fails", "panics", "child fails"] {
        let threads = Arc::new(Mutex::new(Vec::<ThreadId>::new()));
        let log = threads.clone();
        let service = begun("owner", move |cx| {
            let here = move || log.lock().unwrap().push(thread::current().id());
            here();
            async move {
                let state = Rc::new(RefCell::new(vec![1]));
                let _guard = OnDrop(here.clone());
                let shared = state.clone();
                cx.task_group().start_soon_local("user", async move {
                    let _guard = OnDrop(here);
                    shared.borrow_mut().push(2);
                    yield_now().await;
                    if how == "child fails" { Err(Failure::msg("eof")) } else { Ok(()) }
                });
                cx.started();
                yield_now().await;
                assert_eq!(*state.borrow(), [1, 2]);
                match how {
                    "returns" => Ok(()),
                    "fails" => Err(Failure::msg("eof")),
                    "panics" => panic!("boom"),
                    _ => pending().await,
                }
            }
        });
        if how == "stop" {
            service.stop("bye".into());
        }
        assert_eq!(service.join(Some(LONG)).is_ok(), matches!(how, "returns" | "stop"), "{how}");
        let threads = threads.lock().unwrap();
        assert!(threads.len() == 3 && threads.iter().all(|id| *id == threads[0]), "{how}: {threads:?}");
        assert_ne!(threads[0], thread::current().id());
    }
}

#[test]
fn a_value_of_the_loop_is_reached_through_submit_local() {
    let service = begun("local", idle);
    let make = || async {
        let x = Rc::new(Cell::new(5u8));
        yield_now().await;
        (x.get(), thread::current().name().map(str::to_owned))
    };
    let (x, name) = service.handle().submit_local(make).wait_blocking(Some(LONG)).unwrap();
    assert_eq!((x, name.as_deref()), (5, Some("local")));
    end(&service);
}

// ---- calls

#[test]
fn every_kind_of_call_is_done_on_the_loop() {
    let service = begun("calls", idle);
    let (handle, (tell, told)) = (service.handle(), mpsc::channel());
    let here = || thread::current().name().map(str::to_owned).unwrap_or_default();
    handle.call_soon(move || tell.send(here()).unwrap()).unwrap();
    assert_eq!(told.recv_timeout(LONG).unwrap(), "calls");
    assert_eq!(handle.call_sync(here, Some(LONG)).unwrap(), "calls");
    assert_eq!(handle.submit(async move { here() }).wait_blocking(Some(LONG)).unwrap(), "calls");
    assert!(handle.ping().wait_blocking(Some(LONG)).unwrap() < LONG);
    run_threads(async move {
        assert_eq!(handle.call(here).await.unwrap(), "calls");
        assert_eq!(handle.submit(async move { here() }).await.unwrap(), "calls");
    });
    end(&service);
}

#[test]
fn jobs_keep_their_order() {
    let service = begun("order", idle);
    let (handle, seen) = (service.handle(), Arc::new(Mutex::new(Vec::new())));
    let release = busy(&handle);
    for n in 0..scaled(1000) {
        let seen = seen.clone();
        handle.call_soon(move || seen.lock().unwrap().push(n)).unwrap();
    }
    drop(release);
    handle.call_sync(|| (), Some(LONG)).unwrap();
    assert!(seen.lock().unwrap().iter().copied().eq(0..scaled(1000)));
    end(&service);
}

#[test]
fn a_job_that_comes_while_the_loop_is_busy_with_tasks_is_done() {
    let service = begun("busy", |cx| async move {
        cx.started();
        loop {
            yield_now().await;
        }
    });
    for n in 0..scaled(100) {
        assert_eq!(service.handle().call_sync(move || n, Some(LONG)).unwrap(), n);
    }
    end(&service);
}

#[test]
fn eight_threads_call_a_thousand_times_each() {
    let service = begun("server", idle);
    let count = Arc::new(AtomicUsize::new(0));
    thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                for _ in 0..scaled(1000) {
                    let count = count.clone();
                    service.handle().call_sync(move || count.fetch_add(1, Ordering::Relaxed), Some(LONG)).unwrap();
                }
            });
        }
    });
    assert_eq!(count.load(Ordering::Relaxed), 8 * scaled(1000));
    end(&service);
}

#[test]
fn a_call_that_panics_is_told_and_the_loop_lives_on() {
    let service = begun("tough", idle);
    let handle = service.handle();
    let panicked = |result: Result<(), CallError>| matches!(result, Err(CallError::Panicked(text)) if text == "boom");
    assert!(panicked(handle.call_sync(|| panic!("boom"), Some(LONG))));
    assert!(panicked(handle.submit(async { panic!("boom") }).wait_blocking(Some(LONG))));
    async fn local() {
        panic!("boom")
    }
    assert!(panicked(handle.submit_local(local).wait_blocking(Some(LONG))));
    assert!(panicked(
        handle
            .submit_local(|| {
                if true {
                    panic!("boom")
                }
                local()
            })
            .wait_blocking(Some(LONG))
    ));
    handle.call_soon(|| panic!("nobody asks")).unwrap();
    assert_eq!(handle.call_sync(|| 7, Some(LONG)).unwrap(), 7);
    end(&service);
}

#[test]
fn an_output_that_nobody_wants_and_that_panics_when_dropped_harms_no_other_call() {
    let service = begun("tough", idle);
    let (handle, (release, wait)) = (service.handle(), tokio::sync::oneshot::channel::<()>());
    drop(handle.submit(async {
        let _released = wait.await;
        OnDrop(|| panic!("in drop"))
    }));
    release.send(()).unwrap();
    assert_eq!(handle.submit(async { 7 }).wait_blocking(Some(LONG)).unwrap(), 7);
    assert_eq!(handle.submit(async { 8 }).wait_blocking(Some(LONG)).unwrap(), 8, "the next ones run");
    end(&service);
}

#[test]
fn a_submitted_future_is_cancelled_alone() {
    let service = begun("cancels", idle);
    let task: Submitted<()> = service.handle().submit(pending());
    assert!(task.cancel("not needed") && !task.cancel("again"));
    let ended = task.wait_blocking(Some(LONG));
    assert!(matches!(&ended, Err(CallError::Cancelled(by)) if by.reason.to_string() == "not needed"), "{ended:?}");
    assert_eq!(service.state(), ServiceState::Ready);
    end(&service);
}

#[test]
fn a_submitted_future_goes_on_when_its_handle_is_dropped_or_times_out() {
    let service = begun("goes-on", idle);
    let (tell, told) = mpsc::channel();
    for dropped in [true, false] {
        let (release, wait) = tokio::sync::oneshot::channel::<()>();
        let tell = tell.clone();
        let task = service.handle().submit(async move {
            let _released = wait.await;
            tell.send(dropped).unwrap();
        });
        if dropped {
            drop(task);
        } else {
            assert!(matches!(task.wait_blocking(Some(SOON)), Err(CallError::TimedOut)));
        }
        drop(release);
        assert_eq!(told.recv_timeout(LONG).unwrap(), dropped);
    }
    end(&service);
}

#[test]
fn a_call_that_timed_out_is_not_done_later() {
    let service = begun("late", idle);
    let (handle, ran) = (service.handle(), Arc::new(AtomicBool::new(false)));
    let release = busy(&handle);
    let flag = ran.clone();
    let ended = handle.call_sync(move || flag.store(true, Ordering::SeqCst), Some(SOON));
    assert!(matches!(ended, Err(CallError::TimedOut)), "{ended:?}");
    drop(release);
    handle.call_sync(|| (), Some(LONG)).unwrap();
    assert!(!ran.load(Ordering::SeqCst));
    end(&service);
}

#[test]
fn a_call_whose_future_is_dropped_is_withdrawn_and_its_function_dropped_at_once() {
    let service = begun("withdrawn", idle);
    let (handle, ran, dropped) = (service.handle(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let release = busy(&handle);
    let (ran_too, dropped_too) = (ran.clone(), dropped.clone());
    let guard = OnDrop(move || dropped_too.store(true, Ordering::SeqCst));
    let mut call = Box::pin(handle.call(move || {
        let _guard = &guard;
        ran_too.store(true, Ordering::SeqCst);
    }));
    assert!(poll_once(&mut call).is_pending());
    drop(call);
    assert!(dropped.load(Ordering::SeqCst));
    drop(release);
    handle.call_sync(|| (), Some(LONG)).unwrap();
    assert!(!ran.load(Ordering::SeqCst));
    end(&service);
}

// ---- where a wait may stand

#[test]
fn a_call_sync_on_the_loop_thread_itself_runs_inline() {
    let service = begun("inline", idle);
    let handle = service.handle();
    let inner = handle.clone();
    let value = handle.call_sync(move || inner.call_sync(|| 7, None), Some(LONG)).unwrap().unwrap();
    assert_eq!(value, 7);
    let inner = handle.clone();
    let panicked = handle.submit(async move { inner.call_sync(|| panic!("boom"), None) });
    let panicked: Result<(), _> = panicked.wait_blocking(Some(LONG)).unwrap();
    assert!(matches!(panicked, Err(CallError::Panicked(_))));
    end(&service);
}

#[test]
fn a_call_sync_from_a_foreign_worker_or_loop_is_refused_and_not_done() {
    let (service, other) = (begun("callee", idle), begun("caller", idle));
    let ran = Arc::new(AtomicBool::new(false));
    let call = {
        let (handle, ran) = (service.handle(), ran.clone());
        move || handle.call_sync(move || ran.store(true, Ordering::SeqCst), None)
    };
    let from_loop = other.handle().call_sync(call.clone(), Some(LONG)).unwrap();
    assert!(matches!(from_loop, Err(CallError::WouldBlock)), "{from_loop:?}");
    let from_worker = run_threads(async move { call() });
    assert!(matches!(from_worker, Err(CallError::WouldBlock)), "{from_worker:?}");
    service.handle().call_sync(|| (), Some(LONG)).unwrap();
    assert!(!ran.load(Ordering::SeqCst));
    end(&service);
    end(&other);
}

#[test]
fn a_blocking_wait_on_the_loop_thread_is_refused() {
    let service = begun("loop", idle);
    let (me, handle) = (service.clone(), service.handle());
    let blocked = move || {
        assert!(matches!(me.join(None), Err(ServiceError::WouldBlock { .. })));
        assert!(matches!(me.wait_started(None), Err(ServiceError::WouldBlock { .. })));
        assert!(matches!(handle.submit(async {}).wait_blocking(None), Err(CallError::WouldBlock)));
        CloseScope::new().wait_blocking(None).unwrap_err() == WaitError::WouldBlock
    };
    assert!(service.handle().call_sync(blocked, Some(LONG)).unwrap());
    end(&service);
}

// ---- before, during and after

#[test]
fn a_blocking_wait_in_block_in_place_is_allowed_and_only_there() {
    let (scope, inner) = (CloseScope::new(), CloseScope::new());
    let (waiting, waits) = mpsc::channel();
    let service = begun("interpreter", {
        let (scope, inner) = (scope.clone(), inner.clone());
        move |cx| async move {
            cx.started();
            let ended = block_in_place(|| {
                let panicked = std::panic::catch_unwind(|| block_in_place(|| panic!("in the inner one")));
                assert!(panicked.is_err());
                waiting.send(()).unwrap();
                scope.wait_blocking(Some(LONG))
            });
            assert!(ended.is_ok_and(|end| end.to_string() == "go on"));
            assert_eq!(inner.wait_blocking(None).unwrap_err(), WaitError::WouldBlock, "outside of it");
            Ok(())
        }
    });
    waits.recv().unwrap();
    let late = service.handle().call_soon(|| ()).is_ok();
    assert!(late, "what is sent to a loop that stands still waits");
    assert!(!service.scope().is_closed());
    scope.close("go on");
    service.join(Some(LONG)).unwrap();
}

#[test]
fn block_in_place_finds_out_who_waits_for_the_very_loop() {
    let service = begun("selfish", |cx| async move {
        cx.started();
        let never = cx.handle().submit(async { 1 });
        assert!(matches!(block_in_place(|| never.wait_blocking(None)), Err(CallError::WouldBlock)));
        let inline = block_in_place(|| cx.handle().call_sync(|| 2, None));
        assert_eq!(inline.unwrap(), 2);
        Ok(())
    });
    service.join(Some(LONG)).unwrap();
}

#[test]
fn block_in_place_allows_nothing_in_a_foreign_worker() {
    let refused = block_on(async { block_in_place(|| CloseScope::new().wait_blocking(Some(SOON))) });
    assert_eq!(refused.unwrap_err(), WaitError::WouldBlock);
    assert_eq!(block_in_place(|| CloseScope::new().wait_blocking(Some(SOON))).unwrap_err(), WaitError::TimedOut);
}

#[test]
fn what_is_sent_before_the_start_is_done_after_it() {
    let service = LoopServiceThread::new("early", idle);
    let handle = service.handle();
    let (tell, told) = mpsc::channel();
    handle.call_soon(move || tell.send(1).unwrap()).unwrap();
    let task = handle.submit(async { 2 });
    let mut call = Box::pin(handle.call(|| 3));
    assert!(poll_once(&mut call).is_pending());
    service.start().unwrap();
    assert_eq!(told.recv_timeout(LONG).unwrap(), 1);
    assert_eq!(task.wait_blocking(Some(LONG)).unwrap(), 2);
    assert_eq!(block_on(call).unwrap(), 3);
    end(&service);
}

#[test]
fn a_stop_before_the_start_answers_what_was_queued() {
    let service = LoopServiceThread::new("early", idle);
    let handle = service.handle();
    let task = handle.submit(async { 2 });
    service.stop("never mind".into());
    assert_eq!(closed(task.wait_blocking(Some(LONG))), "never mind");
    assert_eq!(closed(handle.call_sync(|| (), Some(LONG))), "never mind");
    service.start().unwrap();
    assert!(matches!(service.wait_started(Some(LONG)), Err(ServiceError::Stopped { .. })));
    service.join(Some(LONG)).unwrap();
}

/// The jobs in the queue are the users'; one that panics when it is dropped must keep no other from its answer.
#[test]
fn a_queued_job_that_panics_when_dropped_keeps_no_other_from_its_answer() {
    for before_start in [true, false] {
        within(move || {
            let service = LoopServiceThread::new("bad-job", idle);
            let mut release = None;
            if !before_start {
                service.start().unwrap();
                service.wait_started(Some(LONG)).unwrap();
                release = Some(busy(&service.handle()));
            }
            let handle = service.handle();
            let guard = OnDrop(|| panic!("in drop"));
            handle.call_soon(move || drop(guard)).unwrap();
            let task = handle.submit(async { 2 });
            if before_start {
                service.stop("bye".into());
            } else {
                service.stop("bye".into());
                drop(release);
            }
            let _ended = task.wait_blocking(Some(LONG));
            service.join(Some(LONG)).unwrap();
        });
    }
}

#[test]
fn the_last_handle_of_the_service_dropped_before_the_start_answers_what_was_queued() {
    let service = LoopServiceThread::new("orphan", idle);
    let handle = service.handle();
    let task = handle.submit(async { 2 });
    drop(service);
    assert_eq!(closed(task.wait_blocking(Some(LONG))), "owner dropped");
    assert_eq!(closed(handle.call_soon(|| ())), "owner dropped");
}

/// bellows#745.
#[test]
fn a_handle_that_is_kept_after_the_end_answers_with_the_reason() {
    let service = begun("ended", idle);
    let handle = service.handle();
    end(&service);
    drop(service);
    let (ran, flag) = {
        let ran = Arc::new(AtomicBool::new(false));
        (ran.clone(), ran)
    };
    assert_eq!(closed(handle.call_soon(move || flag.store(true, Ordering::SeqCst))), "bye");
    assert_eq!(closed(handle.call_sync(|| (), None)), "bye");
    assert_eq!(closed(handle.submit(async {}).wait_blocking(None)), "bye");
    assert_eq!(closed(handle.submit_local(|| async {}).wait_blocking(None)), "bye");
    assert_eq!(closed(handle.ping().wait_blocking(None)), "bye");
    assert!(!ran.load(Ordering::SeqCst));
    assert_eq!(closed(run_threads(async move { handle.call(|| ()).await })), "bye");
}

#[test]
fn what_is_queued_or_runs_when_the_loop_fails_gets_its_cause() {
    let (fail, failing) = tokio::sync::oneshot::channel::<Failure>();
    let service = begun("dies", |cx| async move {
        cx.started();
        Err(failing.await?)
    });
    let handle = service.handle();
    let (running, is_running) = mpsc::channel();
    let task = handle.submit(async move {
        running.send(()).unwrap();
        pending::<()>().await
    });
    is_running.recv_timeout(LONG).unwrap();
    let cause = Failure::msg("eof");
    fail.send(cause.clone()).unwrap();
    assert!(cause_of(task.wait_blocking(Some(LONG))).ptr_eq(&cause), "in mid-call");
    assert!(failure(service.join(Some(LONG))).ptr_eq(&cause));
    assert!(service.scope().cause().unwrap().ptr_eq(&cause));
    assert!(cause_of(handle.call_sync(|| (), None)).ptr_eq(&cause), "late");
}

#[test]
fn what_is_sent_in_a_race_with_the_stop_always_ends() {
    within(|| {
        for round in 0..scaled(200) {
            let service = begun("race", idle);
            let handle = service.handle();
            thread::scope(|threads| {
                threads.spawn(|| {
                    for _ in 0..20 {
                        let result = if round % 2 == 0 {
                            handle.submit(async { 1 }).wait_blocking(Some(LONG))
                        } else {
                            handle.call_sync(|| 1, Some(LONG))
                        };
                        assert!(matches!(result, Ok(1) | Err(CallError::Closed(_))), "{result:?}");
                    }
                });
                service.stop("now".into());
            });
            service.join(Some(LONG)).unwrap();
        }
    });
}

#[test]
fn what_is_sent_while_the_service_stops_is_refused_at_once() {
    let (release, wait) = tokio::sync::oneshot::channel::<()>();
    let service = begun("stopping", |cx| async move {
        cx.started();
        let _released = shield(wait).await;
        Ok(())
    });
    let handle = service.handle();
    service.stop("bye".into());
    assert_eq!(closed(handle.call_sync(|| (), None)), "bye");
    assert_eq!(closed(handle.submit(async {}).wait_blocking(None)), "bye");
    assert_eq!(service.state(), ServiceState::Stopping);
    release.send(()).unwrap();
    service.join(Some(LONG)).unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "starts a process")]
fn what_was_queued_for_a_thread_that_cannot_be_had_gets_the_cause() {
    if !without_threads("rt::loop_thread::what_was_queued_for_a_thread_that_cannot_be_had_gets_the_cause") {
        return;
    }
    let service = LoopServiceThread::new("nowhere", idle);
    let task = service.handle().submit(async {});
    assert!(matches!(service.start(), Err(ServiceError::Spawn { .. })));
    let cause = cause_of(task.wait_blocking(Some(LONG)));
    assert!(matches!(cause.downcast_ref(), Some(ServiceError::Spawn { .. })));
}

// ---- the end

#[test]
fn a_main_future_that_returns_before_ready_is_exited_before_ready() {
    let service = LoopServiceThread::new("silent", |_| async { Ok(()) });
    service.start().unwrap();
    assert!(matches!(service.wait_started(Some(LONG)), Err(ServiceError::ExitedBeforeReady { .. })));
    assert!(matches!(service.join(Some(LONG)), Err(ServiceError::ExitedBeforeReady { .. })));
    let error = cause_of(service.handle().call_sync(|| (), None));
    assert!(matches!(error.downcast_ref(), Some(ServiceError::ExitedBeforeReady { .. })));
}

#[test]
fn an_error_before_ready_is_told_by_readiness_too() {
    let cause = Failure::msg("no port");
    let main = cause.clone();
    let service = LoopServiceThread::new("fails", |_| async { Err(main) });
    let early = service.handle().submit(pending::<()>());
    service.start().unwrap();
    assert!(failure(service.wait_started(Some(LONG))).ptr_eq(&cause));
    assert!(cause_of(early.wait_blocking(Some(LONG))).ptr_eq(&cause));
}

#[test]
fn a_panic_of_the_main_future_is_told_with_its_message() {
    for late in [false, true] {
        let service = LoopServiceThread::new("panics", move |cx| async move {
            if late {
                yield_now().await;
                cx.started();
            }
            panic!("boom")
        });
        service.start().unwrap();
        let ended = service.join(Some(LONG)).unwrap_err();
        assert!(matches!(&ended, ServiceError::Panicked { message, .. } if message == "boom"), "{ended:?}");
        assert_eq!(service.wait_started(None).is_ok(), late);
    }
}

#[test]
fn a_failure_of_a_task_of_the_group_ends_the_service_and_names_the_task() {
    let (dropped, hears) = mpsc::channel();
    let service = begun("parent", |cx| async move {
        let _guard = OnDrop(move || dropped.send(()).unwrap());
        cx.started();
        cx.task_group().start_soon("reader", async { Err(Failure::msg("eof")) });
        pending().await
    });
    let cause = failure(service.join(Some(LONG)));
    let error: &GroupError = cause.downcast_ref().unwrap();
    assert_eq!(error.to_string(), "reader failed: eof");
    assert!(service.scope().cause().unwrap().ptr_eq(&cause));
    hears.try_recv().expect("the main future was cancelled");
}

#[test]
fn the_service_goes_on_until_the_last_task_of_its_group_has_ended() {
    let (release, wait) = tokio::sync::oneshot::channel::<()>();
    let service = begun("parent", |cx| async move {
        cx.started();
        cx.task_group().start_soon("last", async { Ok(wait.await?) });
        Ok(())
    });
    assert_eq!(service.handle().call_sync(|| 7, Some(LONG)).unwrap(), 7, "the main future has ended, or is about to");
    assert!(matches!(service.join(Some(SOON)), Err(ServiceError::TimedOut { state: ServiceState::Ready, .. })));
    release.send(()).unwrap();
    service.join(Some(LONG)).unwrap();
    assert_eq!(service.scope().reason().unwrap().to_string(), "parent has ended");
}

#[test]
fn a_stop_cancels_the_main_future_and_the_tasks_with_its_reason() {
    let (tell, told) = mpsc::channel();
    let service = begun("parent", |cx| async move {
        let scope = cx.task_group().scope().clone();
        let _guard = OnDrop(move || tell.send(scope.reason().unwrap().to_string()).unwrap());
        cx.task_group().start_soon("child", pending());
        cx.started();
        pending().await
    });
    end(&service);
    assert_eq!(told.try_recv().unwrap(), "bye");
}

#[test]
fn an_error_of_a_task_while_it_is_stopped_is_not_swallowed() {
    let (release, wait) = tokio::sync::oneshot::channel::<()>();
    let service = begun("goodbye", |cx| async move {
        cx.started();
        let _released = shield(wait).await;
        Err(Failure::msg("the flush failed"))
    });
    let task: Submitted<()> = service.handle().submit(pending());
    service.stop("bye".into());
    assert_eq!(closed(task.wait_blocking(Some(LONG))), "bye", "the loop has begun to end");
    release.send(()).unwrap();
    assert_eq!(failure(service.join(Some(LONG))).to_string(), "the flush failed");
}

#[test]
fn a_cancel_of_the_group_from_inside_ends_the_service_in_order() {
    let service = begun("quits", |cx| async move {
        cx.started();
        cx.task_group().cancel("enough");
        pending().await
    });
    service.join(Some(LONG)).unwrap();
    let early = LoopServiceThread::new("quits-early", |cx| async move {
        cx.task_group().cancel("enough");
        pending().await
    });
    early.start().unwrap();
    assert!(matches!(early.join(Some(LONG)), Err(ServiceError::ExitedBeforeReady { .. })));
}

#[test]
fn tasks_that_ignore_the_stop_are_aborted_at_the_end_of_the_grace() {
    for ticks in [false, true] {
        let (tell, told) = mpsc::channel();
        let service = LoopServiceThread::new("stubborn", move |cx| async move {
            let _guard = OnDrop(move || tell.send(()).unwrap());
            cx.task_group().start_soon("child", shield(pending()));
            cx.started();
            shield(async {
                if ticks {
                    loop {
                        sleep(SOON / 8).await;
                    }
                }
            })
            .await;
            shield(pending()).await
        });
        let service = service.with_grace(2 * SOON);
        let task: Submitted<()> = service.handle().submit(shield(pending()));
        service.start().unwrap();
        service.wait_started(Some(LONG)).unwrap();
        let begin = Instant::now();
        service.stop("bye".into());
        service.join(Some(LONG)).unwrap();
        let took = begin.elapsed();
        assert!(took >= 2 * SOON && took < 2 * SOON + LONG / 16, "{took:?}");
        told.try_recv().expect("dropped");
        assert_eq!(closed(task.wait_blocking(Some(LONG))), "bye");
    }
}

#[test]
fn a_submitted_future_under_a_shield_has_the_grace_to_end() {
    let service = begun("polite", idle).with_grace(LONG);
    let (release, wait) = tokio::sync::oneshot::channel::<()>();
    let (running, is_running) = mpsc::channel();
    let task = service.handle().submit(shield(async move {
        running.send(()).unwrap();
        wait.await.is_ok()
    }));
    is_running.recv_timeout(LONG).unwrap();
    service.stop("bye".into());
    assert!(matches!(service.join(Some(SOON)), Err(ServiceError::TimedOut { state: ServiceState::Stopping, .. })));
    release.send(()).unwrap();
    assert!(task.wait_blocking(Some(LONG)).unwrap());
    service.join(Some(LONG)).unwrap();
}

/// tokio#1923, tokio#5338.
#[test]
fn a_blocking_job_does_not_delay_the_exit_beyond_the_grace() {
    let (release, wait) = mpsc::channel::<()>();
    let (running, is_running) = mpsc::channel();
    let service = LoopServiceThread::new("pool", move |cx| async move {
        drop(tokio::task::spawn_blocking(move || {
            running.send(()).unwrap();
            let _released = wait.recv();
        }));
        cx.started();
        pending().await
    });
    let service = service.with_grace(SOON);
    service.start().unwrap();
    is_running.recv_timeout(LONG).unwrap();
    let begin = Instant::now();
    end(&service);
    assert!(begin.elapsed() < LONG / 4, "{:?}", begin.elapsed());
    drop(release);
}

/// tauri#5068.
#[test]
fn dropping_every_handle_inside_an_async_fn_does_not_panic() {
    let (tell, told) = mpsc::channel();
    run_threads(async move {
        let service = LoopServiceThread::new("dropped", |cx| async move {
            let scope = cx.scope().clone();
            let _guard = OnDrop(move || tell.send(scope.reason().map(|why| why.to_string())).unwrap());
            cx.started();
            pending().await
        });
        service.start().unwrap();
        service.ready().await.unwrap();
        let (handle, clone) = (service.handle(), service.clone());
        let task: Submitted<()> = handle.submit(pending());
        drop((service, handle, clone));
        assert_eq!(closed(task.await), "owner dropped");
    });
    assert_eq!(told.recv_timeout(LONG).unwrap().as_deref(), Some("owner dropped"));
}

#[test]
fn the_last_handle_may_be_dropped_on_the_loop_itself() {
    let (tell, told) = mpsc::channel();
    let service = begun("self", |cx| async move {
        let _guard = OnDrop(move || tell.send(()).unwrap());
        cx.started();
        pending().await
    });
    let handle = service.handle();
    let _may_lose_to_the_stop = handle.call_soon(move || drop(service));
    told.recv_timeout(LONG).unwrap();
    assert!(matches!(handle.call_sync(|| (), Some(LONG)), Err(CallError::Closed(Reason::OwnerDropped))));
}

#[test]
fn loops_in_a_group_start_roll_back_and_stop() {
    let (one, two) = (LoopServiceThread::new("one", idle), LoopServiceThread::new("two", idle));
    let mut group = ServiceGroup::new("loops");
    group.add(one.clone()).add(two.clone());
    group.start_all(Some(LONG)).unwrap();
    let report = group.stop_join("bye", Some(LONG));
    assert!(report.errors.is_empty() && report.stuck.is_empty(), "{report:?}");
    let (one, bad) = (LoopServiceThread::new("one", idle), LoopServiceThread::new("bad", |_| async { Ok(()) }));
    let mut group = ServiceGroup::new("loops");
    group.add(one.clone()).add(bad);
    let error = group.start_all(Some(LONG)).unwrap_err();
    assert_eq!((error.failed.service(), error.stopped, one.state()), ("bad", vec!["one".into()], ServiceState::Done));
}

#[test]
fn a_submission_that_has_ended_is_not_cancelled() {
    let service = LoopServiceThread::new("service", idle);
    service.start().unwrap();
    let mut done = service.handle().submit(async { 1 });
    service.handle().submit(async {}).wait_blocking(Some(LONG)).unwrap();
    assert!(!done.cancel("too late"));
    assert!(matches!(poll_once(&mut done), std::task::Poll::Ready(Ok(1))));
}

/// A failure cancels the siblings; one that ignores that has the grace, and then the service ends all the same.
#[test]
fn a_failure_ends_the_service_though_a_sibling_ignores_its_cancel() {
    let service = LoopServiceThread::new("service", |cx| async move {
        cx.task_group().start_soon("stubborn", shield(pending()));
        cx.started();
        yield_now().await;
        cx.task_group().start_soon("failing", async { Err(Failure::msg("broken")) });
        pending().await
    })
    .with_grace(Duration::from_millis(20));
    service.start().unwrap();
    let Err(ServiceError::Failed { cause, .. }) = service.join(Some(LONG)) else { panic!("not failed") };
    assert_eq!(cause.to_string(), "failing failed: broken");
    assert!(service.scope().cause().unwrap().ptr_eq(&cause));
}

#[test]
fn a_grace_that_the_clock_cannot_tell_is_as_long_as_it_takes() {
    let (told, hears) = mpsc::channel();
    let service = LoopServiceThread::new("patient", move |cx: LoopContext| async move {
        assert_eq!(cx.name(), "patient");
        let (tell, stopped) = (told.clone(), cx.scope().closed());
        cx.task_group().start_soon(
            "slow",
            shield(async move {
                tell.send("begun")?;
                stopped.await;
                for _ in 0..scaled(100_000) {
                    yield_now().await;
                }
                tell.send("done")?;
                Ok(())
            }),
        );
        cx.started();
        pending().await
    });
    let service = service.with_grace(Duration::MAX);
    service.start().unwrap();
    assert_eq!(hears.recv_timeout(LONG), Ok("begun"));
    service.stop("bye".into());
    service.join(Some(LONG)).unwrap();
    assert_eq!(hears.recv_timeout(LONG), Ok("done"));
}
