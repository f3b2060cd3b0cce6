"""The import surface: names, signatures, errors, representations. Programs depend on each of them."""

import ast
import asyncio
import importlib
import inspect
import logging
import threading
import tomllib
from pathlib import Path

import pytest

import microio

NAMES = {
    "_actor": ["ActorCore", "Mailbox", "PriorityMailbox"],
    "_channel": ["ChannelStats", "ObjectReceiveChannel", "ObjectSendChannel", "create_channel"],
    "_registry": ["ReplyHandle", "RequestRegistry"],
    "_scope": ["BrokenResourceError", "ClosedResourceError", "CloseScope", "EndOfStream", "WorkTracker"],
    "_task": [
        "CancelScope",
        "ScopeGroup",
        "TaskGroup",
        "TaskStatus",
        "checkpoint",
        "checkpoint_if_cancelled",
        "create_task_group",
        "current_cancel_scope",
        "fail_after",
        "move_on_after",
        "sleep",
    ],
    "_thread": ["LoopServiceThread", "ServiceGroup", "ServiceThread"],
}

# Parameters after `self`, without annotations.
SIGNATURES = {
    "create_channel": "*, late_send='raise', capacity=None",
    "ObjectSendChannel.send_nowait": "item",
    "ObjectSendChannel.send": "item",
    "ObjectSendChannel.close": "",
    "ObjectSendChannel.fail": "exc",
    "ObjectSendChannel.stats": "",
    "ObjectReceiveChannel.receive": "",
    "ObjectReceiveChannel.bind": "loop=None",
    "ObjectReceiveChannel.drain_nowait": "max_items=None",
    "ObjectReceiveChannel.close": "",
    "ObjectReceiveChannel.fail": "exc",
    "ObjectReceiveChannel.stats": "",
    "ChannelStats": "sent=0, received=0, dropped=0, queued=0, closed=False",
    "CloseScope.close": "reason=None, exc=None",
    "CloseScope.fail": "exc, reason=None",
    "CloseScope.wait": "timeout=None",
    "CloseScope.wait_async": "",
    "CloseScope.raise_if_closed": "",
    "WorkTracker.add": "",
    "WorkTracker.done": "",
    "WorkTracker.track": "",
    "WorkTracker.wait_idle": "timeout=None",
    "WorkTracker.idle": "",
    "RequestRegistry.register": "key",
    "RequestRegistry.reply": "key",
    "RequestRegistry.pop": "key, waiter=None",
    "RequestRegistry.resolve": "key, value",
    "RequestRegistry.fail": "key, exc",
    "RequestRegistry.fail_all": "exc",
    "RequestRegistry.close": "exc=None",
    "RequestRegistry.wait": "key, waiter, timeout=None",
    "RequestRegistry.wait_async": "key, waiter, timeout=None",
    "RequestRegistry.request": "key, send, timeout=None",
    "RequestRegistry.request_async": "key, send, timeout=None",
    "ReplyHandle": "registry, key, waiter",
    "ReplyHandle.resolve": "value",
    "ReplyHandle.fail": "exc",
    "ReplyHandle.wait": "timeout=None",
    "ReplyHandle.pop": "",
    "CancelScope.cancel": "reason=None, *, wake=False",
    "move_on_after": "delay",
    "fail_after": "delay",
    "current_cancel_scope": "",
    "checkpoint": "",
    "checkpoint_if_cancelled": "",
    "sleep": "delay, result=None",
    "create_task_group": "",
    "ScopeGroup": "",
    "ScopeGroup.scope": "",
    "ScopeGroup.cancel": "reason=None, *, wake=False, latch=False",
    "ScopeGroup.clear": "",
    "TaskGroup": "",
    "TaskGroup.cancel": "reason=None",
    "TaskGroup.create_task": "coro, *, name=None, context=None",
    "TaskGroup.start_soon": "fn, *args, name=None, **kwargs",
    "TaskGroup.start": "fn, *args, name=None, **kwargs",
    "TaskStatus.started": "value=None",
    "Mailbox": "*, late_send='drop'",
    "Mailbox.submit": "item",
    "Mailbox.put": "item",
    "Mailbox.get": "",
    "Mailbox.bind": "loop=None",
    "Mailbox.close": "",
    "Mailbox.fail": "exc",
    "Mailbox.drain_nowait": "max_items=None",
    "PriorityMailbox": "key=None, gate=None, **kw",
    "ActorCore": "handler, *, mailbox=None, concurrent=False",
    "ActorCore.run": "*, bind=True",
    "ActorCore.bind": "loop=None",
    "ActorCore.submit": "item",
    "ActorCore.close": "",
    "ActorCore.fail": "exc",
    "ActorCore.drain_nowait": "max_items=None",
    "ActorCore.handle": "item",
    "ServiceThread": "*, name=None, target=None, daemon=True, reraise=False",
    "ServiceThread.run_service": "",
    "ServiceThread.started": "",
    "ServiceThread.fail": "exc",
    "ServiceThread.wait_started": "timeout=None",
    "ServiceThread.stop": "reason='stop'",
    "ServiceThread.join_or_log": "timeout=None",
    "LoopServiceThread": "*, name=None, daemon=True, reraise=False",
    "LoopServiceThread.run_async": "",
    "LoopServiceThread.call_soon": "fn, *args",
    "LoopServiceThread.call_sync": "fn, *args, timeout=None, **kwargs",
    "LoopServiceThread.submit": "coro",
    "LoopServiceThread.stop": "reason='stop'",
    "ServiceGroup": "*services",
    "ServiceGroup.add": "*services",
    "ServiceGroup.start": "",
    "ServiceGroup.wait_started": "timeout=None",
    "ServiceGroup.stop": "",
    "ServiceGroup.join_or_log": "timeout=None",
    "ServiceGroup.stop_join": "timeout=None",
}


