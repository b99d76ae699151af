"""From a caller's objects to JSON bytes, and from an answer's bytes back.

The snapshot goes through a normaliser of our own, because every JSON library corrupts something in silence:
the standard library turns the key 1 into "1", orjson turns NaN into null, both read what is not JSON.
What is taken and what is refused:

=====================================  ==========================================
str, bool, int, float, None            as they are; NaN and infinities are refused
dict and any Mapping                   object; keys must be str
list, tuple, namedtuple                array
aware datetime (pandas too)            ISO 8601 text; a naive one is refused
date, time                             ISO 8601 text
Decimal                                number; with a fraction the nearest that a double holds
UUID                                   text
Enum                                   its value
dataclass, pydantic model (by alias)   object
numpy scalar                           number, bool or text
everything else                        refused: bytes, set, generator, Path, object …
=====================================  ==========================================

Most events are plain JSON already, and need neither the normaliser nor a copy; ``take`` tells them apart.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import cache
from math import isfinite
from typing import Any
from uuid import UUID

__all__ = ["MAX_DEPTH", "Unfit", "decode", "encode", "normalise", "overlay", "take", "write"]

MAX_DEPTH = 256
"""Levels of nesting that are taken. Deep enough for any XDM, shallow enough for every JSON reader in use."""

MAX_PATH = 500
"""Characters of a path that an error names."""

_SAFE_BITS = 14_000  # 4 214 digits; the interpreter converts at most 4 300 by default

_WORD = 2**63
"""Every encoder takes integers between this and its negative."""

_MAX_PLAIN = 20_000
"""Values that are looked at before a tree counts as not plain: what contains itself has no end."""


class Unfit(Exception):
    """A value that JSON cannot hold, or would hold wrongly.

    Attributes:
        path: where it is, outermost first, for example ``["xdm", "items", 0]``; filled while it travels up.
        problem: what is wrong with it, and what to do.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path: list[str | int] = []

    def where(self) -> str:
        """Write the path as ``xdm.items[0].sku``; keys and paths that are absurdly long are cut."""
        text = ""
        for step in self.path:
            text += f"[{step}]" if isinstance(step, int) else f".{step[:100]}" if text else step[:100]
        return text if len(text) <= MAX_PATH else f"{text[:MAX_PATH]}…"


def take(value: object, name: str, under: Mapping[str, Any] | None = None) -> tuple[Any, bytes | None]:
    """Take the snapshot of a value, and write it at once where that is cheap.

    Args:
        value: whatever the caller gave.
        name: what the caller calls it.
        under: normalised; what of it has a name that the value has too is written with the value laid over it.

    Returns:
        Where the value is plain JSON, the value itself and its JSON. It is still the caller's, and may change as soon
        as code of the caller's runs again. Otherwise a snapshot as of ``normalise``, and None.

    Raises:
        Unfit: something in it cannot be held; its path says where.
    """
    text = _write_plain(value, under)
    return (normalise(value, name), None) if text is None else (value, text)


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one object over another, object by object."""
    merged = {**under, **over}
    for key in under.keys() & over.keys():
        if isinstance(under[key], dict) and isinstance(over[key], dict):
            merged[key] = overlay(under[key], over[key])
    return merged


def normalise(value: object, name: str) -> Any:
    """Return a snapshot of a value that holds nothing but what JSON can hold.

    Args:
        value: whatever the caller gave.
        name: what the caller calls it, the first step of the path in an error.

    Raises:
        Unfit: something in it cannot be held; its path says where.
    """
    try:
        return _snapshot(value, 0)
    except Unfit as unfit:
        unfit.path.append(name)
        unfit.path.reverse()
        raise
    except RecursionError:
        too_deep = Unfit(f"nested too deep, or it contains itself; at most {MAX_DEPTH} levels are taken.")
        too_deep.path.append(name)
    raise too_deep


def encode(value: object) -> bytes:
    """Write a normalised value as compact JSON in UTF-8.

    Raises:
        Unfit: a text holds half of a surrogate pair, which UTF-8 cannot hold; its path says where.
    """
    # Copied: orjson's own result may hold on to a buffer of several kilobytes as long as the event waits.
    return bytes(memoryview(write(value)))


def write(value: object) -> bytes:
    """Write a normalised value as ``encode`` does, for bytes that do not wait but become part of others at once."""
    try:
        return (_fast_encoder() or _core_encoder())(value)
    except (TypeError, ValueError):
        pass  # a number beyond 64 bits, very deep nesting, half of a surrogate pair: left to the standard library
    try:
        return _ENCODER(value).encode()
    except UnicodeEncodeError:
        pass  # raised below, outside, because Python's own error holds the text
    except RecursionError:
        raise Unfit("nested too deep to be called from so many frames.") from None
    unfit = Unfit(
        "holds half of a surrogate pair (text cut in the middle of an emoji?), which UTF-8 cannot hold."
    )
    unfit.path = _find_surrogate(value) or []
    raise unfit


def decode(body: bytes | str) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is not JSON, not text, nested too deep, or holds a number of absurd length.
    """
    try:
        return json.loads(body)
    except RecursionError:
        pass
    raise ValueError("nested too deep")


