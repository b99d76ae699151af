"""The rules of opting in, as a table: what is called, how each command ends, and what was sent.

A row reads like a short story. Steps, separated by blanks, are called one after the other, and everything goes on
that can go on; steps joined by ``+`` are called in one breath.

=============  =======================================================================================
``cfg``        configure with the gate switched on; ``cfg:open`` switched off, ``cfg:other`` for another
               organisation, ``cfg:quiet`` with errors_enabled=False, ``cfg:bad`` with options of wrong kinds
``a`` … ``z``  event of that type; ``A`` … ``Z`` likewise, with view_start
``all none``   opt_in with this word; ``say:WORD`` with any other, ``say:`` with none
``ecid ids``   get_ecid, set_customer_ids; ``merge info log bogus``: the commands that never wait
``reload``     close, and begin again with the same store
``second.X``   X in a second instance, of another organisation
``hold``       the edge keeps its answers; ``release`` gives them
``shut``       requests wait while connecting, before they ask whether they may start; ``open`` lets them
``500`` …      the edge answers the next requests with this status; ``ok`` answers well again
``later``      an hour passes
=============  =======================================================================================

How a command ends: ``ok``, ``…`` for pending, ``gone`` for pending until its instance was closed, or its error.
"""

import asyncio

import pytest
from common import IDS, settle

from alloy_async import Alloy
from alloy_async.edge.transport import EdgeResponse
from alloy_async.stores import MemoryStore
from alloy_async.testing import CountingIds, ManualClock, RecordingEdge

SHORT = {
    "no": "ConsentDeclined",
    "early": "NotConfigured",
    "config": "ConfigurationError",
    "wrong": "InvalidCommand",
    "edge": "EdgeError",
    "gone": "AlloyClosed",
}

