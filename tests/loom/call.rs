//! What is sent onto a loop, against the loop's exit. The loop is pumped by hand, and goes when its scope is closed; the
//! `Oneshot` that carries each outcome is in every model here.

use loom::thread;
use microio::host::loop_by_hand;
use microio::{CallError, CloseScope};

use crate::{block_on, long_model, model};

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
