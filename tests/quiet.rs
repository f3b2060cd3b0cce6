//! Nothing polls: what is idle costs nothing. Counted by the system, for every thread of a process in which nothing else runs.
#![cfg(all(target_os = "linux", feature = "tokio"))]

#[allow(dead_code)] // some of it is for the other tests
#[path = "it/alone.rs"]
mod alone;

use std::collections::BTreeMap;
use std::fs;
use std::future::pending;
use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use alone::alone;
use microio::{
    ActorCore, Failure, LoopServiceThread, Mailbox, RequestRegistry, Sender, ServiceGroup, ServiceThread, bounded,
    channel, sleep, task_group,
};
use tokio::net::TcpListener;

const LONG: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn five_idle_services_and_their_channels_wake_nobody_in_ten_seconds() {
    if !alone("five_idle_services_and_their_channels_wake_nobody_in_ten_seconds") {
        return;
    }
    let (group, senders) = five_services();
    group.start_all(Some(LONG)).unwrap();
    assert_eq!(settled().len(), 6, "five, and one that waits for this test");
    assert_eq!(stirred(Duration::from_secs(10)), [""; 0]);
    end(&group, &senders);
}

#[test]
fn closed_services_and_channels_leave_nothing_that_ticks() {
    if !alone("closed_services_and_channels_leave_nothing_that_ticks") {
        return;
    }
    let before: Vec<_> = settled().into_keys().collect();
    let (group, senders) = five_services();
    group.start_all(Some(LONG)).unwrap();
    end(&group, &senders);
    assert!(senders.iter().all(Sender::is_closed), "dead, and held");
    let after: Vec<_> = settled().into_keys().collect();
    assert_eq!(after, before);
    assert_eq!(stirred(Duration::from_secs(3)), [""; 0]);
}

/// The other two can fail.
#[test]
fn services_that_tick_once_a_second_are_seen() {
    if !alone("services_that_tick_once_a_second_are_seen") {
        return;
    }
    const SECOND: Duration = Duration::from_secs(1);
    let (mut group, senders) = five_services();
    group.add(ServiceThread::new("thread ticks", |cx| {
        cx.started();
        while cx.scope().wait_blocking(Some(SECOND)).is_err() {}
        Ok(())
    }));
    group.add(LoopServiceThread::new("loop ticks", |cx| async move {
        cx.started();
        loop {
            sleep(SECOND).await;
        }
    }));
    group.start_all(Some(LONG)).unwrap();
    settled();
    let stirred = stirred(3 * SECOND);
    assert!(stirred.len() == 2 && stirred.iter().all(|who| who.contains("ticks")), "{stirred:#?}");
    end(&group, &senders);
}

/// Threads and loops that wait in all ways there are. The senders are the far ends of what they wait for.
fn five_services() -> (ServiceGroup, Vec<Sender<u8>>) {
    let (to_thread, mut on_thread) = channel::<u8>();
    let (to_loop, mut on_loop) = channel::<u8>();
    let (to_nobody, full) = bounded::<u8>(NonZeroUsize::MIN);
    let mut actor = ActorCore::new(Mailbox::<u8>::new());
    let senders = vec![to_thread, to_loop, actor.sender()];
    let mut group = ServiceGroup::new("five");
    group.add(ServiceThread::new("receives", move |cx| {
        cx.started();
        let _closed = on_thread.recv_blocking(None);
        Ok(())
    }));
    group.add(ServiceThread::new("asks", |cx| {
        let registry = RequestRegistry::<u32, ()>::bound_to(cx.scope());
        let waiter = registry.register(1)?;
        cx.started();
        let _closed = waiter.wait_blocking(Some(HOUR));
        Ok(())
    }));
    group.add(ServiceThread::new("sends", move |cx| {
        to_nobody.try_send(1)?;
        cx.started();
        let _receiver_is_gone = to_nobody.send_blocking(2, None);
        Ok(())
    }));
    group.add(LoopServiceThread::new("acts", |cx| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        cx.task_group().start_soon("listener", async move { listener.accept().await.map(drop).map_err(Failure::from) });
        cx.started();
        actor.run(async |_| Ok(())).await.map_err(|stopped| stopped.cause)
    }));
    group.add(LoopServiceThread::new("owns", |cx| async move {
        let block = task_group(async |tg| {
            let _full = full;
            (0..100).for_each(|_| tg.start_soon("parked", pending()));
            tg.start_soon("receives", async move { on_loop.recv().await.map(drop).or(Ok(())) });
            cx.started();
            pending().await
        });
        Ok(block.await?)
    }));
    (group, senders)
}

fn end(group: &ServiceGroup, senders: &[Sender<u8>]) {
    senders.iter().for_each(|sender| _ = sender.close());
    let report = group.stop_join("enough", Some(LONG));
    assert!(report.errors.is_empty() && report.stuck.is_empty(), "{report:?}");
}

/// How often a thread has been given a processor, and for how long.
#[derive(Debug, PartialEq)]
struct Ran {
    name: String,
    times: u64,
    nanoseconds: u64,
}

/// All threads of the process but this one, by their numbers.
fn census() -> BTreeMap<String, Ran> {
    let me = fs::read_link("/proc/thread-self").unwrap();
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap());
    let others = threads.filter(|thread| !me.ends_with(thread.file_name()));
    let ran = others.filter_map(|thread| {
        let read = |file| fs::read_to_string(thread.path().join(file)).ok(); // None: it has just ended
        let status = read("status")?;
        let number = |line: &str| line.split_whitespace().last().unwrap().parse::<u64>().unwrap();
        let times = status.lines().filter(|line| line.contains("ctxt_switches")).map(number).sum();
        let nanoseconds = read("schedstat")?.split(' ').next()?.parse().unwrap();
        let ran = Ran { name: read("comm")?.trim().to_owned(), times, nanoseconds };
        Some((thread.file_name().into_string().unwrap(), ran))
    });
    ran.collect()
}

/// The census when all that was begun has come to rest; at the latest after a while.
fn settled() -> BTreeMap<String, Ran> {
    let mut before = census();
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(200));
        let after = census();
        if after == before {
            break;
        }
        before = after;
    }
    before
}

/// Who ran meanwhile, and who came or went.
fn stirred(meanwhile: Duration) -> Vec<String> {
    let before = census();
    thread::sleep(meanwhile);
    let after = census();
    let came = after.iter().filter(|(id, ran)| before.get(*id) != Some(ran));
    let went = before.iter().filter(|(id, _)| !after.contains_key(*id));
    came.chain(went).map(|(id, ran)| format!("{ran:?}, before: {:?}", before.get(id))).collect()
}
