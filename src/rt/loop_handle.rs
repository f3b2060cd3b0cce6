//! The way onto a loop from anywhere: [`LoopHandle`], and what comes back of a call or a submitted future.
//!
//! | a call is | it is made | it ends |
//! |---|---|---|
//! | queued | before the start, or while the loop is busy | run by the loop; `Closed`, `Failed` when the loop goes; withdrawn when its waiter goes |
//! | running | | with its value, or `Panicked` |
//! | refused | after the stop | `Closed`, `Failed` at once |

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::child::{Report, TaskOutcome};
use super::oneshot::Oneshot;
use super::task_group::TaskGroup;
use crate::cancel::CancelScope;
use crate::channel::Sender;
use crate::close::{CloseError, CloseScope};
use crate::error::{Cancelled, Failure, Name, Panic, Reason, WOULD_BLOCK, WaitError, catch, display};
use crate::host::{current_loop, may_block};
use crate::log::log;
use crate::sync::{Arc, Mutex};
use crate::wait::block_on;

/// The way onto a loop, from any thread, inside or outside of runtimes. It does not keep the service alive.
///
/// What is sent before the start is done after it. What cannot be done any more ends with the reason or the cause of the
/// service's end: no call hangs.
#[derive(Clone)]
pub struct LoopHandle(pub(super) Arc<Inner>);

/// A loop as its handles see it.
pub(super) struct Inner {
    /// What [`current_loop`] says on the loop's thread.
    pub(super) id: u64,
    pub(super) name: Name,
    pub(super) scope: CloseScope,
    pub(super) jobs: Sender<Queued>,
    pub(super) grace: Mutex<Duration>,
}

/// Why a call onto a loop has no value.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The service was stopped, or has ended, before the call was done.
    Closed(Reason),
    /// The service failed, with that cause, before the call was done.
    Failed(Failure),
    /// The called code panicked, with that message. The loop lives on.
    Panicked(String),
    /// The submitted future was cancelled, alone.
    Cancelled(Cancelled),
    /// The time ran out. The function is not called later, unless it had begun.
    TimedOut,
    /// Called inside an async worker, or on another event loop.
    WouldBlock,
}

impl LoopHandle {
    /// Has `f` called on the loop, soon, and does not wait for it. A panic in it is logged, and the loop lives on.
    ///
    /// # Errors
    /// `Closed`, `Failed`: it will not be called. (If the service ends before its turn has come, it is not called either.)
    pub fn call_soon(&self, f: impl FnOnce() + Send + 'static) -> Result<(), CallError> {
        struct Soon<F>(Mutex<Option<F>>, Name);
        impl<F: FnOnce() + Send> Job for Soon<F> {
            fn run(&self, _: &TaskGroup) {
                let f = self.0.lock().take();
                if let Some(Err(panic)) = f.map(catch) {
                    log!(error, "a call_soon on {} {panic}", self.1);
                }
            }
            fn refuse(&self) {
                let f = self.0.lock().take();
                let _ = catch(|| drop(f));
            }
        }
        self.send(Arc::new(Soon(Mutex::new(Some(f)), self.0.name.clone())))
    }

