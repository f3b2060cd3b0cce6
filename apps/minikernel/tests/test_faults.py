"""What a kernel says when something is wrong, and that it lives, or ends with the cause."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess

import pytest
import zmq
from jupyter_client import write_connection_file

import kernels
from kernels import PATIENCE, SERVICES

# A kernel that does not start


@pytest.fixture
def connection(tmp_path):
    """`connection(key=value)` writes a connection file with these changes; None leaves the key out."""

    def connection(**changes):
        path, info = write_connection_file(str(tmp_path / "connection.json"), key=b"secret")
        info = {key: value for key, value in {**info, **changes}.items() if value is not None}
        (tmp_path / "connection.json").write_text(json.dumps(info))
        return tmp_path / "connection.json", info

    return connection


@pytest.mark.parametrize("port, service", SERVICES.items(), ids=SERVICES.values())
def test_a_port_that_is_taken(program, connection, port, service):
    path, info = connection()
    with socket.create_server((info["ip"], info[port + "_port"])):
        done = program.run("-f", path)
        assert kernels.taken_ports(info) == [service]
    assert done.returncode == 1
    words = ["error", service, "address already in use", str(info[port + "_port"])]
    assert kernels.lines_with(done.stderr, *words), done.stderr


def refusal(program, path):
    """The last thing that a kernel says which cannot start with this connection file."""
    done = program.run("-f", path)
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert not [word for word in ["Traceback", "panicked"] if word in done.stderr], done.stderr
    return done.stderr.splitlines()[-1]


def test_a_connection_file_that_cannot_be_read(program, tmp_path):
    assert "missing.json" in refusal(program, tmp_path / "missing.json")
    (tmp_path / "directory.json").mkdir()
    assert "directory.json" in refusal(program, tmp_path / "directory.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_a_connection_file_that_may_not_be_read(program, connection):
    path, _ = connection()
    path.chmod(0)
    assert path.name in refusal(program, path)


NO_CONNECTION = {
    "nothing": b"",
    "half of it": b'{"shell_port": 1,',
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'{"key": "\xff"}',
    "nested too deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("text", NO_CONNECTION.values(), ids=NO_CONNECTION.keys())
def test_a_connection_file_that_is_none(program, tmp_path, text):
    path = tmp_path / "connection.json"
    path.write_bytes(text)
    assert path.name in refusal(program, path)


@pytest.mark.parametrize("key", ["transport", "ip", *[port + "_port" for port in SERVICES]])
def test_a_connection_file_that_is_incomplete(program, connection, key):
    path, _ = connection(**{key: None})
    assert key in refusal(program, path)


@pytest.mark.parametrize(
    "key, value",
    [
        ("shell_port", "many"),
        ("iopub_port", 65536),
        ("hb_port", -1),
        ("ip", "not an address"),
        ("ip", 7),
        ("transport", "pigeon"),
        ("signature_scheme", "hmac-rot13"),
        ("key", 7),
    ],
)
def test_a_connection_file_with_a_value_that_makes_no_sense(program, connection, key, value):
    path, info = connection(**{key: value})
    said = refusal(program, path)
    assert key in said or str(value).removeprefix("hmac-") in said, said


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-f"],
        ["--no-such-option"],
        ["no-such-command"],
        ["-f", "a.json", "more"],
        ["-f", "a.json", "--deadline"],
        ["-f", "a.json", "--deadline", "soon"],
        ["-f", "a.json", "--deadline", "-1"],
        ["-f", "a.json", "--deadline", "nan"],
        ["install", "--no-such-option"],
        ["install", "--prefix"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line(program, words):
    done = program.run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search("usage|--help", done.stderr, re.IGNORECASE) and "Traceback" not in done.stderr


def test_help(program):
    done = program.run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(word in done.stdout for word in ["-f", "--deadline", "-v", "install"])
    done = program.run("install", "--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ["--prefix", "--name"])


# Messages that are none

DELIMITER = b"<IDS|MSG>"


def signed(client, header, parent=b"{}", metadata=b"{}", content=b"{}", *more):
    frames = [header, parent, metadata, content]
    return [DELIMITER, client.session.sign(frames), *frames, *more]


def malformed(client):
    """What is no message, each in its own way: a name and its frames."""

    def header(msg_type="kernel_info_request", **changes):
        header = client.session.msg(msg_type)["header"]
        header["date"] = str(header["date"])
        return json.dumps({key: value for key, value in {**header, **changes}.items() if value is not None}).encode()

    good = header()
    few = [DELIMITER, client.session.sign([good, b"{}", b"{}"]), good, b"{}", b"{}"]
    return {
        "an empty frame": [b""],
        "garbage": [b"\x00\xff\xfe", b"garbage", b"\r\n\r\n"],
        "a huge frame": [b"\xaa" * 8_000_000],
        "a thousand frames": [b"x"] * 1000,
        "no delimiter": signed(client, good)[1:],
        "nothing after the delimiter": [DELIMITER],
        "no frames after the signature": [DELIMITER, client.session.sign([])],
        "a frame too few": few,
        "a header that is no JSON": signed(client, b"{header}"),
        "a header that is empty": signed(client, b""),
        "a header that is not UTF-8": signed(client, b'{"msg_type": "\xff\xff"}'),
        "a header that is a list": signed(client, b"[]"),
        "a header that is null": signed(client, b"null"),
        "a header that is nested too deeply": signed(client, b"[" * 100_000),
        "a header without a type": signed(client, header(msg_type=None)),
        "a header with a number as its type": signed(client, header(msg_type=7)),
        "content that is no JSON": signed(client, good, b"{}", b"{}", b"\x00" * 100),
        "content that is a list": signed(client, good, b"{}", b"{}", b"[]"),
        "content that is nested too deeply": signed(client, good, b"{}", b"{}", b'{"a":' * 100_000),
    }


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_a_malformed_message_is_logged_and_does_no_harm(kernel, client, channel):
    """A request on the same connection is answered after it, so that the log line is there when the answer is."""
    socket = getattr(client, channel + "_channel").socket
    for number, (name, frames) in enumerate(malformed(client).items(), 1):
        socket.send_multipart(frames)
        assert client.ask("kernel_info_request", channel=channel).finish().status == "ok", name
        assert kernel.said("WARN", "malformed message") == number, name
    assert client.run("1 + 2").result == "3"
    assert len(kernel.warnings()) == number


def test_what_a_kernel_does_not_need_does_no_harm(client):
    """Whether it complains or not: frames that nobody reads, and a header without what only its sender needs."""
    header = json.dumps({"msg_type": "kernel_info_request"}).encode()
    for frames in [[header], [header, b"parent"], [header, b"{}", b"metadata"], [header, b"{}", b"{}", b"{}", b"more"]]:
        client.shell_channel.socket.send_multipart(signed(client, *frames))
    assert client.run("1 + 2").result == "3"


def test_a_malformed_answer_is_logged_and_does_no_harm(kernel, client):
    socket = client.stdin_channel.socket
    cell = client.begin('input("? ")')
    cell.asking()
    for frames in malformed(client).values():
        socket.send_multipart(frames)
    client.input("yes")
    assert cell.finish().result == '"yes"'
    assert kernel.said("WARN", "malformed message") == len(malformed(client))


def test_a_request_whose_content_makes_no_sense_is_refused_or_logged(kernel, client):
    for msg_type in ["execute", "complete", "inspect", "is_complete", "history"]:
        client.ask(msg_type + "_request")
    for code in [None, 7, ["1"]]:
        client.ask("execute_request", {"code": code, "silent": False})
    for wrong in [{"user_expressions": [1]}, {"silent": "no"}, {"allow_stdin": 7}]:
        client.ask("execute_request", {"code": "1", **wrong})
    for wrong in [{"hist_access_type": "no"}, {"hist_access_type": "tail"}, {"hist_access_type": "tail", "n": "all"}]:
        client.ask("history_request", {"output": False, "raw": True, **wrong})
    assert client.run("1 + 2").result == "3", "asked on the same connection: all replies are before this one"
    refused = [request.id for request in client.requests.values() if request.reply and request.status == "error"]
    assert len(refused) + kernel.said("WARN", "malformed message") >= 8


def test_numbers_that_make_no_sense_do_no_harm(client):
    for numbers in [{"n": -1}, {"n": 10**30}, {"n": 1.5}, {"n": None}]:
        client.ask("history_request", {"output": False, "raw": True, "hist_access_type": "tail", **numbers})
    for start, stop in [(-5, -9), (9, 5), (0, 10**30)]:
        numbers = {"hist_access_type": "range", "session": 10**30, "start": start, "stop": stop}
        client.ask("history_request", {"output": False, "raw": True, **numbers})
    assert client.run("1 + 2").result == "3"


def test_half_a_character_does_no_harm(client):
    """JSON can say it, UTF-8 cannot."""
    content = rb'{"code": "print(\"\ud800\")\n\"\ud800\"", "silent": false, "user_expressions": {"\ud800": "1"}}'
    for header in [
        rb'{"msg_id": "1", "msg_type": "execute_request"}',
        rb'{"msg_id": "\ud800", "session": "\ud800", "msg_type": "execute_request"}',
        rb'{"msg_id": "2", "msg_type": "\ud800"}',
    ]:
        client.shell_channel.socket.send_multipart(signed(client, header, b"{}", b"{}", content))
    assert client.run("1 + 2").result == "3"


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_a_bad_signature_is_logged_and_gets_no_answer(kernel, client, channel):
    socket = getattr(client, channel + "_channel").socket
    execute = client.session.serialize(client.session.msg("execute_request", {"code": "x = 1"}))
    other = kernel.connect(key="not the key")
    unknown = other.session.serialize(other.session.msg("shutdown_request", {"restart": False}))
    changed = [part.replace(b"x = 1", b"x = 2") for part in execute]
    unsigned = [execute[0], b"", *execute[2:]]
    for number, frames in enumerate([unknown, changed, unsigned, [execute[0], b"\xff" * 64, *execute[2:]]], 1):
        socket.send_multipart(frames)
        assert client.ask("kernel_info_request", channel=channel).finish().status == "ok"
        assert kernel.said("WARN", "bad signature") == number
    assert client.run("x").ename == "NameError"
    assert len(kernel.warnings()) == number
    assert len(client.replies) == number + 1


def test_an_answer_with_a_bad_signature_does_not_count(kernel, client):
    cell = client.begin('input("? ")')
    cell.asking()
    frames = client.session.serialize(client.session.msg("input_reply", {"value": "no"}))
    client.stdin_channel.socket.send_multipart([frames[0], b"0" * 64, *frames[2:]])
    client.input("yes")
    assert cell.finish().result == '"yes"'
    assert kernel.said("WARN", "bad signature") == 1


# Connections that are none

GREETING = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + bytes(48)
NONSENSE = [
    b"",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x00" * 100_000,
    b"\xff" * 100_000,
    GREETING[:5],
    GREETING,
    GREETING + b"\x04\xff" + b"\xff" * 255,  # a command whose name is longer than itself
    GREETING + b"\x06" + b"\xff" * 8 + b"x" * 1000,  # a command of 2**64 - 1 bytes
    GREETING + b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER" + b"\x02" + b"\xff" * 8,  # and such a frame
]


@pytest.mark.parametrize("port", SERVICES, ids=SERVICES.values())
def test_a_connection_that_does_not_speak_zeromq(start, port):
    kernel = start("--deadline", 20)
    client = kernel.client()
    address = kernel.info["ip"], kernel.info[port + "_port"]
    silent = [socket.create_connection(address) for _ in range(10)]
    for words in NONSENSE:
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            with contextlib.suppress(ConnectionError):  # it may hang up before the end
                connection.sendall(words)
    assert client.run("1 + 2").result == "3"
    with kernel.socket("hb", zmq.REQ) as heart:
        heart.send(b"ping")
        assert heart.recv() == b"ping"
    assert kernel.client().run("2 + 2").result == "4", "and one that comes only now"
    client.ask("shutdown_request", {"restart": False}, "control").answered()
    assert kernel.exit.wait() == 0, "connections that say nothing keep nobody"
    for connection in silent:
        connection.close()


def test_nobody_reads_its_log(program, connection):
    """A launcher that has closed its end of the pipe does not end it."""
    path, info = connection()
    words = [*program.argv, "-v", "-f", str(path)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        process.stderr.close()
        with kernels.connect(info, "hb", zmq.REQ) as heart:
            for _ in range(3):
                heart.send(b"ping")
                assert heart.recv() == b"ping"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
