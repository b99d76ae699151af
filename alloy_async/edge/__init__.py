"""The collection endpoint: what is said to it, what it answers, and the way there."""

from .protocol import EventResult, Handle
from .transport import EdgeRequest, EdgeResponse, Transport, Withdrawn

__all__ = ["EdgeRequest", "EdgeResponse", "EventResult", "Handle", "Transport", "Withdrawn"]
