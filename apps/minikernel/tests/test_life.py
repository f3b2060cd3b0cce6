"""How a kernel begins and how it ends, and that nothing is left of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jupyter_client import KernelManager

import kernels
from kernels import PATIENCE

ENDLESS = {"spin": "spin()", "sleep": "sleep(60)", "input": 'input("? ")'}
HOWS = ["shutdown_request", "SIGTERM"]


def ask_to_end(kernel, client, how):
    """Begins a shutdown; returns when it was asked for."""
    begun = time.monotonic()
    if how == "SIGTERM":
        kernel.process.send_signal(signal.SIGTERM)
    else:
        client.ask("shutdown_request", {"restart": False}, "control")
    return begun


def test_50_rounds_without_a_retry(program, tmp_path):
    """Each with jupyter_client's own manager, as an application would use it."""
    log = tmp_path / "stderr"
    for number in range(50):
        manager = KernelManager(kernel_name=program.name)
        with log.open("wb") as stderr:
            manager.start_kernel(stderr=stderr)
        end = kernels.Exit(manager.provisioner.process)
        info = manager.get_connection_info()
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=PATIENCE)
        reply = client.execute(f"{number} + 1", reply=True, timeout=PATIENCE)
        assert (reply["content"]["status"], reply["content"]["execution_count"]) == ("ok", 1)
        client.stop_channels()
        manager.shutdown_kernel()
        assert end.wait() == 0
        assert kernels.taken_ports(info) == []
        assert not os.path.exists(manager.connection_file)
        assert kernels.warnings(log.read_text()) == []


def test_a_client_of_the_manager_does_everything(kernel):
    """One that shares the session of its manager, as the clients of most applications do."""
    client = kernel.manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE)
        printed = []
        reply = client.execute_interactive(
            'print("a")\nx = input("name? ")\nprint(x)',
            timeout=PATIENCE,
            stdin_hook=lambda request: client.input(request["content"]["prompt"] + "Ann"),
            output_hook=lambda message: printed.append(message["content"].get("text", "")),
        )
        assert (reply["content"]["status"], "".join(printed)) == ("ok", "a\nname? Ann\n")
        assert client.is_alive() and client.hb_channel.is_beating()
        for _ in range(20):
            assert client.history(n=1, hist_access_type="tail", reply=True, timeout=PATIENCE)["content"]["history"]
        assert client.shutdown(reply=True, timeout=PATIENCE)["content"] == {"status": "ok", "restart": False}
        assert kernel.exit.wait() == 0
    finally:
        client.stop_channels()


def test_a_shutdown_that_comes_before_it_is_ready(start):
    kernel = start()
    kernel.manager.request_shutdown()
    assert kernel.exit.wait() == 0


@pytest.mark.parametrize("code", ["1", *ENDLESS.values()], ids=["idle", *ENDLESS.keys()])
def test_a_restart_begins_anew(kernel, client, code):
    cell = client.begin(f'x = 1\nprint("go")\n{code}').running()
    with kernel.log.open("ab") as log:
        kernel.manager.restart_kernel(stdout=log, stderr=log)
    assert kernel.exit.wait() == 0
    assert cell.answered().ename == ("" if code == "1" else "KeyboardInterrupt")
    before = kernel.exit.process.pid
    kernel.watch()
    assert kernel.process.pid != before
    client.wait_for_ready(timeout=PATIENCE)
    cell = client.run("x")
    assert (cell.ename, cell.count) == ("NameError", 1)


def test_a_restart_after_a_kill(kernel, client):
    client.begin('print("go")\nstubborn(60)').running()
    with kernel.log.open("ab") as log:
        kernel.manager.restart_kernel(now=True, stdout=log, stderr=log)
    assert kernel.exit.wait() == -signal.SIGKILL
    kernel.watch()
    client.wait_for_ready(timeout=PATIENCE)
    assert client.run("1 + 1").result == "2"


