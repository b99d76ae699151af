"""The page of the development edge, in a real browser: what it shows, what it copies, and that it runs nothing it is sent."""

import ast
import asyncio
import json
import os
import random
import shlex
import uuid
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import DevelopmentEdge, EdgeRequest, create_app, serving

pytestmark = pytest.mark.integration

SCREENSHOTS = Path(__file__).parents[2] / "docs" / "_static"
ANNA, BEN = "11111111111111111111111111111111111111", "22222222222222222222222222222222222222"
PURCHASE = {
    "xdm": {
        "_id": "purchase-1",
        "eventType": "commerce.purchases",
        "timestamp": "2026-11-23T15:20:48.830Z",
        "commerce": {"order": {"priceTotal": 59.90, "currencyCode": "EUR"}},
        "items": [{"sku": "mug", "gift": True, "discount": None}],
    },
    "data": {
        "note": 'it\'s "quoted" \\ \u2764 \U0001f600 \u2028 \u202e \x07 \ud800',
        "big": 12345678901234567890,
        "": [],
    },
}


@pytest.fixture
def edge():
    return DevelopmentEdge()


@pytest.fixture
def url(edge):
    with serving(create_app(edge)) as server:
        yield server.url


@pytest_asyncio.fixture(loop_scope="session")
async def desk(chromium, url):
    """The page, opened, and watched: an uncaught error or a breach of its policy fails the test."""
    async with open_desk(chromium, url) as page:
        yield page


@asynccontextmanager
async def open_desk(chromium, url, feed=None, **options):
    context = await chromium.new_context(viewport={"width": 1280, "height": 800}, **options)
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, breaches = await context.new_page(), []
    page.on("pageerror", lambda error: breaches.append(str(error)))
    await page.expose_function("tellBreach", lambda breach: breaches.append(breach))  # noqa: PLW0108
    await page.add_init_script(
        "document.addEventListener('securitypolicyviolation', e => tellBreach(e.violatedDirective + ' ' + e.blockedURI))"
    )
    if feed is not None:
        await page.route(
            "**/_dev/feed", lambda route: route.fulfill(body=feed, content_type="text/event-stream")
        )
    try:
        await page.goto(f"{url}/_dev/")
        if feed is None:
            await page.wait_for_selector("#connection[data-state=live]")
        yield page
        assert breaches == []
    finally:
        await context.close()


def post(url, path, body, **headers):
    headers = {"content-type": "application/json", **headers}
    # ASCII: one text of these tests holds what UTF-8 cannot.
    answer = httpx.post(
        f"{url}/ee/v1/{path}", params={"configId": "shop"}, content=json.dumps(body), headers=headers
    )
    assert answer.is_success
    return answer


def event(event_id, event_type="web.webpagedetails.pageViews", ecid=ANNA, **data):
    xdm = {"_id": event_id, "eventType": event_type, "timestamp": "2026-11-23T15:20:48.830Z"}
    return {"xdm": {**xdm, "identityMap": {"ECID": [{"id": ecid}]}}, "data": data}


def collect(url, *events, **headers):
    return post(url, "collect", {"events": list(events)}, **headers)


def choose(url, choice, ecid=ANNA):
    consent = [{"standard": "Adobe", "version": "1.0", "value": {"general": choice}}]
    return post(url, "privacy/set-consent", {"consent": consent, "identityMap": {"ECID": [{"id": ecid}]}})


def messages(*pairs):
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in pairs)


def entry(n, *events, **about):
    defaults = {
        "n": n,
        "receivedAt": f"2026-11-23T15:{n // 60 % 60:02}:{n % 60:02}.000Z",
        "method": "POST",
        "path": "/ee/v1/collect",
        "action": "collect",
        "datastreamId": "shop",
        "requestId": f"request-{n}",
        "status": 204,
        "size": 812,
        "tag": None,
        "fault": None,
        "visitor": None,
        "consent": None,
        "problem": None,
    }
    numbered = [{**summary(f"{n}-{index}"), "index": index, **each} for index, each in enumerate(events)]
    return {**defaults, **about, "events": numbered}


def summary(event_id):
    return {
        "id": event_id,
        "type": "web",
        "visitor": f"ECID {ANNA}",
        "outcome": "recorded",
        "timestamp": None,
        "waitedMs": 4,
        "size": 650,
        "findings": [],
    }


HELLO = ("hello", {"session": "a", "dropped": 0, "earlier": 0, "before": 1})
FINDING = {
    "level": "error",
    "code": "xdm-unknown-field",
    "path": "xdm.commerce.purchase",
    "message": "The schema has no field 'purchase' here.",
    "advice": "Write 'purchases'.",
}


async def rows(page):
    return await page.locator("#rows .canvas .event").all_inner_texts()


async def has_rows(page, count):
    await page.wait_for_function(
        "n => document.querySelectorAll('#rows .canvas .event').length === n", arg=count
    )


async def copied(page, name):
    await page.click(f"#copy-{name}")
    await page.wait_for_selector("#toast:not([hidden])")
    return await page.evaluate("navigator.clipboard.readText()")


