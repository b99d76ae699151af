"""The worker records its jobs only with consent, and stops in an orderly way."""

from __future__ import annotations

import asyncio

import pytest
import worker


@pytest.mark.parametrize(("choice", "arrived"), [("all", 50), ("none", 0)])
async def test_every_job_is_accounted_for(edge, choice, arrived):
    """With consent each job arrives before the worker has stopped; without it none does."""
    jobs, stop = asyncio.Queue(), asyncio.Event()
    for job in range(50):
        jobs.put_nowait(job)
    working = asyncio.create_task(worker.work(jobs, stop, choice))
    await jobs.join()
    stop.set()
    books = await working
    assert sorted(record["event"]["data"]["job"] for record in edge.events) == list(range(arrived))
    assert (books.accepted, books.delivered, books.refused, books.open) == (50, arrived, 50 - arrived, 0)
