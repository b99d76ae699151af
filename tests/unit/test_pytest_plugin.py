"""The pytest plugin, as tests of an application see it."""

from __future__ import annotations

import importlib.util
import re

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

pytest_plugins = ["pytester"]

INI = """
[pytest]
addopts = --strict-markers --strict-config
filterwarnings = error
"""
AUTO = """
asyncio_mode = auto
asyncio_debug = true
asyncio_default_fixture_loop_scope = function
"""

PARKED = """
async def test_parked(alloy_edge, alloy):
    event = alloy.event(type="view")
    assert await alloy.get_library_info()
    assert alloy_edge.events == [] and alloy_edge.parked == 1
    alloy_edge.assert_nothing_sent()
    await alloy.opt_in(purposes="all")
    await event
    alloy_edge.assert_sent("view", count=1)
"""


@pytest.fixture
def run(pytester):
    """Run a file of tests; returns its result."""

    def run(source, *arguments, ini=AUTO, how=pytester.runpytest_inprocess):
        pytester.makeini(INI + ini)
        pytester.makepyfile(source)
        # Named, though pytest finds it by itself: the package may have been installed before it had a plugin.
        return how("-p", "_alloy_async_pytest", "-p", "no:cacheprovider", *arguments)

    return run


def test_fixtures_with_pytest_asyncio(run):
    """In its auto mode."""
    run(PARKED).assert_outcomes(passed=1)


def test_fixtures_with_a_strict_pytest_asyncio(run):
    """There each fixture has to be its own."""
    strict = AUTO.replace("auto", "strict")
    run("import pytest\n@pytest.mark.asyncio" + PARKED, ini=strict).assert_outcomes(passed=1)


def test_fixtures_with_anyio(run):
    """Without pytest-asyncio: anyio is there, since the library needs it."""
    result = run("import pytest\n@pytest.mark.anyio" + PARKED, "-p", "no:asyncio", "-k", "asyncio", ini="")
    assert result.parseoutcomes()["passed"] == 1


def test_without_a_loop_the_fixture_says_how_to_get_one(run):
    """And what to do where there shall be none."""
    result = run("def test(alloy): pass", "-p", "no:asyncio", ini="")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["alloy: needs an event loop; mark the test with @pytest.mark.anyio,*"])


def test_the_nearest_marker_wins(run):
    """Option by option: what only the outer one says still holds."""
    result = run("""
        import pytest
        from alloy_async import ConsentDeclined

        pytestmark = pytest.mark.alloy(consent="all", org_id="OUTER@AdobeOrg")

        async def test_outer(alloy_edge, alloy):
            await alloy.event(type="view")
            alloy_edge.assert_sent(count=1)

        @pytest.mark.alloy(consent="none")
        async def test_inner(alloy_edge, alloy):
            with pytest.raises(ConsentDeclined):
                await alloy.event(type="view")
            alloy_edge.assert_nothing_sent()
            assert alloy_edge.settings["ims_org_id"] == "OUTER@AdobeOrg"
        """)
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ("concent='all'", "concent: unknown option. Did you mean consent?"),
        ("lvie=True", "lvie: unknown option. Did you mean live?"),
        ("max_event=1", "max_event: unknown option. Did you mean max_events?"),
        ("consent='yes'", "consent: must be one of 'pending', 'all', 'none', not 'yes'."),
        ("max_events=0", "max_events must be at least 1"),
        ("faults=[{}]", "faults[0]: says not what goes wrong; give one of *"),
        ("faults=[{'status': 503, 'rat': 1}]", "faults[0].rat: is no field of a fault; did you mean rate?"),
        ("'all'", "takes names only, for example consent='all'."),
    ],
)
def test_a_marker_that_cannot_be_used_is_refused(run, arguments, refusal):
    """With the nearest name, and without a traceback."""
    result = run(f"""
        import pytest

        @pytest.mark.alloy({arguments})
        def test(alloy_edge): pass
        """)
    result.assert_outcomes(errors=1)
    result.stdout.re_match_lines([re.escape(f"@pytest.mark.alloy: {refusal}").replace(r"\*", ".*") + "$"])
    assert "Traceback" not in result.stdout.str()


