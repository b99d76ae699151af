"""Fault switches: what shall go wrong, with which requests, and how often. Rules only; nothing here acts."""

from __future__ import annotations

import difflib
import json
import random
import re
import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

__all__ = ["Fault", "FaultError", "Faults", "read_faults"]

_MAX_FAULTS = 100
_MAX_WAIT = 3_600_000  # milliseconds: an hour outlasts every client's patience
_MAX_RETRY_AFTER = 604_800  # seconds: a week
_MAX_TEXT = 65_536


class FaultError(ValueError):
    """A fault that cannot be used.

    Attributes:
        path: the field at fault, as its JSON spells it: ``rate``, or ``faults[1].rate``; empty for a fault as a whole.
        reason: what is wrong with it, and what would be right.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Field:
    """What a field takes, in words and as a check."""

    takes: str
    fits: Callable[[Any], bool]
    is_text: bool = False


def _whole(low: int, high: int, unit: str = "") -> _Field:
    takes = f"a whole number from {low} to {high}{unit and f' ({unit})'}"
    return _Field(takes, lambda value: type(value) is int and low <= value <= high)


def _text(takes: str, pattern: str) -> _Field:
    form = re.compile(pattern, re.DOTALL)
    return _Field(takes, lambda value: isinstance(value, str) and bool(form.fullmatch(value)), is_text=True)


_TRUE = _Field("true", lambda value: value is True)
_NOT_EMPTY = _text("a text that is not empty", f".{{1,{_MAX_TEXT}}}")

_FIELDS = {
    "status": _whole(400, 599),
    "retryAfter": _whole(0, _MAX_RETRY_AFTER, "seconds"),
    "retryAfterDate": _whole(0, _MAX_RETRY_AFTER, "seconds ahead"),
    "latency": _whole(1, _MAX_WAIT, "milliseconds"),
    "reset": _text('"before" or "after" (reading the body)', "before|after"),
    "cut": _TRUE,
    "slow": _whole(1, _MAX_WAIT, "milliseconds"),
    "text": _NOT_EMPTY,
    "errors": _TRUE,
    # What may stand in a header, and no more.
    "contentType": _text('a content type such as "text/html"', r"[!-~]+(?: [!-~]+)*"),
    "path": _NOT_EMPTY,
    "visitor": _NOT_EMPTY,
    "eventType": _NOT_EMPTY,
    "rate": _Field("a number from 0 to 1", lambda value: type(value) in {int, float} and 0 <= value <= 1),
    "times": _whole(1, 1_000_000_000),
}
"""Every field by its name in JSON."""

_KINDS = ("status", "latency", "reset", "cut", "slow", "text", "errors", "contentType")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, and with which requests. Exactly one kind is given; all that is matched must match.

    In JSON the names are ``retryAfter``, ``retryAfterDate``, ``contentType`` and ``eventType``.

    Args:
        status: the edge refuses with this HTTP status, 400 to 599.
        retry_after: with status or text, ``Retry-After`` in seconds.
        retry_after_date: likewise, as an HTTP date that many seconds ahead.
        latency: milliseconds before the answer is given.
        reset: the connection is reset ``"before"`` or ``"after"`` the body is read.
        cut: the connection ends in the middle of the answer's body.
        slow: milliseconds over which the answer's body drips.
        text: the answer is an error in plain text; its status is 502, or ``status``.
        errors: the answer is a 207, with an ``errors[]`` beside the usual handles.
        content_type: the answer is right, but is called this.
        path: a part of the request's path.
        visitor: whom the request speaks of: ``"<namespace> <id>"``, or the id alone.
        event_type: ``xdm.eventType`` of an event in the request.
        rate: share of the matching requests that it acts on, 0 to 1.
        times: only the first so many matching requests are meant; None for all.

    Raises:
        FaultError: it names the field, as in JSON, and what would be right.
    """

    status: int | None = None
    retry_after: int | None = None
    retry_after_date: int | None = None
    latency: int | None = None
    reset: Literal["before", "after"] | None = None
    cut: bool = False
    slow: int | None = None
    text: str | None = None
    errors: bool = False
    content_type: str | None = None
    path: str | None = None
    visitor: str | None = None
    event_type: str | None = None
    rate: float = 1
    times: int | None = None

    def __post_init__(self) -> None:
        given = self.as_json()
        for name, value in given.items():
            if not _FIELDS[name].fits(value):
                raise FaultError(name, f"must be {_FIELDS[name].takes}, not {_shown(value)}")
        _check_kind([name for name in _KINDS if name in given])
        _check_retry_after(given)
        _check_match(given)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a fault from its parsed JSON; ``acted``, which answers carry, is passed over.

        Raises:
            FaultError: it names the field, and the nearest one for a name that is unknown.
        """
        if not isinstance(value, dict):
            raise FaultError("", f'must be an object such as {{"status": 503}}, not {_shown(value)}')
        attributes = {}
        for name, content in value.items():
            if name == "acted":
                continue
            if name not in _FIELDS:
                raise FaultError(str(name), f"is no field of a fault{_nearest(name, _FIELDS)}")
            if content is None:
                raise FaultError(name, f"must be {_FIELDS[name].takes}, not null")
            attributes[_attribute(name)] = content
        return cls(**attributes)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read a fault as written on a command line: ``status=503,retry-after=2,rate=0.3``, or its JSON.

        Raises:
            FaultError: as `from_json`, in the spelling of the command line.
        """
        if text.lstrip().startswith("{"):
            return cls.from_json(_parsed(text))
        try:
            return cls.from_json(dict(_read_pair(pair) for pair in text.split(",")))
        except FaultError as error:
            raise FaultError(_kebab(error.path), error.reason) from None

    @property
    def kind(self) -> str:
        """The field that says what goes wrong; ``text`` where a status stands beside it."""
        given = self.as_json()
        return next(name for name in ("text", *_KINDS) if name in given)

    @property
    def label(self) -> str:
        """What it does in a few words, as a record of a request shows it: ``status 503``."""
        if self.text is not None:
            return f"text {self.status or 502}"
        value = self.as_json()[self.kind]
        unit = " ms" if self.kind in {"latency", "slow"} else ""
        return self.kind if value is True else f"{self.kind} {value}{unit}"

    def matches(self, path: str, visitors: Collection[str] = (), event_types: Collection[str] = ()) -> bool:
        """Tell whether a request is meant.

        Args:
            path: the request's path.
            visitors: whom it speaks of, each as ``"<namespace> <id>"``.
            event_types: ``xdm.eventType`` of its events.
        """
        return (
            (self.path is None or self.path in path)
            and (self.visitor is None or any(_is_named(self.visitor, visitor) for visitor in visitors))
            and (self.event_type is None or self.event_type in event_types)
        )

    def as_json(self) -> dict[str, Any]:
        """Write it as `from_json` reads it; what stands at its default is left out."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        # By identity: 0 equals False and True equals 1, and neither may pass for the other.
        return {_camel(field.name): value for field, value in values if value is not field.default}


def _is_named(wanted: str, visitor: str) -> bool:
    return wanted in {visitor, visitor.partition(" ")[2]}


def _check_kind(kinds: list[str]) -> None:
    if kinds == ["status", "text"]:
        return
    if not kinds:
        raise FaultError("", f"says not what goes wrong; give one of {', '.join(_KINDS)}")
    if len(kinds) > 1:
        raise FaultError(kinds[1], f"cannot be combined with {kinds[0]}; make two faults of them")


def _check_retry_after(given: Mapping[str, Any]) -> None:
    for name in ("retryAfter", "retryAfterDate"):
        if name in given and not given.keys() & {"status", "text"}:
            raise FaultError(name, "goes with status or text only")
    if {"retryAfter", "retryAfterDate"} <= given.keys():
        raise FaultError("retryAfterDate", "cannot be combined with retryAfter; one header says it once")


def _check_match(given: Mapping[str, Any]) -> None:
    for name in ("visitor", "eventType"):
        if name in given and given.get("reset") == "before":
            raise FaultError(name, "is not known before the body is read; use reset after, or match by path")


def _attribute(name: str) -> str:
    return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name)


def _camel(name: str) -> str:
    return re.sub("[-_]([a-z])", lambda letter: letter[1].upper(), name)


def _kebab(path: str) -> str:
    return _attribute(path).replace("_", "-")


def _read_pair(pair: str) -> tuple[str, object]:
    """Read ``name=value``; a name alone stands for true."""
    name, equals, value = pair.partition("=")
    name, value = _camel(name.strip()), value.strip()
    if not name:
        raise FaultError("", "is written as name=value,name=value, for example status=503,rate=0.3")
    if not equals and name in _FIELDS and _FIELDS[name] is not _TRUE:
        raise FaultError(name, f"needs a value: {_kebab(name)}={_FIELDS[name].takes}")
    if not equals:
        return name, True
    field = _FIELDS.get(name)
    return name, value if field is None or field.is_text else _number_or_true(value)


def _number_or_true(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text  # the field's own check says what it takes


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise FaultError("", "begins as JSON, and is none") from None


def _nearest(name: object, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(str(name)[:100], names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(names)}"


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, default=repr)
    except RecursionError:  # levels that could be read are too many here, further down the stack
        return "that many levels"
    return text if len(text) <= 60 else f"{text[:57]}…"


def read_faults(document: object) -> tuple[list[Fault], int | None]:
    """Read ``{"seed": 0, "faults": [fault, …]}``: the faults, and the seed if there is one.

    Raises:
        FaultError: with the whole path, ``faults[1].rate``.
    """
    if not isinstance(document, dict):
        raise FaultError("", 'must be an object: {"seed": 0, "faults": [{"status": 503}]}')
    for name in document:
        if name not in {"seed", "faults"}:
            raise FaultError(str(name), f"is unknown here{_nearest(name, ('seed', 'faults'))}")
    listed = document.get("faults")
    if not isinstance(listed, list) or len(listed) > _MAX_FAULTS:
        raise FaultError("faults", f"must be a list of at most {_MAX_FAULTS} faults")
    seed = document.get("seed")
    if seed is not None and type(seed) is not int:
        raise FaultError("seed", f"must be a whole number, not {_shown(seed)}")
    return [_read_one(index, value) for index, value in enumerate(listed)], seed


def _read_one(index: int, value: object) -> Fault:
    try:
        return Fault.from_json(value)
    except FaultError as error:
        _raise_below(f"faults[{index}]", error)


def _raise_below(place: str, error: FaultError) -> NoReturn:
    raise FaultError(f"{place}.{error.path}" if error.path else place, error.reason) from None


@dataclass(slots=True)
class _Switch:
    """A fault and what it has done."""

    fault: Fault
    matched: int = 0
    acted: int = 0


class Faults:
    """The faults that are switched on, in order: of those that match, the first whose dice fall acts.

    The dice are ``random.Random(seed)``, thrown once for each fault that matches, so that a run with requests in the
    same order can be repeated. It may be used from several threads.

    Args:
        faults: in order.
        seed: of the dice.
    """

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        # A test switches in its own thread while the server chooses in another.
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], object]] = []
        self._set(faults, seed)

    def __len__(self) -> int:
        return len(self._switches)

    def __iter__(self) -> Iterator[Fault]:
        return iter([switch.fault for switch in self._switches])

    def replace(self, faults: Iterable[Fault], seed: int | None = None) -> None:
        """Switch to other faults, counted anew; the dice start again.

        Args:
            faults: in order.
            seed: of the dice; None keeps the seed.
        """
        with self._lock:
            self._set(faults, self._seed if seed is None else seed)
        self._tell()

    def clear(self) -> None:
        """Switch all off."""
        self.replace(())

    def choose_unread(self, path: str) -> Fault | None:
        """Choose among the faults that act before the body is read; they come before all others."""
        return self._first(lambda fault: fault.reset == "before" and fault.matches(path))

    def choose(
        self, path: str, visitors: Collection[str] = (), event_types: Collection[str] = ()
    ) -> Fault | None:
        """Choose what goes wrong with a request that has been read; None when all goes well.

        Args:
            path: the request's path.
            visitors: whom it speaks of, each as ``"<namespace> <id>"``.
            event_types: ``xdm.eventType`` of its events.
        """
        return self._first(
            lambda fault: fault.reset != "before" and fault.matches(path, visitors, event_types)
        )

    def as_json(self) -> dict[str, Any]:
        """Write the state: ``{"seed": 0, "faults": [{"status": 503, "acted": 2}]}``."""
        with self._lock:
            listed = [{**switch.fault.as_json(), "acted": switch.acted} for switch in self._switches]
            return {"seed": self._seed, "faults": listed}

    def listen(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Call a function after every change, counts included, in the thread that made it; return what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _set(self, faults: Iterable[Fault], seed: int) -> None:
        self._seed = seed
        self._dice = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self._switches = [_Switch(fault) for fault in faults]

    def _first(self, is_meant: Callable[[Fault], bool]) -> Fault | None:
        with self._lock:
            chosen = next(
                (switch for switch in self._switches if is_meant(switch.fault) and self._acts(switch)), None
            )
        if chosen is None:
            return None
        self._tell()
        return chosen.fault

    def _acts(self, switch: _Switch) -> bool:
        switch.matched += 1
        falls = self._dice.random() < switch.fault.rate
        if not falls or (switch.fault.times is not None and switch.matched > switch.fault.times):
            return False
        switch.acted += 1
        return True

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()