async def test_events_appear_as_they_arrive(desk, url):
    """Newest first, with type, outcome and visitor; a choice is a line of its own."""
    assert await desk.locator("#nothing").is_visible()
    await asyncio.to_thread(collect, url, event("one"), event("two", "commerce.purchases"))
    await has_rows(desk, 2)
    await asyncio.to_thread(choose, url, "out")
    await has_rows(desk, 3)
    await asyncio.to_thread(collect, url, event("three"))
    await has_rows(desk, 4)
    shown = {text.split("\n")[1] for text in await rows(desk)}
    assert shown == {"recorded", "consent", "withheld"}
    newest = desk.locator("#rows [aria-rowindex='2']")
    assert "withheld" in await newest.inner_text()
    assert f"ECID {ANNA}" in await newest.inner_text()
    assert not await desk.locator("#nothing").is_visible()


async def test_filters_narrow_the_timeline_together(desk, url):
    await asyncio.to_thread(collect, url, event("one"), event("two", "commerce.purchases", BEN))
    await asyncio.to_thread(collect, url, event("one"))
    await asyncio.to_thread(httpx.post, f"{url}/ee/v1/nowhere")
    await has_rows(desk, 4)

    await desk.click(".chip[data-outcome=duplicate]")
    await has_rows(desk, 1)
    await desk.click(".chip[data-outcome=recorded]")
    await has_rows(desk, 3)
    await desk.select_option("#type", label="commerce.purchases")
    await has_rows(desk, 1)
    assert await desk.inner_text("#shown") == "1 of 4 shown"
    await desk.click("#no-filters")
    await has_rows(desk, 4)
    await desk.click("#only-problems")
    await has_rows(desk, 1)
    await desk.click("#only-problems")
    await desk.select_option("#action", label="no endpoint")
    await has_rows(desk, 1)
    await desk.click("#no-filters")
    await desk.locator(".visitor", has_text=BEN).click()
    await has_rows(desk, 1)
    assert f"ECID {BEN}" in (await rows(desk))[0]


async def test_search_finds_what_the_line_says_and_what_only_the_payload_says(desk, url):
    await asyncio.to_thread(collect, url, event("needle-1"), **{"x-test-tag": "checkout_test"})
    await asyncio.to_thread(collect, url, event("two", note="a Needle in the payload"))
    await asyncio.to_thread(collect, url, event("three"))
    await has_rows(desk, 3)
    await desk.fill("#search", "needle")
    await has_rows(desk, 2)
    assert await desk.inner_text("#found") == "2 exchanges with this text in the payload"
    await desk.fill("#search", "CHECKOUT_t")
    await has_rows(desk, 1)
    await desk.fill("#search", "nowhere at all")
    await desk.wait_for_selector("#no-match:not([hidden])")
    await desk.press("#search", "Escape")
    await has_rows(desk, 3)


async def test_details_show_request_and_answer_with_numbers_as_they_were_written(desk, url):
    body = '{"events": [{"xdm": {"_id": "a", "eventType": "t", "price": 1.10, "deep": {"deeper": {"deepest": [1]}}}}]}'
    await asyncio.to_thread(
        httpx.post,
        f"{url}/ee/v1/collect?configId=shop",
        content=body,
        headers={"content-type": "application/json"},
    )
    await has_rows(desk, 1)
    await desk.click("#rows .canvas .event")
    tree = desk.locator("#details .part", has_text="as it was sent").locator(".json")
    await tree.wait_for()
    assert "1.10" in await tree.inner_text()
    closed = tree.locator("details:not([open])")
    assert await closed.count() == 1  # below three levels nothing is open, nor written
    assert await tree.get_by_text("deepest").count() == 0
    await closed.locator("summary").click()
    await tree.get_by_text('"deepest"').wait_for()
    await desk.locator("#details summary", has_text="Answer").click()
    await desk.locator("#details .part", has_text="Answer").get_by_text("x-adobe-edge").wait_for()
    await desk.click("#close-details")
    assert not await desk.locator("#details").is_visible()


async def test_what_is_copied_rebuilds_the_event(desk, url):
    """JSON and Python give the same event again, curl the same request."""
    await asyncio.to_thread(post, url, "collect", {"events": [PURCHASE]}, **{"x-test-tag": "it's a tag"})
    await has_rows(desk, 1)
    await desk.click("#rows .canvas .event")
    await desk.wait_for_selector("#copy-curl:enabled")

    call = ast.parse(await copied(desk, "python"), mode="eval").body.value
    assert ast.unparse(call.func) == "alloy.event"
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert list(arguments) == ["type", "xdm", "data"]
    rebuilt = {
        "xdm": {**arguments["xdm"], "eventType": arguments["type"]},
        "data": arguments["data"],
    }
    assert rebuilt == PURCHASE

    assert json.loads(await copied(desk, "json")) == PURCHASE

    program, *arguments = shlex.split(await copied(desk, "curl"))
    assert (program, arguments[:3]) == ("curl", ["-X", "POST", f"{url}/ee/v1/collect?configId=shop"])
    assert json.loads(arguments[-1]) == {"events": [PURCHASE]}
    assert "x-test-tag: it's a tag" in arguments


