"""Making the development edge of a test, in this process or on a port of its own."""

from __future__ import annotations

import importlib.util
import inspect
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias

from ..stores import MemoryStore
from ._chosen_store import ChosenStore
from ._observed import Begun, ObservedEdge

__all__ = ["ConsentSoFar", "observe", "serve"]

ConsentSoFar: TypeAlias = Literal["pending", "all", "none"]
"""What visitors have chosen before a test begins; ``pending``: nothing."""

_CHOICES = ("pending", "all", "none")
_IN_PROCESS = "http://localhost"  # loopback, for which plain http is allowed; nobody connects to it
_DATASTREAM = "test-datastream"


@contextmanager
def serve(*, consent: ConsentSoFar = "pending", **edge_options: Any) -> Iterator[ObservedEdge]:
    """Run a development edge on a free port of loopback for as long as the block runs, in any test framework.

    ::

        with serve() as edge:
            alloy = BlockingAlloy()
            alloy.configure(**edge.settings)

    Args:
        consent: what everybody has chosen before, as far as instances are concerned that are configured with
            ``settings``: "pending", "all" or "none".
        edge_options: see ``DevelopmentEdge``; faults may be given as in JSON, ``[{"status": 503, "rate": 0.3}]``.

    Yields:
        An ``ObservedEdge``.

    Raises:
        ModuleNotFoundError: the extra ``devserver`` is not installed.
        TypeError: an option does not exist; names the nearest one.
        ValueError: an option cannot be used.
    """
    with observe(consent=consent, live=True, **edge_options) as edge:
        yield edge


@contextmanager
def observe(
    *, consent: ConsentSoFar = "pending", live: bool = False, **edge_options: Any
) -> Iterator[ObservedEdge]:
    """Make an edge that is in this process only, unless it is ``live``; see ``serve``."""
    _check_extra()
    # Late: starlette and uvicorn are needed from here on.
    from ..devserver import DevelopmentEdge, create_app, serving  # noqa: PLC0415

    known = inspect.signature(DevelopmentEdge).parameters
    _check_options(consent, edge_options, known)
    settings = _settings(consent, edge_options, known)
    if "faults" in edge_options:
        edge_options["faults"] = _faults(edge_options["faults"])
    with ExitStack() as stack:
        edge = stack.enter_context(DevelopmentEdge(**edge_options))
        app = create_app(edge)
        begun = Begun()
        app.add_middleware(begun)
        if live:
            url = stack.enter_context(serving(app)).url
            state_dir = stack.enter_context(tempfile.TemporaryDirectory())
            yield ObservedEdge(
                edge, begun, {**settings, "endpoint": url}, _environment(settings, url, state_dir)
            )
        else:
            from ._in_process import InProcess  # noqa: PLC0415 - and httpx from here on

            way = {"endpoint": _IN_PROCESS, "transport": InProcess(app)}
            yield ObservedEdge(edge, begun, {**settings, **way})


def _check_extra() -> None:
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            "the development edge needs the extra devserver: pip install 'alloy-async[devserver]'",
            name=missing[0],
        )


def _check_options(consent: object, edge_options: Mapping[str, Any], known: Collection[str]) -> None:
    from ..settings import nearest  # noqa: PLC0415 - pydantic comes with it, and with the first configure()

    for name in edge_options:
        if name not in known:
            raise TypeError(f"{name}: unknown option.{nearest(name, [*known, 'consent', 'live'])}")
    if consent not in _CHOICES:
        raise ValueError(f"consent: must be one of {', '.join(map(repr, _CHOICES))}, not {consent!r}.")


def _settings(
    consent: ConsentSoFar, edge_options: Mapping[str, Any], known: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Return options of ``configure`` that fit the edge: its organisation, path and one of its datastreams."""
    given = {name: parameter.default for name, parameter in known.items()} | dict(edge_options)
    return {
        "config_id": next(iter(given["datastreams"] or ()), _DATASTREAM),
        "ims_org_id": given["org_id"],
        "edge_base_path": given["base_path"],
        "opt_in_enabled": True,
        "store": MemoryStore() if consent == "pending" else ChosenStore(consent),
        "outbox": "memory",
    }


def _faults(given: object) -> Any:
    """Read faults that are given as in JSON; others are taken as they are."""
    if not isinstance(given, Sequence) or not all(isinstance(fault, Mapping) for fault in given):
        return given
    from ..devserver.faults import read_faults  # noqa: PLC0415 - comes with the extra

    return read_faults({"faults": list(given)})[0]


def _environment(settings: Mapping[str, Any], url: str, state_dir: str) -> dict[str, str]:
    return {
        "ALLOY_ENDPOINT": url,
        "ALLOY_CONFIG_ID": settings["config_id"],
        "ALLOY_IMS_ORG_ID": settings["ims_org_id"],
        "ALLOY_EDGE_BASE_PATH": settings["edge_base_path"],
        "ALLOY_OPT_IN_ENABLED": "true",
        "ALLOY_STATE_DIR": state_dir,
    }
