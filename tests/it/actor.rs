//! Tests of `src/actor.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::thread;

use microio::{ActorCore, CloseScope, Failure, Mailbox, Panic, PriorityMailbox, Release, Stopped};

use crate::support::{Hand, poll_once, ready, scaled};

fn actor<T>(items: impl IntoIterator<Item = T>) -> ActorCore<Mailbox<T>> {
    let actor = ActorCore::new(Mailbox::new());
    items.into_iter().for_each(|item| assert!(actor.submit(item)));
    actor
}

fn panic_in(cause: &Failure) -> &str {
    cause.downcast_ref::<Panic>().expect("a panic").message()
}

// One at a time.

#[test]
fn items_are_handled_in_order_until_the_mailbox_is_closed_and_empty() {
    let mut actor = actor([1, 2, 3]);
    let mut handled = Vec::new();
    assert!(actor.close());
    ready(actor.run(async |item| {
        handled.push(item); // it may borrow
        Ok(())
    }))
    .unwrap();
    assert_eq!(handled, [1, 2, 3]);
    assert!(!actor.submit(4) && !actor.close() && actor.sender().is_closed());
}

#[test]
fn the_next_item_starts_when_the_handler_before_it_has_returned() {
    let (mut actor, hand, gate) = (actor([1, 2]), Hand::new(), CloseScope::new());
    let started = Cell::new(0);
    let mut run = pin!(actor.run(async |item| {
        started.set(item);
        gate.closed().await;
        Ok(())
    }));
    assert!(hand.poll(&mut run).is_pending() && hand.poll(&mut run).is_pending());
    assert_eq!(started.get(), 1);
    gate.close("go on");
    assert_eq!(hand.wakes(), 1);
    assert!(hand.poll(&mut run).is_pending(), "the mailbox is open: it waits for more");
    assert_eq!(started.get(), 2);
}

#[test]
fn a_submit_wakes_an_actor_that_waits() {
    let (mut actor, hand, handled) = (actor([]), Hand::new(), Cell::new(0));
    let tx = actor.sender();
    let mut run = pin!(actor.run(async |item| {
        handled.set(item);
        Ok(())
    }));
    assert!(hand.poll(&mut run).is_pending());
    thread::scope(|threads| _ = threads.spawn(|| tx.try_send(7).unwrap()));
    assert_eq!(hand.wakes(), 1);
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!(handled.get(), 7);
}

/// Original: the mailbox stays open, and what is in it belongs to nobody.
#[test]
fn a_handler_that_fails_gives_the_rest_back_and_later_senders_the_cause() {
    let (mut actor, cause) = (actor([1, 2, 3, 4]), Failure::msg("disk full"));
    let tx = actor.sender();
    let stopped: Stopped<i32> =
        ready(actor.run(async |item| if item == 2 { Err(cause.clone()) } else { Ok(()) })).unwrap_err();
    assert_eq!(stopped.unhandled, [3, 4]);
    assert!(stopped.cause.ptr_eq(&cause) && tx.cause().unwrap().ptr_eq(&cause));
    assert!(tx.is_closed() && !actor.submit(5));
    assert_eq!(stopped.to_string(), "actor stopped with 2 items unhandled: disk full");
    let stats = tx.stats();
    assert_eq!((stats.sent, stats.received, stats.queued, stats.dropped), (4, 4, 0, 1), "nothing is lost");
}

#[test]
fn a_handler_that_panics_in_its_future_is_the_same_with_the_panic_as_cause() {
    let mut actor = actor([1, 2, 3]);
    let stopped = ready(actor.run(async |item| if item == 2 { panic!("boom {item}") } else { Ok(()) })).unwrap_err();
    assert_eq!((panic_in(&stopped.cause), stopped.unhandled), ("boom 2", vec![3]));
    assert!(actor.sender().cause().unwrap().ptr_eq(&stopped.cause));
}

