//! A service thread that owns a tokio loop: [`LoopServiceThread`].
//!
//! It is a [`ServiceThread`] whose body builds a `LocalRuntime`, runs the main future on it, and takes it down again: the loop,
//! and every `!Send` value on it, lives and dies on one thread.
//!
//! # The exit, in order, under one deadline (the grace)
//!
//! The scope is closed: by a stop, or by us when the group has ended. A group that was cancelled by a failure or from inside has
//! the grace to end, so that all failures are told; the rest of the exit has what is left of it. The job queue goes: what was queued gets the scope's reason or cause. The group and the submitted
//! futures are cancelled, given the grace, aborted. The main future, and the user's state in it, has been dropped by then, on
//! this thread. The runtime is shut down with what is left of the grace. Only then is the thread no loop's any more, and the
//! service done.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, LocalOptions};
use tokio::task::coop::consume_budget;

use super::loop_handle::{Inner, LoopHandle, Queued};
use super::task_group::{GroupError, TaskGroup};
use super::time::move_on_after;
use crate::channel::{Receiver, channel};
use crate::close::CloseScope;
use crate::error::{Failure, Name, Reason};
use crate::host::{LoopMark, current_loop};
use crate::log::log;
use crate::service::{Service, ServiceError, Shared, sealed};
use crate::sync::{Arc, Mutex, Ordering};
use crate::thread::{ServiceContext, ServiceThread};
use crate::wait::stand_still;

/// A service with an event loop of its own, on a thread of its own.
///
/// The main future and its state are made, used and dropped on that thread, so they need not be `Send`. Others reach it by its
/// [`handle`](LoopServiceThread::handle), before it is started too. Stopping it cancels its tasks and the main future at their
/// next await; a goodbye goes under a shield: `shield(async { cx.scope().closed().await; goodbye().await }).await`. It is done
/// when the main future and every task of its group have ended. Clones are handles to the same service; when the last one
/// is dropped the service is asked to stop and left to itself.
///
/// ```
/// use microio::{LoopServiceThread, Service, channel};
/// let (tx, mut rx) = channel();
/// let service = LoopServiceThread::new("adder", |cx| async move {
///     let mut total = 0;
///     cx.started();
///     while let Ok(n) = rx.recv().await {
///         total += n;
///     }
///     println!("{total}");
///     Ok(())
/// });
/// service.start()?;
/// service.wait_started(None)?;
/// assert_eq!(service.handle().call_sync(|| 1 + 1, None).unwrap(), 2);
/// tx.try_send(5).unwrap();
/// drop(tx);
/// service.join(None)?;
/// # Ok::<(), microio::ServiceError>(())
/// ```
#[derive(Clone)]
pub struct LoopServiceThread {
    service: ServiceThread,
    handle: LoopHandle,
}

/// The service as its main future sees it.
#[derive(Clone)]
pub struct LoopContext {
    service: ServiceContext,
    group: TaskGroup,
    handle: LoopHandle,
}

impl LoopServiceThread {
    /// A service that is not started yet. `body` is called on its thread, and the future it makes runs there.
    pub fn new<S, F>(name: impl Into<Name>, body: S) -> Self
    where
        S: FnOnce(LoopContext) -> F + Send + 'static,
        F: Future<Output = Result<(), Failure>> + 'static,
    {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let (name, (jobs, queue)) = (name.into(), channel());
        let seat = Arc::new(Mutex::new(None::<LoopHandle>));
        let service = ServiceThread::new(name.clone(), {
            let seat = seat.clone();
            move |cx| {
                let handle = seat.lock().take().expect("put there below");
                run(cx, handle, queue, body)
            }
        });
        let handle = LoopHandle(Arc::new(Inner {
            id: LAST_ID.fetch_add(1, Ordering::Relaxed) + 1,
            name,
            scope: service.scope().clone(),
            jobs,
            grace: Mutex::new(Duration::from_secs(1)),
        }));
        *seat.lock() = Some(handle.clone());
        LoopServiceThread { service, handle }
    }

    /// How long the loop's exit may take: what is cancelled has this long to end, then it is aborted. One second by default.
    pub fn with_grace(self, grace: Duration) -> Self {
        *self.handle.0.grace.lock() = grace;
        self
    }

