"""What the tests share."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import HealthCheck, Phase, settings

from alloy_async import Alloy
from alloy_async.stores import MemoryStore
from alloy_async.testing import CountingIds, ManualClock, RecordingEdge

settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)
settings.register_profile("thorough", settings.get_profile("default"), derandomize=False, max_examples=2_000)
# To show that a planted bug is found, the first failing example is enough: no time is spent on making it small.
settings.register_profile(
    "hunting", settings.get_profile("default"), max_examples=600, phases=[Phase.generate], print_blob=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

IDS = {"config_id": "ebebf826-a01f-4458-8cec-ef61de241c93", "ims_org_id": "ADB3LETTERSANDNUMBERS@AdobeOrg"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine reaches a test."""
    for name in list(os.environ):
        if name.startswith("ALLOY_"):
            monkeypatch.delenv(name)


@pytest.fixture
def clock() -> ManualClock:
    """Time that stands still."""
    return ManualClock()


@pytest.fixture
def edge() -> RecordingEdge:
    """An edge in memory."""
    return RecordingEdge()


@pytest.fixture
def store() -> MemoryStore:
    """A store in memory, that a test may give to several instances."""
    return MemoryStore()


@pytest.fixture
def options(clock, edge, store):
    """Options of ``configure`` with everything in memory, and consent asked for."""
    return {
        **IDS,
        "opt_in_enabled": True,
        "transport": edge,
        "store": store,
        "clock": clock,
        "ids": CountingIds(),
    }


@pytest.fixture
async def alloy(options):
    """A configured instance that waits for consent."""
    async with Alloy() as alloy:
        await alloy.configure(**options)
        yield alloy


async def settle(turns: int = 20) -> None:
    """Let the event loop take some turns, so that whatever can go on without time passing has gone on."""
    for _ in range(turns):
        await asyncio.sleep(0)
