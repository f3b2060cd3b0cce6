//! What the tests share: polling by hand with a waker that counts, a waker that meddles, and two threads abreast.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// How often a test does what it does, or to how many. Under Miri, which runs hundreds of times slower, far less
/// often: not for what has to exceed a limit of the library.
pub(crate) const fn scaled(n: usize) -> usize {
    if cfg!(miri) { 4 * n.isqrt().isqrt() } else { n }
}

/// So much at once that what it took is to be given back.
pub(crate) const BURST: usize = if cfg!(miri) { 2_000 } else { 50_000 };

/// A waker that counts its wakes. Each clone of the waker holds the counter: [`Hand::wakers`] tells how many are alive.
#[derive(Default)]
pub(crate) struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Polls futures by hand.
#[derive(Clone, Default)]
pub(crate) struct Hand(Arc<Counter>);

impl Hand {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn poll<F: Future + Unpin + ?Sized>(&self, future: &mut F) -> Poll<F::Output> {
        poll_with(&Waker::from(self.0.clone()), future)
    }

    /// How often the waker was called.
    pub(crate) fn wakes(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    /// How many clones of the waker are held by somebody: 0 means that nothing was left behind.
    pub(crate) fn wakers(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

/// Polls once, with a waker that nobody looks at.
pub(crate) fn poll_once<F: Future + Unpin + ?Sized>(future: &mut F) -> Poll<F::Output> {
    Hand::new().poll(future)
}

pub(crate) fn poll_with<F: Future + Unpin + ?Sized>(waker: &Waker, future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// The output of a future that must be ready at once.
#[track_caller]
pub(crate) fn ready<F: Future>(future: F) -> F::Output {
    match poll_once(&mut std::pin::pin!(future)) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("not ready"),
    }
}

/// A waker that runs code of its own when it is woken, and when its last clone is dropped.
pub(crate) fn meddler(act: impl Fn() + Send + Sync + 'static) -> Waker {
    struct Meddler<F: Fn()>(F);
    impl<F: Fn() + Send + Sync + 'static> Wake for Meddler<F> {
        fn wake(self: Arc<Self>) {
            (self.0)();
        }
    }
    impl<F: Fn()> Drop for Meddler<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Waker::from(Arc::new(Meddler(act)))
}

/// Two threads that do the same rounds side by side, as closely as two cores can: a barrier lets one go long after the other.
#[derive(Default)]
pub(crate) struct Abreast([AtomicUsize; 2]);

impl Abreast {
    /// Thread `me` (0 or 1) begins a round. It waits for the other one for a moment only: a thread without a core of its own
    /// falls behind, and then its rounds are no races, but nobody waits for it.
    pub(crate) fn round(&self, me: usize, round: usize) {
        self.0[me].store(round, Ordering::SeqCst);
        let behind = || self.0[1 - me].load(Ordering::SeqCst) < round;
        (0..scaled(300)).take_while(|_| behind()).for_each(|_| std::hint::spin_loop());
    }
}

/// Runs a future to its end on a tokio runtime whose clock is paused.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(future)
}

/// How long a test of real threads waits for what must come: reached only by a hang. Miri's clock counts its steps.
pub(crate) const LONG: std::time::Duration = std::time::Duration::from_secs(if cfg!(miri) { 1000 } else { 10 });

/// As [`block_on`]; what hangs fails. For tests without other threads: with them the paused clock would run ahead.
#[cfg(feature = "tokio")]
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    let day = std::time::Duration::from_secs(24 * 3600);
    block_on(async { tokio::time::timeout(day, future).await.expect("hangs") })
}

/// Runs a future to its end on a runtime with two workers and the real clock, as a task; what hangs fails.
pub(crate) fn run_threads<F: Future<Output: Send + 'static> + Send + 'static>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let output = runtime.block_on(async { tokio::time::timeout(LONG, tokio::spawn(future)).await });
    runtime.shutdown_background();
    match output.expect("hangs") {
        Ok(output) => output,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Runs `f` on a thread of its own; what hangs fails.
pub(crate) fn within<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, came) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let output = f();
        let _ = done.send(());
        output
    });
    if let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = came.recv_timeout(LONG) {
        panic!("hangs");
    }
    thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

/// An error with a source.
#[derive(Debug)]
pub(crate) struct Rooted;

impl std::fmt::Display for Rooted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("rooted")
    }
}

impl std::error::Error for Rooted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        #[derive(Debug)]
        struct Root;
        impl std::fmt::Display for Root {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the root")
            }
        }
        impl std::error::Error for Root {}
        Some(&Root)
    }
}

/// Runs code of its own when it is dropped.
pub(crate) struct OnDrop<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// How many bytes this thread has allocated in `f` and not freed again.
pub(crate) fn kept_by(f: impl FnOnce()) -> i64 {
    allocation_counter::measure(f).bytes_current
}
