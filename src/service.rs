//! The life of a service: started, ready, stopped, done. What a handle can do is [`Service`]; the state machine is `Shared`.
//!
//! | state | becomes, by |
//! |---|---|
//! | `New` | `Starting` by `start`; `Done` by a stop (the body is dropped, never run) or if no thread can be had |
//! | `Starting` | `Ready` by `started()`; `Stopping` by a stop; `Done` when the body ends |
//! | `Ready` | `Stopping` by a stop; `Done` when the body ends |
//! | `Stopping` | `Done` when the body ends |
//! | `Done` | |
//!
//! A stop is the closing of the service's [`CloseScope`], whoever closes it; the scope hears in turn how the body ended.
//!
//! # Invariants
//!
//! 1. Readiness is decided once (`verdict`): by `started()`, or by the close of the scope if that comes first. Every
//!    `wait_started`, early or late, gets the same answer.
//! 2. The body ends exactly once, in `finish`; its outcome is set after the scope has ended, and never changes.
//! 3. One lock, a leaf. The body runs and is dropped, waiters wake and the thread is joined outside it.

use std::future::Future;
use std::ops::DerefMut;
use std::panic::Location;
use std::time::{Duration, Instant};

use crate::close::{CloseError, CloseScope, OnClose};
use crate::error::{Cancelled, Failure, Name, Panic, Reason, WOULD_BLOCK, WaitError, catch, display};
use crate::log::log;
use crate::sync::{Arc, Mutex, Weak, thread};
use crate::wait::{Waitable, Waiters, block_on, wait_until, wake_all};

/// Where a service is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceState {
    /// Made and not started.
    New,
    /// Its thread runs; it is not ready yet.
    Starting,
    /// It has said `started()`.
    Ready,
    /// Its scope is closed; its thread still runs.
    Stopping,
    /// It is over.
    Done,
}

/// What went wrong with a service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ServiceError {
    /// Its body returned an error, or its scope was failed.
    Failed {
        /// Which service.
        service: Name,
        /// The first failure, the same everywhere.
        cause: Failure,
    },
    /// Its body panicked.
    Panicked {
        /// Which service.
        service: Name,
        /// What it panicked with.
        message: String,
    },
    /// Its body returned without having called `started()`, and nobody had stopped it.
    ExitedBeforeReady {
        /// Which service.
        service: Name,
    },
    /// It was stopped before it was ready.
    Stopped {
        /// Which service.
        service: Name,
        /// Why it was stopped.
        reason: Reason,
    },
    /// It had been started before.
    AlreadyStarted {
        /// Which service.
        service: Name,
    },
    /// It was not ready, or not done, in time.
    TimedOut {
        /// Which service.
        service: Name,
        /// Where it was when the time ran out.
        state: ServiceState,
    },
    /// The wait was called on the service's own thread, on an event loop or inside an async worker, where it would deadlock.
    WouldBlock {
        /// Which service, or which group of them.
        service: Name,
    },
    /// The system gave no thread, or no event loop.
    Spawn {
        /// Which service.
        service: Name,
        /// What the system said.
        cause: Failure,
    },
}

/// What all services can do: [`ServiceThread`](crate::ServiceThread) and [`LoopServiceThread`](crate::LoopServiceThread). Sealed.
pub trait Service: sealed::Sealed + Send + Sync {
    /// Its name, which its thread has too.
    fn name(&self) -> &str {
        &self.shared().name
    }

    /// Where it is in its life.
    fn state(&self) -> ServiceState {
        self.shared().state()
    }

    /// Its end: closing this scope is what stops it, and it says why the service ended.
    fn scope(&self) -> &CloseScope {
        &self.shared().scope
    }

    /// Starts its thread; does not wait until it is ready. A service that was stopped before does not run, and this is `Ok`:
    /// `wait_started` tells.
    ///
    /// # Errors
    /// `AlreadyStarted`, `Spawn`.
    fn start(&self) -> Result<(), ServiceError> {
        self.shared().start()
    }

    /// Blocks this thread until the service is ready, for at most `timeout` (None: for ever).
    ///
    /// # Errors
    /// Why it will not be ready: `Failed`, `Panicked`, `ExitedBeforeReady`, `Stopped`, `Spawn`; or `TimedOut`, `WouldBlock`.
    fn wait_started(&self, timeout: Option<Duration>) -> Result<(), ServiceError> {
        let shared = self.shared();
        shared.block_on(shared.ready(), timeout)?
    }

    /// Asks it to stop, by closing its scope. `true` for the call that closed it. Never blocks; before `start` it counts too.
    #[track_caller]
    fn stop(&self, why: Reason) -> bool {
        self.shared().scope.close(why)
    }

