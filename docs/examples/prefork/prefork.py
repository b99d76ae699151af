"""Workers as Celery and others make them: the parent forks, each child does jobs and records them.

The instance is made and configured in the parent. Each child has a thread, connections and books of its own, configured as
the parent was. The workers act for one person, who has chosen elsewhere; ``CHOICE`` stands for where that is kept.

In Celery ``work``'s last line belongs into a function that is connected to ``worker_process_shutdown``.
"""

from __future__ import annotations

import logging
import multiprocessing
import os

from alloy_async import Statistics
from alloy_async.blocking import BlockingAlloy

log = logging.getLogger("prefork")

alloy = BlockingAlloy("jobs")


def main(jobs: int = 100, workers: int = 2) -> list[Statistics]:
    """Have workers do jobs; return the books of each."""
    alloy.configure(config_id="ebebf826", ims_org_id="ADB3@AdobeOrg", opt_in_enabled=True)
    alloy.opt_in(purposes=os.environ.get("CHOICE", "none"))
    fork = multiprocessing.get_context("fork")
    queue, books = fork.SimpleQueue(), fork.SimpleQueue()
    children = [fork.Process(target=work, args=(queue, books)) for _ in range(workers)]
    for child in children:
        child.start()
    for job in [*range(jobs), *[None] * workers]:
        queue.put(job)
    found = [books.get() for _ in children]
    for child in children:
        child.join()
    return found


def work(queue, books) -> None:
    """Do jobs until there are no more; each is recorded, and none waits for the network."""
    try:
        for job in iter(queue.get, None):
            alloy.event(type="job.done", data={"job": job})
    finally:
        books.put(alloy.close(grace=3.0))  # multiprocessing ends a child without the interpreter's exit


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    for found in main():
        log.info("books: %s", found)
