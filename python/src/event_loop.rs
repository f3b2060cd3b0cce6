//! What we ask an event loop and its tasks, at the least cost: which is running, whether it is closed, "call this soon".

use std::cell::Cell;

use pyo3::exceptions::{PyAttributeError, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyTuple};

use crate::once::Once;
use crate::raw::call_method;

/// The loop that this thread is running.
pub(crate) fn running_loop(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    static GET: Once<Py<PyAny>> = Once::new();
    let running = GET.import(py, "asyncio", "_get_running_loop")?.call0()?;
    Ok((!running.is_none()).then_some(running))
}

/// The same, where there must be one.
pub(crate) fn need_running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    running_loop(py)?.ok_or_else(|| PyRuntimeError::new_err("no running event loop"))
}

/// Up to 3.13 the current tasks stand in a dict, by loop, and to look there costs a tenth of the call on 3.11.
fn current_tasks(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static CURRENT: Once<Py<PyAny>> = Once::new();
    let current = CURRENT.get_or_make(py, || {
        let tasks = py.import("asyncio.tasks")?;
        let name = if py.version_info() < (3, 14) { "_current_tasks" } else { "current_task" };
        tasks.getattr(name).map(Bound::unbind)
    })?;
    Ok(current.bind(py))
}

/// The task that `loop_` is running.
pub(crate) fn current_task<'py>(loop_: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let current = current_tasks(loop_.py())?;
    match current.cast::<PyDict>() {
        Ok(tasks) => tasks.get_item(loop_),
        Err(_) => Ok(Some(current.call1((loop_,))?).filter(|task| !task.is_none())),
    }
}

/// The loop that this thread is running, and the task that the loop is running.
///
/// # Errors
/// RuntimeError, if there is no loop.
pub(crate) fn running_task(py: Python<'_>) -> PyResult<(Bound<'_, PyAny>, Option<Bound<'_, PyAny>>)> {
    if let Ok(tasks) = current_tasks(py)?.cast::<PyDict>() {
        // One task in the whole process, and its loop runs here: to ask asyncio would cost a system call on 3.11.
        if tasks.len() == 1 {
            if let Some((loop_, task)) = tasks.iter().next() {
                if runs_here(&loop_)? {
                    return Ok((loop_, Some(task)));
                }
            }
        }
    }
    let loop_ = need_running_loop(py)?;
    let task = current_task(&loop_)?;
    Ok((loop_, task))
}

/// Whether this thread is in a step of a task of `loop_`. Not so in a signal handler that interrupts the loop's select: there
/// a plain `call_soon` would not wake it.
pub(crate) fn in_step(loop_: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(runs_here(loop_)? && current_task(loop_)?.is_some())
}

/// Has `loop_` call `callback(argument)`, from any thread. In a step of a task that saves the write to the loop's pipe.
pub(crate) fn schedule(
    loop_: &Bound<'_, PyAny>,
    callback: &Bound<'_, PyAny>,
    argument: &Bound<'_, PyAny>,
    context: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let py = loop_.py();
    let how = if in_step(loop_)? { intern!(py, "call_soon") } else { intern!(py, "call_soon_threadsafe") };
    match context {
        None => call_method(how, [loop_, callback, argument], None)?,
        Some(context) => {
            static NAMES: Once<Py<PyTuple>> = Once::new();
            let names = NAMES.get_or_make(py, || PyTuple::new(py, ["context"]).map(Bound::unbind))?;
            call_method(how, [loop_, callback, argument, context], Some(names.bind(py)))?
        }
    };
    Ok(())
}

/// Has `loop_` call `callback` soon, from any thread; not if it is closed. `plain`: this is a step of one of its tasks.
pub(crate) fn call_soon(loop_: &Bound<'_, PyAny>, callback: &Bound<'_, PyAny>, plain: bool) -> PyResult<()> {
    let py = loop_.py();
    let how = if plain { intern!(py, "call_soon") } else { intern!(py, "call_soon_threadsafe") };
    match call_method(how, [loop_, callback], None) {
        Err(_) if is_closed(loop_)? => Ok(()),
        result => result.map(drop),
    }
}

