//! Priorities whose order is inconsistent, never true, or panics; and floors of them.

use std::cell::Cell;
use std::cmp::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use microio::PriorityMailbox;
use proptest::prelude::*;

use super::check;
use crate::support::{poll_once, ready};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    Honest,
    AtRandom,
    /// As NaN: not less, not equal, not greater, though `cmp` says something.
    Never,
    Panics,
}

thread_local! {
    static ORDER: Cell<Order> = const { Cell::new(Order::Honest) };
}

#[derive(Clone)]
struct Rank(u8, #[allow(dead_code)] Arc<()>);

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        match ORDER.get() {
            Order::Honest => self.0.cmp(&other.0),
            Order::AtRandom | Order::Never => fastrand::i8(..).cmp(&0),
            Order::Panics if std::thread::panicking() || fastrand::u8(..4) > 0 => self.0.cmp(&other.0),
            Order::Panics => resume_unwind(Box::new("no order")),
        }
    }
}

#[allow(clippy::non_canonical_partial_ord_impl)] // bad on purpose
impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        if ORDER.get() == Order::Never { None } else { Some(self.cmp(other)) }
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

impl Eq for Rank {}

#[derive(Clone, Debug)]
enum Step {
    Send(u8),
    Receive,
    Drain(Option<usize>),
    Floor(Option<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4u8).prop_map(Step::Send),
        2 => Just(Step::Receive),
        1 => prop::option::of(prop_oneof![Just(0), Just(1), Just(usize::MAX)]).prop_map(Step::Drain),
        1 => prop::option::of(0..4u8).prop_map(Step::Floor),
    ];
    prop::collection::vec(step, 0..60)
}

#[test]
fn whatever_the_order_every_item_comes_out_once_or_is_lost_to_a_panic() {
    let orders = prop::sample::select(vec![Order::Honest, Order::AtRandom, Order::Never, Order::Panics]);
    check(256, (orders, steps(), any::<u64>()), |(order, steps, seed)| {
        fastrand::seed(seed);
        let token = Arc::new(());
        let ranks = token.clone();
        let mut mailbox = PriorityMailbox::new(move |item: &(u8, usize, Arc<()>)| Rank(item.0, ranks.clone()));
        let (mut sent, mut out, mut panicked) = (0, Vec::new(), false);
        for step in steps {
            ORDER.set(order);
            let done = catch_unwind(AssertUnwindSafe(|| match step {
                Step::Send(rank) => {
                    assert!(mailbox.submit((rank, sent, token.clone())));
                    sent += 1;
                    Vec::new()
                }
                Step::Receive => match poll_once(&mut pin!(mailbox.recv())) {
                    Poll::Ready(item) => vec![item.unwrap()],
                    Poll::Pending => Vec::new(),
                },
                Step::Drain(max) => mailbox.drain(max),
                Step::Floor(rank) => {
                    mailbox.floor().set(rank.map(|rank| Rank(rank, token.clone())));
                    Vec::new()
                }
            }));
            ORDER.set(Order::Honest);
            panicked |= done.is_err();
            out.extend(done.into_iter().flatten().map(|(_, number, _)| number));
            let stats = mailbox.stats();
            assert_eq!((stats.sent, stats.received + stats.queued), (sent as u64, stats.sent));
            assert!(stats.received as usize >= out.len());
        }
        assert!(!panicked || order == Order::Panics);
        mailbox.floor().set(None);
        while let Poll::Ready(item) = poll_once(&mut pin!(mailbox.recv())) {
            out.push(item.unwrap().1);
        }
        assert_eq!(mailbox.stats().queued, 0);
        out.sort();
        let all = Vec::from_iter(0..sent);
        assert!(out == all || panicked && out.is_sorted_by(|one, next| one < next));
        mailbox.close();
        assert!(ready(mailbox.recv()).is_err());
        drop(mailbox);
        assert_eq!(Arc::strong_count(&token), 1, "an item or a priority is left");
    });
}