async def test_a_choice_is_copied_as_the_call_that_makes_it(desk, url):
    await asyncio.to_thread(choose, url, "out")
    await has_rows(desk, 1)
    await desk.click("#rows .canvas .event")
    await desk.wait_for_selector("#copy-python:enabled")
    assert await copied(desk, "python") == 'await alloy.opt_in(purposes="none")'


async def test_hidden_signs_are_written_as_escapes_for_python(desk, url):
    """What a terminal or an editor would act on, and not show, does not reach the clipboard."""
    await asyncio.to_thread(post, url, "collect", {"events": [PURCHASE]})
    await has_rows(desk, 1)
    await desk.click("#rows .canvas .event")
    await desk.wait_for_selector("#copy-python:enabled")
    text = await copied(desk, "python")
    assert text.isprintable() or set(filter(lambda sign: not sign.isprintable(), text)) == {"\n"}


TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"

LANE = """lane => Object.fromEntries([...lane.querySelectorAll("path[data-choice], path[data-outcome]")].map(path =>
    [path.dataset.choice || path.dataset.outcome, (path.getAttribute("d").match(/M[\\d.]+/g) || []).map(x => +x.slice(1))]))"""


async def test_a_lane_shows_that_nothing_was_sent_before_the_yes_or_after_the_no(chromium, url):
    """Bands of pending, all and none in this order; recorded marks on "all" alone, hollow ones after the no."""
    anna = {"visitor": f"ECID {ANNA}"}
    feed = messages(
        HELLO,
        (
            "entries",
            [
                entry(5, {"visitor": f"ECID {BEN}"}),
                entry(10, action="privacy/set-consent", consent="in", **anna),
                entry(11, {"waitedMs": 6000}, {"waitedMs": 2000}),
                entry(15, {"outcome": "duplicate"}),
                entry(20, action="privacy/set-consent", consent="out", **anna),
                entry(25, {"outcome": "withheld"}),
                entry(26, {"outcome": "refused"}),
            ],
        ),
    )
    async with open_desk(chromium, url, feed) as page:
        await page.locator(".visitor", has_text=ANNA).click()
        lane = page.locator("#lane-of-one .lane")
        await page.wait_for_function(
            "() => document.querySelector('#lane-of-one path.none').getAttribute('d')"
        )
        starts = await lane.evaluate(LANE)
        assert [len(starts[choice]) for choice in ("pending", "all", "none")] == [1, 1, 1]
        yes, no = starts["all"][0], starts["none"][0]
        assert starts["pending"][0] == 0 < yes < no
        assert all(yes <= x < no for x in starts["recorded"] + starts["duplicate"])
        assert all(x > no for x in starts["withheld"] + starts["refused"])
        counts = await lane.locator("path[data-count]").evaluate_all(
            "paths => paths.map(p => p.dataset.outcome + p.dataset.count)"
        )
        assert counts == ["recorded2", "duplicate1", "withheld1", "refused1"]
        style = "getComputedStyle(document.querySelector('#lane-of-one [data-outcome={}]')).fill"
        assert await page.evaluate(style.format("withheld")) != await page.evaluate(style.format("recorded"))
        words = await lane.get_attribute("aria-label")
        assert words.startswith("Consent: pending, all from ")
        assert words.endswith("Events: 2 recorded, 1 duplicate, 1 withheld, 1 refused.")


async def test_a_lane_does_not_say_pending_of_events_that_were_taken(chromium, url):
    """The application may keep the choice to itself: the edge was not told, and says so; a later no is told."""
    feed = messages(
        HELLO,
        (
            "entries",
            [
                entry(5, {"outcome": "refused"}),
                entry(10, {"waitedMs": 6000}),
                entry(12, {}),
                entry(20, action="privacy/set-consent", consent="out", visitor=f"ECID {ANNA}"),
                entry(25, {"outcome": "withheld"}),
            ],
        ),
    )
    async with open_desk(chromium, url, feed) as page:
        await page.locator(".visitor", has_text=ANNA).click()
        lane = page.locator("#lane-of-one .lane")
        await page.wait_for_function(
            "() => document.querySelector('#lane-of-one path.none').getAttribute('d')"
        )
        starts = await lane.evaluate(LANE)
        assert starts["pending"][0] == 0 < starts["untold"][0] < starts["none"][0]
        assert starts["all"] == []
        words = await lane.get_attribute("aria-label")
        assert words.startswith("Consent: pending, not told from ")
        assert await page.locator(".visitor .choice", has_text="none").count() == 1


