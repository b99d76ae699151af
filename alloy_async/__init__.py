"""Collect events with your visitors' consent.

The front page: what most programs need. Stores, hooks, settings and test tools are one step down:
``alloy_async.stores``, ``alloy_async.hooks``, ``alloy_async.settings``, ``alloy_async.testing``.
"""

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
    OutboxFull,
    ParkingFull,
)
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
    "OutboxFull",
    "ParkingFull",
    "Settings",
    "Statistics",
    "__version__",
]