    /// Blocks this thread until the service is done and its thread is gone, for at most `timeout` (None: for ever). A service
    /// that was never started is done. Does not ask it to stop. (The destructors of the thread's own thread-locals run after
    /// the service is done, and are waited for without a limit: the system offers no other way.)
    ///
    /// # Errors
    /// How it ended, unless it ended in order; `TimedOut`; `WouldBlock`.
    fn join(&self, timeout: Option<Duration>) -> Result<(), ServiceError> {
        self.shared().join(timeout)
    }

    /// As [`join`](Service::join), for those who cannot do more than say it: whether the service is done. If it is not, or if
    /// it ended badly, that is logged with its name, its state and why it was asked to stop.
    fn join_or_log(&self, timeout: Option<Duration>) -> bool {
        let shared = self.shared();
        match shared.join(timeout) {
            Ok(()) => true,
            Err(error) => shared.log(&error) == ServiceState::Done,
        }
    }
}

pub(crate) mod sealed {
    use super::{Arc, Shared};

    pub trait Sealed {
        #[doc(hidden)]
        fn shared(&self) -> &Arc<Shared>;
    }
}

/// What a service does, on its thread.
pub(crate) type Body = Box<dyn FnOnce(&Arc<Shared>) -> Result<(), Failure> + Send>;

/// A service as its handles and its thread see it.
#[allow(missing_debug_implementations)]
pub struct Shared {
    pub(crate) name: Name,
    pub(crate) scope: CloseScope,
    state: Mutex<State>,
}

#[allow(missing_debug_implementations)]
pub struct State {
    phase: Phase,
    /// Readiness, once it is decided.
    verdict: Option<Result<(), ServiceError>>,
    thread: Thread,
    thread_id: Option<thread::ThreadId>,
    waiters: Waiters,
}

enum Phase {
    New(Body),
    Starting,
    Ready,
    /// The body has ended: it is too late to say `started()`.
    Ended,
    Done(Result<(), ServiceError>),
}

/// The operating system's thread, which is joined once, by one of those who wait.
enum Thread {
    None,
    Spawning,
    Running(thread::JoinHandle<()>),
    Joining,
    Joined,
}

impl State {
    /// How it ended; None while it runs. One that was never started has ended well.
    fn outcome(&self) -> Option<Result<(), ServiceError>> {
        match &self.phase {
            Phase::Done(outcome) => Some(outcome.clone()),
            Phase::New(_) => Some(Ok(())),
            _ => None,
        }
    }
}

impl Waitable for Shared {
    type State = State;
    fn lock(&self) -> impl DerefMut<Target = State> {
        self.state.lock()
    }
    fn waiters(state: &mut State) -> &mut Waiters {
        &mut state.waiters
    }
}

impl Shared {
    pub(crate) fn new(name: Name, body: Body) -> Arc<Self> {
        let state = State {
            phase: Phase::New(body),
            verdict: None,
            thread: Thread::None,
            thread_id: None,
            waiters: Waiters::default(),
        };
        let shared = Arc::new(Shared { name, scope: CloseScope::new(), state: Mutex::new(state) });
        let hook: Weak<Shared> = Arc::downgrade(&shared);
        shared.scope.on_close(hook);
        shared
    }

    pub(crate) fn state(&self) -> ServiceState {
        match self.lock().phase {
            Phase::Done(_) => ServiceState::Done,
            Phase::New(_) => ServiceState::New,
            _ if self.scope.is_closed() => ServiceState::Stopping,
            Phase::Starting => ServiceState::Starting,
            Phase::Ready => ServiceState::Ready,
            Phase::Ended => ServiceState::Stopping,
        }
    }

