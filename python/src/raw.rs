//! What PyO3 cannot express, and the only unsafe code: the slots through which the interpreter steps an awaitable, and those
//! through which it frees our objects, a call that survives the end of the interpreter, and the count of references to an object.
//!
//! # The slots
//!
//! A `#[pymethods]` class gets a step through `__next__`, whose result travels in a StopIteration that PyO3 makes from a lazy
//! error. CPython 3.11 steps through `am_send`, where the result travels by itself; 3.12 and later call `tp_iternext` from
//! bytecode (there a StopIteration is made directly) and `am_send` for tasks.
//!
//! # The end of an object
//!
//! An object that is freed lets go of others, which are freed in the middle of that: a channel with an item that holds a channel
//! with an item, and so on, would use up the stack. The interpreter's own containers put off what is nested too deep until the
//! outermost is done; so do ours (`free_bounded`). Not with `abi3`, where the slot cannot be had.
//!
//! # The call
//!
//! Before 3.14 an interpreter that ends stops each daemon thread where it next asks for the GIL, by `pthread_exit`, which unwinds
//! the thread's stack. Where a frame of Rust is in the way the process aborts. So Python code that a daemon thread may be in
//! when the interpreter ends is called through [`call`]: it hangs the thread instead, which is what 3.14 does.

#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

/// Whether this is the only reference to the object. Exact while the GIL is held, which this module requires.
pub(crate) fn is_last<T>(object: &Py<T>, _py: Python<'_>) -> bool {
    // SAFETY: the pointer is that of a live object, to which `object` holds a reference.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) == 1 }
}

/// Hangs the thread when it is dropped.
struct Hang;

impl Drop for Hang {
    fn drop(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

/// A function of the interpreter's, as one that may unwind. The optimizer must not see which one it is: PyO3 declares the same
/// function as one that never unwinds, and the two declarations would become one.
macro_rules! may_unwind {
    ($function:ident($($argument:ty),*)) => {{
        type Unwinding = unsafe extern "C-unwind" fn($($argument),*) -> *mut ffi::PyObject;
        type Plain = unsafe extern "C" fn($($argument),*) -> *mut ffi::PyObject;
        let function: Plain = ffi::$function;
        // SAFETY: the two types differ in what the caller expects of unwinding only.
        std::hint::black_box(unsafe { std::mem::transmute::<Plain, Unwinding>(function) })
    }};
}

type Any<'a, 'py> = &'a Bound<'py, PyAny>;

/// `callable(*args)`, for Python code that may be running when the interpreter ends.
#[cfg(not(feature = "abi3"))]
pub(crate) fn call<'py, const N: usize>(
    callable: Any<'_, 'py>,
    args: [Any<'_, 'py>; N],
) -> PyResult<Bound<'py, PyAny>> {
    let args = args.map(Bound::as_ptr);
    let vectorcall =
        may_unwind!(PyObject_Vectorcall(*mut ffi::PyObject, *const *mut ffi::PyObject, usize, *mut ffi::PyObject));
    let hang = Hang;
    // SAFETY: borrowed references to live objects, which outlive the call; the result is new, or null with an error set.
    let result = unsafe { vectorcall(callable.as_ptr(), args.as_ptr(), N, std::ptr::null_mut()) };
    std::mem::forget(hang);
    // SAFETY: as above.
    unsafe { Bound::from_owned_ptr_or_err(callable.py(), result) }
}

/// `object.name(*args)`, likewise; `args` begins with the object, and ends with the values of the keywords `names`, if any.
#[cfg(not(feature = "abi3"))]
pub(crate) fn call_method<'py, const N: usize>(
    name: &Bound<'py, PyString>,
    args: [Any<'_, 'py>; N],
    names: Option<&Bound<'py, PyTuple>>,
) -> PyResult<Bound<'py, PyAny>> {
    let args = args.map(Bound::as_ptr);
    let positional = N - names.map_or(0, |names| names.len());
    let names = names.map_or(std::ptr::null_mut(), Bound::as_ptr);
    let vectorcall = may_unwind!(
        PyObject_VectorcallMethod(*mut ffi::PyObject, *const *mut ffi::PyObject, usize, *mut ffi::PyObject)
    );
    let hang = Hang;
    // SAFETY: as in `call`; there is at least one argument, the object.
    let result = unsafe { vectorcall(name.as_ptr(), args.as_ptr(), positional, names) };
    std::mem::forget(hang);
    // SAFETY: as above.
    unsafe { Bound::from_owned_ptr_or_err(name.py(), result) }
}

/// `dict.get(key)`, likewise: comparing keys may call Python code.
pub(crate) fn get_item<'py>(dict: &Bound<'py, PyDict>, key: Any<'_, 'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let get = may_unwind!(PyDict_GetItemWithError(*mut ffi::PyObject, *mut ffi::PyObject));
    let hang = Hang;
    // SAFETY: borrowed references to live objects; the result is borrowed from the dict, or null, with an error set or without.
    let found = unsafe { get(dict.as_ptr(), key.as_ptr()) };
    std::mem::forget(hang);
    // SAFETY: as above; nothing has run since that could take it out of the dict.
    match unsafe { Bound::from_borrowed_ptr_or_opt(dict.py(), found) } {
        None => PyErr::take(dict.py()).map_or(Ok(None), Err),
        found => Ok(found),
    }
}

