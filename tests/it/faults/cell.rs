//! One cell of the matrix: the fault is brought about, and everybody who could hear of it is asked.

use std::fs;
use std::future::Future;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use microio::{CancelScope, Cancelled, Failure, ServiceError, ServiceGroup, ServiceState};
#[cfg(feature = "tokio")]
use microio::{GroupError, Submitted};

use super::said::Said;
use super::script::Script;
use super::subject::{Subject, Told};
use super::{Fault, Kind, NAME, Outcome, Place, SOON};
use crate::support::{Hand, LONG, meddler, poll_with, ready};

/// A call is back by its deadline, give or take what a busy machine does: the job that it must not wait for takes a minute.
const BUSY_MACHINE: Duration = Duration::from_secs(8);

pub(super) struct Cell {
    fault: Fault,
    outcome: Outcome,
    script: Arc<Script>,
    let_go: mpsc::Sender<()>,
    service: Subject,
    /// Three services, one of which it is.
    group: Option<Group>,
    /// Who waits since before the start.
    early: Vec<(&'static str, Hand, Told)>,
    #[cfg(feature = "tokio")]
    call: Option<Call>,
    /// What was heard of the end, and where.
    heard: Vec<(&'static str, Said)>,
    /// Threads and descriptors of the process before.
    before: (usize, usize),
}

/// What must be held to hear of a close.
type Watch = (CancelScope, Pin<Box<dyn Future<Output = Cancelled>>>, Waker);

struct Group {
    group: ServiceGroup,
    /// The place of the service.
    place: usize,
    members: Vec<Subject>,
    /// In which order they were asked to stop, or ended.
    closed: Arc<Mutex<Vec<String>>>,
    _watches: Vec<Watch>,
}

/// A future that was submitted before the start: the one with the fault in it, or one that waits for ever.
#[cfg(feature = "tokio")]
struct Call {
    has_the_fault: bool,
    submitted: Submitted<Result<(), Failure>>,
}

impl Cell {
    pub(super) fn new(fault: Fault, kind: Kind, place: Place, outcome: Outcome) -> Self {
        let (before, (script, let_go)) = (census(), Script::new(fault));
        logged();
        let service = Subject::new(kind, &script);
        let scope = service.scope().closed();
        let mut early: Vec<(_, _, Told)> = vec![
            ("ready(), early", Hand::new(), service.ready()),
            ("scope().closed(), early", Hand::new(), Box::pin(async { Err(scope.await.into()) })),
        ];
        let group = place.map(|place| Group::new(&service, kind, place));
        if let Some(group) = &group {
            let scope = group.group.scope().closed();
            early.push(("the group's scope, early", Hand::new(), Box::pin(async { Err(scope.await.into()) })));
        }
        for (what, hand, told) in &mut early {
            assert!(hand.poll(told).is_pending(), "{what}");
        }
        Cell {
            fault,
            outcome,
            #[cfg(feature = "tokio")]
            call: Call::new(&service, kind, &script),
            script,
            let_go,
            service,
            group,
            early,
            heard: Vec::new(),
            before,
        }
    }

    pub(super) fn play(mut self) {
        if self.fault == Fault::StopBeforeStart {
            assert!(self.service.stop("enough".into()));
        }
        self.start();
        if self.is_ready() {
            self.run();
        }
        self.stop();
        self.ask_late();
        self.ask_early();
        self.compare();
        self.look_around();
    }

    fn is_ready(&self) -> bool {
        !matches!(self.outcome, Outcome::Unready(_) | Outcome::Stopped | Outcome::Late | Outcome::LateAndStuck)
    }

    fn is_late(&self) -> bool {
        self.fault == Fault::NotReadyInTime
    }

    /// Whether the end does not come by itself.
    fn is_blocked(&self) -> bool {
        matches!(self.outcome, Outcome::LateAndStuck | Outcome::Stuck)
    }

    /// A deadline that this service misses; and its neighbours do not, though the machine stands still for a while.
    fn soon(&self) -> Duration {
        if self.group.is_some() { 6 * SOON } else { SOON }
    }

    fn hears(&mut self, what: &'static str, said: impl Into<Said>) {
        self.heard.push((what, said.into()));
    }

    fn start(&mut self) {
        let limit = if self.is_late() { self.soon() } else { LONG };
        let begin = Instant::now();
        let started = thread::scope(|threads| {
            let (service, begun) = (&self.service, &self.script.begun);
            if self.fault == Fault::StopWhileStarting {
                threads.spawn(|| {
                    begun.wait_blocking(Some(LONG)).unwrap();
                    assert!(service.stop("enough".into()));
                });
            }
            in_time(|| match &self.group {
                Some(group) => group.start(Some(limit)),
                None => service.start().and_then(|()| service.wait_started(Some(limit))),
            })
        });
        match (self.outcome, started) {
            (
                Outcome::Late | Outcome::LateAndStuck,
                Err(ServiceError::TimedOut { service, state: ServiceState::Starting }),
            ) => {
                assert_eq!(service, NAME);
                assert!(begin.elapsed() >= limit);
            }
            (Outcome::Unready(_) | Outcome::Stopped, Err(error)) => {
                assert_eq!(error.service(), NAME);
                assert_eq!(matches!(error, ServiceError::Stopped { .. }), self.outcome == Outcome::Stopped);
                self.hears("the start", error);
            }
            (_, started) => {
                started.expect("ready");
                assert!(self.is_ready(), "it must not become ready");
            }
        }
        assert!(matches!(self.service.start(), Err(ServiceError::AlreadyStarted { .. })));
    }

    /// It is ready, and has its fault now.
    fn run(&mut self) {
        let mut joined = (Hand::new(), self.service.joined());
        match self.fault {
            Fault::NeverYields | Fault::BlockingJob => _ = self.script.deaf.wait_blocking(Some(LONG)).unwrap(),
            fault if fault.is_before_ready() => {}
            _ => _ = self.script.begun.wait_blocking(Some(LONG)).unwrap(),
        }
        if joined.0.poll(&mut joined.1).is_pending() {
            self.early.push(("joined(), early", joined.0, joined.1));
        }
        self.script.go.close("your turn");
        match self.outcome {
            Outcome::Fails(_) => {
                let end = in_time(|| self.service.scope().wait_blocking(Some(LONG))).unwrap();
                self.hears("scope().wait_blocking()", end);
            }
            #[cfg(feature = "tokio")]
            Outcome::Own(text) => {
                let call = self.call.take().expect("it was submitted");
                let said = in_time(|| call.end()).err();
                assert_eq!(said.as_ref().map_or("", |said| &said.text), text);
                if let (Some(said), Some(cause)) = (&said, &*self.script.cause.lock().unwrap()) {
                    assert!(said.cause.as_ref().is_some_and(|said| said.ptr_eq(cause)), "another object");
                }
                assert_eq!(self.service.state(), ServiceState::Ready, "the service has nothing to do with it");
            }
            _ => assert_eq!(self.service.state(), ServiceState::Ready),
        }
    }

    fn stop(&mut self) {
        let limit = Some(if self.is_blocked() { self.soon() } else { LONG });
        let begin = Instant::now();
        match &self.group {
            Some(group) => {
                let report = in_time(|| group.group.stop_join("enough", limit));
                let stuck: &[&str] = if self.is_blocked() { &[NAME] } else { &[] };
                assert_eq!(report.stuck, stuck);
                group.check_order(self.outcome);
                for error in report.errors {
                    assert_eq!(error.service(), NAME);
                    self.hears("the report", error);
                }
            }
            None => {
                let why = if self.is_late() { "too late" } else { "enough" };
                let is_first = matches!(self.outcome, Outcome::Unready(_) | Outcome::Fails(_) | Outcome::Stopped);
                assert_eq!(self.service.stop(why.into()), !is_first);
                match in_time(|| self.service.join(limit)) {
                    Ok(()) => assert!(!self.is_blocked() && !self.is_failed()),
                    Err(ServiceError::TimedOut { state: ServiceState::Stopping, .. }) if self.is_blocked() => {}
                    Err(error) => self.hears("join()", error),
                }
            }
        }
        if self.is_blocked() {
            assert!(begin.elapsed() >= self.soon());
        }
        // The start of a group has logged it: what it had to roll back.
        if self.group.is_none() || self.is_ready() || self.fault == Fault::NoThread {
            assert_eq!(in_time(|| self.service.join_or_log(limit)), !self.is_blocked());
        }
        if self.is_blocked() {
            self.let_go();
            in_time(|| self.service.join(Some(LONG))).unwrap();
        }
        self.is_free_again();
        self.let_go();
    }

    fn is_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Unready(_) | Outcome::Fails(_))
    }

