//! Models: every interleaving of two or three threads, up to a bounded number of preemptions.
//!
//! `make loom` runs them. Each states its invariant; what the model cannot see (time, tokio) is in `tests/it`.
#![cfg(loom)]

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use microio::host::{Park, block_on_with};
use microio::{
    CancelScope, CloseScope, Failure, LateSend, PriorityMailbox, RecvError, RequestError, RequestRegistry, Service,
    ServiceError, ServiceThread, TryRecvError, TrySendError, WorkTracker, bounded, channel, shield,
};

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(f);
}

/// A waker that wakes nobody, to park a future by hand.
struct Ignore;

impl Wake for Ignore {
    fn wake(self: std::sync::Arc<Self>) {}
}

/// A host that parks loom's threads: blocks on any future.
struct Parker(thread::Thread);

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

impl Park for Parker {
    type Stop = ();
    fn waker(&self) -> Waker {
        Waker::from(std::sync::Arc::new(Unpark(self.0.clone())))
    }
    fn park(&self, _: Option<std::time::Instant>) -> Result<(), ()> {
        thread::park();
        Ok(())
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    block_on_with(&Parker(thread::current()), future, None).unwrap()
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    let waker = Waker::from(std::sync::Arc::new(Ignore));
    future.poll(&mut Context::from_waker(&waker))
}

/// Wake against park: a wait that began before, during or after the close ends. (A lost wake is a deadlock, which loom reports.)
#[test]
fn every_waiter_sees_the_close() {
    model(|| {
        let scope = CloseScope::new();
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let scope = scope.clone();
                thread::spawn(move || scope.wait_blocking(None).unwrap().to_string())
            })
            .collect();
        assert!(scope.close("bye"));
        waiters.into_iter().for_each(|waiter| assert_eq!(waiter.join().unwrap(), "bye"));
    });
}

/// Wake against leave: a waiter that goes away takes its own waker out, and only that.
#[test]
fn a_waiter_that_leaves_does_not_take_anothers_wake() {
    model(|| {
        let scope = CloseScope::new();
        let mut leaving = Box::pin(scope.closed());
        assert!(poll(leaving.as_mut()).is_pending());
        let waiter = thread::spawn({
            let scope = scope.clone();
            move || drop(scope.wait_blocking(None))
        });
        let closer = thread::spawn(move || scope.close("bye"));
        drop(leaving);
        waiter.join().unwrap();
        assert!(closer.join().unwrap());
    });
}

/// The first end wins, for everybody.
#[test]
fn close_and_fail_agree_on_one_end() {
    model(|| {
        let scope = CloseScope::new();
        let other = scope.clone();
        let failer = thread::spawn(move || other.fail(Failure::msg("broken")));
        let closed = scope.close("bye");
        let failed = failer.join().unwrap();
        assert!(closed ^ failed);
        assert_eq!(scope.check().unwrap_err().to_string(), if closed { "bye" } else { "broken" });
    });
}

/// A registry bound to a scope: whoever registers, before or after, hears of the end.
#[test]
fn a_bound_registry_ends_with_its_scope() {
    model(|| {
        let scope = CloseScope::new();
        let registry = RequestRegistry::<u8, u8>::bound_to(&scope);
        let requester = thread::spawn({
            let registry = registry.clone();
            move || registry.register(1).and_then(|waiter| waiter.wait_blocking(None))
        });
        scope.fail(Failure::msg("eof"));
        let Err(RequestError::Closed(cause)) = requester.join().unwrap() else { panic!("not closed") };
        assert_eq!(cause.to_string(), "eof");
        assert_eq!(registry.len(), 0);
    });
}

