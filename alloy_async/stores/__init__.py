"""Where visitors' choices are kept: SQLite by default, memory, Redis (``stores.redis``), or a store of your own."""

from .base import Change, Choice, Preference, Store, VisitorKey, WatchedStore, consents_since, visitor_digest
from .memory import MemoryStore
from .sqlite import SQLiteStore

__all__ = [
    "Change",
    "Choice",
    "MemoryStore",
    "Preference",
    "SQLiteStore",
    "Store",
    "VisitorKey",
    "WatchedStore",
    "consents_since",
    "visitor_digest",
]
