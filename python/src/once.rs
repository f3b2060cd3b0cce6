//! A value that is looked up or made at its first use.
//!
//! PyO3's own way has others wait while the value is made. Ours are made by Python code, in which a signal handler or a `__del__`
//! may ask for the same value: it would wait for itself. So whoever finds none makes one, and the first to be kept is
//! everybody's.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

pub(crate) struct Once<T>(PyOnceLock<T>);

impl<T> Once<T> {
    pub(crate) const fn new() -> Self {
        Once(PyOnceLock::new())
    }

    pub(crate) fn get_or_make(&self, py: Python<'_>, make: impl FnOnce() -> PyResult<T>) -> PyResult<&T> {
        if let Some(value) = self.0.get(py) {
            return Ok(value);
        }
        let made = make()?;
        let _second = self.0.set(py, made);
        Ok(self.0.get(py).expect("set above, by us or by another"))
    }
}

impl Once<Py<PyAny>> {
    /// `module.name`.
    pub(crate) fn import<'py>(&self, py: Python<'py>, module: &str, name: &str) -> PyResult<&Bound<'py, PyAny>> {
        let found = self.get_or_make(py, || Ok(py.import(module)?.getattr(name)?.unbind()))?;
        Ok(found.bind(py))
    }
}
