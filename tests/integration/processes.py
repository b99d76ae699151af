"""What the tests of whole processes share: a script in an interpreter of its own, and talk with it line by line."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from contextlib import asynccontextmanager

PATIENCE = 60.0
"""Seconds after which a process that says nothing counts as hung; far above what a slow machine needs."""

PRELUDE = """
import asyncio, logging, multiprocessing, os, signal, sys, threading, time, warnings
warnings.simplefilter("error")
# Since 3.12 Python warns of a fork with threads about; that it works here is what is tested.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
logging.basicConfig(format="%(levelname)s %(message)s")
# Debug mode says of each callback when it took long; that is a matter of the machine.
logging.getLogger("asyncio").addFilter(lambda record: not record.msg.startswith("Executing "))
# The first configure imports these, which debug mode would call slow.
import httpx, anyio._backends._asyncio, alloy_async.settings, alloy_async.edge._httpx
import alloy_async.stores.sqlite, alloy_async.outbox.sqlite
from alloy_async import *
from alloy_async._clock import SystemClock
from alloy_async.testing import RecordingEdge

options = {options!r}

class Hasty(SystemClock):
    # Waits a hundredth of what it is asked for.
    def call_later(self, delay, callback):
        return super().call_later(delay / 100, callback)

def say(*words):
    # In one piece: whoever is killed in the middle of a line would leave half of it before the next one's.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def hear():
    return sys.stdin.readline().strip()

async def told():
    return await asyncio.to_thread(hear)

def fork(work, *arguments):
    # Of a child whose work fails it says why, and the status is 1.
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        asyncio.run(work(*arguments))
        status = 0
    except BaseException as error:
        say(repr(error))
    finally:
        os._exit(status)

"""


class Process:
    """A script that runs; ``stderr`` and ``status`` are known after ``end``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid
        self.status: int | None = None
        self.lines: list[str] = []
        self.stderr = ""

    async def hear(self) -> str:
        """Return the next line it says."""
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
        if not line:
            await self.end()
            raise AssertionError(f"it ended with {self.status}: {self.stderr}")
        return line.decode().strip()

    def tell(self, line: str = "") -> None:
        """Say a line to it."""
        self._process.stdin.write(f"{line}\n".encode())

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def end(self) -> list[str]:
        """Wait until it has ended, and return what else it said."""
        out, err = await asyncio.wait_for(self._process.communicate(), PATIENCE)
        self.stderr = err.decode()
        self.status = self._process.returncode
        return out.decode().split("\n")[:-1]

    async def ends_well(self) -> list[str]:
        """Wait until it has ended with status 0 and without a complaint, and return what else it said."""
        lines = await self.end()
        assert (self.status, self.stderr) == (0, ""), f"it ended with {self.status}: {self.stderr}"
        return lines


@asynccontextmanager
async def running(script: str, options: dict, *, dev: bool = True):
    """Run a script after the prelude; it is killed with its children, if it still runs, when the block ends."""
    source = PRELUDE.format(options=options) + textwrap.dedent(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    flags = ["-X", "dev"] if dev else []
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *flags,
        "-c",
        source,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # its children too: they hold the same pipes
            await process.communicate()