    fn let_go(&mut self) {
        self.script.go.close("at last");
        self.let_go = mpsc::channel().0;
    }

    /// The port of the service.
    fn is_free_again(&self) {
        if let Some(address) = *self.script.bound.lock().unwrap() {
            TcpListener::bind(address).expect("free");
        }
    }
}

/// After the end.
impl Cell {
    fn ask_late(&mut self) {
        let service = self.service.clone();
        for (what, told) in [
            ("wait_started(), late", in_time(|| service.wait_started(None)).map_err(Said::from)),
            ("ready(), late", ready(service.ready())),
        ] {
            assert_eq!(told.is_ok(), self.is_ready(), "{what}");
            self.heard.extend(told.err().map(|said| (what, said)));
        }
        for (what, told) in [
            ("join(), late", in_time(|| service.join(None)).map_err(Said::from)),
            ("joined(), late", ready(service.joined())),
        ] {
            assert_eq!(told.is_err(), self.is_failed(), "{what}");
            self.heard.extend(told.err().map(|said| (what, said)));
        }
        self.hears("scope().check()", service.scope().check().unwrap_err());
        self.hears("scope().closed(), late", ready(service.scope().closed()));
        self.hears("scope().wait_blocking(), late", in_time(|| service.scope().wait_blocking(None)).unwrap());
        if let Some(group) = &self.group {
            let end = group.group.scope().check().unwrap_err();
            self.hears("the group's scope", end);
        }
        #[cfg(feature = "tokio")]
        if let Subject::Loop(service) = service {
            let handle = service.handle();
            self.hears("call_soon(), late", handle.call_soon(|| ()).unwrap_err());
            self.hears("call_sync(), late", in_time(|| handle.call_sync(|| (), None)).unwrap_err());
            self.hears("call(), late", ready(handle.call(|| ())).unwrap_err());
            self.hears("submit(), late", ready(handle.submit(async {})).unwrap_err());
        }
    }

