"""What the tests share."""

from __future__ import annotations

import os

import pytest
from common import IDS
from hypothesis import HealthCheck, Phase, settings

from alloy_async import Alloy
from alloy_async.stores import MemoryStore
from alloy_async.testing import CountingIds, ManualClock, RecordingEdge

settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)
settings.register_profile("thorough", settings.get_profile("default"), derandomize=False, max_examples=2_000)
# To show that a planted bug is found, the first failing example is enough: no time is spent on making it small. There are
# many more than it usually takes, so that a change of the code, which draws others, finds one too.
settings.register_profile(
    "hunting", settings.get_profile("default"), max_examples=2_400, phases=[Phase.generate], print_blob=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


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
