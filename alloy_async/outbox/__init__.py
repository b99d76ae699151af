"""Where a released event waits for the wire."""

from .memory import MemoryOutbox

__all__ = ["MemoryOutbox"]