    /// Calls `f` on the loop, and blocks this thread until it has returned, for at most `timeout` (None: for ever).
    ///
    /// On the loop's own thread it is called at once, inline.
    ///
    /// # Errors
    /// No value, and why. After `TimedOut` the function is not called any more, unless it had begun.
    pub fn call_sync<R: Send + 'static>(
        &self,
        f: impl FnOnce() -> R + Send + 'static,
        timeout: Option<Duration>,
    ) -> Result<R, CallError> {
        if current_loop() == self.0.id {
            return catch(f).map_err(panicked);
        }
        if !may_block() {
            return Err(CallError::WouldBlock);
        }
        block_on(self.call(f), timeout).unwrap_or_else(|blocked| Err(blocked.into()))
    }

    /// Calls `f` on the loop, and waits until it has returned.
    ///
    /// # Errors
    /// No value, and why.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the call, unless it had begun.
    pub async fn call<R: Send + 'static>(&self, f: impl FnOnce() -> R + Send + 'static) -> Result<R, CallError> {
        let call = Withdraw(Arc::new(Call { f: Mutex::new(Some(f)), reply: Oneshot::new(), inner: self.0.clone() }));
        let _refused = self.send(call.0.clone()); // which has answered the call
        poll_fn(|cx| call.0.reply.poll(cx)).await
    }

    /// Has a future run on the loop. It is sent at once, awaited or not.
    pub fn submit<T: Send + 'static>(&self, f: impl Future<Output = T> + Send + 'static) -> Submitted<T> {
        self.submit_with(|calls, reply| calls.spawn("submitted".into(), in_scope(reply.0.scope.clone(), f), reply))
    }

    /// As [`submit`](LoopHandle::submit), for a future that is not `Send`: `make` is called on the loop and makes it there.
    pub fn submit_local<T: Send + 'static, F: Future<Output = T> + 'static>(
        &self,
        make: impl FnOnce() -> F + Send + 'static,
    ) -> Submitted<T> {
        self.submit_with(|calls, reply| {
            let scope = reply.0.scope.clone();
            calls.spawn_local("submitted".into(), async { in_scope(scope, make()).await }, reply);
        })
    }

    /// How long the loop takes to come round: from this call until the loop has run it.
    pub fn ping(&self) -> Submitted<Duration> {
        let sent = Instant::now();
        self.submit(async move { sent.elapsed() })
    }

    fn submit_with<T: Send + 'static>(
        &self,
        spawn: impl FnOnce(&TaskGroup, Reply<T>) + Send + 'static,
    ) -> Submitted<T> {
        struct Spawn<S, T>(Mutex<Option<S>>, Arc<Submission<T>>);
        impl<S: FnOnce(&TaskGroup, Reply<T>) + Send, T: Send> Job for Spawn<S, T> {
            fn run(&self, calls: &TaskGroup) {
                let spawn = self.0.lock().take();
                if let Some(spawn) = spawn {
                    spawn(calls, Reply(self.1.clone()));
                }
            }
            fn refuse(&self) {
                let spawn = self.0.lock().take();
                let _nobody_asks = self.1.reply.set(Err(self.1.inner.ended()));
                let _ = catch(|| drop(spawn));
            }
        }
        let (scope, reply, inner) = (CancelScope::new(), Oneshot::new(), self.0.clone());
        let submission = Arc::new(Submission { scope, reply, inner });
        let _refused = self.send(Arc::new(Spawn(Mutex::new(Some(spawn)), submission.clone()))); // which has answered it
        Submitted(submission)
    }

    /// Queues a job, or refuses it.
    fn send(&self, job: Arc<dyn Job>) -> Result<(), CallError> {
        let job = Queued(Some(job));
        if self.0.scope.is_closed() {
            drop(job);
            return Err(self.0.ended());
        }
        self.0.jobs.try_send(job).map_err(|_refused| self.0.ended())
    }
}

impl Inner {
    /// Why nothing is done on this loop any more.
    fn ended(&self) -> CallError {
        match self.scope.check() {
            Err(CloseError::Failed(cause)) => CallError::Failed(cause),
            Err(CloseError::Closed(reason)) => CallError::Closed(reason),
            Ok(()) => CallError::Closed(Reason::OwnerDropped),
        }
    }
}

/// Something to be done on the loop.
trait Job: Send + Sync {
    /// Does it, or starts it in the group. Does not panic.
    fn run(&self, calls: &TaskGroup);
    /// It will not be done.
    fn refuse(&self);
}

/// A job in the queue: run, or refused when it is dropped, wherever that happens.
pub(super) struct Queued(Option<Arc<dyn Job>>);

impl Queued {
    pub(super) fn run(mut self, calls: &TaskGroup) {
        if let Some(job) = self.0.take() {
            job.run(calls);
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if let Some(job) = self.0.take() {
            job.refuse();
        }
    }
}

/// A function, and where its value goes.
struct Call<F, R> {
    f: Mutex<Option<F>>,
    reply: Oneshot<Result<R, CallError>>,
    inner: Arc<Inner>,
}

impl<F: FnOnce() -> R + Send, R: Send> Job for Call<F, R> {
    fn run(&self, _: &TaskGroup) {
        let f = self.f.lock().take();
        if let Some(f) = f {
            let reply = catch(f).map_err(panicked);
            if let Err(nobody_asks) = self.reply.set(reply) {
                let _ = catch(|| drop(nobody_asks));
            }
        }
    }