def written(signature):
    """A signature as SIGNATURES has it: without annotations, `self` and `/`."""
    parameters = []
    for name, parameter in signature.parameters.items():
        if name != "self":
            if parameter.kind is parameter.POSITIONAL_ONLY:
                parameter = parameter.replace(kind=parameter.POSITIONAL_OR_KEYWORD)
            parameters.append(parameter.replace(annotation=parameter.empty))
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))[1:-1]


def test_there_are_twenty_eight_names():
    names = [name for names in NAMES.values() for name in names]
    assert len(names) == 28
    for name in names:
        assert hasattr(microio, name), name
    assert not hasattr(microio, "__all__")


@pytest.mark.parametrize("module", NAMES)
def test_a_submodule_holds_its_names(module):
    submodule = importlib.import_module(f"microio.{module}")
    for name in NAMES[module]:
        assert getattr(submodule, name) is getattr(microio, name)


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signature_is_kept(name):
    target = microio
    for part in name.split("."):
        target = getattr(target, part)
    signature = inspect.signature(target)
    assert written(signature) == SIGNATURES[name]
    kinds = {parameter.kind for parameter in list(signature.parameters.values())["." in name :]}
    assert inspect.Parameter.POSITIONAL_ONLY not in kinds


@pytest.mark.parametrize("name", [name for names in NAMES.values() for name in names])
def test_every_name_is_documented(name):
    thing = getattr(microio, name)
    assert inspect.getdoc(thing)
    assert thing.__name__ == name
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            if not method.startswith("_") and (callable(value) or inspect.isdatadescriptor(value)):
                assert inspect.getdoc(value), f"{name}.{method}"


@pytest.mark.parametrize("name", ["CloseScope", "WorkTracker", "RequestRegistry", "CancelScope"])
def test_constructors_refuse_what_they_do_not_know(name):
    for args, kwargs in [((1,), {}), ((), {"unknown": 1})]:
        with pytest.raises(TypeError):
            getattr(microio, name)(*args, **kwargs)


def test_the_ends_of_a_channel_come_from_create_channel():
    for kind in microio.ObjectSendChannel, microio.ObjectReceiveChannel:
        with pytest.raises(TypeError):
            kind()
    with pytest.raises(TypeError):
        microio.create_channel("drop")


def test_errors_are_of_the_kinds_that_programs_catch():
    assert issubclass(microio.ClosedResourceError, RuntimeError)
    assert issubclass(microio.BrokenResourceError, RuntimeError)
    assert microio.EndOfStream.__bases__ == (Exception,)
    assert not issubclass(microio.ClosedResourceError, microio.BrokenResourceError)
    assert not issubclass(microio.BrokenResourceError, microio.ClosedResourceError)


def test_the_version_is_the_workspaces():
    assert isinstance(microio.__version__, str)
    manifest = Path(__file__).parents[2] / "Cargo.toml"
    assert microio.__version__ == tomllib.loads(manifest.read_text())["workspace"]["package"]["version"]


