"""Runs the command line as a person or a script does: as a process of its own."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Self

import alloy_async

IDS = ["--config-id", "my-datastream", "--org-id", "0123@AdobeOrg"]

PATIENCE = 30
"""Seconds after which a test gives up; nothing waits that long when things work."""

_BECOME_OWNER = "import os, sys; os.open(sys.argv[1], os.O_RDWR); os.execv(sys.argv[2], sys.argv[2:])"
"""The first terminal that a session leader opens becomes its own."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "alloy_async", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ALLOY_") and not name.lower().endswith("_proxy") and name != "FORCE_COLOR"
    }
    folders = [str(Path(alloy_async.__file__).parents[1]), kept.get("PYTHONPATH", "")]
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "COLUMNS": "200"} | variables


def run(*arguments: str, data: bytes = b"", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal; its output as text."""
    done = subprocess.run(
        command(*arguments),
        input=data,
        capture_output=True,
        env=environment(**variables),
        start_new_session=True,  # no terminal of the person who runs the tests
        timeout=PATIENCE,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def read_back(url: str) -> list[dict]:
    """Ask a development edge what it received."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/_dev/events") as answer:
        return [entry["event"] for entry in json.load(answer)["events"]]


def count(name: str, text: str) -> list[int]:
    """Return the numbers in the rows of this name, in all tables of a text."""
    return [int(found) for found in re.findall(rf"│ (?:[=+] )?{name} +│ +(\d+) │", text)]


class Person:
    """A process on a terminal, and somebody who sits in front of it.

    Args:
        arguments: of the command line.
        data: standard input; None: the terminal.
        variables: for the environment.
    """

    def __init__(self, *arguments: str, data: bytes | None = None, **variables: str) -> None:
        self._screen, terminal = os.openpty()
        self._seen = b""
        # A file and not a pipe: a program that stops reading must not stop the test.
        with tempfile.TemporaryFile() as file:
            file.write(data or b"")
            file.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BECOME_OWNER, os.ttyname(terminal), *command(*arguments)],
                stdin=terminal if data is None else file,
                stdout=terminal,
                stderr=terminal,
                env=environment(**variables),
                start_new_session=True,
            )
        os.close(terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._screen)

    def wait_for(self, text: str) -> str:
        """Read until a text appears; return all that was seen."""
        while text not in self.seen:
            assert self._read(), f"{text!r} never appeared in {self.seen!r}"
        return self.seen

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def end(self) -> int:
        """Read until the process has ended; return its exit status."""
        while self._read():
            pass
        return self._process.wait(PATIENCE)

    @property
    def seen(self) -> str:
        plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", self._seen)
        return plain.decode(errors="replace").replace("\r\n", "\n")

    def _read(self) -> bool:
        ready, _, _ = select.select([self._screen], [], [], PATIENCE)
        assert ready, f"nothing more after {self.seen!r}"
        try:
            chunk = os.read(self._screen, 65_536)
        except OSError:  # how Linux says that nobody holds the terminal any more
            return False
        self._seen += chunk
        return bool(chunk)
