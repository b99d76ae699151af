"""Files that hold what visitors did: their owner's alone."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["create_private"]


def create_private(path: Path) -> None:
    """Create a file with mode 0600; one that exists keeps the mode that somebody gave it.

    Raises:
        OSError: it cannot be created.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
