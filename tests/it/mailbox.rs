//! Tests of `src/mailbox.rs`.

use std::cell::RefCell;
use std::cmp::Ordering as Order;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::task::Poll;
use std::thread;

use microio::{Failure, Floor, Mailbox, PriorityMailbox, RecvError};

use crate::support::{BURST, Hand, kept_by, meddler, poll_once, poll_with, ready, scaled};

/// A mailbox of `(priority, number)`.
fn by_priority() -> PriorityMailbox<(u8, usize), u8> {
    PriorityMailbox::new(|item: &(u8, usize)| item.0)
}

fn send<T, P: Ord + Clone>(mailbox: &PriorityMailbox<T, P>, items: impl IntoIterator<Item = T>) {
    items.into_iter().for_each(|item| assert!(mailbox.submit(item)));
}

#[test]
fn a_mailbox_receives_in_the_order_of_arrival_and_counts_what_comes_too_late() {
    let mut mailbox = Mailbox::new();
    assert!(mailbox.submit(1) && mailbox.sender().try_send(2).is_ok());
    assert!(mailbox.close() && !mailbox.close());
    assert!(!mailbox.submit(3), "submit tells");
    assert!(mailbox.sender().try_send(4).is_ok(), "the policy of its senders is to drop and count");
    assert_eq!((ready(mailbox.recv()).unwrap(), mailbox.drain(None)), (1, vec![2]));
    assert!(matches!(ready(mailbox.recv()), Err(RecvError::EndOfStream)));
    let stats = mailbox.stats();
    assert_eq!((stats.sent, stats.received, stats.queued, stats.dropped, stats.closed), (2, 2, 0, 2, true));
}

#[test]
fn a_failed_mailbox_gives_the_cause_after_what_is_queued() {
    let (mut mailbox, cause) = (Mailbox::new(), Failure::msg("eof"));
    mailbox.submit(1);
    assert!(mailbox.fail(cause.clone()));
    assert_eq!(ready(mailbox.recv()).unwrap(), 1);
    for _ in 0..2 {
        assert!(matches!(ready(mailbox.recv()), Err(RecvError::Failed(seen)) if seen.ptr_eq(&cause)));
    }
    assert!(mailbox.sender().cause().unwrap().ptr_eq(&cause));
}

#[test]
fn a_mailbox_stays_open_without_any_other_sender() {
    let mut mailbox = Mailbox::<u8>::new();
    drop(mailbox.sender());
    assert!(poll_once(&mut pin!(mailbox.recv())).is_pending());
}

#[test]
fn the_highest_key_comes_first_and_equal_keys_in_the_order_of_arrival() {
    let mut mailbox = by_priority();
    send(&mailbox, [(1, 0), (3, 1), (1, 2), (2, 3), (3, 4)]);
    let first = ready(mailbox.recv()).unwrap();
    send(&mailbox, [(3, 5), (1, 6)]); // arrive while others are parked
    let rest: Vec<_> = (0..6).map(|_| ready(mailbox.recv()).unwrap()).collect();
    assert_eq!((first, rest), ((3, 1), vec![(3, 4), (3, 5), (2, 3), (1, 0), (1, 2), (1, 6)]));
}

#[test]
fn the_gate_sees_every_item_once_in_the_order_of_arrival_before_the_key() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (gate, key) = (seen.clone(), seen.clone());
    let mut mailbox = PriorityMailbox::new(move |n: &i32| {
        key.lock().unwrap().push(("key", *n));
        *n
    })
    .with_gate(move |n| {
        gate.lock().unwrap().push(("gate", *n));
        n % 2 == 1
    });
    send(&mailbox, [1, 2, 3]);
    assert_eq!(ready(mailbox.recv()).unwrap(), 3);
    assert_eq!(*seen.lock().unwrap(), [("gate", 1), ("key", 1), ("gate", 2), ("gate", 3), ("key", 3)]);
    let stats = mailbox.stats();
    assert_eq!((stats.sent, stats.received, stats.queued), (3, 2, 1), "what the gate consumed was received");
    assert_eq!(mailbox.drain(None), [1]);
    assert_eq!(seen.lock().unwrap().len(), 5, "nothing runs twice");
}

#[test]
fn a_receive_of_which_the_gate_consumes_everything_goes_on_waiting() {
    let hand = Hand::new();
    let mut mailbox = by_priority().with_gate(|item| item.1 > 0);
    let tx = mailbox.sender();
    let mut recv = pin!(mailbox.recv());
    assert!(hand.poll(&mut recv).is_pending());
    tx.try_send((9, 0)).unwrap();
    assert_eq!(hand.wakes(), 1);
    assert!(hand.poll(&mut recv).is_pending());
    tx.try_send((1, 1)).unwrap();
    assert_eq!(hand.wakes(), 2, "it was parked again");
    assert!(matches!(hand.poll(&mut recv), Poll::Ready(Ok((1, 1)))));
}

