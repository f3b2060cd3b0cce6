//! The receiving side of `PriorityMailbox`: sorts what leaves a channel, and holds back what is not above the floor.
//!
//! Items pass the gate and get their priority when they leave the channel, in the order in which they were sent, and then wait
//! in a heap. They count as received when they are handed out or consumed, not before.
//!
//! # Invariants
//!
//! 1. Gate and key run with no lock held: they may send, drain, move the floor. An item is in our hands meanwhile, and counts
//!    as queued; it is consumed if the gate says so, or if gate or key raise.
//! 2. Who waits stands in the channel's line. A move of the floor nudges the first in it.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Mutex;

use microio::TryRecvError;
use pyo3::exceptions::{PyStopAsyncIteration, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt, PyList};
use pyo3::{PyTraverseError, PyVisit};

use crate::awaitable::{Awaitable, Operation, Step};
use crate::channel::{Channel, ObjectReceiveChannel};
use crate::entry::check;
use crate::line::{End, Ticket};
use crate::number::{Count, expected};
use crate::raw::call;
use crate::wake::lock;

/// A real number, compared exactly; an integer beyond 64 bits as the nearest float.
#[derive(Clone, Copy, Debug)]
enum Priority {
    Int(i64),
    Float(f64),
}

impl Priority {
    /// # Errors
    /// TypeError, if it is no real number.
    fn new(priority: &Bound<'_, PyAny>) -> PyResult<Self> {
        if priority.is_instance_of::<PyInt>() {
            if let Ok(int) = priority.extract() {
                return Ok(Priority::Int(int));
            }
        }
        let real = priority.is_instance_of::<PyFloat>() || {
            let numbers = priority.py().import("numbers")?;
            priority.is_instance(&numbers.getattr("Real")?)?
        };
        match priority.extract::<f64>() {
            Ok(float) if real && !float.is_nan() => Ok(Priority::Float(float)),
            // An integer that no float can express is beyond all that can.
            Err(_) if real => Ok(Priority::Float(if priority.lt(0)? { f64::NEG_INFINITY } else { f64::INFINITY })),
            _ => Err(PyTypeError::new_err(format!("a priority must be a real number, not {}", priority.repr()?))),
        }
    }
}

impl Ord for Priority {
    fn cmp(&self, other: &Self) -> Ordering {
        match (*self, *other) {
            (Priority::Int(a), Priority::Int(b)) => a.cmp(&b),
            (Priority::Float(a), Priority::Float(b)) => (a + 0.0).total_cmp(&(b + 0.0)),
            (Priority::Int(a), Priority::Float(b)) => int_to_float(a, b),
            (Priority::Float(a), Priority::Int(b)) => int_to_float(b, a).reverse(),
        }
    }
}

fn int_to_float(int: i64, float: f64) -> Ordering {
    // The cast saturates: beyond the range of an i64, an i128 still orders right.
    i128::from(int).cmp(&(float.floor() as i128)).then(if float > float.floor() {
        Ordering::Less
    } else {
        Ordering::Equal
    })
}