    fn ask_early(&mut self) {
        for (what, hand, mut told) in std::mem::take(&mut self.early) {
            assert!(hand.wakes() > 0, "{what}: nobody woke it");
            let Poll::Ready(told) = hand.poll(&mut told) else { panic!("{what}: still waits") };
            self.heard.extend(told.err().map(|said| (what, said)));
        }
        #[cfg(feature = "tokio")]
        if let Some(call) = self.call.take() {
            // What was stuck has ended by itself after it was let go.
            let has_ended = call.has_the_fault && self.outcome == Outcome::Stuck;
            match in_time(|| call.end()) {
                Ok(()) => assert!(has_ended),
                Err(said) => self.heard.push(("submit(), early", said)),
            }
        }
    }

    /// Looks at what was heard and what was logged: the same everywhere, and once.
    fn compare(&self) {
        let end = match (self.outcome, &self.group) {
            (Outcome::Unready(cause) | Outcome::Fails(cause), _) => cause,
            (Outcome::Late | Outcome::LateAndStuck, None) => "too late",
            (Outcome::Late | Outcome::LateAndStuck, Some(_)) => "rolled back: svc is still Starting: timed out",
            _ => "enough",
        };
        let cause = self.service.scope().cause();
        assert_eq!(cause.is_some(), self.is_failed());
        for (what, said) in &self.heard {
            assert_eq!(said.text, end, "{what}");
            if let Some(said) = &said.cause {
                assert!(cause.as_ref().is_some_and(|cause| cause.ptr_eq(said)), "{what}: another object");
            }
        }
        if let (Some(cause), Some(made)) = (&cause, &*self.script.cause.lock().unwrap()) {
            assert!(own(cause).ptr_eq(made), "another object than the one it failed with");
        }
        let logged_once = match self.outcome {
            Outcome::Unready(cause) | Outcome::Fails(cause) => Some(cause.to_owned()),
            Outcome::LateAndStuck | Outcome::Stuck => Some(format!("{NAME} is still Stopping: timed out")),
            Outcome::Cut(task) => Some(format!("{NAME}: aborted at the end of the grace: [{task:?}], still there: []")),
            Outcome::Stopped | Outcome::Late | Outcome::Ends | Outcome::Own(_) => None,
        };
        let Some(mut lines) = logged() else { return };
        lines.retain(|line| !Group::is_of_a_neighbour(line));
        if self.outcome == Outcome::Late && self.group.is_some() {
            lines.clear(); // the start, which had no time left, may have seen it end or not
        }
        assert_eq!(lines.len(), usize::from(logged_once.is_some()), "{lines:#?}");
        for (line, text) in lines.iter().zip(&logged_once) {
            assert_eq!(line.matches(text).count(), 1, "{text:?} is to be said once: {line:?}");
        }
    }

    /// Looks at what is left.
    fn look_around(self) {
        let (script, before) = (Arc::downgrade(&self.script), self.before);
        drop(self);
        wait_until_there_are_only(before);
        assert_eq!(script.strong_count(), 0, "somebody keeps the body");
    }
}

