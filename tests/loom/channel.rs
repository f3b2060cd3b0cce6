//! `channel` and `bounded`: send against close, receive, and the drop of either end. The books balance: what a send was `Ok`
//! for is received or still queued.

use std::num::NonZeroUsize;

use loom::thread;
use microio::{TrySendError, bounded, channel};

use crate::{model, poll_once};

const ONE: NonZeroUsize = NonZeroUsize::MIN;

/// Send against close: what was accepted is received before the end, and nothing after it.
#[test]
fn a_send_that_succeeds_is_received() {
    model(|| {
        let (tx, mut rx) = channel();
        let sender = thread::spawn({
            let tx = tx.clone();
            move || (0..2).filter(|n| tx.try_send(*n).is_ok()).count()
        });
        let closer = thread::spawn(move || tx.close());
        let received = std::iter::from_fn(|| rx.recv_blocking(None).ok()).count();
        assert!(closer.join().unwrap());
        let sent = sender.join().unwrap();
        assert_eq!(received, sent);
        let stats = rx.stats();
        assert_eq!((stats.sent, stats.received, stats.dropped), (sent as u64, sent as u64, 2 - sent as u64));
    });
}

/// Send against park: a receiver that parks on an empty queue is woken by the next item, and by the drop of the last sender.
#[test]
fn a_parked_receiver_is_woken() {
    model(|| {
        let (tx, mut rx) = channel();
        let sender = thread::spawn(move || tx.try_send(7).unwrap());
        assert_eq!(rx.recv_blocking(None).unwrap(), 7);
        assert!(rx.recv_blocking(None).is_err());
        sender.join().unwrap();
    });
}

/// Send against close against the receiver's drop: one of the two ends it, and the item is refused or dropped, and counted.
#[test]
fn a_receiver_that_goes_counts_what_it_leaves() {
    model(|| {
        let (tx, rx) = channel();
        let sender = thread::spawn({
            let tx = tx.clone();
            move || matches!(tx.try_send(1), Err(TrySendError::Closed(1)))
        });
        let closer = thread::spawn({
            let tx = tx.clone();
            move || tx.close()
        });
        drop(rx);
        let refused = sender.join().unwrap();
        closer.join().unwrap();
        let stats = tx.stats();
        assert_eq!((stats.sent, stats.dropped, stats.queued), (u64::from(!refused), 1, 0));
    });
}

/// The drop of two senders: one of them is the last, and ends the stream.
#[test]
fn the_last_sender_ends_the_stream() {
    model(|| {
        let (tx, mut rx) = channel::<u8>();
        let other = tx.clone();
        let droppers = [thread::spawn(move || drop(tx)), thread::spawn(move || drop(other))];
        assert!(rx.recv_blocking(None).is_err());
        droppers.into_iter().for_each(|dropper| dropper.join().unwrap());
    });
}

/// Send against the drop of a receive: the item is there for the next one.
#[test]
fn a_receive_that_is_dropped_loses_nothing() {
    model(|| {
        let (tx, mut rx) = channel();
        let mut leaving = Box::pin(rx.recv());
        assert!(poll_once(leaving.as_mut()).is_pending());
        let sender = thread::spawn({
            let tx = tx.clone();
            move || tx.try_send(7).unwrap()
        });
        drop(leaving);
        assert_eq!(rx.recv_blocking(None).unwrap(), 7);
        sender.join().unwrap();
    });
}

/// The books at every instant, also while an item is handed out.
#[test]
fn nobody_sees_more_received_than_sent() {
    model(|| {
        let (tx, mut rx) = channel();
        let reader = thread::spawn({
            let tx = tx.clone();
            move || {
                let stats = tx.stats();
                assert!(stats.received <= stats.sent && stats.queued == stats.sent - stats.received, "{stats:?}");
            }
        });
        let sender = thread::spawn(move || tx.try_send(7).unwrap());
        assert_eq!(rx.recv_blocking(None).unwrap(), 7);
        reader.join().unwrap();
        sender.join().unwrap();
    });
}

/// Bounded, send against receive against close: of two senders that wait for a place one may get it; the other gets its item
/// back, or both do.
#[test]
fn a_blocked_sender_is_woken() {
    model(|| {
        let (tx, mut rx) = bounded(ONE);
        tx.try_send(0).unwrap();
        let senders = [1, 2].map(|item| {
            let tx = tx.clone();
            thread::spawn(move || tx.send_blocking(item, None).is_ok())
        });
        let closer = thread::spawn(move || tx.close());
        assert_eq!(rx.recv_blocking(None).unwrap(), 0);
        let sent = senders.into_iter().map(|sender| sender.join().unwrap()).filter(|sent| *sent).count();
        assert!(closer.join().unwrap());
        assert_eq!(rx.drain(None).len(), sent);
    });
}

/// Bounded, without a close: every place that comes free is somebody's, and none is given twice.
#[test]
fn a_free_place_is_given_to_one() {
    model(|| {
        let (tx, mut rx) = bounded(ONE);
        tx.try_send(0).unwrap();
        let senders = [1, 2].map(|item| {
            let tx = tx.clone();
            thread::spawn(move || tx.send_blocking(item, None).unwrap())
        });
        let mut received = 0;
        for _ in 0..3 {
            received += rx.recv_blocking(None).unwrap();
            assert!(tx.stats().queued <= 1);
        }
        assert_eq!(received, 3);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

/// Bounded, the drop of a send against receive: a sender that was promised a place and goes passes it on.
#[test]
fn a_promised_place_is_passed_on() {
    model(|| {
        let (tx, mut rx) = bounded(ONE);
        tx.try_send(1).unwrap();
        let mut leaving = Box::pin(tx.send(2));
        assert!(poll_once(leaving.as_mut()).is_pending());
        let sender = thread::spawn({
            let tx = tx.clone();
            move || tx.send_blocking(3, None).unwrap()
        });
        assert_eq!(rx.recv_blocking(None).unwrap(), 1);
        drop(leaving);
        assert_eq!(rx.recv_blocking(None).unwrap(), 3);
        sender.join().unwrap();
    });
}