ROWS = [
    # the gate is off, pending, in, out
    ("cfg:open a", "ok ok", "a"),
    ("cfg a later", "ok …", ""),
    ("cfg a all", "ok ok ok", "a"),
    ("cfg a none", "ok no ok", ""),
    ("cfg a+b+c all", "ok ok ok ok ok", "abc"),
    ("cfg a+b+c none", "ok no no no ok", ""),
    ("cfg all a b", "ok ok ok ok", "ab"),
    ("cfg none a b", "ok ok no no", ""),
    ("cfg a+all", "ok ok ok", "a"),
    ("cfg a+none", "ok no ok", ""),
    ("cfg+a+all", "ok ok ok", "a"),
    ("cfg+a+none", "ok no ok", ""),
    ("cfg a A all", "ok ok ok ok", "aA"),
    # a change of mind
    ("cfg a none all b", "ok no ok ok ok", "b"),
    ("cfg all a none b", "ok ok ok ok no", "a"),
    ("cfg a all+none b", "ok no ok ok no", ""),
    ("cfg a none+all b", "ok no ok ok ok", "b"),
    ("cfg a none+b+all c", "ok no ok no ok ok", "c"),
    ("cfg a+all+none+all b", "ok no ok ok ok ok", "b"),
    ("cfg all a none b all c none d", "ok ok ok ok no ok ok ok no", "ac"),
    ("cfg a all all b", "ok ok ok ok ok", "ab"),
    ("cfg a none none b", "ok no ok ok no", ""),
    # what is on the wire settles with the truth, and nothing starts after a refusal
    ("cfg all hold a none release b", "ok ok ok ok no", "a"),
    ("cfg all hold A none release", "ok ok ok ok", "A"),
    ("cfg all a 500 hold b none release", "ok ok ok edge ok", "ab"),
    ("cfg all a+none", "ok ok no ok", ""),
    ("cfg all hold a+b c none release", "ok ok ok ok no ok", "ab"),
    ("cfg all shut a none open", "ok ok no ok", ""),
    ("cfg all shut a none+all open b", "ok ok no ok ok ok", "b"),
    ("cfg all shut a+A b none open all c", "ok ok no no no ok ok ok", "c"),
    ("cfg all shut ecid none open", "ok ok no ok", ""),
    # the word: any letter case, nothing else
    ("cfg a say:ALL b reload cfg c", "ok ok ok ok ok ok", "abc"),
    ("cfg a say:None b", "ok no ok no", ""),
    ("cfg a say:_all_ reload cfg c", "ok gone wrong ok …", ""),
    ("cfg a say:some b", "ok … wrong …", ""),
    ("cfg a say:1", "ok … wrong", ""),
    ("cfg a say:True", "ok … wrong", ""),
    ("cfg a say:yes", "ok … wrong", ""),
    ("cfg a say:in", "ok … wrong", ""),
    ("cfg a say:pending", "ok … wrong", ""),
    ("cfg a say:", "ok … wrong", ""),
    ("cfg a say:x all", "ok ok wrong ok", "a"),
    ("cfg none say:x a", "ok ok wrong no", ""),
    ("cfg all say:x a", "ok ok wrong ok", "a"),
    # the choice survives; what waited does not
    ("cfg all a reload cfg b", "ok ok ok ok ok", "ab"),
    ("cfg none reload cfg a all b", "ok ok ok no ok ok", "b"),
    ("cfg a reload cfg all b", "ok gone ok ok ok", "b"),
    ("cfg all none reload cfg a", "ok ok ok ok no", ""),
    ("cfg none all reload cfg a", "ok ok ok ok ok", "a"),
    ("cfg all reload cfg:other a", "ok ok ok …", ""),
    ("cfg none reload cfg:open a", "ok ok config early", ""),
    ("cfg all reload cfg:open a", "ok ok ok ok", "a"),
    # a switched-off gate swallows no choice
    ("cfg:open none a", "ok config ok", "a"),
    ("cfg:open all a", "ok config ok", "a"),
    # other commands that wait
    ("cfg ecid none ecid", "ok no ok no", ""),
    ("cfg ecid all ecid", "ok ok ok ok", ""),
    ("cfg ids none ids", "ok no ok no", ""),
    ("cfg ids all a", "ok ok ok ok", "a"),
    ("cfg a+ecid+b later", "ok … … …", ""),
    # commands that never wait
    ("cfg merge info log a", "ok ok ok ok …", ""),
    ("cfg none merge info log", "ok ok ok ok ok", ""),
    # configuring
    ("a cfg all b", "early ok ok ok", "b"),
    ("ecid ids none merge info log", "early early early early early early", ""),
    ("cfg cfg:open all a", "ok config ok ok", "a"),
    ("cfg:bad a cfg b all", "config early ok ok ok", "b"),
    ("cfg bogus none bogus", "ok wrong ok wrong", ""),
    # instances side by side
    ("cfg second.cfg a second.b all second.none", "ok ok ok no ok ok", "a"),
    ("cfg second.cfg none second.all a second.b", "ok ok ok ok no ok", "b"),
    # errors_enabled=False: None instead of an error
    ("cfg:quiet a none b ecid say:x", "ok ok ok ok ok ok", ""),
    # a failing edge blocks nobody
    ("cfg:open 500 a ok b reload cfg:open c", "ok edge ok ok ok", "abc"),
    ("cfg:open a 404 B c ok d", "ok ok edge edge ok", "aBcd"),
    ("cfg a 403 all ok b", "ok edge ok ok", "ab"),
    # equal events are all sent
    ("cfg a+a all", "ok ok ok ok", "aa"),
    # nothing waits for a first answer
    ("cfg:open hold a+b c release", "ok ok ok ok", "abc"),
]


class Edge(RecordingEdge):
    """An edge to which connecting may take its time."""

    def __init__(self) -> None:
        super().__init__()
        self.door = asyncio.Event()
        self.door.set()

    async def send(self, request, may_start):
        await self.door.wait()
        return await super().send(request, may_start)


