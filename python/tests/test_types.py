"""The stub says what is there, and a type checker finds no fault with the package and with what uses it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

needs_mypy = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")


def run(*module):
    done = subprocess.run([sys.executable, "-m", *module], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_mypy
def test_the_stub_is_what_is_there_at_run_time():
    run("mypy.stubtest", "microio", "--mypy-config-file", "pyproject.toml")


@needs_mypy
def test_the_package_the_examples_and_a_typed_program_pass_the_type_checker():
    run("mypy")


def test_the_types_of_a_typed_program_exist_at_run_time():
    importlib.import_module("typed_usage")
