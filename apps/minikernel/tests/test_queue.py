"""Cells that wait for their turn: many of them, of many clients, and what happens to them when one fails."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq
from jupyter_core.utils import ensure_event_loop

from kernels import PATIENCE


def test_200_cells_back_to_back(client):
    for number in range(1, 201):
        cell = client.run(f'print("cell {number}")\n{number} * 2')
        assert (cell.status, cell.count) == ("ok", number)
        assert (cell.stdout, cell.result) == (f"cell {number}\n", str(number * 2))


def test_200_cells_in_a_pipeline(client):
    client.run("n = 0")
    client.forget()
    cells = [client.begin("n = n + 1\nprint(n)\nn") for _ in range(200)]
    for number, cell in enumerate(cells, 1):
        cell.finish()
        assert (cell.status, cell.count) == ("ok", number + 1)
        assert cell.types == ["busy", "execute_input", "stream", "execute_result", "idle"]
        assert (cell.stdout, cell.result) == (f"{number}\n", str(number))
    ids = [cell.id for cell in cells]
    assert client.replies == ids
    assert client.order == [id for id in ids for _ in range(5)], "what is published for one cell stays together"


@pytest.mark.parametrize("code", ['sleep(0.3)\nraise("x")', 'raise("x")'], ids=["slowly", "at once"])
def test_an_error_aborts_what_waits_behind_it(client, code):
    client.run("n = 0")
    failing, *waiting = [client.begin(code)] + [client.begin("n = n + 1") for _ in range(3)]
    assert failing.finish().ename == "RuntimeError"
    for cell in waiting:
        assert cell.finish().ename == "aborted"
        assert cell.types == ["busy", "idle"]
    after = client.run("n")
    assert (after.result, after.count) == ("0", 3), "an aborted cell neither runs nor counts"


def test_an_error_aborts_what_has_waited_long(client):
    gate, failing, *waiting = [client.begin(code) for code in ['input("gate")', "nope", "1", "2", "3"]]
    assert gate.asking() == "gate"
    client.input("")
    assert [cell.finish().ename for cell in [gate, failing, *waiting]] == ["", "NameError", *["aborted"] * 3]


def test_what_is_sent_after_the_error_reply_is_never_aborted(client):
    for number in range(50):
        assert client.begin('raise("x")').answered().ename == "RuntimeError"
        assert client.begin(f"{number}").finish().result == str(number)


def test_without_stop_on_error_nothing_is_aborted(client):
    gate, failing, *waiting = [client.begin(code, stop_on_error=False) for code in ['input("")', "nope", "1", "2"]]
    gate.asking()
    client.input("")
    assert [cell.finish().ename for cell in [gate, failing, *waiting]] == ["", "NameError", "", ""]


def test_an_error_does_not_touch_what_another_client_has_queued(kernel):
    ann, bob = kernel.client(), kernel.client()
    failing = ann.begin('input("gate")\nraise("x")')
    assert failing.asking() == "gate"
    of_ann = [ann.begin("1")]
    of_bob = [bob.begin("2"), bob.begin("3")]
    of_ann.append(ann.begin("4"))
    ann.input("")
    assert failing.finish().ename == "RuntimeError"
    assert [cell.finish().ename for cell in of_ann] == ["aborted", "aborted"]
    assert [cell.finish().result for cell in of_bob] == ["2", "3"]
    assert ann.run("5").result == "5"


def test_an_aborted_cell_without_stop_on_error_is_aborted_as_well(client):
    """It is the failing request that decides, not the one behind it."""
    failing, waiting = client.begin('sleep(0.1)\nraise("x")'), client.begin("1", stop_on_error=False)
    assert [failing.finish().ename, waiting.finish().ename] == ["RuntimeError", "aborted"]


def test_20_clients_at_once(kernel):
    """Each gets the replies to its own cells and all of their output, whatever the others do."""
    ready = threading.Barrier(20, timeout=PATIENCE)

    def work(number):
        try:
            return use(number, kernel.client())
        finally:
            ensure_event_loop().close()  # jupyter_client makes one for each thread, and leaves it

    def use(number, client):
        ready.wait()
        cells = []
        for step in range(5):
            word = f"{number} {step}"
            cells.append(client.run(f'print("{word} a")\nwarn("{word} b")\nprint("{word} c")\n{number} * 100 + {step}'))
            printed = [("stdout", f"{word} a\n"), ("stderr", f"{word} b\n"), ("stdout", f"{word} c\n")]
            assert cells[-1].streams == printed
            assert cells[-1].result == str(number * 100 + step)
        cells += [cell.finish() for cell in [client.begin(f"{number}\n{step}") for step in range(5)]]
        assert [cell.result for cell in cells[5:]] == list("01234")
        assert client.replies[-10:] == [cell.id for cell in cells]
        return [cell.count for cell in cells]

    with ThreadPoolExecutor(20) as threads:
        counts = list(threads.map(work, range(20)))
    assert sorted(count for each in counts for count in each) == list(range(1, 201))
    assert all(each == sorted(each) for each in counts)


def test_a_client_that_reads_nothing_does_not_stop_the_others(kernel, client):
    """Its subscription is full at some time: what it has not read is its own loss."""
    with kernel.socket("iopub", zmq.SUB, rcvhwm=1) as deaf:
        deaf.subscribe(b"")
        client.run(f'x = "{"0123456789abcdef" * 20_000}"')
        for _ in range(100):
            assert len(client.run("print(x)").stdout) == 320_001
        assert deaf.poll(0) == zmq.POLLIN