impl PartialOrd for Priority {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Priority {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Priority {}

/// An item in the heap: the largest priority first, and in one priority the first that came.
struct Sorted {
    priority: Priority,
    arrival: Reverse<u64>,
    item: Py<PyAny>,
}

impl Ord for Sorted {
    fn cmp(&self, other: &Self) -> Ordering {
        self.priority.cmp(&other.priority).then(self.arrival.cmp(&other.arrival))
    }
}

impl PartialOrd for Sorted {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Sorted {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Sorted {}

#[derive(Default)]
struct Heap {
    items: BinaryHeap<Sorted>,
    arrivals: u64,
    floor: Option<Priority>,
    /// The floor as it was given.
    given: Option<Py<PyAny>>,
}

impl Heap {
    fn pop_above_floor(&mut self) -> Option<Py<PyAny>> {
        let top = self.items.peek()?;
        if self.floor.is_some_and(|floor| top.priority <= floor) {
            return None;
        }
        self.items.pop().map(|sorted| sorted.item)
    }
}

/// Receives from a channel by priority.
#[pyclass(frozen, weakref, module = "microio._microio")]
pub(crate) struct PriorityReceiver {
    channel: Py<Channel>,
    key: Mutex<Option<Py<PyAny>>>,
    gate: Mutex<Option<Py<PyAny>>>,
    heap: Mutex<Heap>,
}

/// An item in our hands: consumed, unless it finds its place.
struct InHand<'a>(&'a Channel);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.line.lock().receiver.count(1);
    }
}

impl PriorityReceiver {
    /// Sorts what is in the channel now; says how it ended, if it has.
    fn sort(&self, py: Python<'_>) -> PyResult<Option<End>> {
        let channel = self.channel.get();
        // What was sent until now, and one more: a gate that sends for each item that it sees must not keep us here.
        let sent = channel.line.lock().receiver.stats().queued;
        for _ in 0..=sent {
            match channel.line.with_inbox(|inbox| inbox.receiver.pop()) {
                Ok(item) => self.admit(py, channel, item)?,
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::EndOfStream) => return Ok(Some(End::Closed)),
                Err(TryRecvError::Failed(_)) => return Ok(Some(End::Failed)),
            }
        }
        Ok(None)
    }

    fn admit(&self, py: Python<'_>, channel: &Channel, item: Py<PyAny>) -> PyResult<()> {
        let in_hand = InHand(channel);
        let gate = lock(&self.gate).as_ref().map(|gate| gate.clone_ref(py));
        if let Some(gate) = gate {
            if !call(gate.bind(py), [item.bind(py)])?.is_truthy()? {
                return Ok(());
            }
        }
        let key = lock(&self.key).as_ref().map(|key| key.clone_ref(py));
        let priority = match key {
            Some(key) => Priority::new(&call(key.bind(py), [item.bind(py)])?)?,
            None => Priority::Int(0),
        };
        let mut heap = lock(&self.heap);
        heap.arrivals += 1;
        let arrival = Reverse(heap.arrivals);
        heap.items.push(Sorted { priority, arrival, item });
        drop(heap);
        std::mem::forget(in_hand);
        Ok(())
    }
}

/// Refuses what would fail for every item, and consume it.
fn callable(py: Python<'_>, name: &str, function: Option<Py<PyAny>>) -> PyResult<Option<Py<PyAny>>> {
    match function {
        Some(function) if !function.bind(py).is_callable() => {
            Err(expected(&format!("a function as {name}, or None,"), function.bind(py)))
        }
        function => Ok(function),
    }
}

#[pymethods]
impl PriorityReceiver {
    #[new]
    #[pyo3(signature = (receive, key=None, gate=None))]
    fn new(
        py: Python<'_>,
        receive: &Bound<'_, ObjectReceiveChannel>,
        key: Option<Py<PyAny>>,
        gate: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        Ok(PriorityReceiver {
            channel: receive.get().channel.clone_ref(py),
            key: Mutex::new(callable(py, "key", key)?),
            gate: Mutex::new(callable(py, "gate", gate)?),
            heap: Mutex::default(),
        })
    }

    /// Gives an item its priority, a real number; None: all are equal.
    #[getter]
    fn key(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        lock(&self.key).as_ref().map(|key| key.clone_ref(py))
    }

    #[setter]
    fn set_key(&self, py: Python<'_>, key: Option<Py<PyAny>>) -> PyResult<()> {
        let key = callable(py, "key", key)?;
        let replaced = std::mem::replace(&mut *lock(&self.key), key);
        drop(replaced);
        Ok(())
    }

    /// Sees each item, in the order of the sends, and keeps those for which it returns something true; None: all.
    #[getter]
    fn gate(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        lock(&self.gate).as_ref().map(|gate| gate.clone_ref(py))
    }

