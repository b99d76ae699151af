"""Where visitors' choices are kept: SQLite by default, memory, or a store of your own."""

from .._consent._rules import Choice
from .base import Preference, Store, VisitorKey
from .memory import MemoryStore
from .sqlite import SQLiteStore

__all__ = ["Choice", "MemoryStore", "Preference", "SQLiteStore", "Store", "VisitorKey"]