class Story:
    """Tells a row."""

    def __init__(self) -> None:
        self.edge = Edge()
        self.futures: list[asyncio.Future] = []
        self._world = {
            "transport": self.edge,
            "store": MemoryStore(),
            "clock": ManualClock(),
            "ids": CountingIds(),
        }
        self._instances: dict[str, Alloy] = {}
        self._status = 200

    async def tell(self, row: str) -> None:
        for breath in row.split():
            for step in breath.split("+"):
                await self._take(step)
            await settle()

    async def close(self) -> None:
        for alloy in self._instances.values():
            assert (await alloy.aclose()).open == 0
        self._instances = {}
        for future in self.futures:
            future.exception()

    def ends(self) -> str:
        return " ".join("…" if not future.done() else self._end(future) for future in self.futures)

    def _end(self, future: asyncio.Future) -> str:
        return "ok" if future.exception() is None else type(future.exception()).__name__

    async def _take(self, step: str) -> None:
        if step == "reload":
            await self.close()
        elif step == "later":
            self._world["clock"].advance(3_600)
        elif step in {"shut", "open"}:
            self.edge.door.set() if step == "open" else self.edge.door.clear()
        elif step in {"hold", "release"}:
            getattr(self.edge, step)()
        elif step.isdigit() or step == "ok":
            self._answer_with(0 if step == "ok" else int(step))
        else:
            instance, _, command = step.rpartition(".")
            self.futures.append(self._call(self._instance(instance), command, instance))

    def _answer_with(self, status: int) -> None:
        self.edge.answers = [EdgeResponse(status, {}, b"")] * 20 if status else []

    def _instance(self, name: str) -> Alloy:
        return self._instances.setdefault(name, Alloy(name or "alloy"))

    def _call(self, alloy: Alloy, command: str, instance: str) -> asyncio.Future:
        word, _, variant = command.partition(":")
        if word == "cfg":
            return self._configure(alloy, instance or variant)
        if word == "say":
            return alloy.opt_in(purposes=said(variant))
        if word in {"all", "none"}:
            return alloy.opt_in(purposes=word)
        calls = {
            "ecid": alloy.get_ecid,
            "ids": lambda: alloy.set_customer_ids({"CRM": {"id": "u"}}),
            "merge": alloy.create_event_merge_id,
            "info": alloy.get_library_info,
            "log": lambda: alloy.debug(enabled=False),
            "bogus": lambda: alloy("bogus"),
        }
        return calls[word]() if word in calls else alloy.event(type=word, view_start=word.isupper())

    def _configure(self, alloy: Alloy, variant: str) -> asyncio.Future:
        more = {
            "open": {"opt_in_enabled": False},
            "other": {"ims_org_id": "OTHER@AdobeOrg"},
            "second": {"ims_org_id": "SECOND@AdobeOrg", "config_id": "second"},
            "quiet": {"errors_enabled": False},
            "bad": {"config_id": 5, "opt_in_enabled": "yes", "errors_enabled": 1},
        }
        return alloy.configure(**IDS | {"opt_in_enabled": True} | self._world | more.get(variant, {}))


def said(variant: str) -> object:
    """Return the purposes that a row writes: a word, a number, a boolean, or nothing."""
    return {"": None, "1": 1, "True": True}.get(variant, variant.replace("_", " "))


@pytest.mark.parametrize(("steps", "ends", "sent"), ROWS, ids=[row[0] for row in ROWS])
async def test_a_row_of_the_table_holds(steps, ends, sent):
    """Commands end as the row says, and exactly the events of the row were sent, in order."""
    story = Story()
    async with asyncio.timeout(10):
        await story.tell(steps)
        assert story.ends() == " ".join(SHORT.get(end, end) for end in ends.split())
        assert "".join(story.edge.event_types) == sent
        await story.close()


def test_every_row_says_how_each_command_ends():
    """No row stands twice; each one names as many ends as it calls commands."""
    assert len({row[0] for row in ROWS}) == len(ROWS)
    silent = {"reload", "later", "hold", "release", "shut", "open", "ok", "500", "404", "403"}
    for steps, ends, _ in ROWS:
        commands = [step for step in steps.replace("+", " ").split() if step not in silent]
        assert len(commands) == len(ends.split()), steps


async def test_a_refusal_ends_the_identity_too():
    """Whoever refused and consents again is somebody new: nothing sent before can be joined with what comes after."""
    story = Story()
    await story.tell("cfg all a b none all c reload cfg d")
    first, second, third, fourth = (event["xdm"]["identityMap"] for event in story.edge.events)
    assert first == second
    assert third == fourth
    assert first != third
    await story.close()