/// The time on the clock of a loop.
pub(crate) fn now(loop_: &Bound<'_, PyAny>) -> PyResult<f64> {
    call_method(intern!(loop_.py(), "time"), [loop_], None)?.extract()
}

/// Whether a loop is closed; cheaply, if it is one of the standard library's.
pub(crate) fn is_closed(loop_: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = loop_.py();
    match loop_.getattr_opt(intern!(py, "_closed"))? {
        Some(closed) => closed.is_truthy(),
        None => match call_method(intern!(py, "is_closed"), [loop_], None) {
            // It is being collected as garbage, and has lost its attributes.
            Err(error) if error.is_instance_of::<PyAttributeError>(py) => Ok(true),
            closed => closed?.is_truthy(),
        },
    }
}

/// Over when `loop_` is closed, which a loop tells nobody; but then it drops its timers, and one of them is ours.
pub(crate) fn end_of(loop_: &Bound<'_, PyAny>) -> PyResult<microio::CloseScope> {
    static ENDS: Once<Py<PyAny>> = Once::new();
    static CONTEXT: Once<Py<PyAny>> = Once::new();
    let py = loop_.py();
    let ends = ENDS.get_or_make(py, || Ok(py.import("weakref")?.getattr("WeakKeyDictionary")?.call0()?.unbind()))?;
    let ends = ends.bind(py);
    let known = call_method(intern!(py, "get"), [ends, loop_], None)?;
    if let Ok(known) = known.cast::<LoopEnd>() {
        return Ok(known.get().0.clone());
    }
    let end = microio::CloseScope::new();
    let lookout = Bound::new(py, Lookout(end.clone()))?;
    let context = CONTEXT.import(py, "contextvars", "Context")?.call0()?; // ours would be kept for as long
    match schedule(loop_, lookout.as_any(), loop_, Some(&context)) {
        Err(error) if !is_closed(loop_)? => return Err(error),
        _ => {}
    }
    let known = Bound::new(py, LoopEnd(end.clone()))?;
    call_method(intern!(py, "__setitem__"), [ends, loop_, known.as_any()], None)?;
    Ok(end)
}

#[pyclass(frozen, module = "microio._microio")]
struct LoopEnd(microio::CloseScope);

/// Sits among the timers of a loop, and says when it is thrown out.
#[pyclass(frozen, module = "microio._microio")]
struct Lookout(microio::CloseScope);

#[pymethods]
impl Lookout {
    fn __call__(slf: &Bound<'_, Self>, loop_: &Bound<'_, PyAny>) -> PyResult<()> {
        const YEARS: f64 = 1e9;
        let delay = PyFloat::new(slf.py(), YEARS);
        call_method(intern!(slf.py(), "call_later"), [loop_, &delay, slf.as_any(), loop_], None).map(drop)
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.0.close("closed");
    }
}

/// The number that Python gives this thread.
pub(crate) fn thread_ident(py: Python<'_>) -> PyResult<u64> {
    thread_local! {
        static IDENT: Cell<u64> = const { Cell::new(0) };
    }
    match IDENT.get() {
        0 => {
            let ident = py.import("_thread")?.call_method0("get_ident")?.extract()?;
            IDENT.set(ident);
            Ok(ident)
        }
        ident => Ok(ident),
    }
}

/// Whether this thread is running that loop; cheaply, if it is one of the standard library's.
pub(crate) fn runs_here(loop_: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = loop_.py();
    match loop_.getattr_opt(intern!(py, "_thread_id"))? {
        Some(runner) => Ok(!runner.is_none() && runner.extract::<u64>()? == thread_ident(py)?),
        None => Ok(running_loop(py)?.is_some_and(|running| running.is(loop_))),
    }
}