def _make_encoder() -> Callable[[object], str]:
    encoder = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
    )
    accelerator = getattr(json.encoder, "c_make_encoder", None)
    if accelerator is None:  # an interpreter without it, such as PyPy
        return encoder.encode
    # JSONEncoder.encode makes a new accelerator for each call, a sixth of its time for a small event.
    write = accelerator(
        None, encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, False
    )
    return lambda value: "".join(write(value, 0))


_ENCODER = _make_encoder()


@cache
def _fast_encoder() -> Callable[[object], bytes] | None:
    """Return orjson's encoder where the extra ``fast`` is installed; looked for at the first event, not at import."""
    try:
        import orjson  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return orjson.dumps


@cache
def _core_encoder() -> Callable[[object], bytes]:
    """Return the encoder of pydantic's core: always there, several times as fast as the standard library."""
    from pydantic_core import to_json  # noqa: PLC0415 - loaded by configure; here it would cost every script's import

    return to_json


def _write_plain(value: object, under: Mapping[str, Any] | None = None) -> bytes | None:
    """Write a value as it is if the normaliser would change nothing about it; None if that is not certain.

    The one place that hands a caller's own objects to an encoder. It is safe because every object of the tree has
    exactly one of JSON's own types: no code of the caller's runs, no subclass writes as something else, and nothing is
    left that the encoders would turn into something else in silence. Who makes sure of what:

    - the types of all values, finite numbers, integers of 63 bits: ``_is_plain``;
    - keys that are exactly str: orjson, which refuses all others, or ``_is_plain`` for an encoder that does not;
    - half of a surrogate pair: both encoders refuse it;
    - depth, and what contains itself: both encoders stop below ``MAX_DEPTH``.

    What it is laid over is merged in between: once it is known to be plain, and before it is written.

    What is refused here is not refused: it goes the careful way, which takes it or says why not.
    """
    fast = _fast_encoder()
    try:
        if _is_plain(value, keys_too=fast is None or under is not None):
            return (fast or _core_encoder())(_merged(under, value) if under else value)
    except Exception:  # noqa: BLE001, S110 - of whatever kind: the careful way decides
        pass
    return None


def _merged(under: Mapping[str, Any], value: Any) -> Any:
    """Lay a plain value over what has the same names."""
    if type(value) is not dict or under.keys().isdisjoint(value):
        return value
    return overlay({name: under[name] for name in under if name in value}, value)


def _is_plain(root: Any, *, keys_too: bool) -> bool:  # noqa: C901, PLR0911, PLR0912 - a call for each object would be the cost
    """Tell whether a tree consists of JSON's own types and of numbers that every encoder writes alike.

    A tuple is not plain: the snapshot has a list in its place.
    """
    waiting = [root]
    for value in waiting:
        kind = type(value)
        if kind is str:
            continue
        if kind is dict:
            if keys_too:
                for key in value:
                    if type(key) is not str:
                        return False
            waiting += value.values()
            if len(waiting) > _MAX_PLAIN:
                return False
        elif kind is list:
            waiting += value
            if len(waiting) > _MAX_PLAIN:
                return False
        elif kind is float:
            if not isfinite(value):
                return False
        elif kind is int:
            if not -_WORD < value < _WORD:
                return False
        elif kind not in _AS_IT_IS:
            return False
    return True


def _snapshot(value: object, depth: int) -> Any:
    kind = type(value)
    return value if kind in _AS_IT_IS else _SNAPSHOTS.get(kind, _rare)(value, depth)


def _object(value: Mapping[Any, object], depth: int) -> dict[str, Any]:
    if depth >= MAX_DEPTH:
        raise Unfit(f"nested too deep, or it contains itself; at most {MAX_DEPTH} levels are taken.")
    result = {}
    for key, item in value.items():
        if type(key) is not str:
            key = _key(key)  # noqa: PLW2901 - the key as it will be written
        kind = type(item)
        # _snapshot again, written out: a call for each text would cost as much as all the rest.
        if kind in _AS_IT_IS:
            result[key] = item
            continue
        try:
            result[key] = _SNAPSHOTS.get(kind, _rare)(item, depth + 1)
        except Unfit as unfit:
            unfit.path.append(key)
            raise
    return result


