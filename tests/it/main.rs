//! One binary, one file per file of `src`. Primitives are polled by hand, threads meet at barriers, tokio's clock is paused:
//! no test sleeps.

mod alone;
#[cfg(feature = "tracing")]
mod logged;
mod support;

mod actor;
mod ambient;
mod bad_input;
mod cancel;
mod channel;
mod close;
mod debug;
mod error;
#[cfg(all(target_os = "linux", not(miri)))] // Miri starts no processes
mod faults;
mod mailbox;
#[cfg(feature = "tokio")]
mod programs;
mod registry;
#[cfg(feature = "tokio")]
mod rt;
mod service_group;
mod thread;
mod wait;
