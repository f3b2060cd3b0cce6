//! User code that we call (gates, keys, handlers, functions on a loop, bodies) and that uses what it is called by.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;

use microio::{
    ActorCore, Failure, Floor, Mailbox, PriorityMailbox, Release, Sender, Service, ServiceError, ServiceThread, Stopped,
};
use proptest::prelude::*;

use super::check;
use crate::support::{poll_once, ready};

/// One act on the own mailbox.
fn meddle(act: u8, tx: &Sender<u8>, floor: Option<&Floor<u8>>) {
    match act {
        0 | 1 => drop(tx.try_send(act)),
        2 => _ = tx.close(),
        3 => _ = tx.fail(Failure::msg("from inside")),
        4 => floor.into_iter().for_each(|floor| floor.set(Some(1))),
        5 => floor.into_iter().for_each(|floor| floor.set(None)),
        6 => panic_quietly(),
        _ => assert!(tx.stats().sent > 0),
    }
}

fn panic_quietly() {
    resume_unwind(Box::new("a whim"));
}

fn acts() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0..8u8, 0..10)
}

#[test]
fn a_gate_and_a_key_that_use_their_own_mailbox_lose_nothing() {
    check(128, (acts(), acts(), 1..5u8), |(gates, keys, items)| {
        let ends = Arc::new(Mutex::new(None::<(Sender<u8>, Floor<u8>)>));
        let code = |acts: Vec<u8>| {
            let (ends, acts) = (ends.clone(), Mutex::new(acts));
            move |_: &u8| {
                let act = acts.lock().unwrap().pop();
                let ends = ends.lock().unwrap().clone();
                if let (Some(act), Some((tx, floor))) = (act, ends) {
                    meddle(act, &tx, Some(&floor));
                }
            }
        };
        let (gate, key) = (code(gates), code(keys));
        let mailbox = PriorityMailbox::new(move |item: &u8| {
            key(item);
            *item
        });
        let mut mailbox = mailbox.with_gate(move |item| {
            gate(item);
            true
        });
        *ends.lock().unwrap() = Some((mailbox.sender(), mailbox.floor()));
        (0..items).for_each(|item| assert!(mailbox.submit(item)));
        let mut out = 0;
        for step in 0..40 {
            let got = catch_unwind(AssertUnwindSafe(|| match step % 2 {
                0 => usize::from(matches!(poll_once(&mut pin!(mailbox.recv())), Poll::Ready(Ok(_)))),
                _ => mailbox.drain(Some(1)).len(),
            }));
            out += got.unwrap_or(0);
            let stats = mailbox.stats();
            assert_eq!(stats.sent, stats.received + stats.queued);
            assert!(stats.received >= out as u64);
        }
        mailbox.floor().set(None);
        assert_eq!(mailbox.stats().queued, 0, "40 calls come to the end of it");
        ends.lock().unwrap().take();
    });
}

#[test]
fn a_handler_that_uses_its_own_actor_ends_or_stops_it_and_gives_the_rest_back() {
    check(128, (acts(), 1..5u8, any::<bool>()), |(mut acts, items, concurrent)| {
        let mut actor = ActorCore::new(Mailbox::new());
        let tx = actor.sender();
        (0..items).for_each(|item| assert!(actor.submit(item)));
        let mut handled = 0u64;
        let mut handle = |_: u8| {
            handled += 1;
            match acts.pop() {
                Some(act) => meddle(act, &tx, None),
                None => _ = tx.close(),
            }
        };
        let close = tx.clone();
        // What the handlers left open is closed when there is nothing left to do.
        let run_out = async |mut run: Pin<&mut dyn Future<Output = Result<(), Stopped<u8>>>>| {
            if let Poll::Ready(ended) = poll_once(&mut run) {
                return ended;
            }
            assert!(close.close());
            ready(run)
        };
        let ended = if concurrent {
            let handle = |item, release: Release| {
                release.release();
                handle(item);
                release.release();
                async { Ok(()) }
            };
            ready(run_out(pin!(actor.run_concurrent(handle))))
        } else {
            let handle = async |item| {
                handle(item);
                Ok(())
            };
            ready(run_out(pin!(actor.run(handle))))
        };
        let unhandled = ended.map_or_else(|stopped| stopped.unhandled.len(), |()| 0);
        let stats = tx.stats();
        assert!(stats.closed);
        assert_eq!((stats.queued, stats.received, stats.sent), (0, stats.sent, handled + unhandled as u64));
    });
}

