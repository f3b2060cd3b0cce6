"""A kernel installs itself where Jupyter finds it."""

import json
import os

from jupyter_client.kernelspec import KernelSpecManager


def test_a_kernelspec_says_how_to_run_it(program, tmp_path):
    done = program.run("install", "--prefix", tmp_path)
    place = tmp_path / "share/jupyter/kernels" / program.name
    assert done.returncode == 0
    assert str(place) in done.stdout
    spec = json.loads((place / "kernel.json").read_text())
    assert spec["interrupt_mode"] == "message"
    assert spec["display_name"] and spec["language"]
    assert spec["argv"][-2:] == ["-f", "{connection_file}"]
    assert os.path.isabs(spec["argv"][0]) and os.access(spec["argv"][0], os.X_OK)


def test_it_may_have_another_name_and_be_installed_again(program, tmp_path):
    for _ in range(2):
        assert program.run("install", "--prefix", tmp_path, "--name", "other").returncode == 0
    specs = KernelSpecManager(kernel_dirs=[str(tmp_path / "share/jupyter/kernels")])
    assert "other" in specs.find_kernel_specs()
    assert specs.get_kernel_spec("other").language


def test_without_a_prefix_it_is_for_the_user(program, tmp_path):
    done = program.run("install", env={**os.environ, "JUPYTER_DATA_DIR": str(tmp_path / "data")})
    assert done.returncode == 0
    assert (tmp_path / "data/kernels" / program.name / "kernel.json").is_file()


def test_a_place_that_cannot_be_written_is_named(program, tmp_path):
    (tmp_path / "file").touch()
    done = program.run("install", "--prefix", tmp_path / "file")
    assert (done.returncode, done.stdout) == (1, "")
    assert str(tmp_path / "file") in done.stderr and "Traceback" not in done.stderr
