//! Tests of `src/wait.rs`.

use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::ops::DerefMut;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::task::{Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use microio::host::{Blocked, LoopMark, Park, Waitable, Waiters, block_on_with, current_loop, may_block, wake_all};
use microio::{
    CancelScope, CloseScope, PriorityMailbox, RecvBlockingError, RequestError, RequestRegistry, SendBlockingError,
    WaitError, WorkTracker, bounded, channel,
};

use crate::support::{Abreast, BURST, Hand, kept_by, meddler, poll_with, scaled};

const ZERO: Option<Duration> = Some(Duration::ZERO);

/// A host that sleeps on a lock of its own, and can be interrupted: what the Python package does.
#[derive(Default)]
struct Bell {
    state: Mutex<(bool, bool)>, // rung, interrupted
    changed: Condvar,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.state.lock().unwrap().0 = true;
        self.changed.notify_one();
    }
}

impl Bell {
    fn interrupt(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_one();
    }
}

struct Host(Arc<Bell>);

impl Park for Host {
    type Stop = &'static str;

    fn waker(&self) -> Waker {
        Waker::from(self.0.clone())
    }

    fn park(&self, until: Option<Instant>) -> Result<(), Self::Stop> {
        let mut state = self.0.state.lock().unwrap();
        while !state.0 && !state.1 {
            let Some(until) = until else {
                state = self.0.changed.wait(state).unwrap();
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            state = self.0.changed.wait_timeout(state, left).unwrap().0;
        }
        state.0 = false;
        if state.1 { Err("interrupted") } else { Ok(()) }
    }
}

#[test]
fn a_host_parks_its_own_way_until_the_future_is_woken() {
    let (host, (tx, mut rx)) = (Host(Arc::default()), channel());
    thread::scope(|threads| {
        threads.spawn(|| (0..scaled(1_000)).for_each(|n| tx.try_send(n).unwrap()));
        for n in 0..scaled(1_000) {
            assert_eq!(block_on_with(&host, rx.recv(), None).unwrap().unwrap(), n);
        }
    });
}

#[test]
fn a_host_can_end_a_wait_and_its_reason_comes_out() {
    let (host, scope) = (Host(Arc::default()), CloseScope::new());
    thread::scope(|threads| {
        let bell = host.0.clone();
        threads.spawn(move || bell.interrupt());
        let blocked = block_on_with(&host, scope.closed(), None);
        assert!(matches!(blocked, Err(Blocked::Stopped("interrupted"))));
    });
}

#[test]
fn a_wait_without_time_polls_once_and_a_short_one_once_more_at_its_end() {
    let host = Host(Arc::default());
    for (timeout, expected) in [(Duration::ZERO, 1), (Duration::from_micros(50), 2)] {
        let mut polls = 0;
        let counting = poll_fn(|_| {
            polls += 1;
            Poll::<()>::Pending
        });
        assert!(matches!(block_on_with(&host, counting, Some(timeout)), Err(Blocked::TimedOut)));
        assert!(polls == expected || (timeout > Duration::ZERO && polls == 1), "{polls}");
    }
    assert!(block_on_with(&host, async { 7 }, ZERO).is_ok());
}

#[test]
fn a_thread_that_has_waited_waits_again_without_an_allocation() {
    let scope = CloseScope::new();
    let wait = || drop(scope.wait_blocking(ZERO));
    wait();
    assert_eq!(allocation_counter::measure(|| (0..10).for_each(|_| wait())).count_total, 0);
}

/// The wake of the outer wait comes while a wait in its own poll sleeps on the same thread: each has a flag of its own, and
/// neither eats the other's wake.
#[test]
fn a_wait_inside_the_poll_of_a_wait_does_not_eat_the_wake_of_the_outer_one() {
    for _ in 0..scaled(200) {
        let (host, outer, inner, barrier) = (ThreadHost::here(), CloseScope::new(), CloseScope::new(), Barrier::new(2));
        thread::scope(|threads| {
            threads.spawn(|| {
                barrier.wait();
                outer.close("outer");
                inner.close("inner");
            });
            let (mut closed, mut nested) = (pin!(outer.closed()), false);
            let body = poll_fn(|cx| {
                let ended = closed.as_mut().poll(cx);
                if !std::mem::replace(&mut nested, true) {
                    barrier.wait();
                    inner.wait_blocking(None).unwrap();
                }
                ended
            });
            assert_eq!(block_on_with(&host, body, None).unwrap().to_string(), "outer");
        });
    }
}

/// A host that parks as plain threads do: both waits of the test above share the thread's one token.
struct ThreadHost(Arc<(AtomicBool, thread::Thread)>);

impl ThreadHost {
    fn here() -> Self {
        ThreadHost(Arc::new((AtomicBool::new(false), thread::current())))
    }
}

impl Park for ThreadHost {
    type Stop = ();