    #[setter]
    fn set_gate(&self, py: Python<'_>, gate: Option<Py<PyAny>>) -> PyResult<()> {
        let gate = callable(py, "gate", gate)?;
        let replaced = std::mem::replace(&mut *lock(&self.gate), gate);
        drop(replaced);
        Ok(())
    }

    /// Only items of a priority *above* it are received; None: all. To move it wakes who waits, from any thread.
    #[getter]
    fn floor(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        lock(&self.heap).given.as_ref().map(|floor| floor.clone_ref(py))
    }

    #[setter]
    fn set_floor(&self, floor: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let parsed = floor.map(Priority::new).transpose()?;
        let given = floor.map(|floor| floor.clone().unbind());
        let mut heap = lock(&self.heap);
        heap.floor = parsed;
        let replaced = std::mem::replace(&mut heap.given, given);
        drop(heap);
        drop(replaced);
        self.channel.get().line.nudge();
        Ok(())
    }

    /// Waits for the item with the largest priority. Raises EndOfStream when the channel has ended and nothing is above the
    /// floor. A get that is cancelled loses no item.
    fn get(slf: Py<Self>) -> Awaitable {
        Awaitable::new("get", Get { receiver: slf, ticket: Ticket::default(), iterates: false })
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(slf: Py<Self>) -> Awaitable {
        Awaitable::new("__anext__", Get { receiver: slf, ticket: Ticket::default(), iterates: true })
    }

    /// Takes what is there now, at most `max_items`, whatever the floor; the largest priority first.
    #[pyo3(signature = (max_items=None))]
    fn drain_nowait<'py>(&self, py: Python<'py>, max_items: Option<Count>) -> PyResult<Bound<'py, PyList>> {
        self.sort(py)?;
        let max = max_items.map_or(usize::MAX, Count::get);
        let mut heap = lock(&self.heap);
        let count = max.min(heap.items.len());
        let items: Vec<_> = (0..count).filter_map(|_| heap.items.pop().map(|sorted| sorted.item)).collect();
        drop(heap);
        self.channel.get().line.lock().receiver.count(items.len());
        PyList::new(py, items)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.channel)?;
        for callable in [&self.key, &self.gate] {
            if let Ok(callable) = callable.try_lock() {
                visit.call(&*callable)?;
            }
        }
        let Ok(heap) = self.heap.try_lock() else { return Ok(()) };
        visit.call(&heap.given)?;
        heap.items.iter().try_for_each(|sorted| visit.call(&sorted.item))
    }

    fn __clear__(&self) {
        let cleared = (lock(&self.key).take(), lock(&self.gate).take(), std::mem::take(&mut *lock(&self.heap)));
        drop(cleared);
    }
}

/// A get in progress.
struct Get {
    receiver: Py<PriorityReceiver>,
    ticket: Ticket,
    iterates: bool,
}

impl Operation for Get {
    fn step(&mut self, py: Python<'_>) -> PyResult<Step> {
        let this = self.receiver.get();
        let channel = this.channel.get();
        let loop_ = channel.enter(py)?;
        check(py)?;
        let Some(standing) = channel.line.standing(&self.ticket) else { return Ok(Step::Pass) };
        if standing.is_next {
            let end = this.sort(py)?;
            if let Some(item) = { lock(&this.heap).pop_above_floor() } {
                channel.line.lock().receiver.count(1);
                channel.line.leave(&mut self.ticket, true);
                return Ok(Step::Return(item));
            }
            match end {
                None => {}
                Some(End::Closed) if self.iterates => return Err(PyStopAsyncIteration::new_err(())),
                Some(end) => return Err(channel.end(py, end)),
            }
        }
        Ok(channel.line.stand(py, &loop_, &mut self.ticket, standing.nudges)?.unwrap_or(Step::Pass))
    }

    fn leave(&mut self, _py: Python<'_>) {
        self.receiver.get().channel.get().line.leave(&mut self.ticket, true);
    }

    fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.receiver)
    }
}
