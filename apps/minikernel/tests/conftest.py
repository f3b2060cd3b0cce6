"""Every test runs for both kernels, and ends with the assertion that nothing is left of the kernels that it started."""

import signal
import threading

import pytest
from jupyter_core.utils import ensure_event_loop

import kernels

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what it starts in the background


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """Both kernels, installed by themselves where Jupyter looks, and nothing of the user's own Jupyter in sight."""
    home = tmp_path_factory.mktemp("jupyter")
    programs = kernels.find_programs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(home / "prefix/share/jupyter"))
        patch.setenv("JUPYTER_NO_CONFIG", "1")
        for name in ["DATA", "CONFIG", "RUNTIME"]:
            patch.setenv(f"JUPYTER_{name}_DIR", str(home / name.lower()))
        for program in programs.values():
            if not isinstance(program, str):
                done = program.run("install", "--prefix", home / "prefix")
                assert done.returncode == 0, done.stderr
        yield programs
    ensure_event_loop().close()


@pytest.fixture(scope="session", params=["rust", "python"])
def program(request, installed):
    """A kernel as it lies on the disk."""
    program = installed[request.param]
    if isinstance(program, str):
        pytest.skip(program)
    return program


@pytest.fixture
def start(program, tmp_path_factory):
    """`start(arguments)` starts a kernel; at the end of the test it is shut down, and nothing may be left of it."""
    threads = running_threads()
    started = []

    def start(*arguments, **launch):
        started.append(kernels.Kernel(program, tmp_path_factory.mktemp("kernel"), *arguments, **launch))
        return started[-1]

    yield start
    failures = []
    for kernel in started:
        try:
            kernel.close()
        except AssertionError as failure:
            failures.append(failure)
        print(f"-- stderr of kernel {kernel.process.pid}, exit code {kernel.exit.code}\n{kernel.stderr()[-5000:]}")
    assert not failures
    assert running_threads() <= threads, "a thread is left"


def running_threads():
    """The threads of this process, but for the one that pyzmq starts with the first large message, and keeps."""
    return {thread for thread in threading.enumerate() if type(thread).__module__ != "zmq.utils.garbage"}


@pytest.fixture
def kernel(start):
    """A kernel that was started for this test."""
    return start()


@pytest.fixture
def client(kernel):
    """A client of `kernel`."""
    return kernel.client()
