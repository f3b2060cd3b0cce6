"""The tests that Jupyter has for every kernel: jupyter_kernel_test."""

import jupyter_kernel_test
import pytest

import kernels


class Toy:
    """What those tests ask of the toy language. There is no display_data, pager or clear_output in it."""

    program: str
    code_hello_world = 'print("hello, world")'
    code_stderr = 'warn("no")'
    code_generate_error = 'raise("no")'
    code_execute_result = [
        {"code": "1 + 2", "result": "3"},
        {"code": '"a" + "b"', "result": '"ab"'},
        {"code": "x = 6\nx * 7", "result": "42"},
    ]
    completion_samples = [
        {"text": "pri", "matches": ["print"]},
        {"text": "1 + s", "matches": ["sleep", "spin", "stubborn"]},
        {"text": "zzz", "matches": []},
    ]
    complete_code_samples = ["1", "print(1)", "x = (1 +\n2)"]
    incomplete_code_samples = ["(1 +", "print("]
    invalid_code_samples = ["1 +", '"open', ")"]
    code_history_pattern = "1 ? 2"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "sleep"

    @classmethod
    def setUpClass(cls):
        """The fixture below starts the kernel: it has to be installed before."""

    tearDownClass = setUpClass

    def get_non_kernel_info_reply(self, timeout=kernels.PATIENCE):
        """Some of those tests wait without a limit."""
        return super().get_non_kernel_info_reply(timeout)


class RustTests(Toy, jupyter_kernel_test.KernelTests):
    program = "rust"


class PythonTests(Toy, jupyter_kernel_test.KernelTests):
    program = "python"


@pytest.fixture(autouse=True, scope="class")
def started(request, installed):
    """The one kernel of a class, started and shut down as jupyter_kernel_test does it."""
    cls, program = request.cls, installed[request.cls.program]
    if isinstance(program, str):
        pytest.skip(program)
    cls.kernel_name = program.name
    super(Toy, cls).setUpClass()
    end = kernels.Exit(cls.km.provisioner.process)
    yield
    super(Toy, cls).tearDownClass()
    assert end.wait() == 0
