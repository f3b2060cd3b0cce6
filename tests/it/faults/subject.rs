//! The service of a cell, and its neighbours: a thread or a loop, behind one face.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;

#[cfg(feature = "tokio")]
use microio::{Failure, LoopContext, LoopServiceThread};
use microio::{Service, ServiceGroup, ServiceThread};

#[cfg(feature = "tokio")]
use super::SOON;
use super::said::Said;
use super::script::Script;
use super::{Kind, NAME};

#[derive(Clone)]
pub(super) enum Subject {
    Thread(ServiceThread),
    #[cfg(feature = "tokio")]
    Loop(LoopServiceThread),
}

/// What a waiter waits for; it has nothing to tell of a service that is ready, or that ended in order.
pub(super) type Told = Pin<Box<dyn Future<Output = Result<(), Said>>>>;

impl Subject {
    /// The service with the fault in it.
    pub(super) fn new(kind: Kind, script: &Arc<Script>) -> Self {
        let script = script.clone();
        match kind {
            Kind::Thread => Subject::Thread(ServiceThread::new(NAME, move |cx| script.on_a_thread(cx))),
            #[cfg(feature = "tokio")]
            Kind::Main => on_a_loop(NAME, async move |cx| script.on_a_loop(|| cx.started()).await),
            #[cfg(feature = "tokio")]
            Kind::Task => on_a_loop(NAME, async move |cx| {
                let me = cx.clone();
                cx.task_group().start_soon("worker", script.on_a_loop(move || me.started()));
                Ok(())
            }),
            #[cfg(feature = "tokio")]
            Kind::Submitted => on_a_loop(NAME, async move |cx| {
                if script.fault.is_before_ready() {
                    script.over.closed().await;
                }
                idle(cx).await
            }),
        }
    }

    /// One that does as it is told.
    pub(super) fn obedient(name: &'static str, kind: Kind) -> Self {
        match kind {
            Kind::Thread => Subject::Thread(ServiceThread::new(name, |cx| {
                cx.started();
                Ok(cx.scope().wait_blocking(None).map(drop)?)
            })),
            #[cfg(feature = "tokio")]
            _ => on_a_loop(name, idle),
        }
    }

    pub(super) fn join_group(&self, group: &mut ServiceGroup) {
        match self {
            Subject::Thread(service) => _ = group.add(service.clone()),
            #[cfg(feature = "tokio")]
            Subject::Loop(service) => _ = group.add(service.clone()),
        }
    }

    pub(super) fn ready(&self) -> Told {
        match self.clone() {
            Subject::Thread(service) => Box::pin(async move { Ok(service.ready().await?) }),
            #[cfg(feature = "tokio")]
            Subject::Loop(service) => Box::pin(async move { Ok(service.ready().await?) }),
        }
    }

    pub(super) fn joined(&self) -> Told {
        match self.clone() {
            Subject::Thread(service) => Box::pin(async move { Ok(service.joined().await?) }),
            #[cfg(feature = "tokio")]
            Subject::Loop(service) => Box::pin(async move { Ok(service.joined().await?) }),
        }
    }
}

impl Deref for Subject {
    type Target = dyn Service;

    fn deref(&self) -> &Self::Target {
        match self {
            Subject::Thread(service) => service,
            #[cfg(feature = "tokio")]
            Subject::Loop(service) => service,
        }
    }
}

#[cfg(feature = "tokio")]
fn on_a_loop<F: Future<Output = Result<(), Failure>> + 'static>(
    name: &'static str,
    main: impl FnOnce(LoopContext) -> F + Send + 'static,
) -> Subject {
    Subject::Loop(LoopServiceThread::new(name, main).with_grace(SOON))
}

#[cfg(feature = "tokio")]
async fn idle(cx: LoopContext) -> Result<(), Failure> {
    cx.started();
    std::future::pending().await
}
