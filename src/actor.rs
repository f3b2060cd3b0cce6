//! A handler and its mailbox: [`ActorCore`], tied to no thread and no runtime.
//!
//! | handler | `run` |
//! |---|---|
//! | `Ok` | takes the next item |
//! | `Err`, or a panic | fails the mailbox with that cause: later senders see it; returns what was not handled |
//! | mailbox closed and empty | `Ok` |
//! | mailbox failed and empty | `Err` with its cause |
//!
//! `run` starts an item when the handler of the one before has returned; `run_concurrent` already when that has called
//! [`Release::release`], on the same thread and in the same future.

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Wake, Waker};

use crate::channel::{RecvError, Sender};
use crate::error::{Caught, Failure, catch};
use crate::mailbox::Inbox;
use crate::slab::Slab;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering};
use crate::wait::wake;

/// Receives from a mailbox and handles one item after the other, in whatever task or thread calls [`run`](ActorCore::run).
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use microio::{ActorCore, Mailbox};
/// let mut actor = ActorCore::new(Mailbox::new());
/// let mut total = 0;
/// actor.submit(3);
/// actor.submit(7);
/// actor.close();
/// actor.run(async |item| { total += item; Ok(()) }).await.unwrap();
/// assert_eq!(total, 10);
/// # });
/// ```
#[derive(Debug)]
pub struct ActorCore<M> {
    mailbox: M,
}

/// The actor stopped: a handler failed or panicked, or its mailbox did. What was accepted and not handled is here.
pub struct Stopped<T> {
    /// The items that no handler has seen, as a drain of the mailbox returns them.
    pub unhandled: Vec<T>,
    /// Why. If there were several failures (concurrent handlers, a gate that panics as the rest is taken back), an error that
    /// names them all, caused by the first.
    pub cause: Failure,
}

impl<M: Inbox> ActorCore<M> {
    /// An actor on that mailbox. Nothing runs yet.
    pub fn new(mailbox: M) -> Self {
        ActorCore { mailbox }
    }

    /// An end to send into the mailbox, from any thread.
    pub fn sender(&self) -> Sender<M::Item> {
        self.mailbox.sender()
    }

    /// Sends. `false` if the mailbox is closed: the item is dropped and counted.
    pub fn submit(&self, item: M::Item) -> bool {
        self.sender().submit(item)
    }

    /// Closes the mailbox: `run` handles what is queued and ends. `true` for the call that did.
    pub fn close(&self) -> bool {
        self.sender().close()
    }

    /// Fails the mailbox: `run` handles what is queued and ends with the cause. `true` for the call that did.
    pub fn fail(&self, cause: impl Into<Failure>) -> bool {
        self.sender().fail(cause)
    }

    /// Takes what is queued now, at most `max` items (None: all), without waiting.
    pub fn drain(&mut self, max: Option<usize>) -> Vec<M::Item> {
        self.mailbox.drain(max)
    }

    /// Handles items one at a time, until the mailbox is closed and empty.
    ///
    /// In a task that is spawned, write the handler as `async move |item| ..` or as a closure that returns a future: for one that
    /// borrows across the spawn the compiler (1.95) cannot show that it is `Send`.
    ///
    /// # Errors
    /// A handler, the gate or the key failed or panicked, or the mailbox was failed.
    ///
    /// # Cancel safety
    /// Dropping the future drops the handler in progress with its item; everything else stays in the mailbox.
    pub async fn run<H>(&mut self, mut handle: H) -> Result<(), Stopped<M::Item>>
    where
        H: AsyncFnMut(M::Item) -> Result<(), Failure>,
    {
        let cause = loop {
            let item = match Caught::new(self.mailbox.recv()).await {
                Ok(Ok(item)) => item,
                Ok(Err(RecvError::EndOfStream)) => return Ok(()),
                Ok(Err(RecvError::Failed(cause))) | Err(cause) => break cause,
            };
            if let Ok(Err(cause)) | Err(cause) = Caught::new(async { handle(item).await }).await {
                break cause;
            }
        };
        Err(self.stop(vec![cause]))
    }