def test_the_log_is_called_microio(caplog):
    stop = threading.Event()
    service = microio.ServiceThread(name="stubborn", target=lambda service: stop.wait(10))
    service.start()
    with caplog.at_level(logging.ERROR):
        assert service.join_or_log(timeout=0) is False
    stop.set()
    assert service.join_or_log(timeout=10) is True
    assert [(record.name, record.levelname) for record in caplog.records] == [("microio", "ERROR")]


def test_the_ends_of_a_channel_are_generic_at_run_time():
    assert microio.ObjectSendChannel[int]
    assert microio.ObjectReceiveChannel[int]
    send: microio.ObjectSendChannel[int] = microio.create_channel()[0]
    assert send.send_nowait(1) == 1


def test_a_channel_shows_its_state():
    send, receive = microio.create_channel()
    for end in send, receive:
        assert type(end).__name__ in repr(end)
    opened = repr(send), repr(receive)
    send.close()
    assert repr(send) != opened[0] and repr(receive) != opened[1]


def test_a_close_scope_shows_its_state():
    scope = microio.CloseScope()
    assert "CloseScope" in repr(scope) and "open" in repr(scope)
    scope.close("bye")
    assert "closed" in repr(scope) and "bye" in repr(scope)
    scope = microio.CloseScope()
    scope.fail(ValueError("reader died"))
    assert "failed" in repr(scope) and "reader died" in repr(scope)


def test_a_tracker_shows_its_count():
    tracker = microio.WorkTracker()
    tracker.add()
    tracker.add()
    assert "WorkTracker" in repr(tracker) and "2" in repr(tracker)
    assert "unset" not in repr(tracker.busy) and "set" in repr(tracker.busy)
    tracker.done()
    tracker.done()
    assert "0" in repr(tracker)
    assert "unset" in repr(tracker.busy)


def test_a_registry_shows_its_state():
    registry = microio.RequestRegistry()
    empty = repr(registry)
    reply = registry.reply("key")
    assert "RequestRegistry" in empty and repr(registry) != empty
    assert "ReplyHandle" in repr(reply) and "'key'" in repr(reply)
    waiting = repr(reply.waiter)
    reply.resolve("reply")
    assert repr(reply.waiter) != waiting
    registry.close()
    assert "closed" in repr(registry)


def test_a_subclass_shows_its_own_name():
    class Scope(microio.CloseScope):
        pass

    class Tracker(microio.WorkTracker):
        pass

    class Registry(microio.RequestRegistry):
        pass

    for kind in Scope, Tracker, Registry:
        assert kind.__name__ in repr(kind())


def test_a_reason_whose_repr_raises_says_so():
    class Reason:
        def __repr__(self):
            raise ZeroDivisionError

    scope = microio.CloseScope()
    scope.close(Reason())
    with pytest.raises(ZeroDivisionError):
        repr(scope)
    assert scope.closed


def test_an_awaitable_shows_its_name():
    _, receive = microio.create_channel()
    for awaitable, name in [
        (receive.receive(), "receive"),
        (microio.CloseScope().wait_async(), "wait_async"),
        (microio.WorkTracker().idle(), "idle"),
    ]:
        assert name in repr(awaitable)
        assert awaitable.__name__ == name
        assert awaitable.__qualname__.endswith(name)
        awaitable.close()


def test_the_stub_describes_what_is_there():
    """No public class, method or function is missing from the stub, and it promises none that does not exist."""

    def public(names):
        return {name for name in names if name and not name.startswith("_")}

    def members(body):
        return public(
            getattr(item, "name", None) or getattr(getattr(item, "target", None), "id", None) for item in body
        )

    native = importlib.import_module("microio._microio")
    stub = ast.parse((Path(microio.__file__).parent / "_microio.pyi").read_text()).body
    classes = {item.name: members(item.body) for item in stub if isinstance(item, ast.ClassDef)}
    for name in members(stub):
        assert hasattr(native, name), name
    for name in public(vars(native)) & {name for names in NAMES.values() for name in names}:
        assert name in members(stub)
        if inspect.isclass(thing := getattr(native, name)):
            assert classes[name] == public(vars(thing)), name


def test_the_package_is_typed():
    assert (Path(microio.__file__).parent / "py.typed").is_file()


def test_nothing_runs_at_import():
    """No loop, no thread: importing the package starts nothing."""
    assert asyncio._get_running_loop() is None
    assert not [thread for thread in threading.enumerate() if "microio" in thread.name]
