//! Names, reasons and causes: any text or none, names that come twice, errors that are bad ones themselves.

use std::error::Error;
use std::fmt;

use microio::{
    CancelScope, CloseScope, Failure, RecvError, RequestRegistry, Service, ServiceError, ServiceGroup, ServiceThread,
    channel,
};
use proptest::prelude::*;

use super::check;
use crate::support::{Hand, ready, within};

/// No text, a NUL, lines, nothing that is ASCII, a lot of it.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("\0".to_owned()),
        Just("two\nlines\r\n".to_owned()),
        Just("{} {0} %s \u{1b}[31m".to_owned()),
        Just("\u{202e}\u{0301}\u{1f980}".to_owned()),
        (1..200_000usize).prop_map(|len| "n".repeat(len)),
        any::<Vec<char>>().prop_map(String::from_iter),
    ]
}

#[test]
fn any_text_is_a_reason_and_a_cause_and_comes_out_whole() {
    check(32, texts(), |text| {
        let (closed, failed, cancelled) = (CloseScope::new(), CloseScope::new(), CancelScope::new());
        closed.link(&cancelled);
        closed.close(text.clone());
        failed.fail(Failure::msg(text.clone()));
        for reason in [closed.reason(), failed.reason(), cancelled.child().reason()] {
            assert_eq!(reason.unwrap().to_string(), text);
        }
        assert_eq!(format!("{}|{:#}", failed.cause().unwrap(), failed.cause().unwrap()), format!("{text}|{text}"));

        let (tx, mut rx) = channel::<u8>();
        tx.fail(Failure::msg(text.clone()));
        assert!(matches!(ready(rx.recv()), Err(RecvError::Failed(cause)) if cause.to_string() == text));
        let requests = RequestRegistry::<String, u8>::bound_to(&closed);
        assert_eq!(requests.register(text.clone()).unwrap_err().to_string(), text);
    });
}

#[test]
fn a_service_of_any_name_runs_or_says_that_no_thread_can_have_it() {
    check(32, texts(), |name| {
        let service = ServiceThread::new(name.clone(), |_| Err(Failure::msg("as it should")));
        assert!(service.name() == name && format!("{service:?}").len() > name.len());
        match service.start() {
            Ok(()) => {
                assert!(matches!(service.join(None), Err(ServiceError::Failed { service, .. }) if service == name))
            }
            Err(error) => {
                assert!(matches!(error, ServiceError::Spawn { .. }) && name.contains('\0'), "{error}");
                assert!(service.join(None).is_err(), "the same for those who join");
            }
        }
        assert_eq!(service.wait_started(None).unwrap_err().service(), name);
    });
}

#[test]
fn services_of_one_name_are_each_in_the_report() {
    check(8, (texts(), 2..5usize), |(name, count)| {
        let name = name.replace('\0', "");
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let gate = std::sync::Arc::new(std::sync::Mutex::new(gate));
        let mut group = ServiceGroup::new(name.clone());
        for _ in 0..count {
            let gate = gate.clone();
            group.add(ServiceThread::new(name.clone(), move |cx| {
                cx.started();
                let _released = gate.lock().unwrap().recv();
                Err(Failure::msg("as it should"))
            }));
        }
        group.start_all(None).unwrap();
        let stuck = group.stop_join(name.clone(), Some(std::time::Duration::ZERO)).stuck;
        assert_eq!(stuck, vec![name.clone(); count]);
        drop(release);
        let errors = group.stop_join("again", None).errors;
        assert!(errors.len() == count && errors.iter().all(|error| error.service() == name));
    });
}

/// An error of the worst kind.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bad {
    PanicsInDisplay,
    FailsInDisplay,
    PanicsInSource,
    CausedItself,
    PanicsInDrop,
}

#[derive(Debug)]
struct BadError(Bad);

impl fmt::Display for BadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Bad::PanicsInDisplay => std::panic::resume_unwind(Box::new("unprintable")),
            Bad::FailsInDisplay => Err(fmt::Error),
            _ => f.write_str("bad"),
        }
    }
}

impl Error for BadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self.0 {
            Bad::PanicsInSource => std::panic::resume_unwind(Box::new("no source")),
            Bad::CausedItself => Some(self),
            _ => None,
        }
    }
}

impl Drop for BadError {
    fn drop(&mut self) {
        if self.0 == Bad::PanicsInDrop && !std::thread::panicking() {
            std::panic::resume_unwind(Box::new("undroppable"))
        }
    }
}

fn bad() -> impl Strategy<Value = Bad> {
    use Bad::*;
    prop::sample::select(vec![PanicsInDisplay, FailsInDisplay, PanicsInSource, CausedItself])
}

#[test]
fn a_bad_error_is_printed_somehow() {
    check(16, bad(), |bad| {
        let cause = Failure::from(BadError(bad));
        assert!(!cause.to_string().is_empty() && !format!("{cause:#}").is_empty());
    });
}

#[test]
fn a_bad_error_ends_whoever_waits_and_what_is_linked_like_any_other() {
    check(32, bad(), |bad| {
        let cause = Failure::from(BadError(bad));
        let (scope, linked, hand) = (CloseScope::new(), CancelScope::new(), Hand::new());
        scope.link(&linked);
        let requests = RequestRegistry::<u8, u8>::bound_to(&scope);
        let service = ServiceThread::new("never started", |_| Ok(()));
        let mut group = ServiceGroup::new("group");
        group.add(service.clone());
        let mut closed = Box::pin(scope.closed());
        assert!(hand.poll(&mut closed).is_pending());
        assert!(scope.fail(cause.clone()) && service.scope().fail(cause.clone()));
        assert_eq!((hand.wakes(), linked.is_cancelled()), (1, true));
        assert!(requests.register(1).is_err() && group.scope().is_closed());
        assert!(scope.reason().is_some() && scope.cause().unwrap().ptr_eq(&cause));
        assert!(matches!(group.start_all(None).unwrap_err().failed, ServiceError::Failed { .. }));
    });
}

