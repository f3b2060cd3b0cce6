//! The tasks that wait in `receive()`: they stand in a line, first in, first out.
//!
//! The core's channel has one receiver and one waker, which wakes the first in the line. Whoever leaves the line looks after those
//! behind: one for each item that is left, a batch at a time.
//!
//! # Invariants
//!
//! 1. The first in a line has been woken, or the core will wake it: nobody waits beside an item.
//! 2. An item leaves the queue in the step that returns it: a cancelled wait has none to lose.
//! 3. Nothing of Python's runs under `inbox` (see `wake`); in it stands the core's lock, a leaf.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Wake, Waker};

use microio::host::{Key, Waiters};
use microio::{Receiver, TryRecvError};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use crate::awaitable::Step;
use crate::channel::Item;
use crate::wake::{Parked, Tasks, deferring, lock};

/// The receiving side of a channel.
pub(crate) struct Line {
    inbox: Arc<Mutex<Inbox>>,
    /// Wakes the first.
    waker: Waker,
    tasks: Tasks,
    bounded: bool,
}

pub(crate) struct Inbox {
    pub(crate) receiver: Receiver<Item>,
    tasks: Waiters,
    /// Counts the lines: another loop begins a new one.
    generation: u32,
    /// Counts what else than a send may end a wait.
    nudges: u64,
    /// Items to hand out before the loop has to go round: a producer that is never slower must not starve it.
    credit: u32,
}

const CREDIT: u32 = 128;

struct FirstInLine(Weak<Mutex<Inbox>>);

impl Wake for FirstInLine {
    fn wake(self: Arc<Self>) {
        let Some(inbox) = self.0.upgrade() else { return };
        let first = lock(&inbox).tasks.iter().next().cloned();
        if let Some(first) = first {
            first.wake();
        }
    }
}

/// How many tasks are woken at once, when there are several and several items.
const BATCH: usize = 16;

/// The wakers of a task that has left the line, and of those that come next. To be dropped and woken outside the lock.
#[derive(Default)]
#[must_use]
struct Left {
    gone: Option<Waker>,
    next: Vec<Waker>,
}

impl Left {
    fn wake(self) {
        drop(self.gone);
        self.next.into_iter().for_each(Waker::wake);
    }
}

/// A task's place in the line.
#[derive(Default)]
pub(crate) struct Ticket {
    place: Option<(u32, Key)>,
    task: Option<usize>,
}

impl Inbox {
    fn key(&self, ticket: &Ticket) -> Option<Key> {
        ticket.place.filter(|(generation, _)| *generation == self.generation).map(|(_, key)| key)
    }

    /// Whether nobody stands before this one.
    fn is_next(&self, ticket: &Ticket) -> bool {
        match self.key(ticket) {
            Some(key) => self.tasks.is_first(key),
            None => self.tasks.queued() == 0,
        }
    }

    /// None if the loop has to go round first.
    fn standing(&mut self, ticket: &Ticket) -> Option<Standing> {
        let is_next = self.is_next(ticket);
        if is_next && ticket.place.is_none() {
            if self.credit == 0 {
                self.credit = CREDIT;
                return None;
            }
            self.credit -= 1;
        }
        Some(Standing { is_next, nudges: self.nudges })
    }

    /// Leaves the line. Who comes next is woken, if there is something to look at.
    fn leave(&mut self, ticket: &mut Ticket, waker: &Waker) -> Left {
        let Some(key) = self.key(ticket) else { return Left::default() };
        ticket.place = None;
        let was_first = self.tasks.is_first(key);
        let gone = self.tasks.remove(key);
        let mut next = Vec::new();
        if was_first && self.tasks.queued() > 0 && !self.receiver.park(waker) {
            let items = self.receiver.stats();
            let batch = if items.closed { BATCH } else { BATCH.min(items.queued as usize) };
            next.extend(self.tasks.iter().take(batch).cloned());
        }
        Left { gone, next }
    }
}

/// What a ticket is worth at the moment.
pub(crate) struct Standing {
    /// Nobody stands before it.
    pub(crate) is_next: bool,
    /// How many nudges there have been until now.
    pub(crate) nudges: u64,
}

/// What a look into the inbox gives.
pub(crate) enum Look {
    Item(Item),
    Ended(End),
    /// Others stand before, or there is nothing; how many nudges there have been.
    Wait(u64),
    /// The loop has to go round first.
    Pass,
}

