"""Where released events are kept until the edge has taken them: memory, SQLite, Redis (``outbox.redis``), or one of your own."""

from .base import LEASE, Changes, Claimed, Outbox, OutboxEvent, Row, Shelf, Stored, VisitorKey
from .memory import MemoryOutbox, MemoryShelf
from .sqlite import SQLiteOutbox

__all__ = [
    "LEASE",
    "Changes",
    "Claimed",
    "MemoryOutbox",
    "MemoryShelf",
    "Outbox",
    "OutboxEvent",
    "Row",
    "SQLiteOutbox",
    "Shelf",
    "Stored",
    "VisitorKey",
]