/// The stable ABI of 3.11 has no vectorcall.
#[cfg(feature = "abi3")]
fn call_any<'py>(
    callable: Any<'_, 'py>,
    args: &Bound<'py, PyTuple>,
    kwargs: *mut ffi::PyObject,
) -> PyResult<Bound<'py, PyAny>> {
    let call = may_unwind!(PyObject_Call(*mut ffi::PyObject, *mut ffi::PyObject, *mut ffi::PyObject));
    let hang = Hang;
    // SAFETY: as in the other `call`.
    let result = unsafe { call(callable.as_ptr(), args.as_ptr(), kwargs) };
    std::mem::forget(hang);
    // SAFETY: as above.
    unsafe { Bound::from_owned_ptr_or_err(callable.py(), result) }
}

#[cfg(feature = "abi3")]
pub(crate) fn call<'py, const N: usize>(
    callable: Any<'_, 'py>,
    args: [Any<'_, 'py>; N],
) -> PyResult<Bound<'py, PyAny>> {
    call_any(callable, &PyTuple::new(callable.py(), args)?, std::ptr::null_mut())
}

#[cfg(feature = "abi3")]
pub(crate) fn call_method<'py, const N: usize>(
    name: &Bound<'py, PyString>,
    args: [Any<'_, 'py>; N],
    names: Option<&Bound<'py, PyTuple>>,
) -> PyResult<Bound<'py, PyAny>> {
    let positional = N - names.map_or(0, |names| names.len());
    let method = args[0].getattr(name)?;
    let kwargs = PyDict::new(name.py());
    for (name, value) in names.into_iter().flatten().zip(&args[positional..]) {
        kwargs.set_item(name, value)?;
    }
    call_any(&method, &PyTuple::new(name.py(), &args[1..positional])?, kwargs.as_ptr())
}

