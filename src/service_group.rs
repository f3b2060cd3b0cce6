//! Several services with one life: [`ServiceGroup`], started in order, rolled back in reverse, stopped under one deadline.

use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

use crate::close::CloseScope;
use crate::error::{Name, Reason};
use crate::log::log;
use crate::service::{Deadline, Service, ServiceError};
use crate::wait::may_block;

/// Services that are started in order and stopped together.
///
/// ```
/// use microio::{ServiceGroup, ServiceThread};
/// let mut group = ServiceGroup::new("kernel");
/// for name in ["shell", "heartbeat"] {
///     group.add(ServiceThread::new(name, |cx| {
///         cx.started();
///         cx.scope().wait_blocking(None)?;
///         Ok(())
///     }));
/// }
/// group.start_all(None)?;
/// let whoever = group.scope().clone(); // given to whoever may end it all
/// whoever.close("bye");
/// let why = group.scope().wait_blocking(None).unwrap(); // or until a service of its own accord ends, or fails
/// let report = group.stop_join(why, None);
/// assert!(report.errors.is_empty() && report.stuck.is_empty());
/// # Ok::<(), microio::StartAllError>(())
/// ```
pub struct ServiceGroup {
    name: Name,
    scope: CloseScope,
    services: Vec<Box<dyn Service>>,
}

/// A service did not start; those before it have been stopped.
#[derive(Clone, Debug)]
pub struct StartAllError {
    /// Which service, and why.
    pub failed: ServiceError,
    /// The services that had been started and were asked to stop again, in that order. They have ended as well, as far as the
    /// time allowed.
    pub stopped: Vec<Name>,
}

/// How a group of services ended.
#[derive(Clone, Debug)]
pub struct StopReport {
    /// The services that ended badly, the last started first.
    pub errors: Vec<ServiceError>,
    /// The services that had not ended when the time was up.
    pub stuck: Vec<Name>,
    /// How long the stop took.
    pub took: Duration,
}

impl ServiceGroup {
    /// A group with no services in it.
    pub fn new(name: impl Into<Name>) -> Self {
        ServiceGroup { name: name.into(), scope: CloseScope::new(), services: Vec::new() }
    }

    /// Adds a service, to be started after those that are there.
    pub fn add(&mut self, service: impl Service + 'static) -> &mut Self {
        self.scope.follow(service.scope());
        self.services.push(Box::new(service));
        self
    }

    /// The end of the group: closed when somebody stops the group, and when one of its services is stopped, ends or fails, with
    /// that service's reason or cause. Whoever waits for it hears of all of these.
    ///
    /// Closing it says that the group is to end, and why. It stops no service: that is done by whoever waits for it and then
    /// calls [`stop_join`](ServiceGroup::stop_join), in the order that suits the services.
    pub fn scope(&self) -> &CloseScope {
        &self.scope
    }

    /// Starts the services one after the other, each when the one before is ready; all within `timeout` (None: for ever).
    ///
    /// # Errors
    /// The first that did not become ready in time. It and those before it are asked to stop, in reverse order, and joined as
    /// far as the time allows.
    pub fn start_all(&self, timeout: Option<Duration>) -> Result<(), StartAllError> {
        if !may_block() {
            let failed = ServiceError::WouldBlock { service: self.name.clone() };
            return Err(StartAllError { failed, stopped: Vec::new() });
        }
        let deadline = Deadline::after(timeout);
        let mut rollback = Rollback { services: &self.services, started: 0, cause: None };
        for (nth, service) in self.services.iter().enumerate() {
            let started = service.start();
            rollback.started += usize::from(started.is_ok());
            if let Err(failed) = started.and_then(|()| service.wait_started(deadline.left())) {
                rollback.cause = Some(failed.clone());
                let stopped = rollback.stop();
                for service in stopped.iter().rev() {
                    service.join_or_log(deadline.left());
                }
                return Err(StartAllError::new(failed, &self.services[..nth]));
            }
        }
        rollback.started = 0;
        Ok(())
    }

