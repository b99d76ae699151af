"""What pytest has to know of alloy-async when it starts: a marker and two fixtures.

It stands beside the package because importing any module of a package imports its front page first, and whoever runs
tests that have nothing to do with it should not wait for that. The first test that asks for a fixture imports the rest.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from alloy_async import Alloy
    from alloy_async.testing import ObservedEdge

__all__ = ["alloy", "alloy_edge", "pytest_configure"]

_MARKER = (
    "alloy(*, consent='pending', live=False, faults=[], **edge_options): "
    "what visitors have chosen before ('pending', 'all', 'none'), whether the edge listens on a port of loopback, "
    "what goes wrong there, and other options of DevelopmentEdge; for the fixtures alloy_edge and alloy."
)

_NO_LOOP = (
    "alloy: needs an event loop; mark the test with @pytest.mark.anyio, or install pytest-asyncio. "
    "A test without a loop makes a BlockingAlloy and configures it with alloy_edge.settings."
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and a fixture that pytest-asyncio understands where it is there."""
    config.addinivalue_line("markers", _MARKER)
    plugin = sys.modules.get("pytest_asyncio.plugin")
    if plugin is not None and config.pluginmanager.is_registered(plugin):
        config.pluginmanager.register(_with_asyncio(), "alloy_async_with_asyncio")


@pytest.fixture
def alloy_edge(request: pytest.FixtureRequest) -> Iterator[ObservedEdge]:
    """The development edge, in this process or (``@pytest.mark.alloy(live=True)``) on a port of its own."""
    from alloy_async.testing.pytest_plugin import edge_of  # noqa: PLC0415 - starts to cost something here

    with edge_of(request.node) as edge:
        yield edge


@pytest.fixture
def alloy(request: pytest.FixtureRequest) -> Alloy:
    """An ``Alloy`` in front of ``alloy_edge``, in memory, that asks for consent; closed when the test ends."""
    # Async fixtures belong to the plugin that runs the test, so there is one for each, and this one chooses.
    name = "_alloy_with_anyio" if "anyio_backend" in request.fixturenames else "_alloy_with_asyncio"
    try:
        instance: Alloy = request.getfixturevalue(name)
    except pytest.FixtureLookupError:
        raise pytest.fail.Exception(_NO_LOOP, pytrace=False) from None
    return instance


async def _configured(alloy_edge: ObservedEdge) -> AsyncIterator[Alloy]:
    from alloy_async import Alloy  # noqa: PLC0415 - as above

    alloy = Alloy()
    try:
        await alloy.configure(**alloy_edge.settings)
        yield alloy
    finally:
        await alloy.aclose(grace=0.0)  # whoever wants to see an event arrive has waited for it


_with_anyio = pytest.fixture(name="_alloy_with_anyio")(_configured)


def _with_asyncio() -> ModuleType:
    """Make a plugin of one fixture, in the words of pytest-asyncio, which is there."""
    import pytest_asyncio  # noqa: PLC0415 - as just said

    plugin = ModuleType("alloy_async_with_asyncio")
    vars(plugin)["configured"] = pytest_asyncio.fixture(name="_alloy_with_asyncio")(_configured)
    return plugin