    fn start(self: &Arc<Self>) -> Result<(), ServiceError> {
        let mut state = self.lock();
        if !matches!(state.thread, Thread::None) {
            drop(state);
            return Err(ServiceError::AlreadyStarted { service: self.name.clone() });
        }
        let body = match std::mem::replace(&mut state.phase, Phase::Starting) {
            Phase::New(body) => body,
            stopped_before => {
                state.phase = stopped_before;
                state.thread = Thread::Joined;
                return Ok(());
            }
        };
        state.thread = Thread::Spawning;
        drop(state);
        // The thread takes the body from here. If there is no thread, the scope fails before the body goes, and with it who
        // waits for something in it.
        let body = Arc::new(Mutex::new(Some(body)));
        let (shared, taken) = (self.clone(), body.clone());
        let main = move || {
            let body = taken.lock().take();
            shared.main(body.expect("taken once"));
        };
        let spawned = match self.name.contains('\0') {
            // The system's names end there, and `spawn` panics.
            true => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "its name has a NUL byte in it")),
            false => thread::Builder::new().name(self.name.to_string()).spawn(main),
        };
        match spawned {
            Ok(handle) => {
                self.lock().thread = Thread::Running(handle);
                wake_all(&**self);
                Ok(())
            }
            Err(cause) => {
                let error = ServiceError::Spawn { service: self.name.clone(), cause: cause.into() };
                self.lock().thread = Thread::Joined;
                self.finish(Err(error.clone().into()));
                Err(error)
            }
        }
    }

    /// The thread's whole life.
    fn main(self: Arc<Self>, body: Body) {
        self.lock().thread_id = Some(thread::current().id());
        let result = catch(|| body(&self));
        self.finish(result.and_then(|result| result));
    }

    /// Ready, unless that was decided before.
    pub(crate) fn started(&self) {
        let mut state = self.lock();
        if state.verdict.is_some() || matches!(state.phase, Phase::Ended) || self.scope.is_closed() {
            return;
        }
        state.verdict = Some(Ok(()));
        state.phase = Phase::Ready;
        drop(state);
        wake_all(self);
    }

    /// The body has ended.
    fn finish(&self, result: Result<(), Failure>) {
        // The result is dropped in there, and whoever joins waits for what follows.
        let outcome = catch(|| self.settle(result)).unwrap_or_else(|panic| Err(self.error(&panic)));
        if let (Err(error), Err(CloseError::Closed(Reason::OwnerDropped))) = (&outcome, self.scope.check()) {
            log!(error, "{error}, and nobody holds it");
        }
        self.lock().phase = Phase::Done(outcome);
        wake_all(self);
    }

    /// Ends the scope, if it has not ended, with what the body came to; says how the service ended.
    pub(crate) fn settle(&self, result: Result<(), Failure>) -> Result<(), ServiceError> {
        let was_ready = matches!(std::mem::replace(&mut self.lock().phase, Phase::Ended), Phase::Ready);
        match result {
            // A body that was told to stop, and says so, has done as it was told.
            Err(cause) if self.scope.is_closed() && is_stop(&cause) => {}
            Err(cause) => {
                if !self.scope.fail(cause.clone()) {
                    match self.scope.cause() {
                        // It failed after it was told to stop.
                        None => return Err(self.error(&cause)),
                        Some(first) if first.ptr_eq(&cause) => {}
                        Some(first) => log!(error, "{} failed after it had failed ({first}): {cause}", self.name),
                    }
                }
            }
            Ok(()) if was_ready => _ = self.scope.close(Reason::Closed(format!("{} has ended", self.name).into())),
            Ok(()) => _ = self.scope.fail(ServiceError::ExitedBeforeReady { service: self.name.clone() }),
        }
        match self.scope.cause() {
            Some(cause) => Err(self.error(&cause)),
            None => Ok(()),
        }
    }

    /// A failure as this service's error.
    fn error(&self, cause: &Failure) -> ServiceError {
        let service = self.name.clone();
        if let Some(error) = cause.downcast_ref::<ServiceError>() {
            return error.clone();
        }
        match cause.downcast_ref::<Panic>() {
            Some(panic) => ServiceError::Panicked { service, message: panic.message().to_owned() },
            None => ServiceError::Failed { service, cause: cause.clone() },
        }
    }

    /// The future of readiness.
    pub(crate) fn ready(self: &Arc<Self>) -> impl Future<Output = Result<(), ServiceError>> + Send + 'static + use<> {
        wait_until(self.clone(), |state: &mut State| state.verdict.clone())
    }

    /// The future of the end.
    pub(crate) fn done(self: &Arc<Self>) -> impl Future<Output = Result<(), ServiceError>> + Send + 'static + use<> {
        wait_until(self.clone(), |state: &mut State| state.outcome())
    }

    /// How it ended; None while it runs.
    #[cfg(feature = "tokio")]
    pub(crate) fn outcome(&self) -> Option<Result<(), ServiceError>> {
        self.lock().outcome()
    }

    fn join(self: &Arc<Self>, timeout: Option<Duration>) -> Result<(), ServiceError> {
        let deadline = Deadline::after(timeout);
        loop {
            // The thread has nothing left to do but to go: one joins it, the others wait for that one. The end and the thread are
            // looked at in one step: the thread of a start that comes between has not ended.
            let last = wait_until(&**self, |state: &mut State| {
                let outcome = state.outcome()?;
                match state.thread {
                    Thread::Spawning | Thread::Joining => None,
                    Thread::None | Thread::Joined => Some((outcome, None)),
                    Thread::Running(_) => match std::mem::replace(&mut state.thread, Thread::Joining) {
                        Thread::Running(handle) => Some((outcome, Some(handle))),
                        _ => unreachable!("just seen"),
                    },
                }
            });
            let (outcome, handle) = self.block_on(last, deadline.left())?;
            let Some(handle) = handle else { return outcome };
            let _outcome_is_set = handle.join();
            self.lock().thread = Thread::Joined;
            wake_all(&**self);
        }
    }

    fn block_on<F: Future>(&self, wait: F, timeout: Option<Duration>) -> Result<F::Output, ServiceError> {
        let service = self.name.clone();
        if self.lock().thread_id == Some(thread::current().id()) {
            return Err(ServiceError::WouldBlock { service });
        }
        block_on(wait, timeout).map_err(|blocked| match blocked {
            WaitError::TimedOut => ServiceError::TimedOut { service, state: self.state() },
            WaitError::WouldBlock => ServiceError::WouldBlock { service },
        })
    }

    /// Logs how the service ended, or that it did not. Returns the state that was seen.
    pub(crate) fn log(&self, error: &ServiceError) -> ServiceState {
        let state = self.state();
        let why = match self.scope.check() {
            Ok(()) => "not asked to stop, ".to_owned(),
            Err(CloseError::Closed(reason)) => format!("asked to stop: {reason}, "),
            Err(CloseError::Failed(_)) if state == ServiceState::Done => String::new(), // the error has said it
            Err(CloseError::Failed(cause)) => format!("failed: {cause}, "),
        };
        log!(error, "{error} (state {state:?}, {why}{})", self.thread_name());
        state
    }

    fn thread_name(&self) -> String {
        self.lock().thread_id.map_or_else(|| "no thread".to_owned(), |id| format!("{id:?}"))
    }
}

