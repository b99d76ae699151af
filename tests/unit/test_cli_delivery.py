"""The way of lines through the gate, with everything in memory: what waits is bounded, every line is accounted for."""

from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from common import IDS

from alloy_async import Alloy, Settings
from alloy_async.cli.delivery import MAX_UNDER_WAY, Delivery
from alloy_async.cli.lines import Line
from alloy_async.edge.transport import EdgeResponse
from alloy_async.stores import MemoryStore
from alloy_async.testing import RecordingEdge


class Listener:
    """Notes what it hears."""

    def __init__(self) -> None:
        self.problems: list[tuple[int, str]] = []
        self.notes: list[tuple[int, str]] = []
        self.size = 0

    def ended(self, size: int) -> None:
        self.size += size

    def problem(self, line: int, reason: str) -> None:
        self.problems.append((line, reason))

    def note(self, line: int, remark: str) -> None:
        self.notes.append((line, remark))


class Run:
    """One delivery, and what it asked for."""

    def __init__(self, answers: list[str], **limits) -> None:
        self.edge = RecordingEdge()
        self.listener = Listener()
        self.asked: list[int] = []
        self.most = 0
        self._answers = list(answers)
        options = {**IDS, "opt_in_enabled": True, "transport": self.edge, "store": MemoryStore(), **limits}
        self.alloy = Alloy()
        self.delivery = Delivery(
            self.alloy, Settings.resolve(options), obtain=self._obtain, observer=self.listener
        )
        self._options = options | {"hooks": [self.delivery.notice]}

    async def _obtain(self, waiting: int) -> str:
        self.asked.append(waiting)
        return self._answers.pop(0)

    async def deliver(self, contents: list[bytes]) -> None:
        async with self.alloy:
            await self.alloy.configure(**self._options)
            await self.delivery.deliver(self._lines(contents))

    async def _lines(self, contents):
        for number, content in enumerate(contents, start=1):
            self.most = max(self.most, self.alloy.statistics().open)
            yield Line(number, content)


def numbered(count: int) -> list[bytes]:
    return [b'{"n": %d}' % number for number in range(count)]


async def test_the_choice_is_obtained_once_everything_waits():
    """At the end of the lines, once, with the number of events that wait."""
    run = Run(["all"])
    await run.deliver(numbered(7))
    assert run.asked == [7] and len(run.edge.events) == run.alloy.statistics().delivered == 7


async def test_the_choice_is_obtained_when_no_more_may_wait():
    """With more lines than room it is obtained at the bound, and nothing overflows."""
    run = Run(["all"], max_parked=5)
    await run.deliver(numbered(50))
    assert run.asked == [5]
    assert run.alloy.statistics().delivered == 50 and run.alloy.statistics().overflowed == 0


async def test_nothing_waits_beyond_the_room_in_bytes():
    """The largest event there can be always finds room."""
    run = Run(["none"], max_parked_bytes=200_000)
    await run.deliver([b'{"n": "%b"}' % (b"x" * 60_000) for _ in range(20)])
    assert run.asked == [3] and run.alloy.statistics().refused == 20


async def test_a_room_smaller_than_one_event_still_lets_one_wait():
    """It ends, with the one that found no room reported."""
    run = Run(["all", "all"], max_parked_bytes=100)
    await run.deliver([b'{"n": "%b"}' % (b"x" * 200), b"{}"])
    assert [number for number, _ in run.listener.problems][:1] == [1]
    assert run.alloy.statistics().open == 0


async def test_where_nothing_waits_nobody_is_asked():
    """A file of nothing but bad and blank lines needs no choice."""
    run = Run([])
    await run.deliver([b"", b"bad", b"   "])
    assert run.asked == [] and run.delivery.lines == 1
    assert [number for number, _ in run.listener.problems] == [2]


async def test_a_choice_that_was_adopted_is_not_obtained():
    """A stored choice holds until it expires."""
    run = Run([], opt_in_enabled=False)
    run.delivery.adopt("all", time.time() + 60)
    await run.deliver(numbered(3))
    assert run.asked == [] and run.alloy.statistics().delivered == 3


async def test_what_is_under_way_after_the_choice_is_bounded():
    """Lines are read only as fast as the edge takes them."""
    run = Run([], opt_in_enabled=False)
    run.delivery.adopt("all", time.time() + 60)
    await run.deliver(numbered(3 * MAX_UNDER_WAY))
    assert run.alloy.statistics().delivered == 3 * MAX_UNDER_WAY
    assert MAX_UNDER_WAY // 2 < run.most <= MAX_UNDER_WAY


async def test_a_small_queue_is_never_overrun():
    """The bounds of the queue are respected, in number and in bytes."""
    run = Run([], opt_in_enabled=False, max_queued=10, max_queued_bytes=10_000)
    run.delivery.adopt("all", time.time() + 60)
    await run.deliver(numbered(500))
    assert run.alloy.statistics().delivered == 500 and run.most <= 10


async def test_every_line_is_heard_of_once():
    """The sizes add up to the file's, whatever becomes of the lines."""
    contents = [b'{"n": 1}', b"bad", b"", b'{"n": 1e400}', b'{"n": 2}']
    run = Run(["all"])
    await run.deliver(contents)
    assert run.listener.size == sum(len(content) + 1 for content in contents)
    assert [number for number, _ in run.listener.problems] == [2, 4] and run.delivery.lines == 4


def ignored(code: str) -> EdgeResponse:
    problem = {
        "type": f"https://ns.adobe.com/aep/errors/{code}",
        "status": 200,
        "title": "A title of the edge",
    }
    return EdgeResponse(200, {}, json.dumps({"requestId": "r", "handle": [], "warnings": [problem]}).encode())


async def test_a_refusal_of_the_edge_is_a_finding_about_the_line():
    """The visitor's own refusal is one fact about the run; the edge's is told with the line."""
    run = Run(["all"])
    run.edge.answers.append(ignored("EXEG-0301-200"))
    await run.deliver([b"{}"])
    (found,) = run.listener.problems
    assert found[0] == 1 and "EXEG-0301" in found[1] and run.alloy.statistics().refused == 1


async def test_a_refusal_of_the_visitor_is_no_finding_about_the_line():
    """It is counted, and not told line by line."""
    run = Run(["none"])
    await run.deliver(numbered(3))
    assert run.listener.problems == [] and run.alloy.statistics().refused == 3


async def test_remarks_of_the_edge_are_passed_on():
    """A warning in the answer is told with the line that it is about; the line is delivered."""
    run = Run(["all"])
    run.edge.answers.append(ignored("EXEG-0205-200"))
    await run.deliver([b"{}"])
    assert run.listener.notes == [(1, "A title of the edge")] and run.alloy.statistics().delivered == 1


async def test_an_error_of_the_source_loses_nothing_that_was_read():
    """What came before it is delivered, then the error is raised."""
    run = Run(["all"])

    async def lines():
        yield Line(1, b"{}")
        raise OSError(5, "Input/output error")

    async with run.alloy:
        await run.alloy.configure(**run._options)
        with pytest.raises(OSError, match="Input/output"):
            await run.delivery.deliver(lines())
    assert run.alloy.statistics().delivered == 1
