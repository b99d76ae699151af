"""A long-lived worker: jobs come in, each is recorded, SIGTERM or Ctrl-C ends it in an orderly way.

The worker acts for one person, who has chosen elsewhere; ``CHOICE`` stands for where that is kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal

from alloy_async import Alloy, Statistics
from alloy_async.hooks import Failed

log = logging.getLogger("worker")


async def work(jobs: asyncio.Queue[int], stop: asyncio.Event, choice: str) -> Statistics:
    """Do jobs until told to stop; return the final books."""
    alloy = Alloy("worker")
    await alloy.configure(
        config_id="ebebf826", ims_org_id="ADB3@AdobeOrg", opt_in_enabled=True, hooks=[report_failure]
    )
    await alloy.opt_in(purposes=choice)
    try:
        await until(stop, do_jobs(jobs, alloy))
    finally:
        books = await alloy.aclose(grace=3.0)  # sends what is released, ends the rest
        log.info("books: %s", books)
    return books


async def do_jobs(jobs: asyncio.Queue[int], alloy: Alloy) -> None:
    while True:
        job = await jobs.get()
        alloy.event(type="job.done", data={"job": job})  # not awaited: recording must not hold up the work
        jobs.task_done()


def report_failure(record: object) -> None:
    if isinstance(record, Failed):
        log.warning("not recorded: %s", record.error)


async def until(stop: asyncio.Event, coroutine) -> None:
    """Run a coroutine until it ends or is told to stop."""
    task, stopped = asyncio.ensure_future(coroutine), asyncio.ensure_future(stop.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    for one in (task, stopped):
        one.cancel()
    await asyncio.gather(task, stopped, return_exceptions=True)


async def main() -> None:
    jobs, stop = asyncio.Queue(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    for job in range(100):
        jobs.put_nowait(job)
    await work(jobs, stop, os.environ.get("CHOICE", "none"))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