def test_the_marker_is_listed(run):
    """With what it takes."""
    run("", "--markers").stdout.fnmatch_lines(
        ["@pytest.mark.alloy(?, consent='pending', live=False, faults=*"]
    )


def test_a_failed_wait_shows_what_arrived_and_hides_its_own_code(run):
    """Time, type, visitor, outcome; the last line of the traceback is the test's own."""
    result = run("""
        import asyncio

        async def test_checkout(alloy_edge, alloy):
            await alloy.opt_in(purposes="all")
            await alloy.event(type="web.webpagedetails.pageViews")
            await alloy_edge.wait_for("commerce.purchases", timeout=0)
        """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            '>       await alloy_edge.wait_for("commerce.purchases", timeout=0)',
            "E       AssertionError: waited 0 s for 1 event of type commerce.purchases; none arrived",
            "E       ",
            "E       time          type                          visitor * outcome",
            "E       ??:??:??.???  web.webpagedetails.pageViews  ECID *  recorded",
            "",
            "test_*.py:?: AssertionError",
        ],
        consecutive=True,
    )
    result.stdout.no_fnmatch_line("*_observed.py*")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("assert_nothing_sent()", "expected that nothing is sent; 1 request began"),
        ("assert_sent('purchase')", "expected 1 event of type purchase; none arrived"),
        ("assert_sent(count=2)", "expected 2 events; 1 arrived"),
    ],
)
def test_failed_assertions_explain_themselves(run, call, says):
    """And point at the line of the test."""
    result = run(f"""
        import pytest

        @pytest.mark.alloy(consent="all")
        async def test(alloy_edge, alloy):
            await alloy.event(type="view")
            alloy_edge.{call}
        """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            f">       alloy_edge.{call}",
            f"E       AssertionError: {says}",
            "E       ",
            "E       time          type  visitor * outcome",
            "E       ??:??:??.???  view  ECID *  recorded",
        ],
        consecutive=True,
    )
    result.stdout.no_fnmatch_line("*_observed.py*")


def test_without_the_extra_the_fixture_says_what_to_install(run, pytester):
    """And other tests run as ever."""
    pytester.makeconftest("import sys; sys.modules['starlette'] = None")
    result = run("""
        def test_with(alloy_edge): pass

        def test_without():
            from alloy_async.testing import serve
            try:
                serve().__enter__()
            except ModuleNotFoundError as error:
                assert str(error).endswith("pip install 'alloy-async[devserver]'")
            else:
                assert False
        """)
    result.assert_outcomes(errors=1, passed=1)
    assert (
        "alloy_edge: the development edge needs the extra devserver: pip install 'alloy-async[devserver]'"
        in result.outlines
    )