pub(crate) enum End {
    Closed,
    Failed,
}

impl Line {
    pub(crate) fn new(receiver: Receiver<Item>, bounded: bool) -> Self {
        let tasks = Waiters::default();
        let inbox = Arc::new(Mutex::new(Inbox { receiver, tasks, generation: 0, nudges: 0, credit: CREDIT }));
        let waker = Waker::from(Arc::new(FirstInLine(Arc::downgrade(&inbox))));
        Line { inbox, waker, tasks: Tasks::default(), bounded }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    /// Calls the core under the inbox's lock. A bounded channel wakes senders there: that has to wait until the lock is free.
    pub(crate) fn with_inbox<R>(&self, f: impl FnOnce(&mut Inbox) -> R) -> R {
        if self.bounded { deferring(|| f(&mut self.lock())) } else { f(&mut self.lock()) }
    }

    /// The next item, if it is this one's turn.
    pub(crate) fn look(&self, ticket: &mut Ticket) -> Look {
        let (look, left) = self.with_inbox(|inbox| {
            let Some(standing) = inbox.standing(ticket) else { return (Look::Pass, Left::default()) };
            if !standing.is_next {
                return (Look::Wait(standing.nudges), Left::default());
            }
            let look = match inbox.receiver.try_recv() {
                Ok(item) => Look::Item(item),
                Err(TryRecvError::Empty) => return (Look::Wait(standing.nudges), Left::default()),
                Err(TryRecvError::EndOfStream) => Look::Ended(End::Closed),
                Err(TryRecvError::Failed(_)) => Look::Ended(End::Failed),
            };
            (look, inbox.leave(ticket, &self.waker))
        });
        if matches!(look, Look::Item(_)) {
            self.tasks.leave(&mut ticket.task);
        }
        left.wake();
        look
    }

    /// For who looks elsewhere than here; None if the loop has to go round first.
    pub(crate) fn standing(&self, ticket: &Ticket) -> Option<Standing> {
        self.lock().standing(ticket)
    }

    /// Stands in the line, or in its place there; None if there is something to look at now.
    pub(crate) fn stand(
        &self,
        py: Python<'_>,
        loop_: &Py<PyAny>,
        ticket: &mut Ticket,
        seen: u64,
    ) -> PyResult<Option<Step>> {
        let parked = Py::new(py, Parked::new(loop_.clone_ref(py)))?;
        let waker = parked.get().waker();
        let mut inbox = self.lock();
        inbox.credit = CREDIT;
        let mut key = inbox.key(ticket);
        let replaced = inbox.tasks.park(&mut key, waker);
        ticket.place = key.map(|key| (inbox.generation, key));
        let first = inbox.is_next(ticket);
        let waits = inbox.nudges == seen && (!first || inbox.receiver.park(&self.waker));
        drop(inbox);
        drop(replaced);
        self.tasks.park(&mut ticket.task, parked.clone_ref(py));
        Ok(waits.then_some(Step::Park(parked)))
    }

    /// Leaves the line; the next one is looked after.
    pub(crate) fn leave(&self, ticket: &mut Ticket, wake_next: bool) {
        let left = self.with_inbox(|inbox| {
            let mut left = inbox.leave(ticket, &self.waker);
            if wake_next && left.next.is_empty() {
                left.next.extend(inbox.tasks.iter().next().cloned());
            }
            left
        });
        self.tasks.leave(&mut ticket.task);
        left.wake();
    }

    /// Has the first in the line look again, for another reason than a send.
    pub(crate) fn nudge(&self) {
        let mut inbox = self.lock();
        inbox.nudges += 1;
        let first = inbox.tasks.iter().next().cloned();
        drop(inbox);
        if let Some(first) = first {
            first.wake();
        }
    }

    /// Begins a new line: who stood in this one is on a loop that was closed, and will not come any more.
    pub(crate) fn restart(&self) {
        let mut inbox = self.lock();
        let tasks = std::mem::take(&mut inbox.tasks);
        inbox.generation += 1;
        drop(inbox);
        drop(tasks);
    }

    /// Shows the queued items to the garbage collector.
    pub(crate) fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.tasks.visit(visit)?;
        let Ok(inbox) = self.inbox.try_lock() else { return Ok(()) };
        let mut visited = Ok(());
        inbox.receiver.visit_queued(&mut |item| {
            if visited.is_ok() {
                visited = visit.call(item);
            }
        });
        visited
    }
}
