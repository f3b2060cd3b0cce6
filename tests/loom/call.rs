//! What is sent onto a loop, against the loop's exit. The loop is pumped by hand, and goes when its scope is closed; the
//! `Oneshot` that carries each outcome is in every model here.

use std::sync::Arc;

use loom::thread;
use microio::host::loop_by_hand;
use microio::{CallError, CloseScope};

use crate::{block_on, long_model, model, poll_once};

/// Call against exit: a call has its value, or hears why not. It does not hang.
#[test]
fn a_call_ends_whenever_the_loop_goes() {
    model(|| {
        let scope = CloseScope::new();
        let (handle, life) = loop_by_hand(scope.clone());
        let the_loop = thread::spawn(|| block_on(life));
        let caller = thread::spawn(move || handle.call_sync(|| 7, None));
        scope.close("bye");
        match caller.join().unwrap() {
            Ok(7) => {}
            Err(CallError::Closed(reason)) => assert_eq!(reason.to_string(), "bye"),
            other => panic!("{other:?}"),
        }
        the_loop.join().unwrap();
    });
}

/// The set of an outcome against the poll for it: a call onto a loop that lives has its value.
#[test]
fn a_call_hears_its_value() {
    model(|| {
        let scope = CloseScope::new();
        let (handle, life) = loop_by_hand(scope.clone());
        let the_loop = thread::spawn(|| block_on(life));
        assert_eq!(handle.call_sync(|| 7, None).unwrap(), 7);
        scope.close("bye");
        the_loop.join().unwrap();
    });
}

/// The withdrawal of a call against its run: it is called or dropped, its value goes with whoever is last, nothing is kept.
#[test]
fn a_call_that_is_withdrawn_keeps_nothing() {
    model(|| {
        let (scope, held) = (CloseScope::new(), Arc::new(()));
        let (handle, life) = loop_by_hand(scope.clone());
        let the_loop = thread::spawn(|| block_on(life));
        let mut call = Box::pin(handle.call({
            let held = held.clone();
            move || held
        }));
        drop(poll_once(call.as_mut()));
        drop(call);
        scope.close("bye");
        the_loop.join().unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
    });
}

/// Submit against exit: a future has its output, or hears why not.
#[test]
fn a_submission_ends_whenever_the_loop_goes() {
    long_model(|| {
        let scope = CloseScope::new();
        let (handle, life) = loop_by_hand(scope.clone());
        let the_loop = thread::spawn(|| block_on(life));
        let closer = thread::spawn(move || scope.close("bye"));
        match handle.submit(async { 7 }).wait_blocking(None) {
            Ok(7) => {}
            Err(CallError::Closed(reason)) => assert_eq!(reason.to_string(), "bye"),
            other => panic!("{other:?}"),
        }
        the_loop.join().unwrap();
        assert!(closer.join().unwrap());
    });
}
