"""Collect events with your visitors' consent.

The front page: what most programs need. Stores, outboxes, hooks, settings and test tools are one step down:
``alloy_async.stores``, ``alloy_async.outbox``, ``alloy_async.hooks``, ``alloy_async.settings``, ``alloy_async.testing``.
So is what programs need that have threads or a web framework: ``alloy_async.blocking``, ``alloy_async.asgi``,
``alloy_async.fastapi``.
"""

from typing import TYPE_CHECKING, Any

from ._client import Alloy
from ._consent._opt_in import OptInState, OptInStatistics
from ._ledger import Statistics
from ._version import __version__
from .edge.protocol import EventResult, Handle
from .errors import (
    AlloyClosed,
    AlloyError,
    ConfigurationError,
    ConsentDeclined,
    ConsentStoreError,
    ConsentTimeout,
    EdgeError,
    EventTooLarge,
    InvalidCommand,
    NetworkError,
    NotConfigured,
    OutboxError,
    OutboxFull,
    ParkingFull,
    StillParked,
)
from .visitor import Visitor

if TYPE_CHECKING:
    from .settings import Settings

__all__ = [
    "Alloy",
    "AlloyClosed",
    "AlloyError",
    "ConfigurationError",
    "ConsentDeclined",
    "ConsentStoreError",
    "ConsentTimeout",
    "EdgeError",
    "EventResult",
    "EventTooLarge",
    "Handle",
    "InvalidCommand",
    "NetworkError",
    "NotConfigured",
    "OptInState",
    "OptInStatistics",
    "OutboxError",
    "OutboxFull",
    "ParkingFull",
    "Settings",
    "Statistics",
    "StillParked",
    "Visitor",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # Settings is pydantic's, whose import takes longer than all of ours: it comes with the first configure().
    if name == "Settings":
        from .settings import Settings  # noqa: PLC0415 - as said above

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