async def test_problems_are_grouped_with_what_to_do(chromium, url):
    """By what is wrong and where; places in lists do not count, and a refused request counts once."""

    def refused(n, index):
        problem = {"code": "0306-400", "title": "No primary identity", "eventIndex": index}
        problem["detail"] = f"The event #{index} has none."
        return entry(n, *[{"outcome": "refused"}] * 3, status=400, problem=problem)

    first, third, elsewhere = (
        {"findings": [{**FINDING, "path": path}]}
        for path in ("xdm.items[0].field1", "xdm.items[2].field1", "xdm.items[2].field2")
    )
    feed = messages(
        HELLO,
        ("entries", [entry(1, first, {}), entry(2, third, elsewhere), refused(3, 0), refused(4, 2)]),
    )
    async with open_desk(chromium, url, feed) as page:
        await has_rows(page, 10)
        await page.click("nav [data-view=problems]")
        cards = page.locator("#problem-list .card")
        texts = await cards.all_inner_texts()
        assert [text.count(" times") for text in texts] == [1, 1, 0]
        assert all("2 times" in text for text in texts[:2])
        assert "xdm.items[0].field1" in texts[0]
        assert "What to do: Write 'purchases'." in texts[0]
        assert "No primary identity. The event #0 has none." in texts[1]
        assert "xdm.items[2].field2" in texts[2]
        await cards.nth(0).get_by_text("Show them in the timeline").click()
        await has_rows(page, 2)


async def test_what_is_cleared_or_dropped_leaves_the_page(chromium, url):
    entries = ("entries", [entry(n, {}) for n in range(1, 9)])
    feed = messages(
        ("hello", {"session": "a", "dropped": 3, "earlier": 8, "before": 1}),
        entries,
        ("dropped", {"before": 3}),
    )
    async with open_desk(chromium, url, feed) as page:
        await has_rows(page, 6)
        assert await page.inner_text("#dropped") == "5 older exchanges were dropped"
    async with open_desk(chromium, url, feed + messages(("cleared", {"before": 9}))) as page:
        await page.wait_for_selector("#nothing:not([hidden])")
        assert await page.inner_text("#visitor-count") == "0"


async def test_what_was_cleared_while_nobody_listened_is_gone_after_the_reconnect(chromium, url):
    soon = "retry: 50\n\n"
    first = soon + messages(HELLO, ("entries", [entry(n, {}) for n in range(1, 9)]))
    again = soon + messages(("hello", {"session": "a", "dropped": 0, "earlier": 0, "before": 9}))
    async with open_desk(chromium, url, feed=first) as page:
        await has_rows(page, 8)
        await page.route(
            "**/_dev/feed", lambda route: route.fulfill(body=again, content_type="text/event-stream")
        )
        await page.wait_for_selector("#nothing:not([hidden])")
        assert await rows(page) == []


async def test_clear_asks_first(desk, url):
    await asyncio.to_thread(collect, url, event("one"))
    await has_rows(desk, 1)
    await desk.click("#clear")
    await desk.click("#clear-no")
    assert await desk.locator("#clear-dialog").is_hidden()
    assert len(await rows(desk)) == 1
    await desk.click("#clear")
    await desk.click("#clear-yes")
    await desk.wait_for_selector("#nothing:not([hidden])")
    assert (await asyncio.to_thread(httpx.get, f"{url}/_dev/requests")).json()["requests"] == []


async def test_a_paused_page_stands_still_and_catches_up(desk, url):
    await asyncio.to_thread(collect, url, event("one"))
    await has_rows(desk, 1)
    await desk.click("#pause")
    await asyncio.to_thread(collect, url, event("two"), event("three"))
    await desk.wait_for_function(
        "() => document.getElementById('connection').textContent === 'Paused, 1 new'"
    )
    await desk.keyboard.press("3")
    await desk.keyboard.press("1")
    await desk.evaluate(TWO_FRAMES)
    assert len(await rows(desk)) == 1
    await desk.click("#pause")
    await has_rows(desk, 3)


async def test_after_a_restart_the_page_begins_anew(chromium):
    """The browser connects again by itself; another session's exchanges replace what was known."""
    with ExitStack() as first:
        url = first.enter_context(serving(create_app())).url
        await asyncio.to_thread(collect, url, event("one"), event("two"))
        async with open_desk(chromium, url) as page:
            await has_rows(page, 2)
            await asyncio.to_thread(first.close)
            await page.wait_for_selector("#connection[data-state=lost]")
            with serving(create_app(), port=int(url.rpartition(":")[2])):
                await asyncio.to_thread(collect, url, event("three", "after.restart"))
                await page.wait_for_selector("#connection[data-state=live]")
                await has_rows(page, 1)
                assert "after.restart" in (await rows(page))[0]


async def test_ten_thousand_events_take_no_more_elements_than_fit(chromium, url):
    """Only what can be seen has elements, at the top, in the middle and at the end of the list."""
    names = [f"ECID {n:038}" for n in range(500)]
    entries = [entry(n, {"visitor": names[n % 500]}) for n in range(1, 10_001)]
    chunks = [("entries", entries[start : start + 500]) for start in range(0, 10_000, 500)]
    async with open_desk(chromium, url, messages(HELLO, *chunks)) as page:
        await page.wait_for_function(
            "() => document.getElementById('shown').textContent.startsWith('10,000 ')"
        )
        assert await page.inner_text("#visitor-count") == "500"
        for place in (0, 150_000, 10_000_000):
            await page.evaluate(
                "y => new Promise(done => { document.getElementById('rows').scrollTop = y; requestAnimationFrame(() => requestAnimationFrame(done)) })",
                place,
            )
            assert 10 < await page.locator("#rows .canvas .event").count() < 60
            assert 5 < await page.locator(".visitor").count() < 60
        assert "15:00:01.000" in (await rows(page))[-1] or "1-0" in await page.evaluate(
            "[...document.querySelectorAll('#rows .canvas .event')].map(row => row.id).join()"
        )
        assert await page.locator("*").count() < 2_000


