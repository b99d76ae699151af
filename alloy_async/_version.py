"""What the library calls itself on the wire and in ``get_library_info``."""

from __future__ import annotations

__all__ = ["LIBRARY", "__version__"]

# Written here and not read from the installed metadata: importlib.metadata alone would cost a script 10 ms at start.
# A test compares the two.
__version__ = "0.1.0"

LIBRARY = "urn:python:alloy-async"
"""Identifies this library in ``xdm.implementationDetails.name``."""