/// The panic comes out once, of the call that ran it; its item is consumed, every other one is still there and in order.
#[test]
fn a_gate_or_key_that_panics_loses_no_other_item() {
    let key = |n: &i32| if *n == 20 { panic!("key") } else { *n };
    let mut mailbox = PriorityMailbox::new(key).with_gate(|n| if *n == 10 { panic!("gate") } else { true });
    send(&mailbox, [1, 10, 2, 20, 3]);
    let received = |mailbox: &mut PriorityMailbox<i32, i32>| {
        let caught = catch_unwind(AssertUnwindSafe(|| ready(mailbox.recv()).unwrap()));
        let stats = mailbox.stats();
        assert_eq!(stats.sent, stats.received + stats.queued);
        caught.map_err(|payload| *payload.downcast::<&str>().unwrap())
    };
    assert_eq!(received(&mut mailbox), Err("gate"));
    assert_eq!(mailbox.stats().received, 1, "the offending item is consumed");
    assert_eq!(received(&mut mailbox), Err("key"));
    assert_eq!(mailbox.stats().received, 2);
    assert_eq!((received(&mut mailbox), mailbox.drain(None)), (Ok(3), vec![2, 1]));
}

#[test]
fn a_drain_whose_gate_panics_loses_no_other_item() {
    let mut mailbox = by_priority().with_gate(|item| if item.1 == 1 { panic!("gate") } else { true });
    send(&mailbox, [(1, 0), (2, 1), (3, 2)]);
    assert!(catch_unwind(AssertUnwindSafe(|| mailbox.drain(None))).is_err());
    assert_eq!(mailbox.drain(None), [(3, 2), (1, 0)]);
    assert_eq!(mailbox.stats().received, 3);
}

/// A gate that sends into its own mailbox: what arrives during a receive can wait for the next one.
#[test]
fn a_receive_ends_though_items_keep_arriving_while_it_sorts() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let gate_sender = Arc::new(Mutex::new(None::<microio::Sender<(u8, usize)>>));
    let sender = gate_sender.clone();
    let mut mailbox = by_priority().with_gate(move |_| {
        let n = counter.fetch_add(1, Ordering::SeqCst);
        if n < 10_000 {
            sender.lock().unwrap().as_ref().unwrap().try_send((0, n)).unwrap();
        }
        true
    });
    *gate_sender.lock().unwrap() = Some(mailbox.sender());
    send(&mailbox, [(1, 0)]);
    assert_eq!(ready(mailbox.recv()).unwrap(), (1, 0));
    assert!(calls.load(Ordering::SeqCst) < 10_000, "it took in everything until the sender paused");
}

#[test]
fn only_what_is_strictly_above_the_floor_is_received() {
    let mut mailbox = by_priority();
    mailbox.floor().set(Some(2));
    send(&mailbox, [(2, 0), (3, 1), (1, 2)]);
    assert_eq!(ready(mailbox.recv()).unwrap(), (3, 1));
    assert!(poll_once(&mut pin!(mailbox.recv())).is_pending(), "equal is not above");
    mailbox.floor().set(Some(1));
    assert_eq!(ready(mailbox.recv()).unwrap(), (2, 0));
    assert!(poll_once(&mut pin!(mailbox.recv())).is_pending());
    mailbox.floor().set(None);
    assert_eq!(ready(mailbox.recv()).unwrap(), (1, 2));
}

#[test]
fn moving_the_floor_wakes_a_parked_receiver_without_a_send() {
    let (mut mailbox, hand) = (by_priority(), Hand::new());
    let floor = mailbox.floor();
    floor.set(Some(5));
    send(&mailbox, [(3, 0)]);
    let mut recv = pin!(mailbox.recv());
    assert!(hand.poll(&mut recv).is_pending());
    floor.set(Some(4));
    assert_eq!(hand.wakes(), 1);
    assert!(hand.poll(&mut recv).is_pending(), "not low enough yet");
    floor.set(Some(2));
    assert_eq!(hand.wakes(), 2);
    assert!(matches!(hand.poll(&mut recv), Poll::Ready(Ok((3, 0)))));
}

#[test]
fn moving_the_floor_from_another_thread_wakes_a_blocked_receiver() {
    for _ in 0..scaled(100) {
        let (mut mailbox, barrier) = (by_priority(), Barrier::new(2));
        let floor = mailbox.floor();
        floor.set(Some(5));
        send(&mailbox, [(3, 0)]);
        thread::scope(|threads| {
            threads.spawn(|| {
                barrier.wait();
                floor.set(None);
            });
            barrier.wait();
            assert_eq!(crate::support::block_on(mailbox.recv()).unwrap(), (3, 0));
        });
    }
}