impl OnClose for Shared {
    /// The close decides readiness if nothing has before, and ends a service that has not begun.
    fn on_close(self: Arc<Self>, end: &CloseError, _at: &'static Location<'static>) {
        let (verdict, outcome) = match end {
            CloseError::Closed(reason) => {
                let (service, reason) = (self.name.clone(), reason.clone());
                (ServiceError::Stopped { service, reason }, Ok(()))
            }
            CloseError::Failed(cause) => (self.error(cause), Err(self.error(cause))),
        };
        let mut state = self.lock();
        if state.verdict.is_none() {
            state.verdict = Some(Err(verdict));
        }
        let mut body = None;
        if matches!(state.phase, Phase::New(_)) {
            body = Some(std::mem::replace(&mut state.phase, Phase::Done(outcome)));
        }
        drop(state);
        if let Err(panic) = catch(|| drop(body)) {
            log!(error, "the body of {} {panic} as it was dropped unrun", self.name);
        }
        wake_all(&*self);
    }
}

/// Whether an error only repeats that the work was told to stop.
fn is_stop(cause: &Failure) -> bool {
    cause.chain_has::<CloseError>() || cause.chain_has::<Cancelled>()
}

/// A moment up to which several waits may take, together.
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) fn after(time: Option<Duration>) -> Self {
        Deadline(time.and_then(|time| Instant::now().checked_add(time)))
    }

    /// What is left; None: for ever.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.0.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

impl ServiceError {
    /// The name of the service that it is about.
    pub fn service(&self) -> &str {
        match self {
            ServiceError::Failed { service, .. }
            | ServiceError::Panicked { service, .. }
            | ServiceError::ExitedBeforeReady { service }
            | ServiceError::Stopped { service, .. }
            | ServiceError::AlreadyStarted { service }
            | ServiceError::TimedOut { service, .. }
            | ServiceError::WouldBlock { service }
            | ServiceError::Spawn { service, .. } => service,
        }
    }
}

display!(ServiceError {
    ServiceError::Failed { service, cause } => "{service} failed: {cause}" from cause.source(),
    ServiceError::Panicked { service, message } => "{service} panicked: {message}",
    ServiceError::ExitedBeforeReady { service } => "{service} ended before it was ready",
    ServiceError::Stopped { service, reason } => "{service} was stopped before it was ready: {reason}",
    ServiceError::AlreadyStarted { service } => "{service} was started before",
    ServiceError::TimedOut { service, state } => "{service} is still {state:?}: timed out",
    ServiceError::WouldBlock { service } => "waiting for {service} {WOULD_BLOCK}",
    ServiceError::Spawn { service, cause } => "{service} could not be spawned: {cause}" from cause.source(),
});