impl Group {
    const NAMES: [&'static str; 3] = ["one", "two", "three"];

    fn new(service: &Subject, kind: Kind, place: usize) -> Self {
        let mut members = Self::NAMES.map(|name| Subject::obedient(name, kind));
        members[place] = service.clone();
        let (mut group, closed) = (ServiceGroup::new("group"), Arc::new(Mutex::new(Vec::new())));
        let watches = members.iter().map(|member| {
            member.join_group(&mut group);
            // A linked scope is cancelled, and its waker called, inside the close: that is the order of the closes.
            let (scope, name, closed) = (CancelScope::new(), member.name().to_owned(), closed.clone());
            member.scope().link(&scope);
            let mut cancelled: Pin<Box<dyn Future<Output = Cancelled>>> = Box::pin(scope.cancelled());
            let waker = meddler(move || {
                let mut closed = closed.lock().unwrap();
                if !closed.contains(&name) {
                    closed.push(name.clone());
                }
            });
            assert!(poll_with(&waker, &mut cancelled).is_pending());
            (scope, cancelled, waker)
        });
        let _watches = watches.collect();
        Group { group, place, members: members.into(), closed, _watches }
    }

    fn start(&self, limit: Option<Duration>) -> Result<(), ServiceError> {
        let error = match self.group.start_all(limit) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let before: Vec<_> = Self::NAMES[..self.place].iter().rev().collect();
        assert!(error.stopped.iter().eq(before), "{error:?}");
        for later in &self.members[self.place + 1..] {
            assert_eq!(later.state(), ServiceState::New, "it was not touched");
        }
        Err(error.failed)
    }

    /// The last is asked to stop first. One that had ended by itself is not asked.
    fn check_order(&self, outcome: Outcome) {
        let names: Vec<_> = self.members.iter().map(|member| member.name()).collect();
        let (before, after) = (&names[..self.place], &names[self.place + 1..]);
        let last_first = match outcome {
            Outcome::Unready(_) | Outcome::Stopped => [after, before].concat(),
            Outcome::Late | Outcome::LateAndStuck => [after, before, &[NAME]].concat(),
            Outcome::Fails(_) => [before, after].concat(),
            _ => names.clone(),
        };
        let mut closed = self.closed.lock().unwrap().clone();
        closed.retain(|name| last_first.contains(&&**name));
        assert!(closed.iter().eq(last_first.iter().rev()), "{closed:?}");
        let neighbours = self.members.iter().filter(|member| member.name() != NAME);
        neighbours.for_each(|member| assert_eq!(member.state(), ServiceState::Done));
    }

    fn is_of_a_neighbour(line: &str) -> bool {
        Self::NAMES.iter().any(|name| line.starts_with(&format!("{name} ")))
    }
}

#[cfg(feature = "tokio")]
impl Call {
    fn new(service: &Subject, kind: Kind, script: &Arc<Script>) -> Option<Self> {
        let Subject::Loop(service) = service else { return None };
        let has_the_fault = kind == Kind::Submitted;
        let submitted = match has_the_fault {
            true => service.handle().submit(script.clone().on_a_loop(|| ())),
            false => service.handle().submit(std::future::pending()),
        };
        Some(Call { has_the_fault, submitted })
    }

    fn end(self) -> Result<(), Said> {
        Ok(self.submitted.wait_blocking(Some(LONG))??)
    }
}

/// The failure itself, out of the error of a task group if it is in one.
fn own(cause: &Failure) -> &Failure {
    #[cfg(feature = "tokio")]
    if let Some(error) = cause.downcast_ref::<GroupError>() {
        return &error.failures[0].1;
    }
    cause
}

/// What was logged since the last call, if anything is.
fn logged() -> Option<Vec<String>> {
    #[cfg(feature = "tracing")]
    return Some(crate::logged::take());
    #[cfg(not(feature = "tracing"))]
    return None;
}

fn in_time<R>(call: impl FnOnce() -> R) -> R {
    let begin = Instant::now();
    let result = call();
    assert!(begin.elapsed() < BUSY_MACHINE, "it took {:?}", begin.elapsed());
    result
}

/// How many threads and descriptors the process has.
fn census() -> (usize, usize) {
    let count = |of: &str| fs::read_dir(of).unwrap().count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

/// A thread that was joined, or was left behind and has ended, is the kernel's for a moment more, and nothing tells when that
/// is over.
fn wait_until_there_are_only(before: (usize, usize)) {
    let begin = Instant::now();
    while census() > before {
        assert!(begin.elapsed() < LONG, "(threads, descriptors): {:?}, were {before:?}", census());
        thread::yield_now();
    }
    assert_eq!(census(), before);
}
