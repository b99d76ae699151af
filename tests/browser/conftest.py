"""A real browser for the tests of this folder, or the reason why there is none.

Playwright drives a Chromium that the machine has; neither is needed for any other test. Tests are coroutines and run,
as their fixtures do, in the session's one event loop, since the browser is started once and belongs to the loop that
started it. (Playwright's other face, without ``await``, leaves its loop running in the tests' thread, where no other
loop could run then.)
"""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

HERE = Path(__file__).parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""What Chromium is called on the systems that have it."""


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def launch():
    """Start a Chromium of one's own, for a test that needs command-line switches: ``async with launch("--x") as browser``."""
    reason = "no browser is driven without Playwright: pip install playwright"
    playwright = pytest.importorskip("playwright.async_api", reason=reason)
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"no browser is on PATH: none of {', '.join(NAMES)}")
    async with playwright.async_playwright() as driver:

        @asynccontextmanager
        async def launch(*switches):
            # --disable-dev-shm-usage: containers have a small /dev/shm, and tabs crash when it is full.
            browser = await driver.chromium.launch(
                executable_path=executable,
                chromium_sandbox=False,  # root, which a build machine often is, cannot have one
                args=["--disable-dev-shm-usage", *switches],
            )
            try:
                yield browser
            finally:
                await browser.close()

        yield launch


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def chromium(launch):
    """One Chromium for all tests of this folder; each takes a context of its own, or the fixture ``page``."""
    async with launch() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def page(chromium):
    """An empty page with no cookies. An error that no script of the page caught fails the test."""
    context = await chromium.new_context()
    page = await context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108 - Playwright marks its handlers
    yield page
    await context.close()
    assert errors == []