#[test]
fn a_send_above_the_floor_wakes_a_receiver_that_holds_back_others() {
    let (mut mailbox, hand) = (by_priority(), Hand::new());
    mailbox.floor().set(Some(5));
    send(&mailbox, [(3, 0)]);
    let tx = mailbox.sender();
    let mut recv = pin!(mailbox.recv());
    assert!(hand.poll(&mut recv).is_pending());
    tx.try_send((6, 1)).unwrap();
    assert_eq!(hand.wakes(), 1);
    assert!(matches!(hand.poll(&mut recv), Poll::Ready(Ok((6, 1)))));
}

#[test]
fn a_closed_mailbox_ends_above_the_floor_and_keeps_what_is_parked_below() {
    let (mut mailbox, cause) = (by_priority(), Failure::msg("eof"));
    let floor = mailbox.floor();
    floor.set(Some(1));
    send(&mailbox, [(1, 0), (0, 1), (2, 2)]);
    assert!(mailbox.fail(cause.clone()));
    assert_eq!(ready(mailbox.recv()).unwrap(), (2, 2));
    assert!(matches!(ready(mailbox.recv()), Err(RecvError::Failed(seen)) if seen.ptr_eq(&cause)));
    assert_eq!(mailbox.stats().queued, 2, "parked items are queued");
    floor.set(Some(0));
    assert_eq!(ready(mailbox.recv()).unwrap(), (1, 0), "a lower floor lets them through");
    assert_eq!(mailbox.drain(None), [(0, 1)], "and a drain ignores it");
}

#[test]
fn closing_wakes_a_receiver_that_the_floor_holds_back() {
    let (mut mailbox, hand) = (by_priority(), Hand::new());
    mailbox.floor().set(Some(5));
    send(&mailbox, [(3, 0)]);
    let tx = mailbox.sender();
    let mut recv = pin!(mailbox.recv());
    assert!(hand.poll(&mut recv).is_pending());
    tx.close();
    assert_eq!(hand.wakes(), 1);
    assert!(matches!(hand.poll(&mut recv), Poll::Ready(Err(RecvError::EndOfStream))));
}

#[test]
fn a_drain_takes_the_most_urgent_first_and_at_most_what_it_is_asked_for() {
    let mut mailbox = by_priority();
    mailbox.floor().set(Some(9));
    send(&mailbox, [(1, 0), (3, 1), (2, 2)]);
    assert_eq!((mailbox.drain(Some(2)), mailbox.drain(Some(0))), (vec![(3, 1), (2, 2)], vec![]));
    assert_eq!((mailbox.stats().received, mailbox.stats().queued), (2, 1));
    assert_eq!(mailbox.drain(None), [(1, 0)]);
}

#[test]
fn a_dropped_receive_leaves_no_waker_in_the_channel_nor_at_the_floor() {
    let (mut mailbox, hand) = (by_priority(), Hand::new());
    mailbox.floor().set(Some(5));
    send(&mailbox, [(3, 0)]);
    assert!(hand.poll(&mut Box::pin(mailbox.recv())).is_pending());
    assert_eq!(hand.wakers(), 0);
    mailbox.floor().set(None);
    assert_eq!((hand.wakes(), ready(mailbox.recv()).unwrap()), (0, (3, 0)));
}

#[test]
fn a_receiver_woken_by_one_side_leaves_no_waker_at_the_other() {
    let (mut mailbox, hand) = (by_priority(), Hand::new());
    let (floor, tx) = (mailbox.floor(), mailbox.sender());
    floor.set(Some(5));
    send(&mailbox, [(3, 0)]);
    let mut recv = Box::pin(mailbox.recv());
    assert!(hand.poll(&mut recv).is_pending());
    tx.try_send((6, 1)).unwrap();
    assert!(hand.poll(&mut recv).is_ready());
    drop(recv);
    assert_eq!(hand.wakers(), 0);
}

thread_local! {
    static MEDDLED: RefCell<Option<Floor<Meddling>>> = const { RefCell::new(None) };
}

/// A priority whose order, clone and drop move the floor that they are part of, once each.
struct Meddling(u8);

fn meddle() {
    if let Some(floor) = MEDDLED.take() {
        floor.set(Some(Meddling(0)));
        MEDDLED.set(Some(floor));
    }
}

impl Drop for Meddling {
    fn drop(&mut self) {
        meddle();
    }
}

impl Clone for Meddling {
    fn clone(&self) -> Self {
        meddle();
        Meddling(self.0)
    }
}