    /// Handles items concurrently: the next one starts when the handler before it has called `release` or returned.
    ///
    /// All handlers run inside this future, on its thread. After a failure no item is started; handlers that run are left to
    /// finish, because their items could not be given back.
    ///
    /// # Errors
    /// A handler, the gate or the key failed or panicked, or the mailbox was failed.
    ///
    /// # Cancel safety
    /// Dropping the future drops the handlers in progress with their items; everything else stays in the mailbox.
    pub async fn run_concurrent<H, F>(&mut self, mut handle: H) -> Result<(), Stopped<M::Item>>
    where
        H: FnMut(M::Item, Release) -> F,
        F: Future<Output = Result<(), Failure>>,
    {
        let sender = self.sender();
        let mut crew = Crew::default();
        let mut latest: Option<Arc<Member>> = None; // who must release before the next item starts
        let mut causes = Vec::new();
        let mut open = true;
        loop {
            let accepting = open && latest.as_ref().is_none_or(|member| member.released.load(Ordering::Acquire));
            let mut recv = pin!(accepting.then(|| Caught::new(self.mailbox.recv())));
            let step = poll_fn(|cx| {
                if let Poll::Ready(step) = crew.poll(cx) {
                    return Poll::Ready(step);
                }
                if let Some(recv) = recv.as_mut().as_pin_mut() {
                    return recv.poll(cx).map(Step::Received);
                }
                let released = open && latest.as_ref().is_some_and(|member| member.released.load(Ordering::Acquire));
                if released || (!open && crew.is_empty()) { Poll::Ready(Step::Released) } else { Poll::Pending }
            });
            match step.await {
                Step::Released if !open => break,
                Step::Released => {}
                Step::Returned(result) => causes.extend(result.err()),
                Step::Received(Ok(Ok(item))) => {
                    let member = crew.join();
                    match catch(|| handle(item, Release(member.clone()))) {
                        Ok(handler) => crew.start(member.clone(), handler),
                        Err(panic) => {
                            crew.leave(&member);
                            causes.push(panic);
                        }
                    }
                    latest = Some(member);
                }
                Step::Received(Ok(Err(RecvError::EndOfStream))) => open = false,
                Step::Received(Ok(Err(RecvError::Failed(cause))) | Err(cause)) => causes.push(cause),
            }
            if let Some(cause) = causes.first().filter(|_| open) {
                open = false;
                sender.fail(cause.clone());
            }
        }
        if causes.is_empty() { Ok(()) } else { Err(self.stop(causes)) }
    }

    /// Refuses later senders, with the cause, and takes back what nobody has handled.
    fn stop(&mut self, mut causes: Vec<Failure>) -> Stopped<M::Item> {
        let sender = self.sender();
        sender.fail(causes[0].clone());
        // The gate or the key may panic, each time on another item, which is consumed.
        let mut unhandled = Vec::new();
        for _ in 0..=sender.stats().queued {
            match catch(|| self.mailbox.drain(None)) {
                Ok(mut items) => unhandled.append(&mut items),
                Err(panic) => causes.push(panic),
            }
        }
        let cause = match causes.len() {
            1 => causes.remove(0),
            _ => Failure::from(SeveralFailed(causes)),
        };
        Stopped { unhandled, cause }
    }
}

/// What happened next in a concurrent run.
enum Step<T> {
    Received(Result<Result<T, RecvError>, Failure>),
    Returned(Result<(), Failure>),
    Released,
}

/// The handlers that run, each polled only when its own waker was called.
struct Crew<F> {
    /// A seat is empty while its handler is being made.
    seats: Slab<Option<Seat<F>>>,
    bell: Arc<Bell>,
    /// Woken and not polled yet.
    turn: Vec<u32>,
}

struct Seat<F> {
    member: Arc<Member>,
    waker: Waker,
    handler: Pin<Box<Caught<F>>>,
}

/// Lock: `state`, a leaf: who was woken since the last poll, and the waker of the future that polls the crew.
#[derive(Default)]
struct Bell {
    state: Mutex<(Vec<u32>, Option<Waker>)>,
}