@pytest.mark.parametrize("how", HOWS)
def test_an_idle_kernel_ends_at_once(start, how):
    kernel = start("--deadline", 20)
    client = kernel.client()
    client.run("1")
    begun = ask_to_end(kernel, client, how)
    assert kernel.exit.wait() == 0
    assert kernel.exit.time - begun < 5
    assert kernel.warnings() == []


@pytest.mark.parametrize("restart", [True, False])
def test_a_shutdown_is_answered_at_once_and_told_to_everybody(start, restart):
    kernel = start("--deadline", 20)
    ann, bob = kernel.client(), kernel.client()
    gate = ann.begin('input("gate")')
    gate.asking()
    asked = bob.ask("shutdown_request", {"restart": restart}, "control").answered()
    assert (asked.reply["msg_type"], asked.content) == ("shutdown_reply", {"status": "ok", "restart": restart})
    ann.wait(lambda: ann.follow(asked.id).of_type("shutdown_reply"), "shutdown_reply on iopub")
    assert ann.follow(asked.id).of_type("shutdown_reply") == [{"status": "ok", "restart": restart}]
    assert gate.reply is None
    ann.input("open")
    assert gate.finish().result == '"open"'
    assert kernel.exit.wait() == 0


@pytest.mark.parametrize("how", HOWS)
def test_what_is_queued_is_drained(start, how):
    kernel = start("--deadline", 20)
    client = kernel.client()
    cells = [client.begin(code) for code in ['print("go")\nsleep(0.2)\n0', *[f"sleep(0.05)\n{n}" for n in range(1, 6)]]]
    client.kernel_info()
    cells[0].running()
    begun = ask_to_end(kernel, client, how)
    assert [cell.finish().result for cell in cells] == list("012345")
    assert kernel.exit.wait() == 0
    assert kernel.exit.time - begun < 10


@pytest.mark.parametrize("how", HOWS)
def test_what_was_printed_is_sent_before_it_ends(start, how):
    kernel = start("--deadline", 20)
    client = kernel.client()
    cell = client.begin("\n".join(['x = "a"', *["x = x + x"] * 20, *["print(x)"] * 20])).answered()
    ask_to_end(kernel, client, how)
    assert len(cell.finish().stdout) == 20 * (2**20 + 1)
    assert kernel.exit.wait() == 0


