//! The native part of the Python package: the core's primitives as classes, woken by asyncio.
//!
//! - `wake`: the asyncio host, and `event_loop`: what it asks of a loop; `awaitable`: what is awaited
//! - `raw`: the only unsafe code; `once`: what is looked up once; `errors`: exceptions that are kept and raised later;
//!   `number`: numbers as callers give them
//! - `close`; `cancel` with `entry` (who is in which scope) and `checkpoint`; `channel` with `line` (who waits in it) and
//!   `priority`; `registry` with `waiter`: a concept each
//!
//! What is not hot stays Python: the task group, actors, threads (`python/microio`).

mod awaitable;
mod cancel;
mod channel;
mod checkpoint;
mod close;
mod entry;
mod errors;
mod event_loop;
mod line;
mod number;
mod once;
mod priority;
mod raw;
mod registry;
mod waiter;
mod wake;

#[pyo3::pymodule(name = "_microio", gil_used = true)]
mod native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::awaitable::Awaitable;
    #[pymodule_export]
    use crate::cancel::{CancelScope, fail_after, move_on_after};
    #[pymodule_export]
    use crate::channel::{ObjectReceiveChannel, ObjectSendChannel, create_channel};
    #[pymodule_export]
    use crate::checkpoint::{checkpoint, checkpoint_if_cancelled, current_cancel_scope, sleep};
    #[pymodule_export]
    use crate::close::{CloseScope, WorkTracker};
    #[pymodule_export]
    use crate::number::seconds;
    #[pymodule_export]
    use crate::priority::PriorityReceiver;
    #[pymodule_export]
    use crate::registry::{ReplyHandle, RequestRegistry};
    #[pymodule_export]
    use crate::waiter::Waiter;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // What is looked up at its first use is loaded by now: an import may be no place for a signal handler, or the end.
        for name in ["asyncio", "contextvars", "numbers", "queue", "types", "weakref"] {
            module.py().import(name)?;
        }
        crate::raw::install(module.py());
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        crate::wake::watch_forks(module)
    }
}