/// A plain closure that returns a future may panic before there is one.
#[test]
fn a_handler_that_panics_before_its_future_is_the_same_too() {
    let mut actor = actor([1, 2, 3]);
    let run = actor.run(|item| {
        assert!(item != 2, "boom");
        async { Ok(()) }
    });
    let stopped = ready(run).unwrap_err();
    assert_eq!((panic_in(&stopped.cause), stopped.unhandled), ("boom", vec![3]));
    assert!(actor.sender().cause().unwrap().ptr_eq(&stopped.cause));
}

#[test]
fn a_handler_whose_locals_panic_in_their_drop_fails_the_actor() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    let handling = || {
        let bomb = Bomb; // dropped with the future, after it is ready
        poll_fn(move |_| {
            let _bomb = &bomb;
            Poll::Ready(Ok(()))
        })
    };
    for concurrent in [false, true] {
        let mut actor = actor([1, 2]);
        let stopped = match concurrent {
            false => ready(actor.run(|_| handling())),
            true => ready(actor.run_concurrent(|_, _| handling())),
        };
        let stopped = stopped.unwrap_err();
        assert_eq!((panic_in(&stopped.cause), stopped.unhandled), ("in drop", vec![2]));
    }
}

#[test]
fn a_mailbox_that_failed_is_handled_to_its_end_and_then_stops_the_actor() {
    let (mut actor, cause) = (actor([1, 2]), Failure::msg("eof"));
    assert!(actor.fail(cause.clone()) && !actor.fail(Failure::msg("again")));
    let mut handled = 0;
    let stopped = ready(actor.run(async |_| {
        handled += 1;
        Ok(())
    }))
    .unwrap_err();
    assert!(stopped.cause.ptr_eq(&cause) && stopped.unhandled.is_empty());
    assert_eq!(handled, 2);
}

#[test]
fn a_run_dropped_half_way_keeps_the_rest_and_another_run_goes_on() {
    let (mut actor, hand) = (actor([1, 2, 3]), Hand::new());
    assert!(hand.poll(&mut Box::pin(actor.run(async |_| pending().await))).is_pending());
    assert_eq!(hand.wakers(), 0);
    actor.close();
    let mut handled = Vec::new();
    ready(actor.run(async |item| {
        handled.push(item);
        Ok(())
    }))
    .unwrap();
    assert_eq!(handled, [2, 3], "the one in progress went with its handler");
}

#[test]
fn an_idle_run_that_is_dropped_leaves_no_waker() {
    let (mut actor, hand) = (actor([]), Hand::new());
    assert!(hand.poll(&mut Box::pin(actor.run(async |_: u8| Ok(())))).is_pending());
    assert!(hand.poll(&mut Box::pin(actor.run_concurrent(|_: u8, _| async { Ok(()) }))).is_pending());
    assert_eq!(hand.wakers(), 0);
    actor.submit(1);
    assert_eq!((hand.wakes(), actor.drain(None)), (0, vec![1]));
}

#[test]
fn an_actor_on_a_priority_mailbox_gives_back_what_its_floor_held() {
    let mailbox = PriorityMailbox::new(|n: &u8| *n);
    mailbox.floor().set(Some(1));
    let mut actor = ActorCore::new(mailbox);
    [1, 3, 0, 2].into_iter().for_each(|n| assert!(actor.submit(n)));
    let stopped = ready(actor.run(async |n| if n == 2 { Err(Failure::msg("two")) } else { Ok(()) })).unwrap_err();
    assert_eq!(stopped.unhandled, [1, 0], "the most urgent first, whatever the floor");
}

#[test]
fn a_gate_that_panics_stops_the_actor_and_loses_its_own_items_only() {
    for concurrent in [false, true] {
        let mailbox =
            PriorityMailbox::new(|n: &u8| *n).with_gate(|n| if n % 2 == 1 { panic!("gate {n}") } else { true });
        let mut actor = ActorCore::new(mailbox);
        [1, 2, 3, 4, 5].into_iter().for_each(|n| assert!(actor.submit(n)));
        let tx = actor.sender();
        let stopped = match concurrent {
            false => ready(actor.run(async |_| Ok(()))),
            true => ready(actor.run_concurrent(|_, _| async { Ok(()) })),
        };
        let stopped = stopped.unwrap_err();
        assert_eq!(stopped.unhandled, [4, 2]);
        let told = "3 failures: panicked: gate 1, panicked: gate 3, panicked: gate 5";
        assert_eq!(stopped.cause.to_string(), told, "also those of taking the rest back");
        assert_eq!(tx.cause().unwrap().to_string(), "panicked: gate 1");
        assert_eq!((tx.stats().sent, tx.stats().received), (5, 5));
    }
}

