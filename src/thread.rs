//! A supervised thread: [`ServiceThread`], and [`ServiceContext`], the service as its own body sees it.

use std::fmt;

use crate::close::CloseScope;
use crate::error::{Failure, Name, Reason};
use crate::log::log;
use crate::service::{Service, ServiceError, ServiceState, Shared, sealed};
use crate::sync::Arc;

/// A thread with a name, a readiness and an end.
///
/// The body says [`started`](ServiceContext::started) when its resources are there, and returns when its
/// [`scope`](ServiceContext::scope) is closed. Clones are handles to the same service; when the last one is dropped the
/// service is asked to stop and left to itself. The orderly way is `stop` and `join`.
///
/// ```
/// use microio::{Service, ServiceThread};
/// let ticker = ServiceThread::new("ticker", |cx| {
///     cx.started();
///     cx.scope().wait_blocking(None)?;
///     Ok(())
/// });
/// ticker.start()?;
/// ticker.wait_started(None)?;
/// ticker.stop("bye".into());
/// ticker.join(None)?;
/// # Ok::<(), microio::ServiceError>(())
/// ```
#[derive(Clone)]
pub struct ServiceThread(Arc<Owner>);

/// What the handles share. The thread does not hold it: when it is dropped, no handle is left.
struct Owner(Arc<Shared>);

impl ServiceThread {
    /// A service that is not started yet. `body` runs on its thread.
    pub fn new(
        name: impl Into<Name>,
        body: impl FnOnce(&ServiceContext) -> Result<(), Failure> + Send + 'static,
    ) -> Self {
        let body = move |shared: &Arc<Shared>| body(&ServiceContext(shared.clone()));
        let shared = Shared::new(name.into(), Box::new(body));
        ServiceThread(Arc::new(Owner(shared)))
    }

    /// Waits until the service is ready.
    ///
    /// # Errors
    /// Why it will not be ready.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn ready(&self) -> Result<(), ServiceError> {
        self.0.0.ready().await
    }

    /// Waits until the service is done. One that was never started is done. (Its thread has nothing left to do but to go; only
    /// the blocking [`join`](Service::join) sees it gone.)
    ///
    /// # Errors
    /// How it ended, unless it ended in order.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn joined(&self) -> Result<(), ServiceError> {
        self.0.0.done().await
    }
}

impl sealed::Sealed for ServiceThread {
    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }
}

impl Service for ServiceThread {}

impl Drop for Owner {
    fn drop(&mut self) {
        let state = self.0.state();
        if self.0.scope.close(Reason::OwnerDropped) && state != ServiceState::New {
            log!(warn, "service {} is asked to stop: its last handle was dropped", self.0.name);
        }
    }
}

/// The service as its own body sees it. Clones may go anywhere; they do not keep the service from being stopped.
#[derive(Clone)]
pub struct ServiceContext(pub(crate) Arc<Shared>);

impl ServiceContext {
    /// The service's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The service's end: closed by whoever stops it. The body returns when it is.
    pub fn scope(&self) -> &CloseScope {
        &self.0.scope
    }

    /// Says that the service is ready. Only the first call counts, and none after a stop.
    pub fn started(&self) {
        self.0.started();
    }
}

impl fmt::Debug for ServiceThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceThread").field("name", &self.name()).field("state", &self.state()).finish()
    }
}

impl fmt::Debug for ServiceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceContext").field("name", &self.0.name).field("state", &self.0.state()).finish()
    }
}