#[cfg(feature = "abi3")]
pub(crate) fn install(_py: Python<'_>) {}

#[cfg(not(feature = "abi3"))]
pub(crate) use fast::install;

#[cfg(not(feature = "abi3"))]
mod fast {
    use std::cell::{Cell, RefCell};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::OnceLock;

    use pyo3::exceptions::PyRuntimeError;
    use pyo3::ffi;
    use pyo3::prelude::*;

    use crate::awaitable::{Awaitable, Step, awaited, step};
    use crate::cancel::CancelScope;
    use crate::channel::{Channel, ObjectReceiveChannel, ObjectSendChannel};
    use crate::close::{CloseScope, Track, WorkTracker};
    use crate::entry::Entry;
    use crate::priority::PriorityReceiver;
    use crate::registry::{ReplyHandle, RequestRegistry};
    use crate::waiter::Waiter;
    use crate::wake::Parked;

    /// How many objects of ours may be freed inside one another.
    const DEEPEST: u32 = 32;

    type Death = (*mut ffi::PyObject, ffi::destructor);

    thread_local! {
        static NESTED: Cell<u32> = const { Cell::new(0) };
        static PUT_OFF: RefCell<Vec<Death>> = const { RefCell::new(Vec::new()) };
    }

    /// Frees an object, or puts that off.
    ///
    /// SAFETY: for the interpreter's call of the slot that held `free`: the GIL is held, and nobody refers to the object.
    unsafe fn free_bounded(object: *mut ffi::PyObject, free: ffi::destructor) {
        let nested = NESTED.get();
        if nested == DEEPEST {
            // SAFETY: as above. The collector must not find it; nobody else can, as a weak reference to an object of which the
            // count is zero is dead.
            unsafe { ffi::PyObject_GC_UnTrack(object.cast()) };
            if PUT_OFF.try_with(|put_off| put_off.borrow_mut().push((object, free))).is_ok() {
                return;
            }
        }
        NESTED.set(nested + 1);
        // SAFETY: as above.
        unsafe { free(object) };
        if nested == 0 {
            let next = || PUT_OFF.try_with(|put_off| put_off.borrow_mut().pop()).ok().flatten();
            while let Some((object, free)) = next() {
                // SAFETY: as above, for who put it there: in this thread, under the GIL.
                unsafe { free(object) };
            }
        }
        NESTED.set(nested);
    }

    /// Bounds the nesting of the ends of a class's objects.
    macro_rules! bounded {
        ($py:ident, $($class:ty),*) => {$({
            static FREE: OnceLock<ffi::destructor> = OnceLock::new();
            /// SAFETY: called by the interpreter, as `tp_dealloc`.
            unsafe extern "C" fn bounded(object: *mut ffi::PyObject) {
                if let Some(free) = FREE.get() {
                    // SAFETY: as above.
                    unsafe { free_bounded(object, *free) };
                }
            }
            let class = $py.get_type::<$class>().as_type_ptr();
            // SAFETY: a heap type of ours, which lives as long as the process; the GIL is held.
            unsafe {
                if let Some(free) = (*class).tp_dealloc {
                    if FREE.set(free).is_ok() {
                        (*class).tp_dealloc = Some(bounded);
                    }
                }
            }
        })*};
    }

    /// Puts the slots into the types. Called once, before anybody has an instance.
    pub(crate) fn install(py: Python<'_>) {
        bounded!(
            py,
            Awaitable,
            CancelScope,
            Channel,
            CloseScope,
            Entry,
            ObjectReceiveChannel,
            ObjectSendChannel,
            Parked
        );
        bounded!(py, PriorityReceiver, ReplyHandle, RequestRegistry, Track, Waiter, WorkTracker);
        let class = py.get_type::<Awaitable>();
        let class = class.as_type_ptr();
        // SAFETY: the type is a heap type of ours (PyO3 makes it from a spec), so it is mutable here and its `tp_as_async`
        // points into the type object itself. The GIL is held. Both functions keep the slots' contracts.
        unsafe {
            (*class).tp_iternext = Some(iternext);
            if let Some(methods) = (*class).tp_as_async.as_mut() {
                methods.am_send = Some(am_send);
                methods.am_await = Some(itself);
            }
            ffi::PyType_Modified(class);
        }
    }

    /// SAFETY: as for `am_send`.
    unsafe extern "C" fn itself(slf: *mut ffi::PyObject) -> *mut ffi::PyObject {
        // SAFETY: as above: the GIL is held, and this is a borrowed reference to an `Awaitable`.
        let (py, slf) = unsafe {
            let py = Python::assume_attached();
            (py, Bound::from_borrowed_ptr(py, slf).cast_into_unchecked::<Awaitable>())
        };
        match awaited(&slf) {
            Ok(()) => slf.into_ptr(),
            Err(error) => {
                error.restore(py);
                std::ptr::null_mut()
            }
        }
    }

    /// One step; a panic is an error like any other.
    fn guarded(slf: &Bound<'_, Awaitable>) -> PyResult<Step> {
        catch_unwind(AssertUnwindSafe(|| step(slf)))
            .unwrap_or_else(|_| Err(PyRuntimeError::new_err("microio panicked: this is a bug in microio")))
    }

    /// SAFETY: called by the interpreter with the GIL held and an instance of the type that this slot is in, or a subclass of
    /// it; there are none (the class is final).
    unsafe extern "C" fn am_send(
        slf: *mut ffi::PyObject,
        _value: *mut ffi::PyObject,
        result: *mut *mut ffi::PyObject,
    ) -> ffi::PySendResult {
        Python::attach(|py| {
            // SAFETY: as above: a borrowed reference to an `Awaitable`.
            let slf = unsafe { Bound::from_borrowed_ptr(py, slf).cast_into_unchecked::<Awaitable>() };
            let (value, outcome) = match guarded(&slf) {
                Ok(Step::Return(value)) => (value.into_ptr(), ffi::PySendResult::PYGEN_RETURN),
                Ok(Step::Park(parked)) => (parked.into_ptr(), ffi::PySendResult::PYGEN_NEXT),
                Ok(Step::Pass) => (py.None().into_ptr(), ffi::PySendResult::PYGEN_NEXT),
                Err(error) => {
                    error.restore(py);
                    (std::ptr::null_mut(), ffi::PySendResult::PYGEN_ERROR)
                }
            };
            // SAFETY: the interpreter passes a place for the result, a new reference or null with an error.
            unsafe { *result = value };
            outcome
        })
    }

    /// SAFETY: as for `am_send`.
    unsafe extern "C" fn iternext(slf: *mut ffi::PyObject) -> *mut ffi::PyObject {
        Python::attach(|py| {
            // SAFETY: as above.
            let slf = unsafe { Bound::from_borrowed_ptr(py, slf).cast_into_unchecked::<Awaitable>() };
            match guarded(&slf) {
                Ok(Step::Park(parked)) => parked.into_ptr(),
                Ok(Step::Pass) => py.None().into_ptr(),
                Ok(Step::Return(value)) => {
                    stop_iteration(py, &value);
                    std::ptr::null_mut()
                }
                Err(error) => {
                    error.restore(py);
                    std::ptr::null_mut()
                }
            }
        })
    }

    /// Raises StopIteration with a value, whatever the value is: made by a call, because a tuple or an exception as the value
    /// of `PyErr_SetObject` would be taken for the arguments or for the error itself.
    fn stop_iteration(py: Python<'_>, value: &Py<PyAny>) {
        // SAFETY: the exception type and the value are live objects; the result is a new reference or null with an error set.
        unsafe {
            let stop = ffi::PyObject_CallOneArg(ffi::PyExc_StopIteration, value.as_ptr());
            if !stop.is_null() {
                PyErr::from_value(Bound::from_owned_ptr(py, stop)).restore(py);
            }
        }
    }
}
