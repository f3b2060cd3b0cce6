//! Threads that are started, become ready, are stopped and joined; and what they do when they have nothing to do.

use std::collections::BTreeMap;
use std::fs;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use microio::{LoopServiceThread, Service, ServiceThread};
use tokio::sync::oneshot;

use crate::harness::{Bar, Case, Figure, Run, limit, on_loop, ours, peer};

trait Worker: Sized {
    /// Returns when it is ready.
    fn start() -> Self;
    fn stop_and_join(self);
}

struct LoopService(LoopServiceThread);
impl Worker for LoopService {
    fn start() -> Self {
        let service = LoopServiceThread::new("worker", |cx| async move {
            cx.started();
            cx.scope().closed().await;
            Ok(())
        });
        service.start().and_then(|()| service.wait_started(None)).expect("it gets ready");
        LoopService(service)
    }
    fn stop_and_join(self) {
        self.0.stop("enough".into());
        self.0.join(None).expect("it does not fail");
    }
}

struct PlainService(ServiceThread);
impl Worker for PlainService {
    fn start() -> Self {
        let service = ServiceThread::new("worker", |cx| {
            cx.started();
            cx.scope().wait_blocking(None)?;
            Ok(())
        });
        service.start().and_then(|()| service.wait_started(None)).expect("it gets ready");
        PlainService(service)
    }
    fn stop_and_join(self) {
        self.0.stop("enough".into());
        self.0.join(None).expect("it does not fail");
    }
}

/// By hand: a thread, a current-thread runtime, a oneshot to stop it.
struct Loop(JoinHandle<()>, oneshot::Sender<()>);
impl Worker for Loop {
    fn start() -> Self {
        let ((ready, is_ready), (stop, stopped)) = (mpsc::channel(), oneshot::channel());
        let body = move || {
            on_loop(async move {
                ready.send(()).expect("somebody waits");
                let _stop = stopped.await;
            })
        };
        let thread = thread::Builder::new().name("worker".into()).spawn(body).expect("a thread");
        is_ready.recv().expect("it gets ready");
        Loop(thread, stop)
    }
    fn stop_and_join(self) {
        self.1.send(()).expect("it waits");
        self.0.join().expect("it does not panic");
    }
}

struct Plain(JoinHandle<()>, mpsc::Sender<()>);
impl Worker for Plain {
    fn start() -> Self {
        let ((ready, is_ready), (stop, stopped)) = (mpsc::channel(), mpsc::channel());
        let body = move || {
            ready.send(()).expect("somebody waits");
            let _stop = stopped.recv();
        };
        let thread = thread::Builder::new().name("worker".into()).spawn(body).expect("a thread");
        is_ready.recv().expect("it gets ready");
        Plain(thread, stop)
    }
    fn stop_and_join(self) {
        self.1.send(()).expect("it waits");
        self.0.join().expect("it does not panic");
    }
}

fn life<W: Worker>(run: Run) -> Figure {
    run.p50(|_| W::start().stop_and_join())
}

/// How often each thread of the process was woken, by thread.
fn wake_ups() -> BTreeMap<String, u64> {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux").flatten();
    let statuses =
        tasks.filter_map(|task| Some((task.file_name(), fs::read_to_string(task.path().join("status")).ok()?)));
    let switches = |status: &str| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    statuses.filter_map(|(task, status)| Some((task.to_string_lossy().into_owned(), switches(&status)?))).collect()
}

/// Wake-ups per second of an idle worker's threads, over `run.n` milliseconds.
fn idle<W: Worker>(run: Run) -> Figure {
    let others = wake_ups();
    let worker = W::start();
    thread::sleep(Duration::from_millis(20)); // it is ready; it goes to sleep after that
    let before = wake_ups();
    let clock = run.start();
    thread::sleep(Duration::from_millis(run.n as u64));
    let mut after = wake_ups();
    let mut figure = clock.stop(run.n);
    after.retain(|task, _| !others.contains_key(task));
    let count: u64 = after.iter().map(|(task, count)| count - before.get(task).unwrap_or(&0)).sum();
    worker.stop_and_join();
    figure.cost = count as f64 * 1000.0 / run.n as f64;
    figure
}

pub(super) fn cases() -> Vec<Case> {
    let lives = vec![
        ours("microio", life::<LoopService>),
        ours("microio, no loop", life::<PlainService>),
        peer("thread + runtime", life::<Loop>),
        limit("plain thread", life::<Plain>),
    ];
    let idles = vec![
        ours("microio", idle::<LoopService>),
        ours("microio, no loop", idle::<PlainService>),
        peer("thread + runtime", idle::<Loop>),
    ];
    const THREAD: Bar = Bar::BestOf(&["plain thread"]);
    vec![
        Case::new("service.life", "start, ready, stop, join: p50", 1_000, lives)
            .places(&[crate::cpu::Place::Same])
            .target(Bar::Best, 1.05)
            .target_at(Some(&[]), "microio, no loop", THREAD, 1.05),
        Case::new("service.idle", "wake-ups per second of an idle service", 1_000, idles)
            .unit("/s")
            .target(Bar::Absolute, 0.0)
            .target_of("microio, no loop", Bar::Absolute, 0.0),
    ]
}
