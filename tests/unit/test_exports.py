"""The front page: which names are public, said once more by hand, so that none appears or goes by accident."""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import alloy_async

NAMES = [
    "Alloy",
    "AlloyClosed",
    "AlloyError",
    "ConfigurationError",
    "ConsentDeclined",
    "ConsentStoreError",
    "ConsentTimeout",
    "EdgeError",
    "EventResult",
    "EventTooLarge",
    "Handle",
    "InvalidCommand",
    "NetworkError",
    "NotConfigured",
    "OptInState",
    "OptInStatistics",
    "OutboxError",
    "OutboxFull",
    "ParkingFull",
    "Settings",
    "Statistics",
    "StillParked",
    "Visitor",
    "__version__",
]

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

OPTIONAL = {
    "fastapi",
    "numpy",
    "orjson",
    "pandas",
    "redis",
    "rich",
    "starlette",
    "trustme",
    "typer",
    "uvicorn",
}


def test_the_front_page_exports_these_names():
    """The names of the front page are these, in alphabetical order, and each is there."""
    assert alloy_async.__all__ == NAMES == sorted(NAMES)
    assert [name for name in NAMES if not hasattr(alloy_async, name)] == []


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.endswith(("Closed", "Declined", "Error", "Full"))]
)
def test_each_error_is_an_alloy_error(name):
    """Whoever catches AlloyError catches them all."""
    assert issubclass(getattr(alloy_async, name), alloy_async.AlloyError)


def test_the_version_is_that_of_the_package():
    """``__version__``, written in the code for speed, equals what is installed and what pyproject says."""
    known = set()
    if PYPROJECT.is_file():
        project = tomllib.loads(PYPROJECT.read_text("utf-8")).get("project", {})
        known.add(project.get("version", alloy_async.__version__))
    with contextlib.suppress(
        importlib.metadata.PackageNotFoundError
    ):  # run from a source tree without installing
        known.add(importlib.metadata.version("alloy-async"))
    assert known == {alloy_async.__version__}


def test_importing_the_front_page_imports_nothing_optional():
    """The library comes without its extras, and without the HTTP client until one is configured."""
    code = "import sys, alloy_async; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert OPTIONAL & set(done.stdout.split()) == set()
    assert "httpx" not in done.stdout.split()