#[test]
fn a_body_that_uses_its_own_service_is_told_what_it_may_not_and_ends() {
    check(64, prop::collection::vec(0..8u8, 0..8), |acts| {
        let ((give, take), panics) = (mpsc::channel::<ServiceThread>(), acts.contains(&7));
        let service = ServiceThread::new("own", move |cx| {
            let mut own = Some(take.recv().unwrap());
            for act in acts {
                match (act, &own) {
                    (0 | 1, _) => cx.started(),
                    (2, Some(own)) => {
                        let refused = [own.join(None), own.wait_started(None)];
                        assert!(refused.iter().all(|done| matches!(done, Err(ServiceError::WouldBlock { .. }))));
                        assert!(!own.join_or_log(None));
                    }
                    (3, Some(own)) => assert!(matches!(own.start(), Err(ServiceError::AlreadyStarted { .. }))),
                    (4, Some(own)) => {
                        let open = !cx.scope().is_closed();
                        assert_eq!(own.stop("from inside".into()), open);
                    }
                    (5, _) => own = None,
                    (6, _) => _ = cx.scope().fail(Failure::msg("from inside")),
                    (7, _) => panic_quietly(),
                    _ => {}
                }
            }
            Ok(())
        });
        service.start().unwrap();
        give.send(service.clone()).unwrap();
        let scope = service.scope().clone();
        let ready = service.wait_started(None);
        let joined = service.join(None);
        assert_eq!(joined.is_ok(), scope.cause().is_none() && !panics);
        assert!(scope.is_closed());
        drop(service);
        // The answers are durable, and readiness may have been said before the failure.
        assert!(ready.is_ok() || joined.is_err() || matches!(ready, Err(ServiceError::Stopped { .. })));
    });
}

#[cfg(feature = "tokio")]
mod loops {
    use microio::{CallError, LoopServiceThread, block_in_place};

    use super::*;
    use crate::support::{LONG, OnDrop};

    /// What code on the loop, or the drop of what was sent to it, does with its own loop.
    fn meddle(act: u8, seat: &Mutex<Option<LoopServiceThread>>) {
        let Some(service) = seat.lock().unwrap().clone() else { return };
        let handle = service.handle();
        let here = handle.call_sync(|| std::thread::current().id(), Some(LONG));
        let inside = matches!(here, Ok(id) if id == std::thread::current().id());
        match act {
            0 => drop(handle.call_soon(|| ())),
            1 => drop(handle.submit(async { 1 })),
            2 => _ = handle.submit(std::future::pending::<()>()).cancel("at once"),
            3 if inside => {
                let on_itself = || handle.submit(async {}).wait_blocking(None);
                assert!(matches!(on_itself(), Err(CallError::WouldBlock)));
                assert!(matches!(block_in_place(on_itself), Err(CallError::WouldBlock)));
                assert!(matches!(service.join(None), Err(ServiceError::WouldBlock { .. })));
                assert!(matches!(service.wait_started(None), Err(ServiceError::WouldBlock { .. })));
            }
            4 => _ = service.stop("from inside".into()),
            5 => drop(seat.lock().unwrap().take()),
            6 if inside => panic_quietly(),
            _ => {}
        }
    }

    #[test]
    fn what_runs_on_a_loop_and_uses_that_loop_neither_hangs_nor_is_left_unanswered() {
        check(48, prop::collection::vec((0..4u8, 0..7u8), 0..12), |acts| {
            let service = LoopServiceThread::new("own", |cx| async move {
                cx.started();
                cx.scope().closed().await;
                Ok(())
            });
            let (handle, scope) = (service.handle(), service.scope().clone());
            let done = {
                let service = service.clone();
                move || service.join(Some(LONG))
            };
            let seat = Arc::new(Mutex::new(Some(service)));
            seat.lock().unwrap().as_ref().unwrap().start().unwrap();
            let (token, mut calls) = (Arc::new(()), Vec::new());
            let stops = acts.iter().any(|(_, act)| *act == 4);
            for (how, act) in acts {
                let (seat, held) = (seat.clone(), token.clone());
                let code = move || {
                    let _held = held;
                    meddle(act, &seat);
                };
                match how {
                    0 => drop(handle.call_soon(code)),
                    1 => calls.push(handle.submit(async move { code() })),
                    2 => calls.push(handle.submit_local(move || async move { code() })),
                    _ => {
                        let mut code = Some(code);
                        let guard = OnDrop(move || {
                            // A drop that panics is logged; here it only meddles.
                            if let Some(code) = code.take().filter(|_| act != 6) {
                                code();
                            }
                        });
                        drop(handle.call_soon(move || drop(guard)));
                    }
                }
            }
            for call in calls {
                match call.wait_blocking(Some(LONG)) {
                    Ok(()) | Err(CallError::Panicked(_)) => {}
                    Err(CallError::Closed(_)) => assert!(stops),
                    other => panic!("{other:?}"),
                }
            }
            scope.close("over");
            done().unwrap();
            assert!(matches!(handle.call_soon(|| ()), Err(CallError::Closed(_))));
            drop((seat, done));
            assert_eq!(Arc::strong_count(&token), 1);
        });
    }
}