impl Ord for Meddling {
    fn cmp(&self, other: &Self) -> Order {
        meddle();
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Meddling {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Meddling {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Meddling {}

#[test]
fn a_priority_that_moves_the_floor_in_its_own_code_does_not_deadlock() {
    let mut mailbox = PriorityMailbox::new(|n: &u8| Meddling(*n));
    MEDDLED.set(Some(mailbox.floor()));
    mailbox.floor().set(Some(Meddling(2)));
    mailbox.floor().set(Some(Meddling(1))); // drops the one before, which moves it once more
    send(&mailbox, [1, 3, 2]);
    assert_eq!([(); 3].map(|()| ready(mailbox.recv()).unwrap()), [3, 2, 1]);
    MEDDLED.take();
}

#[test]
fn a_waker_that_uses_its_own_mailbox_does_not_deadlock() {
    let mut mailbox = by_priority();
    let (floor, tx) = (mailbox.floor(), mailbox.sender());
    floor.set(Some(5));
    send(&mailbox, [(1, 0)]);
    let (meddling_floor, meddling_tx) = (floor.clone(), tx.clone());
    let waker = meddler(move || {
        meddling_floor.set(Some(6));
        let _ = (meddling_tx.try_send((7, 1)), meddling_tx.stats());
    });
    let mut recv = Box::pin(mailbox.recv());
    assert!(poll_with(&waker, &mut recv).is_pending());
    floor.set(Some(4));
    assert!(matches!(poll_with(&waker, &mut recv), Poll::Ready(Ok((7, 1)))));
    drop((waker, recv));
    assert_eq!(ready(mailbox.recv()).unwrap(), (7, 1));
}

/// Random sends, receives, drains and floors against a sorted vector.
#[test]
fn it_behaves_like_a_sorted_vector_under_random_use() {
    for seed in 0..scaled(200) {
        let mut rng = fastrand::Rng::with_seed(seed as u64);
        let mut mailbox = by_priority().with_gate(|item| item.1 % 5 != 4);
        let mut model: Vec<(u8, usize)> = Vec::new(); // the most urgent first
        let mut arriving = Vec::new(); // sent, and not seen by the gate yet
        let (mut floor, mut sent, mut received, mut closed) = (None, 0, 0, false);
        for step in 0..scaled(300) {
            let at = format!("seed {seed}, step {step}");
            let choice = rng.u8(..10);
            if (6..10).contains(&choice) {
                for item in std::mem::take(&mut arriving) {
                    let (_, number): (u8, usize) = item;
                    if number % 5 == 4 { received += 1 } else { model.push(item) }
                }
                model.sort_by_key(|item| std::cmp::Reverse(item.0)); // stable
            }
            match choice {
                0..4 => {
                    let item = (rng.u8(..4), step);
                    assert_eq!(mailbox.submit(item), !closed, "{at}");
                    if !closed {
                        sent += 1;
                        arriving.push(item);
                    }
                }
                4 | 5 => {
                    floor = rng.bool().then(|| rng.u8(..4));
                    mailbox.floor().set(floor);
                }
                6..9 => {
                    let top = model.first().filter(|item| floor.is_none_or(|floor| item.0 > floor)).copied();
                    match (poll_once(&mut pin!(mailbox.recv())), top) {
                        (Poll::Ready(Ok(item)), Some(top)) => {
                            assert_eq!(item, top, "{at}");
                            model.remove(0);
                            received += 1;
                        }
                        (Poll::Pending, None) => assert!(!closed, "{at}"),
                        (Poll::Ready(Err(_)), None) => assert!(closed, "{at}"),
                        (got, expected) => panic!("{at}: {got:?} for {expected:?}"),
                    }
                }
                _ => {
                    let max = rng.usize(..3);
                    let expected: Vec<_> = model.drain(..max.min(model.len())).collect();
                    received += expected.len();
                    assert_eq!(mailbox.drain(Some(max)), expected, "{at}");
                }
            }
            if step == 250 && rng.bool() {
                closed = mailbox.close();
            }
            let stats = mailbox.stats();
            let queued = model.len() + arriving.len();
            let counted = (stats.sent as usize, stats.received as usize, stats.queued as usize);
            assert_eq!(counted, (sent, received, queued), "{at}");
        }
    }
}

#[test]
fn a_priority_mailbox_gives_the_memory_of_a_burst_back() {
    let mut mailbox = by_priority();
    let kept = kept_by(|| {
        send(&mailbox, (0..BURST).map(|n| (n as u8, n)));
        (0..BURST).for_each(|_| drop(ready(mailbox.recv())));
        send(&mailbox, (0..BURST).map(|n| (n as u8, n)));
        drop(mailbox.drain(None));
    });
    assert!(kept < 200_000, "{kept} bytes for items that are gone");
}
