"""The few names of Python's own documentation that ours refers to, as an inventory that needs no network."""

from __future__ import annotations

import zlib

__all__ = ["python_inventory"]

PAGES = {
    "_asyncio.Future": "library/asyncio-future.html#asyncio.Future",  # what the class itself says it is called
    "asyncio.Future": "library/asyncio-future.html#asyncio.Future",
    "collections.abc.Callable": "library/collections.abc.html#collections.abc.Callable",
    "collections.abc.Collection": "library/collections.abc.html#collections.abc.Collection",
    "collections.abc.Iterable": "library/collections.abc.html#collections.abc.Iterable",
    "collections.abc.Iterator": "library/collections.abc.html#collections.abc.Iterator",
    "collections.abc.Mapping": "library/collections.abc.html#collections.abc.Mapping",
    "collections.abc.Sequence": "library/collections.abc.html#collections.abc.Sequence",
    "pathlib.Path": "library/pathlib.html#pathlib.Path",
    # As they stand in signatures whose imports are for type checkers only.
    "Path": "library/pathlib.html#pathlib.Path",
    "PathLike": "library/os.html#os.PathLike",
    "os.PathLike": "library/os.html#os.PathLike",
    "datetime": "library/datetime.html#datetime.datetime",
}


def python_inventory() -> bytes:
    """Return the inventory in Sphinx' format, version 2."""
    header = "# Sphinx inventory version 2\n# Project: Python\n# Version: 3\n# The remainder is compressed using zlib.\n"
    lines = "".join(f"{name} py:class 1 {page} -\n" for name, page in PAGES.items())
    return header.encode() + zlib.compress(lines.encode())