    fn refuse(&self) {
        let f = self.f.lock().take();
        let _nobody_asks = self.reply.set(Err(self.inner.ended()));
        let _ = catch(|| drop(f));
    }
}

/// The waiting side of a call: when it goes, so does the function.
struct Withdraw<F, R>(Arc<Call<F, R>>);

impl<F, R> Drop for Withdraw<F, R> {
    fn drop(&mut self) {
        let f = self.0.f.lock().take();
        self.0.reply.leave();
        drop(f);
    }
}

/// A future that was submitted to a loop: await its output, or block for it. Dropping this lets the future go on.
///
/// # Panics
/// If it is polled after it has given its output.
#[must_use = "dropping this lets the future go on, and its output is lost"]
pub struct Submitted<T>(Arc<Submission<T>>);

struct Submission<T> {
    scope: CancelScope,
    reply: Oneshot<Result<T, CallError>>,
    inner: Arc<Inner>,
}

/// The task's side of a submission.
struct Reply<T>(Arc<Submission<T>>);

async fn in_scope<T>(scope: CancelScope, body: impl Future<Output = T>) -> Result<T, Failure> {
    Ok(scope.run(body).await?)
}

impl<T> Report<T> for Reply<T> {
    fn report(self, outcome: TaskOutcome<T>) -> Option<Failure> {
        let nobody_asks = self.0.reply.set(match outcome {
            TaskOutcome::Done(output) => Ok(output),
            TaskOutcome::Panicked(panic) => Err(panicked(panic)),
            TaskOutcome::Failed(cause) => Err(match cause.downcast_ref::<Cancelled>() {
                Some(cancelled) => CallError::Cancelled(cancelled.clone()),
                None => CallError::Failed(cause),
            }),
            TaskOutcome::Cancelled(_) | TaskOutcome::Aborted => Err(self.0.inner.ended()),
        });
        if let Err(panic) = catch(|| drop(nobody_asks)) {
            log!(error, "the output of a future submitted to {} {panic}", self.0.inner.name);
        }
        None // a submission is its submitter's, not the service's
    }
}

impl<T> Submitted<T> {
    /// Blocks this thread until the future has ended, for at most `timeout` (None: for ever).
    ///
    /// # Errors
    /// No output, and why. After `TimedOut` the future goes on.
    pub fn wait_blocking(self, timeout: Option<Duration>) -> Result<T, CallError> {
        if current_loop() == self.0.inner.id {
            return Err(CallError::WouldBlock); // in a `block_in_place`, which allows all other waits
        }
        block_on(self, timeout).unwrap_or_else(|blocked| Err(blocked.into()))
    }

    /// Cancels the future. `true` for the call that did.
    #[track_caller]
    pub fn cancel(&self, why: impl Into<Reason>) -> bool {
        // A future that has ended is not cancelled any more.
        self.0.reply.is_open()
            && self.0.scope.cancel_with(Cancelled { reason: why.into(), at: Location::caller() }).is_some()
    }
}

impl<T> Future for Submitted<T> {
    type Output = Result<T, CallError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.reply.poll(cx)
    }
}

impl<T> Drop for Submitted<T> {
    fn drop(&mut self) {
        self.0.reply.leave();
    }
}

fn panicked(cause: Failure) -> CallError {
    CallError::Panicked(
        cause.downcast_ref().map_or_else(|| cause.to_string(), |panic: &Panic| panic.message().to_owned()),
    )
}

impl From<WaitError> for CallError {
    fn from(blocked: WaitError) -> Self {
        match blocked {
            WaitError::TimedOut => CallError::TimedOut,
            WaitError::WouldBlock => CallError::WouldBlock,
        }
    }
}

display!(CallError {
    CallError::Closed(reason) => "the loop is closed: {reason}",
    CallError::Failed(cause) => "{cause}" from cause.source(),
    CallError::Panicked(message) => "panicked: {message}",
    CallError::Cancelled(cancelled) => "{cancelled}" from Some(cancelled),
    CallError::TimedOut => "timed out waiting for the loop",
    CallError::WouldBlock => "{WOULD_BLOCK}",
});

impl fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopHandle").field("name", &self.0.name).field("jobs", &self.0.jobs.stats().queued).finish()
    }
}

impl<T> fmt::Debug for Submitted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitted").field("running", &self.0.reply.is_open()).finish()
    }
}
