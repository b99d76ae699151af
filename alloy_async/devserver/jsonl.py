"""Exchanges as JSON lines: for ``jq``, for pipes, and still there on the next start."""

from __future__ import annotations

import re
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from .exchange import Exchange
from .past import read_exchanges
from .private_file import create_private
from .recorder import MAX_SIZE, Past

if TYPE_CHECKING:
    import os

__all__ = ["JSONLinesFile"]

_RECORDED = re.compile(r'\{"recorded": (\d+), ')


class JSONLinesFile:
    """A sink in one text file, a line for each exchange, as `Exchange.as_json` writes it.

    The file holds personal data, so it is created for its owner alone (mode 0600). Each line is handed to the operating
    system at once, so that ``tail -f`` shows it and a crash of the process loses none. A line that cannot be read, as
    the last one after a power cut, is left where it is and skipped, with a line in the log.

    Args:
        path: the file; its folder must exist.

    Raises (with the first use):
        OSError: the file cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._open: TextIO | None = None

    def load(self, limit: int) -> Past:
        """Return the newest exchanges of earlier runs, at most ``limit``, and no more than memory takes."""
        create_private(self._path)
        newest: deque[str] = deque()
        size = earlier = earlier_events = 0
        with self._path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for line in lines:
                newest.append(line)
                size += len(line)
                while len(newest) > limit or (size > MAX_SIZE and len(newest) > 1):
                    gone = newest.popleft()
                    size -= len(gone)
                    earlier += 1
                    earlier_events += _recorded(gone)
        self._stream()
        return Past(read_exchanges(newest, self._path), earlier, earlier_events)

    def write(self, exchange: Exchange) -> None:
        """Keep one exchange."""
        stream = self._stream()
        # In JSON a line break is white space: within strings it is always escaped.
        stream.write(exchange.as_json().replace("\n", " ").replace("\r", " ") + "\n")
        stream.flush()

    def clear(self) -> None:
        """Forget all exchanges."""
        stream = self._stream()
        stream.seek(0)
        stream.truncate()

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._open is not None:
            stream, self._open = self._open, None
            stream.close()

    def _stream(self) -> TextIO:
        if self._open is None:
            create_private(self._path)
            self._open = self._path.open("a", encoding="utf-8", newline="\n")
            _end_last_line(self._path, self._open)
        return self._open


def _recorded(line: str) -> int:
    found = _RECORDED.match(line)
    return int(found[1]) if found else 0


def _end_last_line(path: Path, stream: TextIO) -> None:
    """Begin a line of its own after one that a crash cut."""
    with path.open("rb") as content, suppress(OSError):
        content.seek(-1, 2)
        if content.read(1) != b"\n":
            stream.write("\n")