async def test_dark_and_light_follow_the_system_until_one_is_chosen(chromium, url):
    """The choice is kept over a reload."""
    colour = "getComputedStyle(document.body).backgroundColor"
    async with open_desk(chromium, url, color_scheme="dark") as page:
        dark = await page.evaluate(colour)
        await page.emulate_media(color_scheme="light")
        light = await page.evaluate(colour)
        assert dark != light
        await page.click("#theme")
        await page.click("#theme")
        assert await page.evaluate(colour) == dark
        await page.reload()
        assert await page.evaluate(colour) == dark
        await page.click("#theme")
        assert await page.evaluate(colour) == light


@pytest.mark.parametrize("width", [1280, 800])
async def test_every_view_fits_into_the_window(chromium, url, width):
    """Nothing is cut off at the side, with long texts as well."""
    long = "very.long.type.of.an.event." * 6
    names = [{"type": long, "visitor": f"ECID {ANNA}{n}", "findings": [FINDING]} for n in range(40)]
    feed = messages(HELLO, ("entries", [entry(1, *names, tag=long, fault="status 503")]))
    async with open_desk(chromium, url, feed) as page:
        await page.set_viewport_size({"width": width, "height": 800})
        await page.wait_for_selector("#rows .canvas .event")
        for view in ("visitors", "problems", "faults", "timeline"):
            await page.click(f"nav [data-view={view}]")
            await page.evaluate(TWO_FRAMES)
            assert await page.evaluate(CUT_OFF) == []
        await page.click("#rows [aria-rowindex='3']")
        await page.wait_for_selector("#details:not([hidden])")
        assert await page.evaluate(CUT_OFF) == []
        assert await page.locator("#close-details").is_visible()


CUT_OFF = """() => [...document.querySelectorAll("button, input, select, h2, svg, .event, .card")].filter(element => {
    if (!element.checkVisibility() || element.closest("#patterns, .sr-only")) return false;
    const { left, right } = element.getBoundingClientRect();
    return left < -0.5 || right > innerWidth + 0.5;
}).map(element => element.id || element.className || element.textContent)"""


async def test_rates_and_counts_are_told_in_words_too(desk, url):
    """The chart has a text, and the region that is read out speaks of sums, not of each event."""
    region = desk.locator("#announcer")
    assert await region.get_attribute("aria-live") == "polite"
    await asyncio.to_thread(collect, url, event("one"), event("two"))
    await has_rows(desk, 2)
    assert await region.text_content() == ""
    await desk.evaluate("announce()")
    assert await region.text_content() == "2 events and requests in the timeline, 0 with problems."
    await desk.wait_for_function(
        "() => /now, [0-9.]*[1-9] at most/.test(document.getElementById('rate-chart').getAttribute('aria-label'))"
    )


async def test_nothing_moves_for_those_who_asked_for_that(chromium, url):
    for motion, name in (("no-preference", "rise"), ("reduce", "none")):
        async with open_desk(chromium, url, reduced_motion=motion) as page:
            await page.click("#theme")
            assert (
                await page.evaluate("getComputedStyle(document.getElementById('toast')).animationName")
                == name
            )


