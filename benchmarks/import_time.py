"""What ``import alloy_async`` costs a program that starts, and what the package takes on disk."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from measure import Finding, compare

REACH = 1.5  # times `import httpx, pydantic`
OURS, REFERENCE = "import alloy_async", "import httpx, pydantic"

# The interpreter's own start is left out: it would make every ratio look better.
PROGRAM = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{0}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def findings(*, smoke: bool) -> list[Finding]:
    """Import by turns in fresh interpreters; then add up what is installed."""
    pairs = [(_import(OURS), _import(REFERENCE)) for _ in range(2 if smoke else 41)][1:]
    question = f"{OURS}, against {REFERENCE}"
    cpu = [(own[1] * 1e3, other[1] * 1e3) for own, other in pairs]
    wall = [(own[0] * 1e3, other[0] * 1e3) for own, other in pairs]
    return [
        compare(f"{question}: CPU", "ms", cpu, reach=REACH),
        compare(f"{question}: wall clock", "ms", wall, reach=REACH),
        *_installed(),
    ]


def slowest(count: int) -> list[str]:
    """Return the modules that take most time by themselves, as ``-X importtime`` tells (µs, with those they import)."""
    command = [sys.executable, "-P", "-X", "importtime", "-c", OURS]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)", told)
    lines.sort(key=lambda line: -int(line[0]))
    return [f"{own:>8} {altogether:>8}  {module}" for own, altogether, module in lines[:count]]


def _import(statement: str) -> tuple[float, float]:
    """Return the seconds that a statement takes in a fresh interpreter: wall clock, and user and system CPU time."""
    command = [sys.executable, "-P", "-c", PROGRAM.format(statement)]  # -P: nothing from the current folder
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wall, cpu = map(float, told.split())
    return wall, cpu


def _installed() -> list[Finding]:
    """Compare sizes on disk; without the package's metadata (a source tree) nobody knows what belongs to it."""
    try:
        ours = _with_requirements("alloy-async")
    except importlib.metadata.PackageNotFoundError:
        return []
    reference = _with_requirements("httpx")
    sizes = [(_megabytes(ours), _megabytes(reference))]
    return [
        compare("installed with dependencies, against httpx with its own", "MB", sizes),
        Finding("installed, alloy-async by itself", _megabytes({"alloy-async"}), "MB"),
    ]


def _with_requirements(name: str) -> set[str]:
    """Return a distribution and everything that it requires without an extra."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        requirements = importlib.metadata.requires(name) or []
        found.add(name)
        waiting += [
            required for required in map(_required, requirements) if required and required not in found
        ]
    return found


def _required(requirement: str) -> str | None:
    """Return the distribution that a requirement names; None when it does not count on this machine.

    What a condition on system or version asks for is installed or not; so nothing has to be evaluated.
    """
    name, _, condition = requirement.partition(";")
    if re.search(r"\bextra\b", condition):
        return None
    name = re.split(r"[^A-Za-z0-9._-]", name.strip())[0]
    name = re.sub(r"[-_.]+", "-", name).lower()
    return name if not condition or any(importlib.metadata.distributions(name=name)) else None


def _megabytes(names: set[str]) -> float:
    return sum(_size(name) for name in names) / 1e6


def _size(name: str) -> int:
    """Return the bytes of a distribution's files, compiled ones aside: Python makes these when it likes."""
    files = [Path(str(file.locate())) for file in importlib.metadata.files(name) or []]
    if any(file.name.startswith("__editable__") or file.suffix == ".pth" for file in files):
        package = name.replace("-", "_")
        files = list(Path(sys.modules[package].__path__[0] if package in sys.modules else package).rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
