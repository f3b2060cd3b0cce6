//! `PriorityMailbox`: the floor against send, receive and close.

use loom::thread;
use microio::PriorityMailbox;

use crate::{block_on, model};

/// Floor against send against receive: a receiver that the floor held back is woken when it is lowered.
#[test]
fn a_lower_floor_wakes_the_receiver() {
    model(|| {
        let mut mailbox = PriorityMailbox::new(|item: &u8| *item);
        let (floor, sender) = (mailbox.floor(), mailbox.sender());
        floor.set(Some(5));
        let mover = thread::spawn(move || floor.set(None));
        let submitter = thread::spawn(move || sender.try_send(3).unwrap());
        assert_eq!(block_on(mailbox.recv()).unwrap(), 3);
        mover.join().unwrap();
        submitter.join().unwrap();
    });
}

/// Close against send against receive: what was accepted below the floor is kept for a drain.
#[test]
fn a_close_strands_nothing_below_the_floor() {
    model(|| {
        let mut mailbox = PriorityMailbox::new(|item: &u8| *item);
        mailbox.floor().set(Some(5));
        let (sender, closer) = (mailbox.sender(), mailbox.sender());
        let submitter = thread::spawn(move || {
            sender.try_send(3).unwrap(); // which is counted as dropped, if it is too late
            sender.try_send(7).unwrap();
        });
        let closer = thread::spawn(move || closer.close());
        let mut received = 0;
        while let Ok(item) = block_on(mailbox.recv()) {
            assert_eq!(item, 7);
            received += 1;
        }
        submitter.join().unwrap();
        assert!(closer.join().unwrap());
        let (kept, stats) = (mailbox.drain(None).len() as u64, mailbox.stats());
        assert_eq!((received + kept, stats.received + stats.dropped), (stats.sent, 2));
    });
}
