"""Lines of a file: cut at line feeds alone, in any chunks, and read strictly."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from hypothesis import given, strategies as st

from alloy_async.cli.lines import MAX_LINE, BadLine, LineCutter, read_lines, read_object


def cut(chunks: list[bytes]) -> list[bytes]:
    cutter = LineCutter()
    lines = [line for chunk in chunks for line in cutter.feed(chunk)] + cutter.end()
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    return [line.content for line in lines]


@given(st.lists(st.binary(max_size=20).map(lambda piece: piece.replace(b"\xef", b"\n"))))
def test_the_lines_do_not_depend_on_the_chunks(chunks):
    """However the bytes arrive, they are cut as if they had come at once."""
    whole = b"".join(chunks)
    expected = whole.split(b"\n")
    assert cut(chunks) == (expected if expected[-1] else expected[:-1])


def test_only_a_line_feed_ends_a_line():
    """Other line breaks of Unicode, and a carriage return, may stand inside of a line."""
    text = "a\u2028b\u0085c\x0bd\x1ce\rf"
    assert cut([text.encode() + b"\ng"]) == [text.encode(), b"g"]


def test_a_byte_order_mark_is_dropped_at_the_very_beginning_only():
    """It marks a file, not a line."""
    bom = b"\xef\xbb\xbf"
    assert cut([bom[:1], bom[1:] + b"a\n", bom + b"b"]) == [b"a", bom + b"b"]


def test_a_line_without_an_end_takes_bounded_memory():
    """What is beyond the limit is not kept; the line counts as one, and the next is read again."""
    cutter = LineCutter()
    for _ in range(100):
        assert cutter.feed(b"x" * 65_536) == []
        assert len(cutter._rest) <= MAX_LINE + 1
    (long, good) = cutter.feed(b"\n{}\n")
    assert (long.number, good.number, good.content) == (1, 2, b"{}")
    with pytest.raises(BadLine, match="longer than"):
        read_object(long.content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1]", "an array"),
        (b'"x"', "a text"),
        (b"null", "null"),
        (b"true", "a boolean"),
        (b"1", "a number"),
        (b"1.5", "a number"),
        (b'{"a": 1} {"b": 2}', "extra data, at column 10"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": NaN}', "NaN"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8, at byte 8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\x01"}', "control character"),
        (b'{"a": %b}' % (b"9" * 5_000), "4300 digits"),
        (b'{"a": ' * 100_000, "nested too deep"),
    ],
)
def test_what_is_not_an_object_in_strict_json_is_refused(content, reason):
    """The reason says what it is instead, and carries nothing of the line: no text, no cause, no context."""
    with pytest.raises(BadLine) as caught:
        read_object(content)
    assert reason in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_reason_does_not_drag_the_line_along():
    """The decoder's own error, which holds the whole line, is not in the chain."""
    with pytest.raises(BadLine) as caught:
        read_object(b'{"secret": oops}')
    assert caught.value.__context__ is None and "oops" not in str(caught.value)


async def test_lines_of_a_pipe_come_as_they_are_written():
    """A line is there before the pipe ends."""
    reading, writing = os.pipe()
    lines = read_lines(reading)
    os.write(writing, b"one\ntw")
    assert (await anext(lines)).content == b"one"
    os.write(writing, b"o")
    os.close(writing)
    assert (await anext(lines)).content == b"two"
    with pytest.raises(StopAsyncIteration):
        await anext(lines)
    os.close(reading)


async def test_a_source_that_fails_raises_its_error():
    """An error while reading is an OSError for whoever reads."""
    folder = os.open("/", os.O_RDONLY)
    with pytest.raises(OSError, match="Is a directory"):
        await anext(read_lines(folder))
    os.close(folder)
