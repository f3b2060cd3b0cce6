//! What `{:?}` says of each type: its name, and where it stands. People read it in their logs.

use std::num::NonZeroUsize;

use microio::{
    ActorCore, CancelScope, CloseScope, Failure, Mailbox, PriorityMailbox, RequestRegistry, ScopeGroup, Service,
    ServiceGroup, ServiceThread, WorkTracker, bounded,
};

use crate::support::ready;

#[track_caller]
fn says(value: &impl std::fmt::Debug, expected: &str) {
    assert_eq!(format!("{value:?}"), expected);
}

#[test]
fn scopes_and_trackers_tell_their_state() {
    let scope = CloseScope::new();
    says(&scope, "CloseScope(None)");
    scope.close("bye");
    says(&scope, r#"CloseScope(Some(Closed(Requested("bye"))))"#);
    let scope = CancelScope::new();
    says(&scope, "CancelScope(None)");
    scope.cancel("stop");
    says(&scope, r#"CancelScope(Some(Requested("stop")))"#);
    let group = ScopeGroup::new();
    let guard = group.scope();
    says(&group, "ScopeGroup { active: 1, latched: false }");
    says(&guard, "ScopeGuard(CancelScope(None))");
    group.cancel_latched("stop");
    says(&group, "ScopeGroup { active: 1, latched: true }");
    let tracker = WorkTracker::new();
    let work = tracker.track();
    says(&tracker, "WorkTracker { count: 1 }");
    says(&work, "WorkGuard { .. }");
}

#[test]
fn channels_and_mailboxes_tell_what_they_hold() {
    let stats = "ChannelStats { sent: 1, received: 0, dropped: 0, queued: 1, closed: false }";
    let (tx, rx) = bounded(NonZeroUsize::MIN);
    tx.try_send(1).unwrap();
    says(&tx, &format!("Sender {{ stats: {stats} }}"));
    says(&rx, &format!("Receiver {{ stats: {stats} }}"));
    let mailbox = Mailbox::new();
    mailbox.submit(1);
    says(&mailbox, &format!("Mailbox {{ stats: {stats} }}"));
    let mailbox = PriorityMailbox::new(|item: &u8| *item);
    let floor = mailbox.floor();
    says(&floor, "Floor { held: false, .. }");
    floor.set(Some(1));
    says(&floor, "Floor { held: true, .. }");
    mailbox.submit(1);
    says(&mailbox, &format!("PriorityMailbox {{ parked: 0, stats: {stats} }}"));
}

#[test]
fn requests_tell_whether_somebody_waits() {
    let registry = RequestRegistry::<u8, u8>::new();
    let (handle, waiter) = registry.reply(1).unwrap();
    says(&registry, "RequestRegistry { pending: 1 }");
    says(&handle, "ReplyHandle { wanted: true, .. }");
    says(&waiter, "Waiter { done: false, .. }");
    drop(waiter);
    says(&handle, "ReplyHandle { wanted: false, .. }");
}

#[test]
fn an_actor_that_stopped_tells_why_and_what_is_left() {
    let mut actor = ActorCore::new(Mailbox::new());
    (0..3).for_each(|item| assert!(actor.submit(item)));
    let stopped = ready(actor.run(async |_| Err(Failure::from(std::io::Error::other("broken"))))).unwrap_err();
    says(&stopped, r#"Stopped { unhandled: 2, cause: Failure(Custom { kind: Other, error: "broken" }) }"#);
    assert_eq!(std::error::Error::source(&stopped).unwrap().to_string(), "broken");
    let mut actor = ActorCore::new(Mailbox::new());
    actor.submit(1);
    actor.close();
    let handled = ready(actor.run_concurrent(async |_, baton| {
        says(&baton, "Release(false)");
        baton.release();
        says(&baton, "Release(true)");
        Ok(())
    }));
    handled.unwrap();
}

#[test]
fn services_tell_their_names_and_states() {
    let service = ServiceThread::new("reader", |cx| {
        says(&cx, r#"ServiceContext { name: "reader", state: Starting }"#);
        cx.started();
        Ok(())
    });
    says(&service, r#"ServiceThread { name: "reader", state: New }"#);
    let mut group = ServiceGroup::new("all");
    group.add(service.clone());
    says(&group, r#"ServiceGroup { name: "all", services: [("reader", New)] }"#);
    service.start().unwrap();
    service.join(None).unwrap();
    says(&service, r#"ServiceThread { name: "reader", state: Done }"#);
}

#[cfg(feature = "tokio")]
#[test]
fn loops_and_tasks_tell_what_runs() {
    use microio::{LoopServiceThread, TaskGroup};

    use crate::support::block_on;

    let service = LoopServiceThread::new("loop", async |cx| {
        says(&cx, r#"LoopContext { service: ServiceContext { name: "loop", state: Starting }, .. }"#);
        cx.started();
        Ok(())
    });
    says(&service, r#"LoopServiceThread { name: "loop", state: New }"#);
    let handle = service.handle();
    let submitted = handle.submit(async {});
    says(&handle, r#"LoopHandle { name: "loop", jobs: 1 }"#);
    says(&submitted, "Submitted { running: true }");
    service.start().unwrap();
    service.join(None).unwrap();
    says(&submitted, "Submitted { running: false }");
    block_on(async {
        let group = TaskGroup::new();
        let task = group.create_task("one", std::future::pending::<Result<(), Failure>>());
        says(&task, "Task { running: true, scope: CancelScope(None) }");
        says(&group, "TaskGroup { tasks: 1, closed: false, scope: CancelScope(None) }");
        group.cancel("stop");
        group.join().await.unwrap();
        says(&group, r#"TaskGroup { tasks: 0, closed: true, scope: CancelScope(Some(Requested("stop"))) }"#);
        let group = TaskGroup::new();
        let begun = group.start("child", async |status: microio::TaskStatus<()>| {
            says(&status, "TaskStatus { .. }");
            status.started(());
            Ok(())
        });
        begun.await.unwrap();
        group.join().await.unwrap();
    });
}