    fn waker(&self) -> Waker {
        struct Unpark(Arc<(AtomicBool, thread::Thread)>);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.0.store(true, Ordering::SeqCst);
                self.0.1.unpark();
            }
        }
        Waker::from(Arc::new(Unpark(self.0.clone())))
    }

    fn park(&self, _: Option<Instant>) -> Result<(), ()> {
        while !self.0.0.swap(false, Ordering::SeqCst) {
            thread::park();
        }
        Ok(())
    }
}

/// A receive makes a place, and so wakes a sender, whose waker is user code: it blocks, on the thread that is in a blocking
/// receive itself.
#[test]
fn a_waker_that_blocks_on_a_thread_that_blocks_does_not_confuse_its_next_wait() {
    for _ in 0..scaled(100) {
        let ((tx, mut rx), done, barrier) = (bounded(NonZeroUsize::MIN), CloseScope::new(), Arc::new(Barrier::new(2)));
        tx.try_send(1).unwrap();
        let (inner, meet) = (done.clone(), barrier.clone());
        let first = AtomicBool::new(true);
        let waker = meddler(move || {
            if first.swap(false, Ordering::SeqCst) {
                meet.wait();
                inner.wait_blocking(None).unwrap();
            }
        });
        let mut send = pin!(tx.send(2));
        assert!(poll_with(&waker, &mut send).is_pending());
        thread::scope(|threads| {
            threads.spawn(|| {
                barrier.wait();
                done.close("inner");
            });
            assert_eq!(rx.recv_blocking(None).unwrap(), 1);
        });
        assert!(poll_with(&waker, &mut send).is_ready());
        assert_eq!(rx.recv_blocking(None).unwrap(), 2);
        assert!(matches!(rx.recv_blocking(ZERO), Err(RecvBlockingError::TimedOut)));
    }
}

type Waiting = Pin<Box<dyn Future<Output = ()>>>;
type Act = Box<dyn FnOnce() + Send>;

/// A poll and what it waits for at the same moment, round after round: the poll sees it, or is woken.
#[track_caller]
fn never_lost(make: impl Fn() -> (Waiting, Act)) {
    let (mut waits, acts): (Vec<_>, Vec<_>) = (0..scaled(20_000)).map(|_| make()).unzip();
    let hands: Vec<_> = waits.iter().map(|_| Hand::new()).collect();
    let (abreast, mut parked) = (Abreast::default(), Vec::new());
    thread::scope(|threads| {
        threads.spawn(|| {
            acts.into_iter().enumerate().for_each(|(round, act)| {
                abreast.round(0, round);
                act();
            });
        });
        for (round, (wait, hand)) in waits.iter_mut().zip(&hands).enumerate() {
            abreast.round(1, round);
            parked.push(hand.poll(wait).is_pending());
        }
    });
    for ((mut wait, hand), parked) in waits.into_iter().zip(hands).zip(parked) {
        assert!(!parked || (hand.wakes() > 0 && hand.poll(&mut wait).is_ready()), "lost");
    }
}

#[test]
fn an_end_that_races_the_registration_of_its_waiter_is_never_lost() {
    never_lost(|| {
        let scope = CloseScope::new();
        let closed = scope.closed();
        (Box::pin(async { drop(closed.await) }), Box::new(move || _ = scope.close("race")))
    });
}

#[test]
fn an_item_that_races_the_registration_of_the_receiver_is_never_lost() {
    never_lost(|| {
        let (tx, mut rx) = channel();
        (Box::pin(async move { rx.recv().await.unwrap() }), Box::new(move || tx.try_send(()).unwrap()))
    });
}

#[test]
fn a_place_that_races_the_registration_of_a_sender_is_never_lost() {
    let receivers = Arc::new(Mutex::new(Vec::new()));
    never_lost(|| {
        let (tx, mut rx) = bounded(NonZeroUsize::MIN);
        tx.try_send(()).unwrap();
        let kept = receivers.clone();
        let receive = move || {
            rx.try_recv().unwrap();
            kept.lock().unwrap().push(rx); // its end would wake too
        };
        (Box::pin(async move { tx.send(()).await.unwrap() }), Box::new(receive))
    });
}

