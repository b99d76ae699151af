"""What a test of an application needs, and what the library's own tests use."""

from ._clock import CountingIds, ManualClock
from ._recording import RecordedRequest, RecordingEdge

__all__ = ["CountingIds", "ManualClock", "RecordedRequest", "RecordingEdge"]