#[test]
fn a_service_that_ends_with_a_bad_error_has_ended() {
    check(32, (bad(), any::<bool>(), any::<bool>()), |(bad, ready, stopped)| {
        let service = ServiceThread::new("bad", move |cx| {
            if ready {
                cx.started();
            }
            if stopped {
                cx.scope().wait_blocking(None)?;
            }
            Err(BadError(bad).into())
        });
        let mut group = ServiceGroup::new("group");
        group.add(service.clone());
        if ready || !stopped {
            assert!(group.start_all(None).is_ok() || !ready || !stopped);
        } else {
            service.start().unwrap();
        }
        service.stop("over".into());
        let cause = match service.join(None) {
            Err(ServiceError::Failed { cause, .. }) => cause,
            other => panic!("{other:?}"),
        };
        assert!(cause.downcast_ref::<BadError>().is_some());
        assert_eq!(group.stop_join("over", None).errors.len(), 1);
    });
}

/// Its last clone is dropped wherever that happens to be.
#[test]
fn an_error_that_panics_when_dropped_keeps_no_service_from_its_end() {
    within(|| {
        let service = ServiceThread::new("bad", |cx| {
            cx.scope().fail(Failure::msg("the first"));
            Err(BadError(Bad::PanicsInDrop).into())
        });
        service.start().unwrap();
        assert!(service.join(None).is_err());
    });
}

#[cfg(feature = "tokio")]
mod tasks {
    use std::future::pending;
    use std::time::Duration;

    use microio::{Cancelled, LoopServiceThread, StartError, TaskGroup, TaskOutcome, shield, sleep};

    use super::*;
    use crate::support::run;

    #[test]
    fn tasks_of_any_name_or_of_one_name_are_told_apart_only_by_their_number() {
        check(24, (texts(), 1..4usize), |(name, count)| {
            run(async move {
                let group = TaskGroup::new();
                for _ in 0..count {
                    group.start_soon(name.clone(), shield(pending()));
                }
                sleep(Duration::from_millis(1)).await;
                let report = group.shutdown(name.clone(), Duration::ZERO).await;
                assert_eq!(report.aborted, vec![name.clone(); count]);

                let group = TaskGroup::new();
                let task = group.create_task(name.clone(), async { Err::<(), _>(Failure::msg("as it should")) });
                assert!(matches!(task.await, TaskOutcome::Failed(_)));
                assert_eq!(group.join().await.unwrap_err().failures[0].0, name);
            });
        });
    }

    #[test]
    fn a_loop_of_any_name_runs_or_says_that_no_thread_can_have_it() {
        check(16, texts(), |name| {
            let service = LoopServiceThread::new(name.clone(), |cx| async move {
                assert!(!cx.name().contains('\0'));
                Err(Failure::msg("as it should"))
            });
            assert_eq!(service.name(), name);
            let started = service.start();
            assert_eq!(started.is_err(), name.contains('\0'));
            let error = service.join(None).unwrap_err();
            assert_eq!((error.service(), matches!(error, ServiceError::Failed { .. })), (&*name, started.is_ok()));
        });
    }

    #[test]
    fn a_task_that_fails_with_a_bad_error_has_ended_also_in_a_cancelled_group() {
        check(32, (bad(), any::<bool>(), any::<bool>()), |(bad, cancelled, own)| {
            run(async move {
                let group = TaskGroup::new();
                let last = group.clone();
                let task = group.create_task(
                    "bad",
                    shield(async move {
                        if cancelled {
                            last.cancel("over");
                        }
                        Err::<(), _>(BadError(bad).into())
                    }),
                );
                if own {
                    task.cancel("alone");
                }
                let outcome = task.await;
                assert!(own || matches!(outcome, TaskOutcome::Failed(_)), "{outcome:?}");
                let failures = group.join().await.err().map_or(0, |error| error.failures.len());
                assert_eq!(failures, usize::from(matches!(outcome, TaskOutcome::Failed(_))));

                let group = TaskGroup::new();
                let started = group
                    .start("bad", move |_: microio::TaskStatus<()>| async move { Err(BadError(bad).into()) })
                    .await;
                assert!(matches!(started, Err(StartError::Failed(_))));
                group.join().await.unwrap();
            });
        });
    }

    /// What the body says is looked at more closely when it was cancelled: whether it only repeats that.
    #[test]
    fn a_block_whose_body_ends_with_a_bad_error_ends() {
        check(16, (bad(), any::<bool>()), |(bad, cancelled)| {
            run(async move {
                let ended = microio::task_group(async |tg| {
                    if cancelled {
                        tg.cancel("over");
                    }
                    Err::<(), _>(Failure::from(BadError(bad)))
                });
                assert_eq!(ended.await.unwrap_err().failures.len(), 1);
            });
        });
    }

    #[test]
    fn a_cancelled_in_the_chain_is_found_behind_any_error() {
        let scope = CancelScope::new();
        scope.cancel("over");
        let cancelled: Cancelled = scope.check().unwrap_err();
        run(async move {
            let group = TaskGroup::new();
            group.cancel("over");
            let ended = microio::task_group(async |tg| {
                tg.cancel("over");
                Err::<(), _>(Failure::from(cancelled))
            });
            assert!(ended.await.unwrap_err().failures.is_empty());
        });
    }
}