/// Work that ends while somebody waits for idle: the wait ends.
#[test]
fn the_last_work_wakes_who_waits_for_idle() {
    model(|| {
        let tracker = WorkTracker::new();
        let (first, second) = (tracker.track(), tracker.track());
        let workers = [thread::spawn(move || drop(first)), thread::spawn(move || drop(second))];
        tracker.wait_idle_blocking(None).unwrap();
        assert_eq!(tracker.count(), 0);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
}

/// Cancel against run: the body's Pending is not the end of it, whenever the cancel comes.
#[test]
fn a_cancel_ends_a_run() {
    model(|| {
        let scope = CancelScope::new();
        let runner = thread::spawn({
            let scope = scope.clone();
            move || block_on(scope.run(std::future::pending::<()>())).unwrap_err().to_string()
        });
        assert!(scope.cancel("stop"));
        assert_eq!(runner.join().unwrap(), "cancelled: stop");
    });
}

/// Cancel against child: a child is linked or born cancelled.
#[test]
fn no_child_escapes_a_cancel() {
    model(|| {
        let scope = CancelScope::new();
        let maker = thread::spawn({
            let scope = scope.clone();
            move || scope.child()
        });
        scope.cancel("stop");
        assert!(maker.join().unwrap().is_cancelled());
    });
}

/// Two cancels that meet in one subtree: when the winner of a node returns, everything below it is cancelled.
#[test]
fn the_winning_cancel_leaves_no_descendant_live() {
    model(|| {
        let root = CancelScope::new();
        let middle = root.child();
        let leaf = middle.child();
        let other = thread::spawn({
            let (middle, leaf) = (middle.clone(), leaf.clone());
            move || !middle.cancel("middle") || leaf.is_cancelled()
        });
        assert!(root.cancel("root"));
        assert!(middle.is_cancelled() && leaf.is_cancelled());
        assert!(other.join().unwrap());
    });
}

/// A child that goes while its parent is cancelled: neither trips over the other.
#[test]
fn a_child_may_go_while_its_parent_is_cancelled() {
    model(|| {
        let scope = CancelScope::new();
        let child = scope.child();
        let leaver = thread::spawn(move || drop(child));
        scope.cancel("stop");
        leaver.join().unwrap();
    });
}

/// Cancel against shield: the body's protected part ends first, and then the run does, whatever thread ends the shield.
#[test]
fn a_shield_that_closes_elsewhere_lets_the_run_end() {
    model(|| {
        let scope = CancelScope::new();
        let (tx, mut rx) = channel();
        let runner = thread::spawn({
            let scope = scope.clone();
            move || {
                let body = async move {
                    let mut shielded = Box::pin(shield(std::future::pending::<()>()));
                    assert!(std::future::poll_fn(|cx| Poll::Ready(shielded.as_mut().poll(cx).is_pending())).await);
                    tx.try_send(shielded).unwrap_or_else(|_| panic!("nobody receives"));
                    std::future::pending::<()>().await;
                };
                block_on(scope.run(body)).is_err()
            }
        });
        scope.cancel("stop");
        // None if the cancel came first: then the body was never polled.
        drop(rx.recv_blocking(None).ok());
        assert!(runner.join().unwrap());
    });
}

/// Send against close: `Ok` means that it is received; the books balance.
#[test]
fn a_send_that_succeeds_is_received() {
    model(|| {
        let (tx, mut rx) = channel();
        let sender = thread::spawn({
            let tx = tx.clone();
            move || (0..2).filter(|n| tx.try_send(*n).is_ok()).count()
        });
        tx.close();
        let mut received = 0;
        loop {
            match rx.recv_blocking(None) {
                Ok(_) => received += 1,
                Err(_) => break,
            }
        }
        let sent = sender.join().unwrap();
        let stats = rx.stats();
        // What was accepted before the close has been received, or is still there for the next receive.
        received += rx.drain(None).len();
        assert_eq!(received, sent);
        assert_eq!(stats.sent, sent as u64);
        assert_eq!(stats.dropped, 2 - sent as u64);
    });
}

/// Park against push: a receiver that parks on an empty queue is woken by the next item, and by the last sender's drop.
#[test]
fn a_parked_receiver_is_woken() {
    model(|| {
        let (tx, mut rx) = channel();
        let sender = thread::spawn(move || tx.try_send(7).unwrap());
        assert_eq!(rx.recv_blocking(None).unwrap(), 7);
        assert!(rx.recv_blocking(None).is_err());
        sender.join().unwrap();
    });
}

/// Send against the receiver's drop: the item is given back, or counted as dropped.
#[test]
fn a_receiver_that_goes_counts_what_it_leaves() {
    model(|| {
        let (tx, rx) = channel();
        let sender = thread::spawn({
            let tx = tx.clone();
            move || matches!(tx.try_send(1), Err(TrySendError::Closed(1)))
        });
        drop(rx);
        let refused = sender.join().unwrap();
        let stats = tx.stats();
        assert_eq!((stats.sent, stats.dropped), (u64::from(!refused), 1));
    });
}

/// Bounded: a sender that waits for a place gets it, or hears of the close.
#[test]
fn a_blocked_sender_is_woken() {
    model(|| {
        let (tx, mut rx) = bounded(1.try_into().unwrap());
        tx.try_send(1).unwrap();
        let sender = thread::spawn({
            let tx = tx.clone();
            move || tx.send_blocking(2, None).is_ok()
        });
        let closer = thread::spawn(move || tx.close());
        assert_eq!(rx.recv_blocking(None).unwrap(), 1);
        let sent = sender.join().unwrap();
        closer.join().unwrap();
        assert_eq!(rx.try_recv().is_ok(), sent);
    });
}

/// Bounded: a sender that was promised a place and goes away passes it on.
#[test]
fn a_promised_place_is_passed_on() {
    model(|| {
        let (tx, mut rx) = bounded(1.try_into().unwrap());
        tx.try_send(1).unwrap();
        let mut leaving = Box::pin(tx.send(2));
        assert!(poll(leaving.as_mut()).is_pending());
        let sender = thread::spawn({
            let tx = tx.clone();
            move || tx.send_blocking(3, None).unwrap()
        });
        assert_eq!(rx.recv_blocking(None).unwrap(), 1);
        drop(leaving);
        assert_eq!(rx.recv_blocking(None).unwrap(), 3);
        sender.join().unwrap();
    });
}

/// The floor against a receive: lowering it wakes a receiver that it held back.
#[test]
fn a_lower_floor_wakes_the_receiver() {
    model(|| {
        let mut mailbox = PriorityMailbox::new(|item: &u8| *item);
        let (floor, sender) = (mailbox.floor(), mailbox.sender().with_late_send(LateSend::Reject));
        floor.set(Some(5));
        let mover = thread::spawn(move || floor.set(None));
        let submitter = thread::spawn(move || sender.try_send(3).unwrap());
        assert_eq!(block_on(mailbox.recv()).unwrap(), 3);
        mover.join().unwrap();
        submitter.join().unwrap();
    });
}

/// Register, resolve, close and drop: exactly one outcome, and no entry is left.
#[test]
fn a_request_has_exactly_one_outcome() {
    model(|| {
        let registry = RequestRegistry::<u8, u8>::new();
        let waiter = registry.register(1).unwrap();
        let resolver = thread::spawn({
            let registry = registry.clone();
            move || registry.resolve(&1, 7).is_ok()
        });
        let closer = thread::spawn({
            let registry = registry.clone();
            move || registry.close(Failure::msg("eof"))
        });
        let outcome = waiter.wait_blocking(None);
        let (resolved, closed) = (resolver.join().unwrap(), closer.join().unwrap());
        match outcome {
            Ok(7) => assert!(resolved && closed == 0),
            Err(RequestError::Closed(_)) => assert!(!resolved && closed == 1),
            other => panic!("{other:?}"),
        }
        assert_eq!(registry.len(), 0);
        assert!(matches!(registry.register(1), Err(RequestError::Closed(_))));
    });
}

/// A waiter that goes (a timeout, a cancel) against a reply: the replier knows whether it was wanted.
#[test]
fn a_reply_races_the_drop_of_its_waiter() {
    model(|| {
        let registry = RequestRegistry::<u8, Arc<AtomicUsize>>::new();
        let (handle, waiter) = registry.reply(1).unwrap();
        let replier = thread::spawn(move || handle.resolve(Arc::new(AtomicUsize::new(7))).is_ok());
        drop(waiter);
        let newer = registry.register(1).unwrap();
        replier.join().unwrap();
        assert_eq!(registry.len(), 1, "the old handle did not answer the new request");
        drop(newer);
        assert_eq!(registry.len(), 0);
    });
}

/// A handle that is dropped wakes its waiter.
#[test]
fn an_abandoned_request_ends() {
    model(|| {
        let registry = RequestRegistry::<u8, u8>::new();
        let (handle, waiter) = registry.reply(1).unwrap();
        let dropper = thread::spawn(move || drop(handle));
        assert!(matches!(waiter.wait_blocking(None), Err(RequestError::Abandoned)));
        dropper.join().unwrap();
        assert_eq!(registry.len(), 0);
    });
}

/// Started against fail and stop: one verdict, the same for everybody; and the end comes.
#[test]
fn a_service_decides_its_readiness_once() {
    model(|| {
        let service = ServiceThread::new("service", |cx| {
            cx.started();
            Ok(())
        });
        service.start().unwrap();
        let stopper = thread::spawn({
            let service = service.clone();
            move || service.stop("bye".into())
        });
        let verdict = service.wait_started(None);
        stopper.join().unwrap();
        assert!(matches!(verdict, Ok(()) | Err(ServiceError::Stopped { .. })), "{verdict:?}");
        assert_eq!(service.wait_started(None).is_ok(), verdict.is_ok());
        service.join(None).unwrap();
    });
}

/// A failure before ready is never seen as success, and its cause is everybody's.
#[test]
fn a_startup_failure_is_seen_by_all() {
    model(|| {
        let service = ServiceThread::new("service", |_| Err(Failure::msg("port taken")));
        let waiter = thread::spawn({
            let service = service.clone();
            move || service.wait_started(None).unwrap_err().to_string()
        });
        service.start().unwrap();
        assert_eq!(waiter.join().unwrap(), "service failed: port taken");
        assert_eq!(service.join(None).unwrap_err().to_string(), "service failed: port taken");
    });
}

/// Stop against start: the body runs or does not, and either way everybody hears the end.
#[test]
fn stop_races_start() {
    model(|| {
        let ran = Arc::new(AtomicUsize::new(0));
        let service = ServiceThread::new("service", {
            let ran = ran.clone();
            move |cx| {
                ran.fetch_add(1, Ordering::Relaxed);
                Ok(drop(cx.scope().wait_blocking(None)))
            }
        });
        let starter = thread::spawn({
            let service = service.clone();
            move || service.start().unwrap()
        });
        service.stop("bye".into());
        assert!(matches!(service.wait_started(None), Err(ServiceError::Stopped { .. })));
        starter.join().unwrap();
        service.join(None).unwrap();
        assert!(ran.load(Ordering::Relaxed) <= 1);
    });
}

/// A send after the end of an empty channel is refused, and the receiver's end is final.
#[test]
fn the_last_sender_ends_the_stream_once() {
    model(|| {
        let (tx, mut rx) = channel::<u8>();
        let other = tx.clone();
        let dropper = thread::spawn(move || drop(other));
        drop(tx);
        let mut recv = pin!(rx.recv());
        let end = block_on(std::future::poll_fn(|cx| recv.as_mut().poll(cx)));
        assert!(matches!(end, Err(RecvError::EndOfStream)));
        dropper.join().unwrap();
        let _ = TryRecvError::Empty;
    });
}
