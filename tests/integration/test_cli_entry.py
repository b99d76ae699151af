"""The program's front door, with and without its extra packages."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import environment, run

import alloy_async

_WITHOUT = """
import sys

missing = sys.argv[1]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from alloy_async.__main__ import main
sys.argv[:] = ["alloy-async", "demo"]
sys.exit(main())
"""


def _run_without(module: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _WITHOUT, module]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_without_the_extra_it_says_in_one_sentence_how_to_install_it(module):
    """Without typer or rich the program names the command that installs them, and exits with 2."""
    done = _run_without(module)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "pip install 'alloy-async[cli]'" in done.stderr


@pytest.mark.parametrize("module", ["starlette", "uvicorn"])
def test_without_a_server_the_demo_says_how_to_install_it(module):
    """Without starlette or uvicorn the demo says the same."""
    pytest.importorskip("typer")
    done = _run_without(module)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "pip install 'alloy-async[cli]'" in done.stderr


def test_a_missing_module_of_another_kind_is_not_blamed_on_the_extra():
    """A module that no extra brings is a mistake, and shown as one."""
    pytest.importorskip("typer")
    done = _run_without("httpx")
    assert done.returncode == 1 and "httpx" in done.stderr and "alloy-async[cli]" not in done.stderr


def test_it_tells_its_version():
    """``--version`` prints name and version."""
    pytest.importorskip("typer")
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"alloy-async {alloy_async.__version__}\n")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["demo", "--help"],
        ["serve", "--help"],
        ["send", "--help"],
        ["consent", "--help"],
        ["consent", "show", "--help"],
        ["consent", "forget", "-h"],
    ],
)
def test_every_command_explains_itself(words):
    """``--help`` prints how a command is used, and exits with 0."""
    pytest.importorskip("typer")
    done = run(*words)
    assert done.returncode == 0 and "Usage: alloy-async" in done.stdout and done.stderr == ""


def test_an_unknown_command_is_a_usage_error():
    """An unknown word exits with 2 and shows no traceback."""
    pytest.importorskip("typer")
    done = run("sned")
    assert done.returncode == 2 and "sned" in done.stderr and "Traceback" not in done.stderr
