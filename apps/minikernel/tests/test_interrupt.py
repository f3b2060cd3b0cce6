"""An interrupt ends the cell that is running, and nothing else."""

import random
import threading
import time

import pytest
import zmq

from kernels import PATIENCE

HOWS = ["message", "signal"]
ENDLESS = {"spin": "spin()", "sleep": "sleep(60)", "input": 'input("? ")'}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("code", ENDLESS.values(), ids=ENDLESS.keys())
def test_an_interrupt_ends_the_cell(kernel, client, code, how):
    cell = client.begin(f'x = 1\nprint("go")\n{code}\nx = 2').running()
    kernel.interrupt(how)
    assert cell.finish().ename == "KeyboardInterrupt"
    assert cell.types == ["busy", "execute_input", "stream", "error", "idle"]
    after = client.run("x")
    assert (after.result, after.count) == ("1", 2)


def test_an_interrupt_request_is_answered(client):
    asked = client.ask("interrupt_request", channel="control").finish()
    assert (asked.reply["msg_type"], asked.content) == ("interrupt_reply", {"status": "ok"})
    cell = client.begin('print("go")\nspin()').running()
    client.interrupt()
    assert cell.finish().ename == "KeyboardInterrupt"


def test_a_pending_input_is_interrupted(client):
    cell = client.begin('input("name? ")')
    assert cell.asking() == "name? "
    client.interrupt()
    assert cell.finish().ename == "KeyboardInterrupt"
    assert client.run("1").result == "1"


@pytest.mark.parametrize("how", HOWS)
def test_an_interrupt_between_cells_hits_nothing(kernel, client, how):
    for number in range(10):
        kernel.interrupt(how)
        # Nothing says when a signal has been handled: it has its turn while the kernel answers all these.
        for _ in range(200 if how == "signal" else 1):
            client.interrupt()
        assert client.run(f"sleep(0.01)\n{number}").result == str(number)


def test_an_interrupt_hits_one_cell_of_those_that_wait(kernel):
    ann, bob = kernel.client(), kernel.client()
    cell = ann.begin('print("go")\nspin()', stop_on_error=False)
    waiting = [ann.begin("sleep(0.1)\n1")]
    cell.running()
    waiting.append(bob.begin("sleep(0.1)\n2"))
    ann.interrupt()
    assert cell.finish().ename == "KeyboardInterrupt"
    assert [each.finish().result for each in waiting] == ["1", "2"]


def test_an_interrupted_cell_aborts_what_its_client_has_queued(client):
    cell, waiting = client.begin('print("go")\nspin()'), client.begin("1")
    cell.running()
    client.interrupt()
    assert [cell.finish().ename, waiting.finish().ename] == ["KeyboardInterrupt", "aborted"]


def test_ten_interrupts_are_one_to_a_cell(client):
    cell = client.begin('print("go")\nspin()').running()
    asked = [client.ask("interrupt_request", channel="control") for _ in range(10)]
    assert cell.finish().ename == "KeyboardInterrupt"
    assert [each.answered().status for each in asked] == ["ok"] * 10
    assert client.run("sleep(0.1)\n1").result == "1"


def test_one_client_interrupts_the_cell_of_another(kernel):
    ann, bob = kernel.client(), kernel.client()
    cell = ann.begin('print("go")\nspin()').running()
    bob.interrupt()
    assert cell.finish().ename == "KeyboardInterrupt"


def test_a_stubborn_cell_is_not_interrupted(client):
    begun = time.monotonic()
    cell = client.begin('print("go")\nstubborn(0.5)').running()
    client.interrupt()
    assert cell.finish().ename == "", "it was over before it could see the interrupt"
    assert time.monotonic() - begun >= 0.5
    cell = client.begin('x = 1\nprint("go")\nstubborn(0.5)\nx = 2').running()
    client.interrupt()
    assert cell.finish().ename == "KeyboardInterrupt"
    assert client.run("x").result == "1"


@pytest.mark.parametrize("code", [*ENDLESS.values(), "stubborn(1)"], ids=[*ENDLESS.keys(), "stubborn"])
def test_the_heart_beats_and_control_answers_while_a_cell_runs(kernel, client, code):
    cell = client.begin(f'print("go")\n{code}').running()
    with kernel.socket("hb", zmq.REQ, rcvtimeo=1000) as heart:
        for number in range(20):
            heart.send(b"%d" % number)
            assert heart.recv() == b"%d" % number
            assert client.ask("kernel_info_request", channel="control").answered().status == "ok"
    assert cell.reply is None
    client.interrupt()
    cell.finish()


@pytest.mark.parametrize("code", ENDLESS.values(), ids=ENDLESS.keys())
def test_an_interrupt_is_quick(kernel, client, code):
    times = []
    for number in range(20):
        cell = client.begin(f'print("go")\n{code}').running()
        begun = time.monotonic()
        kernel.interrupt(HOWS[number % 2])
        assert cell.answered().ename == "KeyboardInterrupt"
        times.append(time.monotonic() - begun)
        cell.finish()
    assert sorted(times)[10] < 0.2 and max(times) < 1, times


@pytest.mark.parametrize("how", HOWS)
def test_200_interrupts_at_random_moments(kernel, how):
    """Each hits the cell that runs, or nothing: the replies, the variables and the number of interrupts agree."""
    ann, bob = kernel.client(), kernel.client()
    ann.run("begun = 0\nended = 0")
    cells, over = [], threading.Event()

    def work():
        while not over.is_set():
            cells.append(ann.run("begun = begun + 1\nsleep(0.005)\nended = ended + 1"))

    worker = threading.Thread(target=work)
    worker.start()
    moments = random.Random(4)
    try:
        for _ in range(200):
            over.wait(moments.uniform(0, 0.02))
            if how == "message":
                bob.interrupt()
            else:
                kernel.interrupt(how)
    finally:
        over.set()
        worker.join(PATIENCE)
    bob.interrupt()
    names = [cell.ename for cell in cells]
    ok, interrupted = names.count(""), names.count("KeyboardInterrupt")
    assert ok + interrupted == len(cells)
    assert 0 < interrupted <= 200 and ok > 0
    assert ann.run("ended").result == str(ok)
    assert ok <= float(ann.run("begun").result) <= len(cells)
    assert [cell.count for cell in cells] == list(range(2, len(cells) + 2))
