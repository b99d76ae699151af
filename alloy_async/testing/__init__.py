"""What a test of an application needs, and what the library's own tests use."""

from ._clock import CountingIds, ManualClock
from ._loopback import Arrival, Chunked, Cut, Drip, LoopbackAnswer, LoopbackEdge, Reset
from ._recording import RecordedRequest, RecordingEdge
from ._store_suite import StoreConformance

__all__ = [
    "Arrival",
    "Chunked",
    "CountingIds",
    "Cut",
    "Drip",
    "LoopbackAnswer",
    "LoopbackEdge",
    "ManualClock",
    "RecordedRequest",
    "RecordingEdge",
    "Reset",
    "StoreConformance",
]
