//! `RequestRegistry`: register, resolve, the waiter's drop (which a timeout is too), the reply handle's drop, close.

use loom::thread;
use microio::{CloseScope, Failure, RequestError, RequestRegistry};

use crate::{block_on, model, poll_once};

type Registry = RequestRegistry<u8, u8>;

/// Resolve against close, while the waiter parks: exactly one of them ends the request, and the waiter hears from that one.
#[test]
fn a_request_has_exactly_one_outcome() {
    model(|| {
        let registry = Registry::new();
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
    });
}

/// Register against resolve against the waiter's drop against close: at most one of them gets the request, no entry is left.
#[test]
fn a_request_that_times_out_leaves_no_entry() {
    model(|| {
        let registry = Registry::new();
        let resolver = thread::spawn({
            let registry = registry.clone();
            move || registry.resolve(&1, 7).is_ok()
        });
        let closer = thread::spawn({
            let registry = registry.clone();
            move || registry.close(Failure::msg("eof"))
        });
        let waiter = registry.register(1);
        let refused = waiter.is_err();
        drop(waiter); // the time is up
        let (resolved, closed) = (resolver.join().unwrap(), closer.join().unwrap());
        assert!(usize::from(refused) + usize::from(resolved) + closed <= 1);
        assert_eq!(registry.len(), 0);
        assert!(!registry.contains(&1));
    });
}

/// Register against close: a request is refused, or ends with the close.
#[test]
fn a_request_that_races_the_close_ends() {
    model(|| {
        let registry = Registry::new();
        let requester = thread::spawn({
            let registry = registry.clone();
            move || registry.register(1).and_then(|waiter| waiter.wait_blocking(None))
        });
        registry.close(Failure::msg("eof"));
        let Err(RequestError::Closed(cause)) = requester.join().unwrap() else { panic!("not closed") };
        assert_eq!(cause.to_string(), "eof");
    });
}

/// Bind against the end of the scope: whoever registers hears of it.
#[test]
fn a_registry_that_is_bound_to_an_ending_scope_ends() {
    model(|| {
        let scope = CloseScope::new();
        let closer = thread::spawn({
            let scope = scope.clone();
            move || scope.fail(Failure::msg("eof"))
        });
        let registry = Registry::bound_to(&scope);
        let ended = registry.register(1).and_then(|waiter| waiter.wait_blocking(None));
        let Err(RequestError::Closed(cause)) = ended else { panic!("not closed") };
        assert_eq!(cause.to_string(), "eof");
        assert!(closer.join().unwrap());
    });
}

/// Close against close: one of them counts the requests, and its cause is everybody's.
#[test]
fn two_closes_agree_on_one_cause() {
    model(|| {
        let registry = Registry::new();
        let waiter = registry.register(1).unwrap();
        let other = thread::spawn({
            let registry = registry.clone();
            move || registry.close(Failure::msg("other"))
        });
        let closed = registry.close(Failure::msg("eof"));
        assert_eq!(closed + other.join().unwrap(), 1);
        let cause = if closed == 1 { "eof" } else { "other" };
        assert_eq!(waiter.wait_blocking(None).unwrap_err().to_string(), cause);
        assert_eq!(registry.register(1).unwrap_err().to_string(), cause);
    });
}

/// A reply against the drop of its waiter, after which the key is used again: the late answer goes to nobody.
#[test]
fn a_late_reply_does_not_answer_the_next_request() {
    model(|| {
        let registry = Registry::new();
        let (handle, waiter) = registry.reply(1).unwrap();
        let replier = thread::spawn(move || handle.resolve(7).is_ok());
        drop(waiter);
        let mut newer = Box::pin(registry.register(1).unwrap());
        replier.join().unwrap();
        assert!(poll_once(newer.as_mut()).is_pending());
        assert_eq!(registry.len(), 1);
        drop(newer);
        assert_eq!(registry.len(), 0);
    });
}

/// The drop of a reply handle against the park of its waiter: it is woken.
#[test]
fn an_abandoned_request_ends() {
    model(|| {
        let registry = Registry::new();
        let (handle, waiter) = registry.reply(1).unwrap();
        let dropper = thread::spawn(move || drop(handle));
        assert!(matches!(waiter.wait_blocking(None), Err(RequestError::Abandoned)));
        dropper.join().unwrap();
        assert_eq!(registry.len(), 0);
    });
}

/// The drop of a reply handle against the drop of its waiter: neither trips over the other, and the key is free again.
#[test]
fn both_ends_of_a_request_may_go_at_once() {
    model(|| {
        let registry = Registry::new();
        let (handle, waiter) = registry.reply(1).unwrap();
        let dropper = thread::spawn(move || drop(handle));
        drop(waiter);
        dropper.join().unwrap();
        assert_eq!(registry.len(), 0);
        let (handle, waiter) = registry.reply(1).unwrap();
        handle.resolve(7).unwrap();
        assert_eq!(block_on(waiter).unwrap(), 7);
    });
}

/// The drop of the last handle of a registry against the park of a waiter: nobody could answer it any more.
#[test]
fn the_last_handle_abandons_who_waits() {
    model(|| {
        let registry = Registry::new();
        let waiter = registry.register(1).unwrap();
        let dropper = thread::spawn(move || drop(registry));
        assert!(matches!(waiter.wait_blocking(None), Err(RequestError::Abandoned)));
        dropper.join().unwrap();
    });
}