def _array(value: list[object] | tuple[object, ...], depth: int) -> list[Any]:
    if depth >= MAX_DEPTH:
        raise Unfit(f"nested too deep, or it contains itself; at most {MAX_DEPTH} levels are taken.")
    result = []
    for index, item in enumerate(value):
        try:
            result.append(_snapshot(item, depth + 1))
        except Unfit as unfit:
            unfit.path.append(index)
            raise
    return result


def _key(key: object) -> str:
    if isinstance(key, str) and not isinstance(key, Enum):
        return str.__str__(key)
    raise Unfit(f"has a key of type {type(key).__name__}; keys must be str.")


def _integer(value: int, _depth: int = 0) -> int:
    if value.bit_length() > _SAFE_BITS:
        raise Unfit("is an integer of more than 4 200 digits; give it as text.")
    return value


def _number(value: float, _depth: int = 0) -> float:
    if isfinite(value):
        return value
    raise Unfit(f"is {value}, which JSON cannot hold; leave it out, or give None.")


def _rare(value: Any, depth: int) -> Any:
    """Handle whatever is not one of JSON's own types; some of it runs code of the caller's, which may raise."""
    try:
        return _convert(value, depth)
    except (Unfit, RecursionError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not reach a checkout
        kind = type(error).__name__
    raise Unfit(f"could not be read: its own code raised {kind}.")  # out here, without the error and its text


def _convert(value: object, depth: int) -> Any:
    """Ask in the order in which the kinds overlap."""
    if isinstance(value, Enum):
        return _snapshot(value.value, depth)
    if isinstance(value, Mapping):
        return _object(value, depth)
    if isinstance(value, (list, tuple)):
        return _array(value, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _object({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, depth)
    if _is_pydantic_model(value):
        return _snapshot(value.model_dump(by_alias=True), depth)  # type: ignore[attr-defined]  # it is a model
    return _scalar(value)


def _scalar(value: object) -> str | int | float | bool | None:  # noqa: PLR0911 - one line a type
    value = _without_numpy(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return _integer(int(value))
    if isinstance(value, float):
        return _number(float(value))
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, UUID):
        return str(value)
    return _moment(value)


def _decimal(value: Decimal) -> int | float:
    if not value.is_finite():
        raise Unfit(f"is {value}, which JSON cannot hold; leave it out, or give None.")
    if value != value.to_integral_value():
        return _number(float(value))
    if value.adjusted() > 4_200:
        raise Unfit("is a number of more than 4 200 digits; give it as text.")
    return int(value)


def _moment(value: object) -> str:
    if isinstance(value, datetime):
        if value != value:  # noqa: PLR0124 - how pandas says that there is no moment (NaT)
            raise Unfit("is a missing moment (NaT); leave it out, or give None.")
        if value.utcoffset() is None:
            raise Unfit("is a datetime without a time zone; add one, for example datetime.now(UTC).")
        text = value.isoformat()
        return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text
    if isinstance(value, (date, time)):
        return value.isoformat()
    raise Unfit(f"is of type {type(value).__name__}, which has no one meaning in JSON; convert it first.")


def _is_pydantic_model(value: object) -> bool:
    # By name and not by isinstance: importing pydantic's model class here would cost every script its import.
    return hasattr(type(value), "__pydantic_serializer__") and hasattr(value, "model_dump")


def _without_numpy(value: Any) -> Any:
    numpy = sys.modules.get("numpy")  # a numpy value cannot exist before numpy was imported
    if numpy is None or not isinstance(value, numpy.generic):
        return value
    if isinstance(value, (numpy.datetime64, numpy.timedelta64)):
        return (
            value  # item() would make a bare count of nanoseconds of it; refused with the other foreign types
        )
    return value.item()


_AS_IT_IS = frozenset({str, bool, type(None)})

_SNAPSHOTS: dict[type, Callable[[Any, int], Any]] = {
    dict: _object,
    list: _array,
    tuple: _array,
    int: _integer,
    float: _number,
}
"""How each of JSON's own types is taken; asked by exact type, because a subclass may be anything."""


def _find_surrogate(value: object) -> list[str | int] | None:
    """Find the first text that UTF-8 cannot hold, and return the path to it."""
    if isinstance(value, str):
        return [] if any("\ud800" <= character <= "\udfff" for character in value) else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        if isinstance(step, str) and _find_surrogate(step) is not None:
            return []
        inner = _find_surrogate(item)
        if inner is not None:
            return [step, *inner]
    return None
