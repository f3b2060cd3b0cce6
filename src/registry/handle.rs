//! The two ends of one request: [`ReplyHandle`] answers it, [`Waiter`] waits for the outcome; and how it can end without one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{Inner, Place, State};
use crate::error::{Failure, WOULD_BLOCK, WaitError, discard, display};
use crate::sync::Arc;
use crate::wait::block_on;

/// The right to answer one request, which travels with it. Dropped without an answer, it ends the request `Abandoned`.
pub struct ReplyHandle<K, V> {
    pub(super) registry: Arc<Inner<K, V>>,
    pub(super) key: K,
    pub(super) place: Place,
    pub(super) answered: bool,
}

impl<K, V> ReplyHandle<K, V> {
    /// The key of the request.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Answers the request.
    ///
    /// # Errors
    /// The value comes back: nobody waits any more. A newer request with the same key is not touched.
    pub fn resolve(mut self, value: V) -> Result<(), V> {
        self.answered = true;
        self.registry.finish(self.place, Ok(value)).map_err(|outcome| match outcome {
            Ok(value) => value,
            Err(_) => unreachable!("what comes back is what was given"),
        })
    }

    /// Fails the request. `false`: nobody waits any more.
    pub fn fail(mut self, cause: impl Into<Failure>) -> bool {
        self.answered = true;
        self.registry.finish(self.place, Err(RequestError::Failed(cause.into()))).is_ok()
    }

    /// Whether somebody still waits for the answer.
    pub fn is_wanted(&self) -> bool {
        let shard = self.registry.shard(self.place.hash);
        shard.is_own(self.place) && shard.is_pending(self.place.slot)
    }
}

impl<K, V> Drop for ReplyHandle<K, V> {
    fn drop(&mut self) {
        if !self.answered {
            let _too_late = self.registry.finish(self.place, Err(RequestError::Abandoned));
        }
    }
}

/// Waits for the outcome of one request: await it, or block on it. Dropping it takes the request back.
///
/// # Panics
/// If it is polled after it has given its outcome.
#[must_use = "the request ends when its waiter is dropped"]
pub struct Waiter<K, V> {
    pub(super) registry: Arc<Inner<K, V>>,
    pub(super) key: K,
    pub(super) place: Place,
    pub(super) done: bool,
}

impl<K, V> Waiter<K, V> {
    /// The key of the request.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Blocks this thread until the request ends, for at most `timeout` (None: for ever). The entry is gone afterwards.
    ///
    /// # Errors
    /// How the request ended; `TimedOut`; `WouldBlock` on an event loop or inside an async worker.
    pub fn wait_blocking(self, timeout: Option<Duration>) -> Result<V, RequestError> {
        block_on(self, timeout).unwrap_or_else(|blocked| {
            Err(match blocked {
                WaitError::TimedOut => RequestError::TimedOut,
                WaitError::WouldBlock => RequestError::WouldBlock,
            })
        })
    }
}

/// The key is never pinned.
impl<K, V> Unpin for Waiter<K, V> {}

impl<K, V> Future for Waiter<K, V> {
    type Output = Result<V, RequestError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        assert!(!this.done, "polled after its end");
        let mut waker = None;
        loop {
            let mut shard = this.registry.shard(this.place.hash);
            let State::Pending(parked) = &mut shard.slots[this.place.slot].state else {
                let (state, entry) = shard.free(this.place);
                this.done = true;
                drop(shard);
                discard(entry);
                let State::Done(outcome) = state else { unreachable!("just seen") };
                return Poll::Ready(outcome);
            };
            if parked.as_ref().is_some_and(|parked| parked.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            if let Some(waker) = waker.take() {
                let replaced = parked.replace(waker);
                drop(shard);
                drop(replaced);
                return Poll::Pending;
            }
            drop(shard);
            waker = Some(cx.waker().clone());
        }
    }
}

impl<K, V> Drop for Waiter<K, V> {
    fn drop(&mut self) {
        if !self.done {
            let left = self.registry.shard(self.place.hash).free(self.place);
            discard(left);
        }
    }
}

/// How a request ended without a reply, or why it could not be made.
#[derive(Clone, Debug)]
pub enum RequestError {
    /// It failed alone, or with all others in `fail_all`, or it could not be sent: with that cause.
    Failed(Failure),
    /// The registry is closed, with that cause.
    Closed(Failure),
    /// Nobody is left who could answer: the reply handle was dropped, or the last handle of the registry.
    Abandoned,
    /// A request with that key is pending.
    Duplicate,
    /// No reply came in time. The entry is gone.
    TimedOut,
    /// Called on an event loop or inside an async worker. Nothing was registered or sent.
    WouldBlock,
}

impl RequestError {
    /// This as a failure: the shared cause itself, where there is one. (`?` and `into` would wrap it in a new one.)
    pub fn into_failure(self) -> Failure {
        match self {
            RequestError::Failed(cause) | RequestError::Closed(cause) => cause,
            other => other.into(),
        }
    }
}

display!(RequestError {
    RequestError::Failed(cause) | RequestError::Closed(cause) => "{cause}" from cause.source(),
    RequestError::Abandoned => "the request was dropped without an answer",
    RequestError::Duplicate => "a request with that key is pending",
    RequestError::TimedOut => "timed out waiting for the reply",
    RequestError::WouldBlock => "{WOULD_BLOCK}",
});

impl<K, V> fmt::Debug for ReplyHandle<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyHandle").field("wanted", &self.is_wanted()).finish_non_exhaustive()
    }
}

impl<K, V> fmt::Debug for Waiter<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter").field("done", &self.done).finish_non_exhaustive()
    }
}