    /// The way onto the loop.
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }

    /// Waits until the service is ready.
    ///
    /// # Errors
    /// Why it will not be ready.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn ready(&self) -> Result<(), ServiceError> {
        self.service.ready().await
    }

    /// Waits until the service is done. One that was never started is done.
    ///
    /// # Errors
    /// How it ended, unless it ended in order.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn joined(&self) -> Result<(), ServiceError> {
        self.service.joined().await
    }
}

impl sealed::Sealed for LoopServiceThread {
    fn shared(&self) -> &Arc<Shared> {
        self.service.shared()
    }
}

impl Service for LoopServiceThread {}

impl LoopContext {
    /// The service's name.
    pub fn name(&self) -> &str {
        self.service.name()
    }

    /// The service's end: closed by whoever stops it.
    pub fn scope(&self) -> &CloseScope {
        self.service.scope()
    }

    /// Says that the service is ready. Only the first call counts, and none after a stop.
    pub fn started(&self) {
        self.service.started();
    }

    /// The group of the service's tasks, which the main future is one of (so it cannot join it). A failure in it ends the
    /// service.
    pub fn task_group(&self) -> &TaskGroup {
        &self.group
    }

    /// The way onto this loop, to give away.
    pub fn handle(&self) -> &LoopHandle {
        &self.handle
    }
}

/// Calls `f`, which may block, on a [`LoopServiceThread`]'s own thread: the loop stands still until it returns.
///
/// For a thread that belongs to blocking code, an interpreter for one, and has a loop to be reached by: between two calls the
/// loop is alive, and during one every microio wait may block. What the loop has to do meanwhile waits: its tasks, its timers,
/// what is sent to it, and its stop, too. So `f` must not wait for anything that is to come from this very loop: that would
/// wait for ever. (Of its own service, and of a future [submitted](LoopHandle::submit) to it, that is found out: `WouldBlock`.)
///
/// On any other thread it just calls `f`, and a blocking wait in an async worker is refused as ever.
///
/// # Panics
/// If `f` does.
///
/// ```
/// use microio::{CancelScope, LoopServiceThread, Service, block_in_place};
/// let interrupt = CancelScope::new();
/// let service = LoopServiceThread::new("interpreter", {
///     let interrupt = interrupt.clone();
///     move |cx| async move {
///         cx.started();
///         let why = block_in_place(|| interrupt.wait_blocking(None))?; // where an evaluation would run
///         println!("interrupted: {why}");
///         Ok(())
///     }
/// });
/// service.start()?;
/// interrupt.cancel("enough");
/// service.join(None)?;
/// # Ok::<(), microio::ServiceError>(())
/// ```
pub fn block_in_place<R>(f: impl FnOnce() -> R) -> R {
    if current_loop() == 0 { f() } else { stand_still(f) }
}

/// The body of the service thread: the loop's whole life.
fn run<S, F>(cx: &ServiceContext, handle: LoopHandle, queue: Receiver<Queued>, body: S) -> Result<(), Failure>
where
    S: FnOnce(LoopContext) -> F + 'static,
    F: Future<Output = Result<(), Failure>> + 'static,
{
    let _mark = LoopMark::enter(handle.0.id); // until the runtime is gone
    let runtime = Builder::new_current_thread()
        .enable_all()
        .global_queue_interval(1) // calls from other threads are looked at in every tick of a busy loop
        .build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(cause) => {
            let error = Failure::from(ServiceError::Spawn { service: handle.0.name.clone(), cause: cause.into() });
            let _in_the_scope = cx.0.settle(Err(error.clone())); // before the queue goes: its calls hear why
            return Err(error);
        }
    };
    let (result, deadline) = runtime.block_on(live(cx, handle, queue, body));
    runtime.shutdown_timeout(deadline.saturating_duration_since(Instant::now()));
    result
}