/// One handler's waker and baton.
struct Member {
    seat: u32,
    /// Stands in the bell's list.
    rung: AtomicBool,
    released: AtomicBool,
    bell: Arc<Bell>,
}

impl<F> Default for Crew<F> {
    fn default() -> Self {
        Crew { seats: Slab::default(), bell: Arc::default(), turn: Vec::new() }
    }
}

impl<F: Future<Output = Result<(), Failure>>> Crew<F> {
    fn is_empty(&self) -> bool {
        self.seats.len() == 0
    }

    fn join(&mut self) -> Arc<Member> {
        let (rung, released) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Member { seat: self.seats.insert(None), rung, released, bell: self.bell.clone() })
    }

    fn start(&mut self, member: Arc<Member>, handler: F) {
        self.turn.push(member.seat);
        let (seat, waker) = (member.seat, Waker::from(member.clone()));
        self.seats[seat] = Some(Seat { member, waker, handler: Box::pin(Caught::new(handler)) });
    }

    fn leave(&mut self, member: &Member) {
        member.released.store(true, Ordering::Release);
        self.seats.remove(member.seat);
    }

    /// Polls who was woken; the first that returns ends it.
    fn poll<T>(&mut self, cx: &mut Context<'_>) -> Poll<Step<T>> {
        let waker = cx.waker().clone();
        let mut state = self.bell.state.lock();
        let replaced = state.1.replace(waker);
        self.turn.append(&mut state.0);
        drop(state);
        drop(replaced);
        while let Some(seat) = self.turn.pop() {
            // An empty seat, or a new handler in it: the waker of one that has returned was called. A poll too many is harmless.
            let Some(Some(Seat { member, waker, handler })) = self.seats.get_mut(seat) else { continue };
            member.rung.store(false, Ordering::Release); // before the poll: a wake during it must ring again
            if let Poll::Ready(result) = handler.as_mut().poll(&mut Context::from_waker(waker)) {
                let member = member.clone();
                self.leave(&member);
                return Poll::Ready(Step::Returned(result.and_then(|result| result)));
            }
        }
        Poll::Pending
    }
}

impl<F> Drop for Crew<F> {
    /// Batons may live on elsewhere: they must not keep the waker of a run that is over.
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.bell.state.lock());
        drop(left);
    }
}

impl Bell {
    fn ring(&self, seat: Option<u32>) {
        let mut state = self.state.lock();
        state.0.extend(seat);
        let waker = state.1.take();
        drop(state);
        if let Some(waker) = waker {
            wake(waker);
        }
    }
}

impl Wake for Member {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.bell.ring(Some(self.seat));
        }
    }
}

/// The baton of a concurrent handler: whoever calls [`release`](Release::release) lets the next item start.
#[derive(Clone)]
pub struct Release(Arc<Member>);

impl Release {
    /// Lets the next item start. From any thread, as often as you like, also after the handler has returned.
    pub fn release(&self) {
        if !self.0.released.swap(true, Ordering::AcqRel) {
            self.0.bell.ring(None);
        }
    }
}

/// Several handlers failed, or the mailbox did too as it was drained.
#[derive(Debug)]
struct SeveralFailed(Vec<Failure>);

impl fmt::Display for SeveralFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failures", self.0.len())?;
        self.0.iter().enumerate().try_for_each(|(n, cause)| write!(f, "{} {cause}", if n == 0 { ":" } else { "," }))
    }
}

impl Error for SeveralFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.first().map(|cause| {
            let source: &(dyn Error + 'static) = &**cause;
            source
        })
    }
}

impl<T> fmt::Display for Stopped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "actor stopped with {} items unhandled: {}", self.unhandled.len(), self.cause)
    }
}

impl<T> fmt::Debug for Stopped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopped").field("unhandled", &self.unhandled.len()).field("cause", &self.cause).finish()
    }
}

impl<T> Error for Stopped<T> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}

impl fmt::Debug for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Release").field(&self.0.released.load(Ordering::Relaxed)).finish()
    }
}