/// The handler owns its state (`async move`). With a handler that borrows from the task itself rustc 1.95 cannot see that the
/// task is `Send` ("higher-ranked lifetime error"), whoever calls it.
#[test]
fn an_actor_runs_as_a_task_of_a_runtime_with_many_threads() {
    fn is_send<T: Send>(task: T) -> T {
        task
    }
    let actor: ActorCore<Mailbox<u8>> = actor([1, 2, 3]);
    actor.close();
    let task = is_send(async move {
        let mut actor = actor;
        let mut total = 0u64;
        let run = actor.run(async move |item| {
            tokio::task::yield_now().await;
            total += u64::from(item);
            if total == 6 { Err(Failure::msg("six")) } else { Ok(()) }
        });
        run.await.unwrap_err().cause.to_string()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    assert_eq!(runtime.block_on(runtime.spawn(task)).unwrap(), "six");
}

#[test]
fn a_concurrent_actor_runs_as_a_task_of_a_runtime_with_many_threads() {
    let mut actor: ActorCore<Mailbox<u8>> = actor([1, 2, 3]);
    actor.close();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let handler = |_, release: Release| async move {
        release.release();
        Ok(())
    };
    let task = async move { actor.run_concurrent(handler).await };
    runtime.block_on(runtime.spawn(task)).unwrap().unwrap();
}

// Concurrently.

/// What the concurrent handlers of a test have in hand: who has started, the batons, and a gate for each.
#[derive(Default)]
struct Stage {
    started: RefCell<Vec<usize>>,
    releases: RefCell<Vec<Release>>,
    gates: Vec<CloseScope>,
}

impl Stage {
    fn new(handlers: usize) -> Rc<Self> {
        Rc::new(Stage { gates: (0..handlers).map(|_| CloseScope::new()).collect(), ..Stage::default() })
    }

    /// A handler that waits for its gate; what the gate failed with is its failure.
    fn handler(self: &Rc<Self>) -> impl FnMut(usize, Release) -> Handling + use<> {
        let stage = self.clone();
        move |item, release| {
            stage.started.borrow_mut().push(item);
            stage.releases.borrow_mut().push(release);
            let gate = stage.gates[item].clone();
            Box::pin(async move {
                gate.closed().await;
                gate.cause().map_or(Ok(()), Err)
            })
        }
    }

    fn started(&self) -> usize {
        self.started.borrow().len()
    }
}

type Handling = std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>>>>;

#[test]
fn the_next_item_starts_only_after_a_release_or_a_return() {
    let (mut actor, hand, stage) = (actor(0..3), Hand::new(), Stage::new(3));
    let mut run = pin!(actor.run_concurrent(stage.handler()));
    assert!(hand.poll(&mut run).is_pending() && hand.poll(&mut run).is_pending());
    assert_eq!(stage.started(), 1);
    stage.releases.borrow()[0].release();
    assert_eq!(hand.wakes(), 1);
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!(stage.started(), 2, "released: both run");
    stage.gates[0].close("done");
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!(stage.started(), 2, "the one that holds the baton is the second");
    stage.gates[1].close("done");
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!(stage.started(), 3, "returned");
}

#[test]
fn a_release_from_another_thread_wakes_the_loop_once() {
    let (mut actor, hand, stage) = (actor(0..2), Hand::new(), Stage::new(2));
    let mut run = pin!(actor.run_concurrent(stage.handler()));
    assert!(hand.poll(&mut run).is_pending());
    let release = stage.releases.borrow()[0].clone();
    thread::spawn(move || (0..3).for_each(|_| release.release())).join().unwrap();
    assert_eq!(hand.wakes(), 1, "as often as you like");
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!(stage.started(), 2);
}

#[test]
fn a_baton_that_was_used_does_not_release_a_later_handler() {
    let (mut actor, hand, stage) = (actor(0..3), Hand::new(), Stage::new(3));
    let mut run = pin!(actor.run_concurrent(stage.handler()));
    assert!(hand.poll(&mut run).is_pending());
    stage.gates[0].close("done");
    assert!(hand.poll(&mut run).is_pending());
    stage.releases.borrow()[0].release(); // after its end: its seat is the second one's now
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!(stage.started(), 2);
}

#[test]
fn a_baton_outlives_its_run() {
    let stage = Stage::new(1);
    let mut actor = actor([0]);
    assert!(poll_once(&mut Box::pin(actor.run_concurrent(stage.handler()))).is_pending());
    drop(actor);
    stage.releases.borrow()[0].release();
    assert_eq!(format!("{:?}", stage.releases.borrow()[0]), "Release(true)");
}

#[test]
fn a_closed_mailbox_lets_the_running_handlers_finish() {
    let (mut actor, hand, stage) = (actor(0..2), Hand::new(), Stage::new(2));
    actor.close();
    let mut run = pin!(actor.run_concurrent(stage.handler()));
    assert!(hand.poll(&mut run).is_pending());
    stage.releases.borrow()[0].release();
    assert!(hand.poll(&mut run).is_pending());
    stage.releases.borrow()[1].release();
    assert!(hand.poll(&mut run).is_pending(), "empty, but two are at work");
    stage.gates[1].close("done");
    assert!(hand.poll(&mut run).is_pending());
    stage.gates[0].close("done");
    assert!(matches!(hand.poll(&mut run), Poll::Ready(Ok(()))));
}

#[test]
fn after_a_failure_nothing_starts_and_the_running_ones_finish() {
    let (mut actor, hand, stage, cause) = (actor(0..4), Hand::new(), Stage::new(4), Failure::msg("disk full"));
    let tx = actor.sender();
    let mut run = pin!(actor.run_concurrent(stage.handler()));
    assert!(hand.poll(&mut run).is_pending());
    stage.releases.borrow()[0].release();
    assert!(hand.poll(&mut run).is_pending());
    stage.gates[0].fail(cause.clone());
    stage.releases.borrow()[1].release();
    assert!(hand.poll(&mut run).is_pending(), "the second one is at work");
    assert_eq!(stage.started(), 2);
    assert!(tx.cause().unwrap().ptr_eq(&cause), "senders see it at once");
    stage.gates[1].close("done");
    let Poll::Ready(Err(stopped)) = hand.poll(&mut run) else { panic!("not stopped") };
    assert!(stopped.cause.ptr_eq(&cause));
    assert_eq!(stopped.unhandled, [2, 3]);
}

#[test]
fn several_failures_are_all_named_and_the_first_is_the_source() {
    let (mut actor, hand, stage) = (actor(0..2), Hand::new(), Stage::new(2));
    let mut run = pin!(actor.run_concurrent(stage.handler()));
    assert!(hand.poll(&mut run).is_pending());
    stage.releases.borrow()[0].release();
    assert!(hand.poll(&mut run).is_pending());
    stage.gates[1].fail(Failure::msg("second"));
    assert!(hand.poll(&mut run).is_pending());
    stage.gates[0].fail(Failure::msg("first"));
    let Poll::Ready(Err(stopped)) = hand.poll(&mut run) else { panic!("not stopped") };
    assert_eq!(stopped.cause.to_string(), "2 failures: second, first");
    assert_eq!(stopped.cause.source().unwrap().to_string(), "second");
}

#[test]
fn a_concurrent_handler_that_panics_before_or_in_its_future_stops_the_actor() {
    for before in [true, false] {
        let mut actor = actor(0..3);
        let run = actor.run_concurrent(|item, _| {
            assert!(!before || item != 1, "boom");
            async move {
                assert!(item != 1, "boom");
                Ok(())
            }
        });
        let stopped = ready(run).unwrap_err();
        assert_eq!((panic_in(&stopped.cause), stopped.unhandled), ("boom", vec![2]));
        assert!(actor.sender().cause().unwrap().ptr_eq(&stopped.cause));
    }
}

#[test]
fn a_failed_mailbox_stops_a_concurrent_actor_after_what_is_queued() {
    let (mut actor, stage, cause) = (actor(0..1), Stage::new(1), Failure::msg("eof"));
    actor.fail(cause.clone());
    stage.gates[0].close("done");
    let stopped = ready(actor.run_concurrent(stage.handler())).unwrap_err();
    assert!(stopped.cause.ptr_eq(&cause) && stopped.unhandled.is_empty());
    assert_eq!(stage.started(), 1);
}

#[test]
fn a_thousand_handlers_are_in_flight_together_and_polled_only_when_woken() {
    let count = scaled(1_000);
    let (mut actor, hand, stage) = (actor(0..count), Hand::new(), Stage::new(count));
    actor.close();
    let polls = Rc::new(Cell::new(0));
    let mut handler = stage.handler();
    let counted = polls.clone();
    let mut run = pin!(actor.run_concurrent(move |item, release| {
        release.release();
        let (mut handling, polls) = (handler(item, release), counted.clone());
        poll_fn(move |cx| {
            polls.set(polls.get() + 1);
            handling.as_mut().poll(cx)
        })
    }));
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!((stage.started(), polls.get()), (count, count), "each was polled once");
    stage.gates[count / 2].close("done");
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!(polls.get(), count + 1, "and only the one that was woken again");
    stage.gates.iter().for_each(|gate| _ = gate.close("done"));
    assert!(matches!(hand.poll(&mut run), Poll::Ready(Ok(()))));
    assert_eq!(polls.get(), 2 * count);
}

#[test]
fn a_concurrent_handler_is_polled_again_at_every_wake_also_one_that_comes_while_it_is_polled() {
    let (mut actor, hand, steps) = (actor([()]), Hand::new(), Cell::new(0));
    let steps = &steps;
    let mut run = pin!(actor.run_concurrent(|(), _| {
        poll_fn(move |cx| {
            steps.set(steps.get() + 1);
            cx.waker().wake_by_ref();
            if steps.get() == 5 { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
    }));
    for step in 1..=4 {
        assert!(hand.poll(&mut run).is_pending());
        assert_eq!((steps.get(), hand.wakes()), (step, step));
    }
    assert!(hand.poll(&mut run).is_pending());
    assert_eq!(steps.get(), 5);
}

#[test]
fn a_concurrent_run_dropped_half_way_keeps_the_rest() {
    let (mut actor, hand, stage) = (actor(0..3), Hand::new(), Stage::new(3));
    assert!(hand.poll(&mut Box::pin(actor.run_concurrent(stage.handler()))).is_pending());
    assert_eq!((stage.started(), actor.drain(None)), (1, vec![1, 2]));
}

/// A baton may be kept for long by whoever got it: it must not keep the task of a run that is over.
#[test]
fn a_baton_kept_after_its_run_holds_no_waker() {
    for finishes in [false, true] {
        let (mut actor, hand, stage) = (actor([0]), Hand::new(), Stage::new(1));
        actor.close();
        let mut run = Box::pin(actor.run_concurrent(stage.handler()));
        assert!(hand.poll(&mut run).is_pending());
        if finishes {
            stage.gates[0].close("done");
            assert!(hand.poll(&mut run).is_ready());
        }
        drop(run);
        assert_eq!((stage.releases.borrow().len(), hand.wakers()), (1, 0));
    }
}

/// Everything above by hand: nothing in an actor needs a runtime. This one even lives on a plain thread.
#[test]
fn an_actor_runs_on_a_plain_thread() {
    let mut actor = actor(VecDeque::from([1, 2, 3]));
    let tx = actor.sender();
    let handled = thread::spawn(move || {
        let mut total = 0;
        ready(actor.run(async |n| {
            total += n;
            if n == 3 { Err(Failure::msg("enough")) } else { Ok(()) }
        }))
        .unwrap_err();
        total
    });
    assert_eq!(handled.join().unwrap(), 6);
    assert_eq!(tx.cause().unwrap().to_string(), "enough");
}
