//! Items that are queued, senders that wait for a place, handlers that run at once.

use std::num::NonZeroUsize;

use microio::{ActorCore, CloseScope, Failure, Mailbox, PriorityMailbox, Receiver, Release, Sender, bounded, channel};

use crate::meter::{Bell, Meter};

type Ends = (Sender<u64>, Receiver<u64>);

pub(crate) fn queued(meter: &mut Meter) {
    ends(meter, |_| channel());
}

pub(crate) fn bounded_queued(meter: &mut Meter) {
    ends(meter, |n| bounded(NonZeroUsize::new(n).expect("not 0")));
}

fn ends(meter: &mut Meter, open: impl Fn(usize) -> Ends) {
    let make = |n| {
        let (tx, rx) = open(n);
        (0..n as u64).for_each(|item| tx.try_send(item).expect("there is a place"));
        (tx, rx)
    };
    let before = proof::live_bytes();
    let (tx, mut rx) = meter.build(make);
    let mut received = 0;
    meter.time("receive", || {
        while rx.try_recv().is_ok() {
            received += 1;
        }
    });
    assert_eq!(received, meter.n());
    meter.weigh("kept when they are gone", before);
    drop((tx, rx));
    let (_tx, mut rx) = meter.build(make);
    assert_eq!(meter.time("drain", || rx.drain(None)).len(), meter.n());
    let (tx, rx) = meter.build(make);
    meter.time("drop the sender", || drop(tx));
    meter.time("drop the receiver", || drop(rx));
    let (tx, rx) = meter.build(make);
    meter.time("close", || tx.close());
    meter.time("drop the receiver", || drop(rx));
    meter.time("drop, after the whole", || drop(tx));
}

pub(crate) fn blocked(meter: &mut Meter) {
    let bell = Bell::default();
    let make = |n| {
        let (tx, rx) = bounded(NonZeroUsize::MIN);
        tx.try_send(0).expect("the one place");
        let send = |item| {
            let tx = tx.clone();
            async move { tx.send(item as u64).await }
        };
        let senders = bell.park(n, send);
        (rx, senders)
    };
    meter.drop_in_every_order(make);
    bell.rung();
    let (mut rx, senders) = meter.build(make);
    meter.time("receive, a send after each", || {
        for sender in senders {
            rx.try_recv().expect("one is there");
            bell.end(sender).expect("it has the place");
        }
    });
    assert_eq!(bell.rung(), meter.n());
    let (rx, senders) = meter.build(make);
    meter.time("close", || rx.close());
    assert_eq!(bell.rung(), meter.n());
    meter.time("hear it", || bell.hear(senders));
    let (rx, senders) = meter.build(make);
    meter.time("drop the receiver", || drop(rx));
    meter.time("hear it", || bell.hear(senders));
    // A place that nobody takes goes on from one to the next.
    let (mut rx, senders) = meter.build(make);
    rx.try_recv().expect("one is there");
    meter.time("drop, a place passed on", || drop(senders));
}

pub(crate) fn priority(meter: &mut Meter) {
    let make = |n| {
        let mailbox = PriorityMailbox::new(|item: &u64| *item % 10);
        (0..n as u64).for_each(|item| assert!(mailbox.submit(item)));
        mailbox
    };
    let bell = Bell::default();
    let before = proof::live_bytes();
    let mut mailbox = meter.build(make);
    meter.time("sort in, receive the first", || bell.end(Box::pin(mailbox.recv()))).expect("open");
    let n = meter.n();
    meter.time("receive", || (1..n).for_each(|_| _ = bell.end(Box::pin(mailbox.recv())).expect("open")));
    meter.weigh("kept when they are gone", before);
    drop(mailbox);
    let mut mailbox = meter.build(make);
    assert_eq!(meter.time("drain", || mailbox.drain(None)).len(), meter.n());
    let mut mailbox = meter.build(make);
    mailbox.floor().set(Some(100));
    let parked = meter.time("park below the floor", || bell.start(async move { mailbox.recv().await }));
    meter.time("drop", || drop(parked));
    let mailbox = meter.build(make);
    meter.time("close", || mailbox.close());
    meter.time("drop, not sorted in", || drop(mailbox));
}

/// Handlers of one actor that have all begun and wait.
pub(crate) fn handlers(meter: &mut Meter) {
    let bell = Bell::default();
    let make = |fate: fn() -> Result<(), Failure>| {
        let bell = &bell;
        move |n: usize| {
            let (gate, mut actor) = (CloseScope::new(), ActorCore::new(Mailbox::new()));
            (0..n).for_each(|item| assert!(actor.submit(item)));
            let (opened, end) = (gate.clone(), actor.sender());
            let run = bell.start(async move {
                let handle = |_, release: Release| {
                    release.release();
                    let opened = opened.closed();
                    async move {
                        opened.await;
                        fate()
                    }
                };
                actor.run_concurrent(handle).await
            });
            end.close();
            (gate, run)
        }
    };
    let (_gate, run) = meter.build(make(|| Ok(())));
    meter.time("drop", || drop(run));
    let (gate, run) = meter.build(make(|| Ok(())));
    meter.time("wake", || gate.close("go on"));
    assert!(meter.time("end", || bell.end(run)).is_ok());
    let (gate, run) = meter.build(make(|| Err(Failure::msg("no"))));
    gate.close("go on");
    let stopped = meter.time("fail", || bell.end(run)).expect_err("all have failed");
    let text = meter.time("say it", || stopped.cause.to_string());
    assert!(text.len() > 4 * meter.n());
    meter.time("drop the failures", || drop(stopped));
    // Nobody has begun: all come back.
    let n = meter.n();
    let mut actor = ActorCore::new(Mailbox::new());
    (0..n).for_each(|item| assert!(actor.submit(item)));
    let run = async { actor.run(async |_| Err(Failure::msg("no"))).await };
    let stopped = meter.time("fail the first, the rest comes back", || bell.end(Box::pin(run)));
    assert_eq!(stopped.expect_err("it has failed").unhandled.len(), n - 1);
}