def test_with_autoload_off_the_plugin_can_be_named(run, monkeypatch):
    """By its module."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = run(PARKED, "-p", "pytest_asyncio.plugin")
    result.assert_outcomes(passed=1)


def test_what_is_under_way_when_a_test_ends_holds_up_nothing(run):
    """The instance is closed without waiting for an edge that does not take what it is sent."""
    result = run("""
        import pytest

        @pytest.mark.alloy(consent="all", datastreams={"a"})
        async def test(alloy_edge, alloy):
            alloy.event(type="view")
            alloy.event(type="view")
        """)
    result.assert_outcomes(passed=1)


def test_faults_of_the_marker(run):
    """One answer is a 503, the event is sent again, and the table shows both."""
    result = run("""
        import pytest

        @pytest.mark.alloy(consent="all", faults=[{"status": 503, "retryAfter": 0, "times": 1}])
        async def test(alloy_edge, alloy):
            await alloy.event(type="view")
            assert alloy.statistics().retries == 1
            assert [request["status"] for request in alloy_edge.requests] == [503, 204]
            alloy_edge.assert_sent("view", count=2)
        """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E       AssertionError: expected 2 events of type view; 1 arrived",
            "E       ",
            "E       time          type  visitor * outcome",
            "E       ??:??:??.???  view  FPID * refused: fault status 503",
            "E       ??:??:??.???  view  ECID * recorded",
        ],
        consecutive=True,
    )


# On a port of loopback


@pytest.mark.integration
def test_a_live_edge_is_in_the_environment(run):
    """An application that configures itself finds it, in this process and in others; afterwards it is gone."""
    result = run("""
        import os, subprocess, sys
        import pytest
        from alloy_async.blocking import BlockingAlloy

        APPLICATION = '''
        from alloy_async.blocking import BlockingAlloy
        with BlockingAlloy() as alloy:
            alloy.configure(store="memory")
            alloy.opt_in(purposes="all")
            alloy.event(type="from elsewhere").result(10)
        '''.replace("\\n        ", "\\n")

        @pytest.mark.alloy(live=True, base_path="ee-pre", datastreams={"d"})
        def test_live(alloy_edge):
            assert alloy_edge.url.startswith("http://127.0.0.1:")
            assert alloy_edge.environment.items() <= os.environ.items()
            with BlockingAlloy() as alloy:
                alloy.configure(store="memory")
                order = alloy.event(type="from here")
                alloy.opt_in(purposes="all")
                order.result(10)
            subprocess.run([sys.executable, "-c", APPLICATION], check=True, timeout=50)
            alloy_edge.wait_for_blocking("from elsewhere")
            assert [event.type for event in alloy_edge.events] == ["from here", "from elsewhere"]

        def test_afterwards(alloy_edge):
            assert not any(name.startswith("ALLOY_") for name in os.environ)
            alloy_edge.assert_nothing_sent()
        """)
    result.assert_outcomes(passed=2)


@pytest.mark.integration
def test_the_fixture_speaks_with_a_live_edge(run):
    """The same test as without a socket."""
    run("import pytest\n@pytest.mark.alloy(live=True)" + PARKED).assert_outcomes(passed=1)


@pytest.mark.integration
def test_a_blocking_wait_that_fails_says_the_same(run):
    """In a test without a loop."""
    result = run("""
        import pytest

        @pytest.mark.alloy(live=True)
        def test(alloy_edge):
            alloy_edge.wait_for_blocking("view", timeout=0)
        """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            '>       alloy_edge.wait_for_blocking("view", timeout=0)',
            "E       AssertionError: waited 0 s for 1 event of type view; none arrived",
            "E       ",
            "E       No request arrived.",
            "E       ",
            "E       What waits is not known: no instance was configured with the edge's settings.",
        ],
        consecutive=True,
    )


@pytest.mark.integration
def test_serve_in_unittest(run):
    """Any framework can have the same edge."""
    result = run("""
        import unittest
        from alloy_async.blocking import BlockingAlloy
        from alloy_async.testing import serve

        class Checkout(unittest.TestCase):
            def test_an_order_waits_for_consent(self):
                with serve() as edge, BlockingAlloy() as alloy:
                    alloy.configure(**edge.settings)
                    alloy.event(type="commerce.purchases")
                    alloy.get_library_info()
                    self.assertEqual((edge.events, edge.parked), ([], 1))
                    edge.assert_nothing_sent()
                    alloy.opt_in(purposes="all")
                    [order] = edge.wait_for_blocking("commerce.purchases")
                    self.assertTrue(edge.url)
        """)
    result.assert_outcomes(passed=1)


@pytest.mark.integration
def test_pytest_without_such_tests_imports_nothing(run, pytester):
    """Neither the library nor what a web server needs."""
    result = run(
        """
        import sys

        def test():
            assert "_alloy_async_pytest" in sys.modules
            assert not {"alloy_async", "httpx", "pydantic", "starlette", "uvicorn"} & sys.modules.keys()
        """,
        *("-p", "no:hypothesispytest", "-p", "no:respx"),  # which import some of them
        how=pytester.runpytest_subprocess,
    )
    result.assert_outcomes(passed=1)


@pytest.mark.integration
@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_parallel_tests_do_not_meet(run, pytester):
    """Each has an edge of its own, with a port and a folder of its own."""
    result = run(
        """
        import pytest

        @pytest.mark.alloy(consent="all", live=True)
        @pytest.mark.parametrize("number", range(4))
        async def test(alloy_edge, alloy, number):
            await alloy.event(type=f"number {number}")
            assert [event.type for event in alloy_edge.events] == [f"number {number}"]
        """,
        *("-n", "2"),
        how=pytester.runpytest_subprocess,
    )
    result.assert_outcomes(passed=4)
