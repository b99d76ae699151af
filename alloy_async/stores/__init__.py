"""Where visitors' choices are kept: SQLite by default, memory, or a store of your own."""

from .base import Choice, Preference, Store, VisitorKey
from .memory import MemoryStore
from .sqlite import SQLiteStore

__all__ = ["Choice", "MemoryStore", "Preference", "SQLiteStore", "Store", "VisitorKey"]