CONTRAST = """() => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
    const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = element => { for (; element; element = element.parentElement) {
        const colour = rgb(getComputedStyle(element).backgroundColor); if (colour[3] === 255) return colour; } return [255, 255, 255]; };
    const poor = [];
    for (const element of document.querySelectorAll("body *")) {
        const says = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!says || !element.checkVisibility() || element.closest("svg, option, script, :disabled")) continue;
        const [one, other] = [light(rgb(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
        const ratio = (one + 0.05) / (other + 0.05);
        if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${element.className} ${element.textContent.slice(0, 30)}`);
    }
    return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_stands_out_from_its_ground(chromium, url, scheme):
    """WCAG 2.2 level AA: 4.5 to 1, in every view."""
    outcomes = [{"outcome": outcome} for outcome in ("recorded", "duplicate", "withheld", "refused")]
    problem = {"code": "0101-400", "title": "Invalid JSON", "detail": "No.", "eventIndex": None}
    feed = messages(
        HELLO,
        (
            "entries",
            [
                entry(
                    1,
                    *outcomes,
                    {"findings": [FINDING, {**FINDING, "level": "warning"}]},
                    fault="status 503",
                    tag="t",
                ),
                entry(2, consent="in", visitor=f"ECID {ANNA}"),
                entry(3, problem=problem, status=400),
            ],
        ),
        ("faults", {"seed": 0, "faults": [{"status": 503, "acted": 1}]}),
    )
    async with open_desk(chromium, url, feed, color_scheme=scheme) as page:
        await has_rows(page, 7)
        await page.click("#rows .canvas .event >> nth=2")
        for view in ("timeline", "visitors", "problems", "faults"):
            await page.click(f"nav [data-view={view}]")
            assert await page.evaluate(CONTRAST) == []


async def test_everything_can_be_done_with_the_keyboard(desk, url):
    await asyncio.to_thread(collect, url, event("one"), event("two"), event("three", ecid=BEN))
    await has_rows(desk, 3)
    keys, focused = desk.keyboard, "document.activeElement.id"

    await keys.press("j")
    await keys.press("j")
    assert await desk.evaluate(focused) == "rows"
    assert await desk.locator("[aria-selected=true][role=row]").get_attribute("id") == "row-1-1"
    assert await desk.get_attribute("#rows", "aria-activedescendant") == "row-1-1"
    await keys.press("ArrowUp")
    await keys.press("k")  # at the top already
    assert await desk.get_attribute("#rows", "aria-activedescendant") == "row-1-2"
    await keys.press("Enter")
    await desk.wait_for_selector("#details:not([hidden])")
    assert await desk.evaluate(focused) == "details-title"
    await keys.press("Escape")
    assert not await desk.locator("#details").is_visible()
    assert await desk.evaluate(focused) == "rows"

    await keys.press("/")
    assert await desk.evaluate(focused) == "search"
    await keys.type("two")
    await has_rows(desk, 1)
    await keys.press("Escape")
    await has_rows(desk, 3)

    await keys.press("?")
    assert await desk.locator("#help-dialog").is_visible()
    await keys.press("Escape")
    assert not await desk.locator("#help-dialog").is_visible()
    await keys.press("3")
    assert await desk.locator("#problems").is_visible()
    await keys.press("1")

    await desk.focus("#visitor-rows")
    await keys.press("ArrowDown")
    await keys.press("Enter")
    await has_rows(desk, 1)


async def test_every_control_is_reached_by_tab_and_shows_it(desk, url):
    await asyncio.to_thread(collect, url, event("one"))
    await has_rows(desk, 1)
    for view in ("1", "4"):
        await desk.focus("#pause")
        await desk.keyboard.press(view)
        controls = await desk.evaluate(
            "[...document.querySelectorAll('button, input, select, [tabindex=\"0\"]')].filter(e => e.checkVisibility() && !e.disabled).length"
        )
        reached = set()
        for _ in range(controls + 3):
            await desk.keyboard.press("Tab")
            reached.add(
                await desk.evaluate(
                    """() => { const e = document.activeElement, all = [...document.querySelectorAll("*")];
                    return e === document.body || getComputedStyle(e).outlineStyle !== "none" ? all.indexOf(e) : "no outline: " + e.id }"""
                )
            )
        assert not [name for name in reached if isinstance(name, str)]
        assert len(reached) >= controls


OPEN_ALL = """() => new Promise(done => {
    for (const part of document.querySelectorAll("#details details")) part.open = true;
    requestAnimationFrame(() => requestAnimationFrame(done));
})"""

ATTACKS = (
    "<img src=x onerror=window.ran=1>",
    "<script>window.ran=1</script>",
    "\"'><svg onload=window.ran=1><b class=made>",
    "javascript:window.ran=1",
    "{{constructor.constructor('window.ran=1')()}}</style></script><iframe srcdoc='<b>'>",
    "__proto__",
    "\u202e\u0000\ud800",
)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_nothing_that_is_sent_runs_or_becomes_markup(chromium, url, attack):
    """In every field of an entry and of an exchange, in names of JSON and in values."""
    problem = {"code": attack, "title": attack, "detail": attack, "advice": attack, "eventIndex": None}
    finding = {"level": attack, "code": attack, "path": attack, "message": attack, "advice": attack}
    texts = dict.fromkeys(("id", "type", "visitor", "timestamp", "outcome"), attack)
    about = dict.fromkeys(
        ("method", "path", "action", "datastreamId", "requestId", "tag", "fault", "visitor"), attack
    )
    entries = [
        entry(1, {**texts, "findings": [finding]}, **about, problem=problem),
        entry(2, **about, problem=problem),
        entry(3, **about, consent="in"),
    ]
    fault = {"status": attack, "path": attack, "visitor": attack, "eventType": attack, "acted": attack}
    feed = messages(HELLO, ("entries", entries), ("faults", {"seed": 0, "faults": [fault, {"text": attack}]}))
    payload = {
        attack: [attack, {attack: attack}],
        "events": [{attack: attack, "xdm": {attack: {attack: attack}}}],
    }
    side = {"headers": {attack: attack}, "body": payload, "text": None}
    exchange = {
        "request": {"method": attack, "path": attack, "query": {attack: attack}, **side},
        "answer": {"status": 200, **side},
    }
    async with open_desk(chromium, url, feed) as page:
        before = await page.evaluate(
            "[...new Set([...document.querySelectorAll('*')].map(e => e.localName))]"
        )
        await page.route("**/_dev/requests/*", lambda route: route.fulfill(body=json.dumps(exchange)))
        await has_rows(page, 3)
        for number in range(3):
            await page.locator("#rows .canvas .event").nth(number).click()
            await page.wait_for_selector("#copy-curl:enabled")
            for _ in range(8):
                await page.evaluate(OPEN_ALL)
            await page.click("#copy-json")
            await page.click("#copy-curl")
        await page.fill("#search", attack)
        await page.press("#search", "Escape")
        for view in ("visitors", "problems", "faults", "timeline"):
            await page.click(f"nav [data-view={view}]")
        await page.locator(".visitor").first.click()
        ours = {
            "dl",
            "dt",
            "dd",
            "details",
            "summary",
            "article",
            "pre",
            "text",
            "h3",
            "h4",
            "textarea",
            "b",
            "i",
            "code",
        }
        after = await page.evaluate("[...new Set([...document.querySelectorAll('*')].map(e => e.localName))]")
        assert set(after) - set(before) <= ours
        assert await page.evaluate("window.ran") is None
        assert await page.locator(".made, iframe, img, #details script").count() == 0
        strange = await page.evaluate(
            """[...document.querySelectorAll("*")].flatMap(e => [...e.attributes].map(a => a.name))
            .filter(name => /^on|^srcdoc$|^src$/.test(name))"""
        )
        assert strange == []


async def test_the_policy_lets_nothing_else_run(page, url):
    """Markup and code from strings are refused by the browser itself."""
    await page.goto(f"{url}/_dev/")
    refused = """code => { try { code(); return null } catch (error) { return error.name } }"""
    for code in ("() => { document.body.innerHTML = '<b>' }", "() => { setTimeout('window.ran = 1') }"):
        assert await page.evaluate(f"({refused})({code})") == "TypeError"


async def test_the_page_is_one_file_under_a_policy_that_names_its_script(url):
    answer = httpx.get(f"{url}/", follow_redirects=True)
    assert str(answer.url) == f"{url}/_dev/"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert httpx.get(f"{url}/_dev/", headers={"host": "elsewhere.example"}).status_code == 403


async def test_faults_are_switched_on_the_page(desk, url, edge):
    """What the form says is what acts; the list counts how often, and the badge stays in sight."""
    edge.faults.replace([], seed=7)
    await desk.click("nav [data-view=faults]")
    await desk.wait_for_function("() => document.querySelector('[name=seed]').value === '7'")
    await desk.select_option("#fault-kind", "status")
    await desk.fill("[name=retryAfter]", "2")
    await desk.fill("[name=path]", "/collect")
    await desk.fill("[name=times]", "1")
    await desk.click("#fault-form [type=submit]")
    await desk.get_by_text("Status 503, Retry-After 2 s").wait_for()
    assert await desk.inner_text("#fault-count") == "1"
    assert edge.faults.as_json()["faults"] == [
        {"status": 503, "retryAfter": 2, "path": "/collect", "times": 1, "acted": 0}
    ]
    refused = await asyncio.to_thread(
        httpx.post, f"{url}/ee/v1/collect?configId=shop", json={"events": [event("one")]}
    )
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    await desk.get_by_text("acted 1 time").wait_for()
    await asyncio.to_thread(collect, url, event("two"))

    assert await desk.input_value("[name=path]") == ""  # the next one begins anew
    await desk.select_option("#fault-kind", "latency")
    await desk.fill("[name=latency]", "1")
    await desk.fill("[name=visitor]", "ECID")
    await desk.click("#fault-form [type=submit]")
    await desk.locator("#fault-list li").nth(1).wait_for()
    await desk.get_by_role("button", name="Remove: Status 503").click()
    await desk.locator("#fault-list li").nth(1).wait_for(state="detached")
    assert [fault["latency"] for fault in edge.faults.as_json()["faults"]] == [1]
    await desk.click("#no-faults")
    await desk.get_by_text("No fault is on").wait_for()
    assert edge.faults.as_json() == {"seed": 7, "faults": []}


async def test_a_fault_that_cannot_be_used_is_explained(desk):
    await desk.click("nav [data-view=faults]")
    await desk.select_option("#fault-kind", "contentType")
    await desk.fill("[name=contentType]", "")
    await desk.click("#fault-form [type=submit]")
    trouble = desk.locator("#fault-trouble", has_text="contentType")
    await trouble.wait_for()
    assert await trouble.get_attribute("role") == "alert"


async def test_a_real_visit_shows_in_its_lane(desk, url):
    """With the edge's own answers to a yes and a no: recorded between them, withheld after."""
    await asyncio.to_thread(choose, url, "in")
    await asyncio.to_thread(collect, url, event("one"))
    await asyncio.to_thread(collect, url, event("one"))
    await asyncio.to_thread(choose, url, "out")
    await asyncio.to_thread(collect, url, event("two"))
    lane = desk.locator(".visitor", has_text=ANNA).locator(".lane")
    await desk.wait_for_function(
        "() => document.querySelector('.visitor .lane [data-outcome=withheld]')?.dataset.count === '1'"
    )
    counts = await lane.locator("path[data-count]").evaluate_all("paths => paths.map(p => p.dataset.count)")
    assert counts == ["1", "1", "1", "0"]
    assert await desk.inner_text(".visitor .choice") == "none"


