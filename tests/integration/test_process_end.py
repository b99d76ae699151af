"""How a process ends: no hang, no warning, and what nobody awaited is said."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.integration

PRELUDE = """
import asyncio, logging, warnings
warnings.simplefilter("error")
logging.basicConfig(format="%(levelname)s %(message)s")
import alloy_async.settings, httpx  # the first configure imports them, which debug mode would call slow
from alloy_async import Alloy
from alloy_async.testing import RecordingEdge
options = dict(config_id="c", ims_org_id="o", opt_in_enabled=True, transport=RecordingEdge(), state_dir={folder!r})
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a script in a new interpreter, with asyncio's debug mode on."""

    def run_script(script):
        source = PRELUDE.format(folder=str(tmp_path / "state")) + textwrap.dedent(script)
        command = [sys.executable, "-X", "dev", "-c", source]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run_script


def test_a_process_that_never_closes_exits(run):
    """An instance that is left open, with a thread for SQLite, keeps no interpreter from exiting."""
    done = run("""
        async def main():
            alloy = Alloy()
            await alloy.configure(**options)
            await alloy.opt_in(purposes="all")
            print((await alloy.event()).event_id)
        asyncio.run(main())
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.strip()) == 36


def test_events_that_nobody_awaited_do_not_warn(run):
    """A loop that ends while events are parked and on the wire leaves no warning of asyncio's."""
    done = run("""
        async def main():
            alloy = Alloy()
            options["transport"].hold()
            await alloy.configure(**options)
            alloy.event()
            await alloy.opt_in(purposes="all")
            for _ in range(10):
                alloy.event(view_start=True)
            await asyncio.sleep(0)
        asyncio.run(main())
    """)
    assert done.returncode == 0
    for word in ("never retrieved", "destroyed", "Traceback"):
        assert word not in done.stderr


def test_failures_that_nobody_awaited_are_said_once(run):
    """A thousand refused events that nobody awaited are one line with a count."""
    done = run("""
        async def main():
            async with Alloy() as alloy:
                await alloy.configure(**options)
                for _ in range(1_000):
                    alloy.event()
                await alloy.opt_in(purposes="none")
        asyncio.run(main())
    """)
    lines = [line for line in done.stderr.splitlines() if "nobody awaited" in line]
    assert done.returncode == 0
    assert len(lines) == 1
    assert lines[0].startswith(
        "WARNING 1000 ConsentDeclined that nobody awaited; the first: event: the visitor"
    )


def test_failures_after_the_loop_has_ended_are_said_too(run):
    """Also when the futures outlive the loop, one line counts them."""
    done = run("""
        async def main():
            alloy = Alloy()
            await alloy.configure(**options)
            await alloy.opt_in(purposes="none")
            return [alloy.event() for _ in range(7)]
        import gc
        asyncio.run(main())
        gc.collect()
    """)
    assert "7 ConsentDeclined that nobody awaited" in done.stderr
    assert done.stderr.count("nobody awaited") == 1


def test_failures_that_live_as_long_as_the_interpreter_are_said_too(run):
    """Also what a module keeps until the very end is not lost without a word."""
    done = run("""
        async def main():
            alloy = Alloy()
            await alloy.configure(**options)
            await alloy.opt_in(purposes="none")
            return [alloy.event() for _ in range(3)]
        futures = asyncio.run(main())
    """)
    assert done.stderr.count("ConsentDeclined that nobody awaited, at exit") == 1
