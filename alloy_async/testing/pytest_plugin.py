"""What the fixture ``alloy_edge`` of the pytest plugin does; imported by the first test that uses it.

What pytest has to know before stands in ``_alloy_async_pytest``, beside the package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from ._observed import ObservedEdge
from ._serving import observe

__all__ = ["edge_of"]


@contextmanager
def edge_of(item: pytest.Item) -> Iterator[ObservedEdge]:
    """Make the edge that a test's markers ``alloy`` ask for; a live one stands in the environment as well.

    Args:
        item: the test.
    """
    with ExitStack() as stack:
        options = _options(item)
        edge = _open(stack, options)
        if options.get("live"):
            environment = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in edge.environment.items():
                environment.setenv(name, value)
        yield edge


def _options(item: pytest.Item) -> dict[str, Any]:
    """Put together what the markers of a test, its class and its module say; the nearest one wins."""
    options: dict[str, Any] = {}
    for marker in item.iter_markers("alloy"):
        if marker.args:
            pytest.fail("@pytest.mark.alloy: takes names only, for example consent='all'.", pytrace=False)
        options = {**marker.kwargs, **options}
    return options


def _open(stack: ExitStack, options: Mapping[str, Any]) -> ObservedEdge:
    try:
        return stack.enter_context(observe(**options))
    except ModuleNotFoundError as error:
        raise pytest.fail.Exception(f"alloy_edge: {error}", pytrace=False) from None
    except (TypeError, ValueError) as error:
        raise pytest.fail.Exception(f"@pytest.mark.alloy: {error}", pytrace=False) from None
