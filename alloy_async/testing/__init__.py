"""What a test of an application needs, and what the library's own tests use."""

from ._clock import ArrangedCall, CountingIds, ManualClock
from ._loopback import Arrival, Chunked, Cut, Drip, LoopbackAnswer, LoopbackEdge, Reset
from ._observed import ObservedEdge
from ._outbox_suite import OutboxConformance
from ._recording import RecordedRequest, RecordingEdge
from ._sent import SentEvent
from ._serving import serve
from ._store_suite import StoreConformance

__all__ = [
    "ArrangedCall",
    "Arrival",
    "Chunked",
    "CountingIds",
    "Cut",
    "Drip",
    "LoopbackAnswer",
    "LoopbackEdge",
    "ManualClock",
    "ObservedEdge",
    "OutboxConformance",
    "RecordedRequest",
    "RecordingEdge",
    "Reset",
    "SentEvent",
    "StoreConformance",
    "serve",
]
