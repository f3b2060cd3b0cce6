//! What the good path pays for being cancellable, and for a deadline.

use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::abortable;
use microio::{CancelScope, checkpoint, checkpoint_if_cancelled, fail_after};
use tokio::task::{coop::consume_budget, yield_now};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::harness::{Bar, Case, Contender, Figure, Run, limit, on_loop, ours, peer};

/// Pending once, if at all; it wakes itself.
struct Body {
    pending: bool,
}

impl Future for Body {
    type Output = u64;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        if std::mem::take(&mut self.pending) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(black_box(1))
    }
}

/// Runs `op` again and again in a task, with a body for it to run.
fn around(pending: bool, op: impl AsyncFn(Body) -> u64 + 'static) -> impl Fn(Run) -> Figure {
    let op = Arc::new(op);
    move |run| {
        let op = op.clone();
        on_loop(async move { run.each_async(async |_| assert_eq!(op(Body { pending }).await, 1)).await })
    }
}

fn enter(pending: bool) -> Vec<Contender> {
    let (root, parent) = (CancelScope::new(), CancellationToken::new());
    let flagged = async |body| {
        let flag = Arc::new(AtomicBool::new(false));
        if black_box(&flag).load(Ordering::Acquire) { 0 } else { body.await }
    };
    vec![
        ours("microio", around(pending, async |body| CancelScope::new().run(body).await.expect("not cancelled"))),
        ours(
            "microio, a child",
            around(pending, async move |body| root.child().run(body).await.expect("not cancelled")),
        ),
        peer(
            "abortable",
            around(pending, async |body| {
                let (body, _handle) = abortable(body);
                body.await.expect("not aborted")
            }),
        ),
        peer(
            "child_token",
            around(pending, async move |body| {
                parent.child_token().run_until_cancelled_owned(body).await.expect("not cancelled")
            }),
        ),
        limit("an Arc with a flag", around(pending, flagged)),
        limit("the body alone", around(pending, async |body| body.await)),
    ]
}

fn is_cancelled() -> Vec<Contender> {
    vec![
        ours("microio", |run| {
            let scope = CancelScope::new().child();
            run.each(|_| assert!(!black_box(&scope).is_cancelled()))
        }),
        ours("microio, ambient", |run| {
            on_loop(async move {
                let ambient = async { run.each(|_| assert!(checkpoint_if_cancelled().is_ok())) };
                CancelScope::new().run(ambient).await.expect("not cancelled")
            })
        }),
        peer("CancellationToken", |run| {
            let token = CancellationToken::new().child_token();
            run.each(|_| assert!(!black_box(&token).is_cancelled()))
        }),
        limit("an atomic load", |run| {
            let flag = AtomicBool::new(false);
            run.each(|_| assert!(!black_box(&flag).load(Ordering::Acquire)))
        }),
    ]
}

fn checkpoints() -> Vec<Contender> {
    vec![
        ours("microio", |run| {
            on_loop(async move {
                let checks = run.each_async(async |_| checkpoint().await);
                CancelScope::new().run(checks).await.expect("not cancelled")
            })
        }),
        peer("yield_now", |run| on_loop(async move { run.each_async(async |_| yield_now().await).await })),
        limit("consume_budget", |run| on_loop(async move { run.each_async(async |_| consume_budget().await).await })),
    ]
}

fn deadlines() -> Vec<Contender> {
    const LATER: Duration = Duration::from_secs(60);
    vec![
        ours("microio", around(false, async |body| fail_after(LATER, body).await.expect("in time"))),
        peer("timeout", around(false, async |body| timeout(LATER, body).await.expect("in time"))),
        limit("a clock read", |run| run.each(|_| _ = black_box(Instant::now()))),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("scope.enter-ready", "a scope of its own around a body that is ready", 2_000_000, enter(false))
            .target(Bar::Best, 0.6),
        Case::new("scope.enter-pending", "the same, the body is pending once", 1_000_000, enter(true))
            .target(Bar::Best, 0.8),
        Case::new(
            "scope.is_cancelled",
            "is it cancelled? of a scope, and of the ambient one",
            10_000_000,
            is_cancelled(),
        )
        .target(Bar::Best, 0.05)
        .target_of("microio, ambient", Bar::Best, 0.15),
        Case::new("scope.checkpoint", "checkpoint().await", 1_000_000, checkpoints()).target(Bar::Best, 0.025),
        Case::new("scope.deadline", "a deadline on a body that is ready", 2_000_000, deadlines())
            .target(Bar::Best, 0.4),
    ]
}
