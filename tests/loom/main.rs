//! Models: every interleaving of up to four threads, with up to three preemptions.
//!
//! `make loom` runs them. Each states its invariant; a wake that is lost is a deadlock, which loom reports. What a model
//! cannot see (time, a runtime of tokio's) is in `tests/it`. Two things are not themselves here: `BackoffMutex`, the lock of the
//! channel's queue, is loom's own mutex, and a child of a task group is a thread instead of a tokio task.
//!
//! `make loom-seeds` shows that they are not empty: it sows each bug of `seeds/`, and the models that its patch names must fail.
#![cfg(loom)]

mod actor;
mod ambient;
mod call;
mod cancel;
mod channel;
mod close;
mod mailbox;
mod registry;
mod service;
mod service_group;
mod task_group;
mod wait;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

fn model(f: impl Fn() + Send + Sync + 'static) {
    check(3, f);
}

/// With at most two preemptions: for models whose threads have much to do.
fn long_model(f: impl Fn() + Send + Sync + 'static) {
    check(2, f);
}

fn check(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_threads = 4;
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(f);
}

fn block_on<F: Future>(future: F) -> F::Output {
    microio::host::block_on(future, None).unwrap()
}

/// Polls by hand, and parks a waker that wakes nobody.
fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