class Shop:
    """A few minutes in a shop that ended just now, for pictures."""

    def __init__(self):
        self.now = datetime.now(UTC) - timedelta(minutes=5)
        self.edge = DevelopmentEdge(clock=lambda: self.now)
        self.dice = random.Random(11)

    def send(self, path, body, tag=None):
        headers = {"content-type": "application/json", "user-agent": "alloy-async/0.1.0"}
        if tag:
            headers["x-test-tag"] = tag
        self.edge.answer(
            EdgeRequest("POST", f"/ee/v1/{path}", {"configId": "shop"}, headers, json.dumps(body).encode())
        )

    def happened(self, ecid, event_type, waited=0.02):
        moment = (self.now - timedelta(seconds=waited)).isoformat(timespec="milliseconds")
        number = str(uuid.UUID(int=self.dice.getrandbits(128), version=4))
        order = {
            "priceTotal": 59.90,
            "currencyCode": "EUR",
            "purchaseID": f"A-{self.dice.randrange(10_000, 99_999)}",
        }
        xdm = {
            "_id": number,
            "eventType": event_type,
            "timestamp": moment.replace("+00:00", "Z"),
            "identityMap": {"ECID": [{"id": ecid, "primary": True}]},
            "web": {"webPageDetails": {"URL": "https://shop.example/cart", "name": "Cart"}},
        }
        if event_type.startswith("commerce"):
            xdm["commerce"] = {event_type.partition(".")[2]: {"value": 1}, "order": order}
        return {"xdm": xdm, "data": {"basket": ["mug", "t-shirt"], "gift": False}}

    def choose(self, ecid, choice):
        consent = [{"standard": "Adobe", "version": "1.0", "value": {"general": choice}}]
        self.send("privacy/set-consent", {"consent": consent, "identityMap": {"ECID": [{"id": ecid}]}})

    def visit(self, ecid, begins, says_yes, says_no=None, ends=300):
        """Yield the moments of a visit, and what happens at each."""
        parked = []
        at = begins
        while at < ends:
            if at < says_yes:
                parked.append(at)
            elif says_no is None or at < says_no or self.dice.random() < 0.3:
                yield at, lambda: self.send(self.path(), self.body(ecid), self.tag())
            at += self.dice.expovariate(0.22)
        if says_yes < ends:
            yield says_yes, lambda: self.choose(ecid, "in")
            released = [(says_yes - moment, self.type()) for moment in parked]
            if released:
                yield (
                    says_yes + 0.05,
                    lambda: self.send(
                        "collect", {"events": [self.happened(ecid, t, waited) for waited, t in released]}
                    ),
                )
        if says_no is not None:
            yield says_no, lambda: self.choose(ecid, "out")

    def path(self):
        return self.dice.choice(["collect", "collect", "interact"])

    def tag(self):
        return "test_checkout" if self.dice.random() < 0.04 else None

    def type(self):
        return self.dice.choice(
            ["web.webpagedetails.pageViews"] * 3
            + [
                "commerce.productViews",
                "commerce.productListAdds",
                "commerce.checkouts",
                "commerce.purchases",
            ]
        )

    def body(self, ecid):
        sent = self.happened(ecid, self.type())
        if self.dice.random() < 0.05:
            sent["xdm"]["commerce"] = {"purchase": {"value": "1"}}  # no field of this name
        self.last = self.last if self.dice.random() < 0.05 and hasattr(self, "last") else sent
        strange = {"xdm": {"_id": sent["xdm"]["_id"] + "-b", "identityMap": {"ECID": "not a list"}}}
        return {"events": [self.last, strange] if self.dice.random() < 0.02 else [self.last]}

    def open(self):
        self.ecids = [str(self.dice.randrange(10**37, 10**38)) for _ in range(9)]
        visits = [
            (0, 20),
            (4, 60, 210),
            (15, 40),
            (30, 31, 120),
            (50, 110),
            (80, 84),
            (100, 400),
            (140, 190),
            (200, 215, 260),
        ]
        moments = [
            moment
            for ecid, times in zip(self.ecids, visits, strict=True)
            for moment in self.visit(ecid, *times)
        ]
        moments.append((150, lambda: self.send("collect", {"events": []})))
        moments.append((270, lambda: self.send("colect", {})))
        start = self.now
        for at, happens in sorted(moments, key=lambda moment: moment[0]):
            self.now = start + timedelta(seconds=at)
            happens()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pictures_for_the_documentation(chromium, scheme):
    """Written only when WRITE_SCREENSHOTS is set, so that other runs leave the files alone."""
    if not os.environ.get("WRITE_SCREENSHOTS"):
        pytest.skip("set WRITE_SCREENSHOTS=1 to write docs/_static/development-edge-*.png")
    SCREENSHOTS.mkdir(exist_ok=True)
    shop = Shop()
    await asyncio.to_thread(shop.open)
    with serving(create_app(shop.edge)) as server:
        async with open_desk(chromium, server.url, color_scheme=scheme) as page:
            await page.wait_for_selector("#rows .canvas .event")
            await page.locator(".visitor", has_text=shop.ecids[1]).click()
            await page.wait_for_function(
                "() => document.querySelector('#lane-of-one path.none').getAttribute('d')"
            )
            if scheme == "dark":
                await page.click("#rows [aria-rowindex='6']")
                await page.get_by_text("as it was sent").wait_for()
            await page.screenshot(path=SCREENSHOTS / f"development-edge-{scheme}.png")
