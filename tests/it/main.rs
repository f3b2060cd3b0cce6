//! One binary, one file per file of `src`. Primitives are polled by hand, threads meet at barriers, tokio's clock is paused:
//! no test sleeps.

mod support;

mod actor;
mod ambient;
mod cancel;
mod channel;
mod close;
mod error;
#[cfg(feature = "tokio")]
mod loop_thread;
mod mailbox;
#[cfg(feature = "tokio")]
mod programs;
mod registry;
mod service_group;
#[cfg(feature = "tokio")]
mod task;
mod thread;
#[cfg(feature = "tokio")]
mod time;
mod wait;