    /// As [`start_all`](ServiceGroup::start_all), without blocking; `fail_after` gives it a deadline.
    ///
    /// # Errors
    /// The first that did not become ready. It and those before it have been stopped, in reverse order, and have ended.
    ///
    /// # Cancel safety
    /// Dropping the future asks the services that it has started to stop, in reverse order.
    pub async fn start_all_async(&self) -> Result<(), StartAllError> {
        let mut rollback = Rollback { services: &self.services, started: 0, cause: None };
        for (nth, service) in self.services.iter().enumerate() {
            let mut started = service.start();
            rollback.started += usize::from(started.is_ok());
            if started.is_ok() {
                started = service.shared().ready().await;
            }
            if let Err(failed) = started {
                rollback.cause = Some(failed.clone());
                let stopped = rollback.stop();
                for service in stopped.iter().rev() {
                    if let Err(error) = service.shared().done().await {
                        service.shared().log(&error);
                    }
                }
                return Err(StartAllError::new(failed, &self.services[..nth]));
            }
        }
        rollback.started = 0;
        Ok(())
    }

    /// Asks all services to stop, the last started first. Never blocks.
    pub fn stop(&self, why: impl Into<Reason>) {
        let why = why.into();
        self.scope.close(why.clone());
        for service in self.services.iter().rev() {
            service.stop(why.clone());
        }
    }

    /// Asks all services to stop and waits until they have ended: for all of them together at most `timeout` (None: for ever).
    ///
    /// Called where it must not block, it stops them, and `errors` says `WouldBlock`.
    pub fn stop_join(&self, why: impl Into<Reason>, timeout: Option<Duration>) -> StopReport {
        let (begin, deadline) = (Instant::now(), Deadline::after(timeout));
        self.stop(why);
        let mut report = StopReport { errors: Vec::new(), stuck: Vec::new(), took: Duration::ZERO };
        for service in self.services.iter().rev() {
            match service.join(deadline.left()) {
                Ok(()) => {}
                Err(ServiceError::TimedOut { service, .. }) => report.stuck.push(service),
                Err(error) => report.errors.push(error),
            }
        }
        report.took = begin.elapsed();
        report
    }

    /// Waits until all services have ended. Does not ask them to.
    #[cfg(feature = "tokio")]
    pub(crate) async fn joined(&self) {
        for service in &self.services {
            let _reported_below = service.shared().done().await;
        }
    }

    /// How the services stand now: who has ended badly, and who has not ended.
    #[cfg(feature = "tokio")]
    pub(crate) fn report(&self, took: Duration) -> StopReport {
        let mut report = StopReport { errors: Vec::new(), stuck: Vec::new(), took };
        for service in self.services.iter().rev() {
            match service.shared().outcome() {
                None => report.stuck.push(service.name().to_owned().into()),
                Some(Ok(())) => {}
                Some(Err(error)) => report.errors.push(error),
            }
        }
        report
    }
}

/// Stops what has been started, in reverse, unless it is told that all went well (`started` 0).
struct Rollback<'a> {
    services: &'a [Box<dyn Service>],
    started: usize,
    cause: Option<ServiceError>,
}

impl<'a> Rollback<'a> {
    fn stop(&mut self) -> &'a [Box<dyn Service>] {
        let started = &self.services[..std::mem::take(&mut self.started)];
        for service in started.iter().rev() {
            let why = match &self.cause {
                Some(error) => Reason::Requested(format!("rolled back: {error}").into()),
                None => Reason::Requested("rolled back: the start was given up".into()),
            };
            service.stop(why);
        }
        started
    }
}

impl Drop for Rollback<'_> {
    fn drop(&mut self) {
        if self.started > 0 {
            log!(warn, "a start of services was given up: {} of them are asked to stop", self.started);
            self.stop();
        }
    }
}

impl StartAllError {
    fn new(failed: ServiceError, before: &[Box<dyn Service>]) -> Self {
        StartAllError { failed, stopped: before.iter().rev().map(|service| service.name().to_owned().into()).collect() }
    }
}

impl fmt::Display for StartAllError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failed.fmt(f)?;
        if self.stopped.is_empty() { Ok(()) } else { write!(f, " (stopped again: {})", self.stopped.join(", ")) }
    }
}

impl Error for StartAllError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.failed.source()
    }
}

impl fmt::Debug for ServiceGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services = self.services.iter().map(|service| (service.name(), service.state()));
        f.debug_struct("ServiceGroup").field("name", &self.name).field("services", &Vec::from_iter(services)).finish()
    }
}
