"""JSON lines: from bytes to numbered lines, and from a line to an object."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from .blocking import in_thread

__all__ = ["BadLine", "Line", "LineCutter", "read_lines", "read_object"]

CHUNK = 65_536
"""Bytes that are read at once."""

MAX_LINE = 1_048_576
"""Bytes of one line. The edge takes 64 KB; with every character escaped these would be 384 KB."""

_BOM = b"\xef\xbb\xbf"


class BadLine(Exception):
    """A line that holds no event; its text says why, and shows nothing of the line."""


class Line(NamedTuple):
    """One line of a file.

    Attributes:
        number: counted from 1.
        content: its bytes, without the line feed; longer than ``MAX_LINE`` when it was cut off there.
    """

    number: int
    content: bytes

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing in it."""
        return not self.content.strip()


class LineCutter:
    """Cuts a stream of bytes at line feeds, and at nothing else.

    Text knows more line breaks (``str.splitlines`` cuts at U+2028, U+0085 …), and JSON allows them inside of texts.
    """

    def __init__(self) -> None:
        self._number = 0
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Line]:
        """Return the lines that end in this chunk."""
        *whole, rest = chunk.split(b"\n")
        lines = [self._line(piece) for piece in whole]
        # More of a line that is too long is not worth keeping.
        self._rest = (self._rest + rest)[: MAX_LINE + 1]
        return lines

    def end(self) -> list[Line]:
        """Return the last line, if it had no line feed."""
        return [self._line(b"")] if self._rest else []

    def _line(self, piece: bytes) -> Line:
        content, self._rest = self._rest + piece, b""
        self._number += 1
        return Line(self._number, content.removeprefix(_BOM) if self._number == 1 else content)


async def read_lines(descriptor: int) -> AsyncIterator[Line]:
    """Read lines from a file or a pipe as they come.

    Raises:
        OSError: reading failed.
    """
    # os.read and not a buffered reader, whose lock a thread that waits for a pipe would hold until after the end.
    cutter = LineCutter()
    while chunk := await in_thread(lambda: os.read(descriptor, CHUNK)):
        for line in cutter.feed(chunk):
            yield line
    for line in cutter.end():
        yield line


def read_object(content: bytes) -> dict[str, Any]:
    """Read the JSON object of one line.

    Raises:
        BadLine: there is none.
    """
    value = _read(content)
    if not isinstance(value, dict):
        raise BadLine(f"not a JSON object, but {_KINDS.get(type(value), 'a number')}")
    return value


_KINDS: dict[type, str] = {list: "an array", str: "a text", bool: "a boolean", type(None): "null"}


def _read(content: bytes) -> object:
    if len(content) > MAX_LINE:
        raise BadLine(f"longer than {MAX_LINE} bytes")
    try:
        return _DECODER.decode(content.decode())
    except UnicodeDecodeError as error:
        problem = f"not UTF-8, at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}, at column {error.colno}"
    except RecursionError:
        problem = "nested too deep"
    except ValueError:
        problem = "a number of more than 4300 digits"
    # Raised out here: the decoder's own error holds the whole line.
    raise BadLine(problem)


def _refuse_constant(name: str) -> None:
    raise BadLine(f"not JSON: {name} is no number there")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