def test_what_comes_after_the_shutdown_is_aborted(start):
    kernel = start("--deadline", 20)
    ann, bob = kernel.client(), kernel.client()
    ann.run("x = 0")
    gate, queued = ann.begin('input("gate")'), ann.begin("x = x + 1\nx")
    gate.asking()
    ann.ask("shutdown_request", {"restart": False}, "control").answered()
    late = [ann.begin("x = 10"), bob.begin("x = 20")]
    assert [cell.answered().ename for cell in late] == ["aborted", "aborted"]
    ann.input("")
    assert (gate.finish().ename, queued.finish().result) == ("", "1")
    assert kernel.exit.wait() == 0


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("code", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_busy_kernel_ends_at_its_deadline(start, code, how):
    kernel = start("--deadline", 0.5)
    client = kernel.client()
    cell, queued = client.begin(f'print("go")\n{code}'), client.begin("1")
    cell.running()
    begun = ask_to_end(kernel, client, how)
    assert kernel.exit.wait() == 0
    assert 0.5 <= kernel.exit.time - begun <= 0.7
    assert cell.answered().ename == "KeyboardInterrupt"
    assert queued.answered().ename in ["KeyboardInterrupt", "aborted"]


@pytest.mark.parametrize("how", HOWS)
def test_a_stubborn_cell_is_named_and_left_behind(start, how):
    kernel = start("--deadline", 0.5)
    client = kernel.client()
    client.begin('print("go")\nstubborn(30)').running()
    begun = ask_to_end(kernel, client, how)
    assert kernel.exit.wait() == 1
    assert 0.5 <= kernel.exit.time - begun <= 0.7
    assert "stuck: interpreter" in kernel.stderr()


def test_a_stubborn_cell_that_ends_in_time_is_not_stuck(start):
    kernel = start("--deadline", 20)
    client = kernel.client()
    cell = client.begin('print("go")\nstubborn(0.3)\n1').running()
    ask_to_end(kernel, client, "SIGTERM")
    assert cell.finish().result == "1"
    assert kernel.exit.wait() == 0
    assert "stuck" not in kernel.stderr()


def test_a_second_shutdown_does_not_move_the_deadline(start):
    kernel = start("--deadline", 0.5)
    client = kernel.client()
    first, _ = client.begin('print("go")\nsleep(0.3)'), client.begin("spin()")
    first.running()
    begun = ask_to_end(kernel, client, "SIGTERM")
    first.finish()
    for how in HOWS * 2:
        ask_to_end(kernel, client, how)
    assert kernel.exit.wait() == 0
    assert 0.5 <= kernel.exit.time - begun <= 0.7


def test_an_interrupt_shortens_the_drain(start):
    kernel = start("--deadline", 20)
    client = kernel.client()
    cell = client.begin('print("go")\nspin()').running()
    begun = ask_to_end(kernel, client, "SIGTERM")
    client.interrupt()
    assert cell.answered().ename == "KeyboardInterrupt"
    assert kernel.exit.wait() == 0
    assert kernel.exit.time - begun < 10


def test_an_interrupt_while_it_is_idle_does_not_end_it(kernel, client):
    for _ in range(5):
        kernel.process.send_signal(signal.SIGINT)
    client.interrupt()
    assert client.run("1").result == "1"


# The parent


@pytest.mark.parametrize("code", ["1", "spin()"], ids=["idle", "busy"])
def test_a_kernel_ends_with_its_parent(start, code):
    """Of a parent that is named and need not be the real one: a launcher may stand between."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as parent:
        kernel = start("--deadline", 0.5, env={"JPY_PARENT_PID": str(parent.pid)}, independent=True)
        client = kernel.client()
        client.begin(f'print("go")\n{code}').running()
        parent.kill()
    assert kernel.exit.wait() == 0


def test_a_parent_that_was_never_there(start):
    with subprocess.Popen([sys.executable, "-c", ""]) as parent:
        pass
    kernel = start(env={"JPY_PARENT_PID": str(parent.pid)}, independent=True)
    assert kernel.exit.wait() in [0, 1]


def test_a_kernel_without_a_parent_lives(start):
    env = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
    assert start(env=env, independent=True).client().run("1 + 1").result == "2"


def test_a_killed_manager_leaves_no_kernel(program):
    """The kernel holds the pipe as long as it lives: that its end is reached means that nobody is left."""
    script = (
        "import sys, jupyter_client\n"
        "manager, client = jupyter_client.manager.start_new_kernel(kernel_name=sys.argv[1])\n"
        "client.execute('spin()')\n"
        "while client.get_iopub_msg()['msg_type'] != 'execute_input': pass\n"
        "print(manager.connection_file, flush=True)\n"
        "sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", script, program.name]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        file = Path(parent.stdout.readline().strip())
        info = json.loads(file.read_text())
        parent.kill()
        rest, _ = parent.communicate(timeout=PATIENCE)
    assert kernels.taken_ports(info) == []
    file.unlink()


# The console


def test_jupyter_console(program):
    """With its lines from a pipe; it ends at the end of them."""
    cells = ["x = 20", "x + 1", 'print("hello " + "world")', 'warn("careful")', "1 / 0", 'y = input("name? ")']
    lines = [*cells, "Ann", "y + y"]
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_console", "--simple-prompt", "--kernel", program.name],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    for text in ["Out[2]: 21", "hello world", "name? ", 'Out[7]: "AnnAnn"']:
        assert text in done.stdout, done
    for text in ["careful", "ZeroDivisionError"]:
        assert text in done.stderr, done
    assert done.returncode == 0
