"""Each worker's jobs are recorded by the worker itself, and only with consent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("prefork.py")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks as POSIX has them")


@pytest.mark.parametrize(("choice", "arrived"), [("all", 100), ("none", 0)])
def test_every_job_is_accounted_for(edge, choice, arrived):
    """With consent each job arrives once, whichever worker did it; without it none does."""
    done = subprocess.run(
        [sys.executable, SCRIPT],
        env=os.environ | {"CHOICE": choice},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(record["event"]["data"]["job"] for record in edge.events) == list(range(arrived))
    lines = [line for line in done.stderr.splitlines() if line.startswith("INFO:prefork:books: ")]
    assert len(lines) == 2
    outcome = "delivered" if choice == "all" else "refused"
    assert sum(int(line.partition(f"{outcome}=")[2].partition(",")[0]) for line in lines) == 100
