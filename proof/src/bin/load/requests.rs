//! Requests that are pending.

use microio::{Failure, ReplyHandle, RequestRegistry, Waiter};

use crate::meter::{Bell, Meter, Order};

type Registry = RequestRegistry<u64, u64>;
type Asked = (ReplyHandle<u64, u64>, Waiter<u64, u64>);

fn gone() -> Failure {
    Failure::msg("connection reset")
}

pub(crate) fn by_key(meter: &mut Meter) {
    let bell = Bell::default();
    let make = |n| {
        let requests = Registry::new();
        let waiters = bell.park(n, |key| requests.register(key as u64).expect("a new key"));
        (requests, waiters)
    };
    meter.drop_in_every_order(make);
    bell.rung();
    for order in Order::ALL {
        let (requests, waiters) = meter.build(make);
        let mut keys = Vec::from_iter(0..meter.n() as u64);
        order.arrange(&mut keys);
        let resolve = match order {
            Order::OldestFirst => "resolve, oldest first",
            Order::NewestFirst => "resolve, newest first",
            Order::Random => "resolve, at random",
        };
        meter.time(resolve, || keys.iter().for_each(|key| requests.resolve(key, *key).expect("it waits")));
        assert_eq!(bell.rung(), meter.n());
        meter.time("hear it", || bell.hear(waiters));
        assert!(requests.is_empty());
    }
    let (requests, waiters) = meter.build(make);
    assert_eq!(meter.time("list", || requests.pending()).len(), meter.n());
    assert_eq!(meter.time("fail all", || requests.fail_all(gone())), meter.n());
    meter.time("drop, failed", || drop(waiters));
    let (requests, waiters) = meter.build(make);
    assert_eq!(meter.time("close", || requests.close(gone())), meter.n());
    meter.time("hear of the close", || bell.hear(waiters));
    let (n, requests) = (meter.n() as u64, Registry::new());
    meter.time("register and drop, each in turn", || (0..n).for_each(|key| drop(requests.register(key))));
}

pub(crate) fn by_handle(meter: &mut Meter) {
    let bell = Bell::default();
    let make = |n| {
        let requests = Registry::new();
        let asked = Vec::from_iter((0..n).map(|key| requests.reply(key as u64).expect("a new key")));
        (requests, asked)
    };
    meter.drop_in_every_order(make);
    let parked = |n| {
        let (requests, asked): (_, Vec<Asked>) = make(n);
        let (handles, waiters): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        let mut waiters = waiters.into_iter();
        let waiters = bell.park(n, |_| waiters.next().expect("one each"));
        (requests, handles, waiters)
    };
    let (requests, handles, waiters) = meter.build(parked);
    meter.time("answer", || handles.into_iter().for_each(|handle| handle.resolve(1).expect("it waits")));
    assert_eq!(bell.rung(), meter.n());
    meter.time("hear it", || bell.hear(waiters));
    assert!(requests.is_empty());
    let (_requests, handles, waiters) = meter.build(parked);
    meter.time("drop the handles", || drop(handles));
    meter.time("hear it", || bell.hear(waiters));
    let (_requests, mut handles, waiters) = meter.build(parked);
    meter.time("drop the waiters", || drop(waiters));
    Order::Random.arrange(&mut handles);
    meter.time("drop the handles, unwanted", || drop(handles));
    let (requests, handles, waiters) = meter.build(parked);
    meter.time("answered, and not heard", || {
        handles.into_iter().for_each(|handle| handle.resolve(1).expect("it waits"))
    });
    let again = meter
        .time("the same keys again", || Vec::from_iter((0..waiters.len()).map(|key| requests.register(key as u64))));
    drop(waiters);
    drop(again);
    let (requests, handles, waiters) = meter.build(parked);
    assert_eq!(meter.time("close", || requests.close(gone())), meter.n());
    drop((handles, waiters));
}