#[test]
fn an_answer_that_races_the_registration_of_its_waiter_is_never_lost() {
    never_lost(|| {
        let requests = RequestRegistry::new();
        let waiter = requests.register(1).unwrap();
        (Box::pin(async { waiter.await.unwrap() }), Box::new(move || requests.resolve(&1, ()).unwrap()))
    });
}

#[test]
fn a_floor_that_races_the_registration_of_the_receiver_is_never_lost() {
    never_lost(|| {
        let mut mailbox = PriorityMailbox::new(|n: &u8| *n);
        let floor = mailbox.floor();
        floor.set(Some(5));
        mailbox.submit(3);
        (Box::pin(async move { _ = mailbox.recv().await.unwrap() }), Box::new(move || floor.set(None)))
    });
}

/// What every blocking wait says here, all of them with something ready.
fn refused() -> bool {
    let (closed, cancelled, idle) = (CloseScope::new(), CancelScope::new(), WorkTracker::new());
    closed.close("ready");
    cancelled.cancel("ready");
    let ((tx, mut rx), requests) = (channel(), RequestRegistry::<u8, u8>::new());
    let waiter = requests.register(1).unwrap();
    requests.resolve(&1, 1).unwrap();
    tx.try_send(1).unwrap();
    let each = [
        closed.wait_blocking(None).is_err_and(|error| error == WaitError::WouldBlock),
        cancelled.wait_blocking(None).is_err_and(|error| error == WaitError::WouldBlock),
        idle.wait_idle_blocking(ZERO).is_err_and(|error| error == WaitError::WouldBlock),
        matches!(tx.send_blocking(2, None), Err(SendBlockingError::WouldBlock(2))),
        matches!(rx.recv_blocking(None), Err(RecvBlockingError::WouldBlock)),
        matches!(waiter.wait_blocking(None), Err(RequestError::WouldBlock)),
        matches!(block_on_with(&ThreadHost::here(), async {}, None), Err(Blocked::WouldBlock)),
        !may_block(),
    ];
    assert!(each.iter().all(|refused| *refused == each[0]), "they agree: {each:?}");
    each[0]
}

#[test]
fn the_thread_of_a_loop_is_refused_though_everything_is_ready_until_its_mark_goes() {
    assert!(!refused() && current_loop() == 0);
    let outer = LoopMark::enter(7);
    assert!(refused());
    let inner = LoopMark::enter(8);
    assert_eq!(current_loop(), 8);
    drop(inner);
    assert_eq!(current_loop(), 7, "a loop inside a loop leaves the outer one marked");
    assert!(refused() && !thread::spawn(refused).join().unwrap(), "other threads are free");
    drop(outer);
    assert!(!refused() && current_loop() == 0);
}

#[cfg(feature = "tokio")]
mod tokio_contexts {
    use super::*;
    use tokio::runtime::{Builder, Runtime};
    use tokio::task::{LocalSet, block_in_place, coop, spawn_blocking, spawn_local};

    fn runtimes() -> [Runtime; 2] {
        [Builder::new_current_thread().build().unwrap(), Builder::new_multi_thread().worker_threads(1).build().unwrap()]
    }

    #[test]
    fn a_plain_thread_may_block_also_with_a_runtime_at_hand() {
        for runtime in runtimes() {
            assert!(!refused());
            let _entered = runtime.enter();
            assert!(!refused(), "a handle is not a worker");
        }
    }

    #[test]
    fn the_root_future_of_a_runtime_may_not() {
        runtimes().iter().for_each(|runtime| assert!(runtime.block_on(async { refused() })));
    }

    #[test]
    fn a_task_may_not_at_its_start_nor_after_an_await() {
        for runtime in runtimes() {
            let task = runtime.spawn(async {
                let at_start = refused();
                tokio::task::yield_now().await;
                at_start && refused()
            });
            assert!(runtime.block_on(task).unwrap());
        }
    }

    #[test]
    fn a_local_task_may_not() {
        runtimes().iter().for_each(|runtime| {
            let local = LocalSet::new();
            let task = local.run_until(async { spawn_local(async { refused() }).await.unwrap() && refused() });
            assert!(runtime.block_on(task));
        });
    }

