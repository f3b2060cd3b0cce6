"""The examples print what they must: the same as the Rust ones, which the gate compares with the same file."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_counter_server_prints_what_the_rust_one_prints():
    command = [sys.executable, "-W", "error", "-X", "dev", EXAMPLES / "counter_server.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (EXAMPLES / "counter_server.txt").read_text()