/// The loop from its first task to its last. Returns the deadline of the exit with the result.
async fn live<S, F>(
    cx: &ServiceContext,
    handle: LoopHandle,
    queue: Receiver<Queued>,
    body: S,
) -> (Result<(), Failure>, Instant)
where
    S: FnOnce(LoopContext) -> F + 'static,
    F: Future<Output = Result<(), Failure>> + 'static,
{
    let inner = handle.0.clone();
    let (group, calls) = (TaskGroup::joined(), TaskGroup::joined());
    // Both are spawned: the root future of `block_on` is polled only once in many ticks of a busy loop.
    let pump = tokio::task::spawn_local(pump(queue, calls.clone()));
    let context = LoopContext { service: cx.clone(), group: group.clone(), handle };
    group.start_soon_local(format!("{}-main", inner.name), async move { body(context).await });

    let begin_of_exit = {
        let (mut joined, mut closed) = (pin!(group.join()), pin!(inner.scope.closed()));
        let mut cancelled = pin!(group.scope().cancelled());
        poll_fn(|cx| match joined.as_mut().poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Exit::Joined(ended)),
            Poll::Pending if closed.as_mut().poll(cx).is_ready() => Poll::Ready(Exit::Closed),
            Poll::Pending => cancelled.as_mut().poll(cx).map(|_| Exit::Cancelled),
        })
        .await
    };
    let grace = *inner.grace.lock();
    let deadline = Instant::now().checked_add(grace).unwrap_or_else(|| Instant::now() + Duration::from_secs(1 << 32));
    let ended = match begin_of_exit {
        Exit::Joined(ended) => Some(ended),
        Exit::Closed => None,
        // A failure, or a cancel from inside. All failures are waited for, as long as the grace allows.
        Exit::Cancelled => Some(match move_on_after(grace, group.join()).await {
            Some(ended) => ended,
            None => group.failed_so_far(),
        }),
    };
    let ended = ended.map(|ended| ended.map_err(|error| only_cause(error, &inner.name)));
    if let Some(ended) = &ended {
        let _the_thread_says_it_again = cx.0.settle(ended.clone());
    }
    let why = inner.scope.reason().unwrap_or(Reason::OwnerDropped);
    pump.abort();
    let _aborted = pump.await; // the queue is dropped, and every call in it has heard why
    calls.cancel(why.clone());
    for group in [&group, &calls] {
        let report = group.shutdown(why.clone(), deadline.saturating_duration_since(Instant::now())).await;
        if !report.aborted.is_empty() || !report.stuck.is_empty() {
            log!(
                warn,
                "{}: aborted at the end of the grace: {:?}, still there: {:?}",
                inner.name,
                report.aborted,
                report.stuck
            );
        }
    }
    let result = match ended {
        Some(ended) => ended,
        None => group.join().await.map_err(|error| only_cause(error, &inner.name)),
    };
    (result, deadline)
}

/// What ends a loop first.
enum Exit {
    /// The main future and every task have ended.
    Joined(Result<(), GroupError>),
    /// The service was stopped.
    Closed,
    /// The group was cancelled: a task failed, or somebody cancelled it from inside.
    Cancelled,
}

/// The cause of a service: the failure itself if only the main future failed, otherwise all failures with their names.
fn only_cause(mut error: GroupError, service: &str) -> Failure {
    match error.failures.as_slice() {
        [(name, _)] if name.strip_suffix("-main") == Some(service) => error.failures.remove(0).1,
        _ => error.into(),
    }
}

/// Does what others have sent, in their order.
async fn pump(mut queue: Receiver<Queued>, calls: TaskGroup) {
    while let Ok(job) = queue.recv().await {
        job.run(&calls);
        consume_budget().await;
    }
}

/// A loop by hand, for the models, which have no runtime: the way onto it, and what its thread does until the scope is closed.
#[cfg(loom)]
#[doc(hidden)]
pub fn loop_by_hand(scope: CloseScope) -> (LoopHandle, impl Future<Output = ()>) {
    let (jobs, queue) = channel();
    let (name, grace) = ("by hand".into(), Mutex::new(Duration::ZERO));
    let handle = LoopHandle(Arc::new(Inner { id: 1, name, scope: scope.clone(), jobs, grace }));
    let life = async move {
        let calls = TaskGroup::new();
        let mut pump = Box::pin(pump(queue, calls.clone()));
        let mut closed = pin!(scope.closed());
        poll_fn(|cx| match pump.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => closed.as_mut().poll(cx).map(drop),
        })
        .await;
        drop(pump);
        calls.cancel("the loop ends");
        let _no_failures = calls.join().await;
    };
    (handle, life)
}

impl fmt::Debug for LoopServiceThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopServiceThread").field("name", &self.name()).field("state", &self.state()).finish()
    }
}

impl fmt::Debug for LoopContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopContext").field("service", &self.service).finish_non_exhaustive()
    }
}