    #[test]
    fn the_legal_places_inside_a_runtime_may() {
        for runtime in runtimes() {
            assert!(!runtime.block_on(async { spawn_blocking(refused).await.unwrap() }));
        }
        let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        assert!(!runtime.block_on(async { block_in_place(refused) }));
        assert!(!runtime.block_on(runtime.spawn(async { block_in_place(refused) })).unwrap());
        assert!(runtime.block_on(runtime.spawn(async { !block_in_place(refused) && refused() })).unwrap(), "and back");
    }

    #[test]
    fn a_runtime_inside_a_legal_place_may_not() {
        let nested = || Builder::new_current_thread().build().unwrap().block_on(async { refused() });
        let [runtime, _] = runtimes();
        assert!(runtime.block_on(async { spawn_blocking(nested).await.unwrap() }));
    }

    #[test]
    fn a_task_whose_time_slice_is_spent_may_not() {
        let spend = || {
            poll_fn(|cx| {
                while let Poll::Ready(unit) = coop::poll_proceed(cx) {
                    unit.made_progress();
                }
                Poll::Ready(refused())
            })
        };
        for runtime in runtimes() {
            assert!(runtime.block_on(runtime.spawn(spend())).unwrap());
        }
    }

    #[test]
    fn asking_costs_nothing_of_the_time_slice() {
        for runtime in runtimes() {
            let left = async {
                (0..scaled(1_000)).for_each(|_| assert!(!may_block()));
                coop::has_budget_remaining()
            };
            assert!(runtime.block_on(left));
        }
    }
}

#[test]
fn waiters_are_shown_in_their_order_and_stay() {
    let wakers = [(); 3].map(|()| meddler(|| {}));
    let (mut waiters, mut keys) = (Waiters::default(), [None; 3]);
    for (waker, key) in wakers.iter().zip(&mut keys) {
        assert!(waiters.park(key, waker.clone()).is_none());
    }
    let order = |waiters: &Waiters| -> Vec<usize> {
        waiters.iter().map(|shown| wakers.iter().position(|waker| waker.data() == shown.data()).unwrap()).collect()
    };
    let [first, second, _] = keys.map(Option::unwrap);
    assert_eq!((order(&waiters), waiters.queued()), (vec![0, 1, 2], 3));
    assert!(waiters.is_first(first) && !waiters.is_first(second));
    drop(waiters.remove(first));
    assert_eq!((order(&waiters), waiters.queued()), (vec![1, 2], 2));
    assert!(waiters.is_first(second));
}

/// Else two that wake each other would never come to an end.
#[test]
fn who_parks_again_while_all_are_woken_waits_for_the_next_time() {
    struct Bare(Mutex<Waiters>);
    impl Waitable for Bare {
        type State = Waiters;
        fn lock(&self) -> impl DerefMut<Target = Waiters> {
            self.0.lock().unwrap()
        }
        fn waiters(state: &mut Waiters) -> &mut Waiters {
            state
        }
    }
    let (bare, woken) = (Arc::new(Bare(Mutex::default())), Arc::new(AtomicUsize::new(0)));
    let seen = woken.clone();
    let late = meddler(move || _ = seen.fetch_add(1, Ordering::Relaxed));
    for _ in 0..40 {
        let (again, late) = (bare.clone(), late.clone());
        let parks_again = meddler(move || drop(again.lock().park(&mut None, late.clone())));
        assert!(bare.lock().park(&mut None, parks_again).is_none());
    }
    wake_all(&*bare);
    assert_eq!(
        (woken.load(Ordering::Relaxed), bare.lock().queued()),
        (0, 80),
        "twice each: a meddler acts when dropped, too"
    );
    wake_all(&*bare);
    assert_eq!((woken.load(Ordering::Relaxed), bare.lock().queued()), (80, 0));
}

#[test]
fn an_empty_list_of_waiters_keeps_a_few_places_and_gives_those_of_a_burst_back() {
    let mut waiters = Waiters::default();
    let park = |waiters: &mut Waiters| {
        let mut key = None;
        assert!(waiters.park(&mut key, Waker::noop().clone()).is_none());
        key.expect("parked")
    };
    let few = kept_by(|| {
        let key = park(&mut waiters);
        drop(waiters.remove(key));
    });
    assert!(few > 0, "no allocation for the next one");
    let kept = kept_by(|| {
        let keys: Vec<_> = (0..BURST).map(|_| park(&mut waiters)).collect();
        keys.into_iter().for_each(|key| drop(waiters.remove(key)));
    });
    assert!(kept <= 0, "{kept} bytes for waiters that are gone");
}
