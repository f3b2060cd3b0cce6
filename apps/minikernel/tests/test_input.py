"""A cell may ask its client for a line of input."""

import os
import subprocess
import sys

import pytest

from kernels import PATIENCE


def test_the_client_is_asked_and_its_answer_is_the_value(client):
    cell = client.begin('x = input("name? ")\nx + "!"')
    assert cell.asking() == "name? "
    assert cell.inputs[0]["parent_header"]["msg_id"] == cell.id
    client.input("Ann")
    assert cell.finish().result == '"Ann!"'


@pytest.mark.parametrize("line", ["", "žluťoučký 😀", '"quoted" \\', "<IDS|MSG>", "x" * 100_000])
def test_any_line_can_be_the_answer(client, line):
    cell = client.begin("print(input())")
    assert cell.asking() == ""
    client.input(line)
    assert cell.finish().stdout == line + "\n"


def test_a_cell_may_ask_again_and_prints_before_it_asks(client):
    cell = client.begin('print("one")\na = input("a")\nprint("two")\nb = input("b")\na + b')
    for number, (name, printed) in enumerate([("a", "one\n"), ("b", "one\ntwo\n")], 1):
        assert cell.asking(number) == name
        assert cell.running(printed).reply is None
        client.input(name * 2)
    assert cell.finish().result == '"aabb"'


def test_the_client_whose_cell_it_is_is_asked(kernel):
    ann, bob = kernel.client(), kernel.client()
    of_ann = ann.begin('input("Ann? ")')
    assert of_ann.asking() == "Ann? "
    of_bob = bob.begin('input("Bob? ")')
    ann.input("I am Ann")
    assert of_bob.asking() == "Bob? "
    bob.input("I am Bob")
    assert [cell.finish().result for cell in [of_ann, of_bob]] == ['"I am Ann"', '"I am Bob"']
    assert ann.follow(of_bob.id).inputs == bob.follow(of_ann.id).inputs == []


def test_nobody_else_can_answer(kernel):
    ann, bob = kernel.client(), kernel.client()
    cell = ann.begin('input("Ann? ")')
    cell.asking()
    bob.input("I am Bob")
    bob.ask("kernel_info_request", channel="control").answered()
    assert cell.reply is None
    ann.input("I am Ann")
    assert cell.finish().result == '"I am Ann"'


def test_a_client_without_stdin_is_not_asked(client):
    cell = client.run('print("a")\ninput("name? ")', allow_stdin=False)
    assert (cell.ename, cell.stdout, cell.inputs) == ("StdinNotImplementedError", "a\n", [])
    assert client.run("1").result == "1"


def test_an_answer_that_comes_too_late_does_no_harm(client):
    for _ in range(10):
        cell = client.begin('input("first")')
        cell.asking()
        client.interrupt()
        client.input("too late")
        assert cell.finish().ename == "KeyboardInterrupt"
        client.input("much too late")
        assert client.run("1").result == "1"
        cell = client.begin('input("second")')
        assert cell.asking() == "second"
        client.input("in time")
        assert cell.finish().result == '"in time"'


def test_an_answer_that_nobody_asked_for_does_no_harm(client):
    client.input("unasked")
    assert client.run("1").result == "1"
    cell = client.begin("input()")
    cell.asking()
    client.input("asked")
    assert cell.finish().result == '"asked"'


def served(client):
    """Whether the kernel serves this client, input and all."""
    cell = client.begin('input("? ")')
    cell.asking()
    client.input("yes")
    return cell.finish().result == '"yes"'


def test_a_client_that_vanishes_while_it_is_asked_ends_its_cell(kernel):
    ann, bob = kernel.client(), kernel.client()
    cell = ann.begin('input("? ")')
    cell.asking()
    ann.stop_channels()
    seen = bob.follow(cell.id).ended()
    assert [error["ename"] for error in seen.of_type("error")] == ["EOFError"]
    assert kernel.said("WARN", "gone") == 1
    assert served(bob)


def test_a_client_that_vanished_before_it_is_asked_ends_its_cell(kernel):
    ann, bob = kernel.client(), kernel.client()
    cell = ann.begin('print("go")\nsleep(0.3)\ninput("? ")').running()
    ann.stop_channels()
    seen = bob.follow(cell.id).ended()
    assert [error["ename"] for error in seen.of_type("error")] == ["EOFError"]
    assert kernel.said("WARN", "gone") == 1
    assert served(bob)


def test_a_client_that_is_killed_while_it_is_asked_ends_its_cell(kernel):
    bob = kernel.client()
    program = (
        "import sys, jupyter_client\n"
        "ann = jupyter_client.BlockingKernelClient(connection_file=sys.argv[1])\n"
        "ann.load_connection_file()\n"
        "ann.start_channels()\n"
        "print(ann.execute('input(\"? \")'), flush=True)\n"
        "print(ann.get_stdin_msg()['content']['prompt'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", program, kernel.manager.connection_file]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as ann:
        cell = bob.follow(ann.stdout.readline().strip())
        assert ann.stdout.readline() == "? \n"
        ann.kill()
    assert [error["ename"] for error in cell.ended().of_type("error")] == ["EOFError"]
    assert served(bob)


def test_a_client_that_vanishes_while_its_cell_runs_does_no_harm(kernel):
    ann, bob = kernel.client(), kernel.client()
    cell = ann.begin('print("go")\nsleep(0.2)\nx = 1').running()
    ann.stop_channels()
    bob.follow(cell.id).ended()
    assert bob.run("x").result == "1"


def test_a_client_that_comes_back_is_asked_again(kernel):
    """With the same session, thus the same identity, as one does that has lost its connection for a moment."""
    bob = kernel.client()
    for _ in range(5):
        ann = kernel.connect(session="ann")
        ann.wait_for_ready(timeout=PATIENCE)
        assert served(ann)
        bob.forget()  # a session that begins again numbers its messages again
        cell = ann.begin('input("? ")')
        cell.asking()
        ann.stop_channels()
        bob.follow(cell.id).ended()
    assert served(bob)


def test_of_two_clients_with_one_identity_the_newer_is_served(kernel):
    """The older is a connection whose end nobody has heard of yet. When that comes, the newer stays."""
    old = kernel.connect(session="ann")
    old.ready()
    new = kernel.connect(session="ann")
    new.ready()
    assert served(new)
    old.stop_channels()
    for _ in range(20):
        assert served(new)


def test_clients_that_come_and_go_leave_nothing_behind(kernel):
    """Neither a descriptor nor a thread. A client has five connections, and the last two may be on their way out."""
    here = f"/proc/{kernel.process.pid}"
    if not os.path.isdir(here):
        pytest.skip("needs /proc")
    bob, counts = kernel.client(), []
    for _ in range(25):
        ann = kernel.connect()
        assert ann.begin("1").answered().status == "ok"
        ann.stop_channels()
        assert bob.run("1").status == "ok"
        counts.append((len(os.listdir(here + "/fd")), len(os.listdir(here + "/task"))))
    (files, threads), (last_files, last_threads) = map(max, zip(*counts[:5])), map(max, zip(*counts[-5:]))
    assert last_files <= files + 10 and last_threads <= threads + 2, counts
