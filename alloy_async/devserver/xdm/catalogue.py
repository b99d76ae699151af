"""Reading a folder of XDM schemas, and finding in it what a ``$ref`` names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

__all__ = ["EXPERIENCE_EVENT", "Catalogue", "UnusableSchemas"]

EXPERIENCE_EVENT = "https://ns.adobe.com/xdm/context/experienceevent"

_REPOSITORY = "https://github.com/adobe/xdm"
_SUFFIX = ".schema.json"
_UNREAD_FOLDERS = frozenset({"node_modules"})


class UnusableSchemas(ValueError):
    """A path that holds no XDM schemas to check events against; the message says what to do."""


class Place(NamedTuple):
    """A piece of a schema: in which document, and where in it."""

    document: str
    pointer: str


class Catalogue:
    """The schemas below one folder, by their ``$id``.

    Attributes:
        problems: one line for each file or reference that cannot be used; everything else can.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._documents: dict[str, dict[str, Any]] = {}
        self._files: dict[str, Path] = {}

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Catalogue:
        """Read every ``*.schema.json`` below a folder.

        Raises:
            UnusableSchemas: there is no such folder, or none of its schemas is for ExperienceEvents.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise UnusableSchemas(f"{_shown(path)} is no folder. Give a checkout of {_REPOSITORY}.")
        catalogue = cls()
        for file in _schema_files(folder):
            catalogue._add(file, file.relative_to(folder))
        if not catalogue._documents:
            detail = f" ({catalogue.problems[0]})" if catalogue.problems else ""
            raise UnusableSchemas(
                f"No usable *{_SUFFIX} below {_shown(path)}{detail}. Give a checkout of {_REPOSITORY}."
            )
        if not catalogue.roots():
            raise UnusableSchemas(
                f"No schema below {_shown(path)} is, or extends, {EXPERIENCE_EVENT}. Give the whole checkout of "
                f"{_REPOSITORY}, not a part of it."
            )
        return catalogue

    def __len__(self) -> int:
        return len(self._documents)

    def roots(self) -> list[str]:
        """Return the ids of the class ExperienceEvent, and of all schemas that add fields to it."""
        return [name for name, document in self._documents.items() if _is_for_events(name, document)]

    def file(self, document: str) -> str:
        """Return the file of a document, relative to the folder."""
        return str(self._files[document])

    def find(self, reference: str, base: str) -> tuple[Place, Any] | None:
        """Find what a ``$ref`` in the document ``base`` names; None when no file has it.

        Returns:
            The place, the same one for the same piece however it is written, and the piece.
        """
        # Joining knows URLs only, and an '$id' may be a URN.
        document, fragment = urldefrag(
            base + reference if reference.startswith("#") else urljoin(base, reference)
        )
        document = document if document in self._documents else document.rstrip("/")
        found: Any = self._documents.get(document)
        steps = [_unescaped(step) for step in fragment.split("/")[1:]]
        for step in steps:
            found = _step(found, step)
        return None if found is None else (Place(document, "/".join(steps)), found)

    def _add(self, file: Path, shown: Path) -> None:
        try:
            document = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            self.problems.append(f"{shown}: left out, it cannot be read as JSON ({_first_line(error)})")
            return
        name = document.get("$id") if isinstance(document, dict) else None
        if not isinstance(name, str) or not name:
            self.problems.append(f"{shown}: left out, it is no schema with an '$id'")
            return
        name = urldefrag(name)[0].rstrip("/")
        if name in self._documents:
            if document != self._documents[name]:
                self.problems.append(f"{shown}: left out, {self._files[name]} has the same '$id'")
            return
        self._documents[name] = document
        self._files[name] = shown


def _schema_files(folder: Path) -> list[Path]:
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _UNREAD_FOLDERS]
        files += [Path(root, name) for name in names if name.endswith(_SUFFIX)]
    return sorted(files)


def _is_for_events(name: str, document: dict[str, Any]) -> bool:
    return name == EXPERIENCE_EVENT or any(
        EXPERIENCE_EVENT in _texts(document.get(keyword))
        for keyword in ("meta:intendedToExtend", "meta:extends", "meta:class")
    )


def _texts(value: object) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _step(found: Any, step: str) -> Any:
    if isinstance(found, dict):
        return found.get(step)
    if isinstance(found, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(found):
        return found[int(step[:9])]
    return None


def _unescaped(step: str) -> str:
    return unquote(step).replace("~1", "/").replace("~0", "~")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _shown(path: str | os.PathLike[str]) -> str:
    return repr(os.fspath(path))
