"""What the page about the pytest plugin shows is what pytest does and says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent / "howto" / "pytest-plugin.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
INI = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"

pytest_plugins = ["pytester"]


def shown():
    """Each block with tests, with what pytest says of it; nothing where it passes."""
    for (language, code), (after, output) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if language == "python" and "def test_" in code:
            yield pytest.param(code, output if after == "text" else "", id=re.search("test_[a-z_]+", code)[0])


def without_chance(text):
    """Take out what differs from run to run."""
    return re.sub(
        r"\d\d:\d\d:\d\d\.\d{3}", "TIME", re.sub(r"ECID \d{38}", "ECID", re.sub(" +\n", "\n", text))
    )


def test_the_page_has_tests():
    """Those that pass and those that fail."""
    outcomes = [bool(param.values[1]) for param in shown()]
    assert (outcomes.count(False), outcomes.count(True)) == (6, 2)


@pytest.mark.parametrize(("code", "output"), list(shown()))
def test_pytest_says_what_the_page_says(pytester, code, output):
    """A test passes, or fails with the lines that stand below it."""
    earlier = [block for language, block in BLOCKS if language == "python" and "def test_" not in block]
    imports = re.findall(r"^(?:import|from) .*$", PAGE, re.MULTILINE)
    pytester.makeini(INI)
    pytester.makepyfile("\n".join([*imports, *earlier, code]))
    result = pytester.runpytest_inprocess("-p", "_alloy_async_pytest", "-p", "no:cacheprovider")
    result.assert_outcomes(**{"failed" if output else "passed": 1})
    assert without_chance(output) in without_chance(result.stdout.str())
