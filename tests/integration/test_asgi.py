"""The door to the web, met as a browser meets it: through a whole application, with a cookie jar."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import weakref

import pytest
from browser import (
    ECID,
    IDENTITY,
    NAMES,
    Browser,
    Shop,
    delivered,
    key_from_header,
    respond,
    running,
    set_cookies,
)
from common import IDS, settle

from alloy_async import (
    Alloy,
    ConfigurationError,
    ConsentDeclined,
    ConsentStoreError,
    ConsentTimeout,
    NotConfigured,
)
from alloy_async.asgi import AlloyMiddleware, lifespan, request_visitor
from alloy_async.edge import EdgeResponse
from alloy_async.stores import MemoryStore

OLD_FPID = "6f1c0f7e-3f0a-4a1c-9d58-0d6f6c1f2b3a"


@pytest.fixture
def shop():
    """An application without pages of its own."""
    return Shop()


# The choice lives in the browser


async def test_a_request_that_does_not_use_the_visitor_is_left_alone(shop, edge):
    """No header is added, nothing is read, whatever cookies come."""
    async with running(shop, edge) as (app, _), Browser(app) as browser:
        browser.page_writes(NAMES.consent, "general=out")
        answer = await browser.get("/quiet")
    assert answer.text == "<RequestVisitor, not yet used>"
    assert list(answer.headers) == []


async def test_before_a_choice_nothing_is_written_and_nothing_sent(shop, edge):
    """The response is as the application made it; what was parked ends with the request, since nobody can release it."""
    futures = []

    @shop.at("/park")
    async def park(scope, receive, send):
        futures.append(request_visitor(scope).event())
        await respond(send, cache_control="public, max-age=60")

    async with running(shop, edge) as (app, alloy), Browser(app) as browser:
        answer = await browser.get("/park")
        await delivered(alloy)
    assert dict(answer.headers) == {"cache-control": "public, max-age=60"}
    assert isinstance(futures[0].exception(), ConsentTimeout)
    assert edge.requests == []


async def test_a_yes_is_kept_by_the_browser_and_counts_from_the_next_request_on(shop, edge):
    """One browser, one identity, given with the first event; another browser gets another one."""
    async with running(shop, edge) as (app, alloy), Browser(app) as ada, Browser(app) as eve:
        answer = await ada.choose("all")
        assert answer.status_code == 204
        assert ada.told() == ("general=in", "all")
        assert set(set_cookies(answer)) == {"consent", "choice"}, (
            "nothing that identifies, until something needs it"
        )
        await eve.choose("all")
        first, second, other = await ada.get("/event?a"), await ada.get("/event?b"), await eve.get("/event?c")
        await delivered(alloy)
    assert first.text == second.text == "all"
    assert set(set_cookies(first)) == {"fpid"}
    assert set_cookies(second) == {}
    sent = {event["xdm"]["eventType"]: event["xdm"]["identityMap"]["FPID"][0]["id"] for event in edge.events}
    assert sent == {kind: jar.cookies[NAMES.fpid] for kind, jar in {"a": ada, "b": ada, "c": eve}.items()}
    assert set_cookies(other)["fpid"] != set_cookies(first)["fpid"]


async def test_cookies_are_as_safe_as_they_can_be(shop, edge):
    """Ours are not for scripts; alloy.js must read its own; all are Secure, Lax and for every path."""
    async with running(shop, edge, cookie_domain="shop.example") as (app, _), Browser(app) as browser:
        lines = (await browser.choose("all")).headers.get_list("set-cookie")
        lines += (await browser.get("/event")).headers.get_list("set-cookie")
    rest = {line.partition("=")[0].rpartition("_")[2]: line.partition("; ")[2] for line in lines}
    common = "Path=/; Domain=shop.example; Max-Age={}; SameSite=Lax; Secure"
    assert rest == {
        "consent": common.format(15_552_000),
        "choice": common.format(15_552_000) + "; HttpOnly",
        "fpid": common.format(34_128_000) + "; HttpOnly",
    }


async def test_a_no_deletes_what_identifies_and_is_remembered(shop, edge):
    """Both cookies say so, later events are refused, and later answers need not say it again."""
    async with running(shop, edge) as (app, alloy), Browser(app) as browser:
        await browser.choose("all")
        await browser.get("/event?before")
        await delivered(alloy)
        browser.page_writes(NAMES.identity, IDENTITY)
        browser.page_writes(f"{NAMES.prefix}optout", "1")
        answer = await browser.choose("none")
        assert {name: value for name, value in set_cookies(answer).items() if value is None} == {
            "fpid": None,
            "identity": None,
        }
        assert browser.told() == ("general=out", "none")
        later = await browser.get("/event?after")
        await delivered(alloy)
    assert later.text == "none"
    assert set_cookies(later) == {}
    assert edge.event_types == ["before"]


async def test_a_change_of_mind_begins_a_new_identity(shop, edge):
    """What was known before a no is not known after the next yes, also when its cookies came back in between."""
    async with running(shop, edge) as (app, alloy), Browser(app) as browser:
        await browser.choose("all")
        await browser.get("/event?one")
        old = browser.cookies[NAMES.fpid]
        await browser.choose("none")
        browser.page_writes(NAMES.fpid, old)  # a response that was under way
        answer = await browser.choose("all")
        assert set_cookies(answer)["fpid"] is None
        await browser.get("/event?two")
        await delivered(alloy)
    ids = [event["xdm"]["identityMap"]["FPID"][0]["id"] for event in edge.events]
    assert ids[0] == old != ids[1]


async def test_after_a_no_nothing_of_the_old_identity_is_used(shop, edge):
    """Not even in the request that says yes again, to which the browser has still sent it."""

    @shop.at("/again")
    async def again(scope, receive, send):
        visitor = request_visitor(scope)
        await visitor.opt_in(purposes="all")
        await visitor.event(view_start=True)
        await respond(send)

    async with running(shop, edge) as (app, _), Browser(app) as browser:
        await browser.choose("none")
        browser.page_writes(NAMES.identity, IDENTITY)
        browser.page_writes(NAMES.fpid, OLD_FPID)
        answer = await browser.get("/again")
    sent = json.dumps(edge.requests[0].body)
    assert [old for old in (ECID, IDENTITY, OLD_FPID) if old in sent] == []
    assert set_cookies(answer)["identity"] is None
    assert set_cookies(answer)["fpid"] in sent


async def test_a_terminal_that_several_persons_share_gets_no_identity(shop, edge):
    """Where it is so configured, each key has its own, and the browser none."""
    async with (
        running(shop, edge, key=key_from_header, fpid_cookie=False) as (app, alloy),
        Browser(app) as browser,
    ):
        for account in ("ada", "bob"):
            browser.headers["x-account"] = account
            browser.page_writes(NAMES.fpid, OLD_FPID)
            await browser.choose("all")
            assert set_cookies(await browser.get(f"/event?{account}")) == {}
            await delivered(alloy)
    ids = [event["xdm"]["identityMap"]["FPID"][0]["id"] for event in edge.events]
    assert len({*ids, OLD_FPID}) == 3


@pytest.mark.parametrize("key", [None, key_from_header], ids=["without key", "with key"])
async def test_a_choice_of_the_page_counts(shop, edge, key):
    """alloy.js has asked in the page; the server knows from its cookie, both ways."""
    async with running(shop, edge, key=key) as (app, alloy), Browser(app, **{"x-account": "ada"}) as browser:
        browser.page_writes(NAMES.consent, "general=in")
        await browser.get("/event?yes")
        await delivered(alloy)
        browser.page_writes(NAMES.consent, "general=out")
        answer = await browser.get("/event?no")
        await delivered(alloy)
    assert answer.text == "none"
    assert edge.event_types == ["yes"]
    assert set_cookies(answer)["choice"].startswith("none."), (
        "told, so that a later yes of the page is known as later"
    )


async def test_the_page_may_change_its_mind(shop, edge):
    """A yes of the page that was said after the no it was told, counts."""
    async with (
        running(shop, edge, key=key_from_header) as (app, alloy),
        Browser(app, **{"x-account": "ada"}) as browser,
    ):
        await browser.choose("none")
        browser.page_writes(NAMES.consent, "general=in")
        await browser.get("/event?yes")
        await delivered(alloy)
    assert edge.event_types == ["yes"]


async def test_identities_of_the_page_are_used_and_none_is_added(shop, edge):
    """With an ECID in alloy.js's cookie the browser gets no id of ours."""
    async with running(shop, edge) as (app, alloy), Browser(app) as browser:
        browser.page_writes(NAMES.consent, "general=in")
        browser.page_writes(NAMES.identity, IDENTITY)
        answer = await browser.get("/event")
        await delivered(alloy)
    assert set_cookies(answer) == {}
    assert edge.events[0]["xdm"]["identityMap"]["ECID"][0]["id"] == ECID


async def test_the_page_and_the_browser_are_in_the_event(shop, edge):
    """Each request says what it knows; the address only when asked."""
    proxies = {"trusted_proxies": ["127.0.0.1"]}
    async with running(shop, edge, tell_address=True, **proxies) as (app, alloy), Browser(app) as browser:
        await browser.choose("all")
        browser.headers["x-forwarded-for"] = "198.51.100.1"
        await browser.get("/event?x", headers={"user-agent": "Mozilla", "sec-fetch-mode": "navigate"})
        await delivered(alloy)
    xdm = edge.events[0]["xdm"]
    assert xdm["web"]["webPageDetails"]["URL"] == "https://shop.example/event?x"
    assert xdm["environment"] == {
        "type": "browser",
        "browserDetails": {"userAgent": "Mozilla"},
        "ipV4": "198.51.100.1",
    }


async def test_forgetting_leaves_no_cookie(shop, edge):
    """The choice, and whatever identifies."""

    @shop.at("/forget")
    async def forget(scope, receive, send):
        assert await request_visitor(scope).forget() == "pending"
        await respond(send)

    async with running(shop, edge) as (app, _), Browser(app) as browser:
        await browser.choose("all")
        await browser.get("/event")
        await browser.get("/forget")
        assert list(browser.cookies.keys()) == []
        assert (await browser.get("/event")).text == "pending"


# The choice lives in the store


async def test_one_request_parks_and_another_releases(shop, edge):
    """With a key, what waits outlives its request."""
    async with (
        running(shop, edge, key=key_from_header) as (app, alloy),
        Browser(app, **{"x-account": "ada"}) as browser,
    ):
        assert (await browser.get("/event?parked")).text == "pending"
        assert alloy.statistics().parked == 1
        await browser.choose("all")
        await delivered(alloy)
    assert edge.event_types == ["parked"]


async def test_a_request_that_was_under_way_lifts_no_refusal(shop, edge):
    """It carries the yes of before; the person has said no in the meantime."""
    entered, go_on = asyncio.Event(), asyncio.Event()

    @shop.at("/slow")
    async def slow(scope, receive, send):
        entered.set()
        await go_on.wait()
        await shop.event(scope, receive, send)

    async with (
        running(shop, edge, key=key_from_header) as (app, alloy),
        Browser(app, **{"x-account": "ada"}) as browser,
    ):
        await browser.choose("all")
        under_way = asyncio.ensure_future(browser.get("/slow?late"))
        await entered.wait()
        await browser.choose("none")
        go_on.set()
        answer = await under_way
        await delivered(alloy)
        assert answer.text == "none"
        assert browser.told() == ("general=out", "none")
    assert edge.events == []


@pytest.mark.parametrize("cookies", [{NAMES.consent: "general=in"}, {NAMES.choice: "all.{}"}])
async def test_a_refusal_elsewhere_holds_here_until_it_was_seen(shop, edge, cookies):
    """This browser's yes is older than the no of another one; it is told so, and its next yes counts."""
    async with running(shop, edge, key=key_from_header) as (app, alloy):
        async with Browser(app, **{"x-account": "ada"}) as phone:
            await phone.choose("all")
            moment = phone.cookies[NAMES.choice].partition(".")[2]
            await asyncio.sleep(0.002)  # choices are told in whole milliseconds
            await phone.choose("none")
        async with Browser(app, **{"x-account": "ada"}) as desk:
            for name, value in cookies.items():
                desk.page_writes(name, value.format(moment))
            answer = await desk.get("/event?stale")
            assert answer.text == "none"
            assert desk.told() == ("general=out", "none")
            await desk.choose("all")
            await desk.get("/event?fresh")
            await delivered(alloy)
    assert edge.event_types == ["fresh"]


async def test_a_yes_of_another_browser_is_not_told(shop, edge):
    """The store knows it, so events go; this browser's alloy.js has not asked yet."""
    async with running(shop, edge, key=key_from_header) as (app, alloy):
        async with Browser(app, **{"x-account": "ada"}) as phone:
            await phone.choose("all")
        async with Browser(app, **{"x-account": "ada"}) as desk:
            await desk.get("/event?x")
            await delivered(alloy)
            assert desk.told() == (None, None)
    assert edge.event_types == ["x"]


class FullStore(MemoryStore):
    async def save_preference(self, key, preference, *, by=""):
        raise OSError("disk full")


@pytest.mark.parametrize(("purposes", "told"), [("all", (None, None)), ("none", ("general=out", "none"))])
async def test_a_choice_that_could_not_be_kept(shop, edge, purposes, told):
    """A yes is not told, since it does not hold; a no holds all the same. Both are heard."""
    options = {"store": FullStore()}
    async with (
        running(shop, edge, key=key_from_header, options=options) as (app, _),
        Browser(app, **{"x-account": "a"}) as browser,
    ):
        assert (await browser.choose(purposes)).status_code == 503
        assert browser.told() == told


async def test_a_response_waits_for_the_choice_but_not_for_ever(shop, edge, monkeypatch):
    """A store that hangs holds a response up for a moment, and the browser is told nothing."""
    monkeypatch.setattr("alloy_async._request_visitor.CHOICE_WAIT", 0.05)
    release = asyncio.Event()

    class Hanging(MemoryStore):
        async def save_preference(self, key, preference, *, by=""):
            await release.wait()
            await super().save_preference(key, preference, by=by)

    @shop.at("/hurry")
    async def hurry(scope, receive, send):
        request_visitor(scope).opt_in(purposes="all")
        await respond(send)

    options = {"store": Hanging()}
    async with (
        running(shop, edge, key=key_from_header, options=options) as (app, _),
        Browser(app, **{"x-account": "a"}) as browser,
    ):
        assert set_cookies(await browser.get("/hurry")) == {}
        release.set()
        assert set(set_cookies(await browser.get("/hurry"))) == {"consent", "choice"}


# Signals


@pytest.mark.parametrize("signal", [{"sec-gpc": "1"}, {"dnt": "1"}])
@pytest.mark.parametrize("key", [None, key_from_header], ids=["without key", "with key"])
async def test_a_signal_refuses_whatever_the_cookies_say(shop, edge, signal, key):
    """Identities go, no preference is written for it, and a yes in the same request does not loosen it."""
    async with running(shop, edge, key=key) as (app, alloy), Browser(app, **{"x-account": "ada"}) as browser:
        await browser.choose("all")
        await browser.get("/event?before")
        await delivered(alloy)
        browser.headers.update(signal)
        answer = await browser.get("/event?after")
        assert answer.text == "none"
        assert set_cookies(answer) == {"fpid": None}
        yes = await browser.choose("all")
        assert (yes.status_code, yes.json()) == (409, {"purposes": "none"})
        assert set_cookies(yes) == {}
        assert (await browser.get("/event?still")).text == "none"
        await delivered(alloy)
    assert edge.event_types == ["before"]


async def test_a_signal_that_is_ignored(shop, edge):
    """The setting says so."""
    async with running(shop, edge, gpc="ignore") as (app, alloy), Browser(app, **{"sec-gpc": "1"}) as browser:
        await browser.choose("all")
        await browser.get("/event?x")
        await delivered(alloy)
    assert edge.event_types == ["x"]


@pytest.mark.parametrize("said", [{"sec-gpc": "1"}, {"cookie": f"{NAMES.consent}=general=out"}])
async def test_a_refusal_holds_where_nobody_is_asked(shop, edge, said):
    """With opt_in_enabled=False everybody else's events go at once."""
    futures = []

    @shop.at("/both")
    async def both(scope, receive, send):
        visitor = request_visitor(scope)
        futures.append(visitor.event())
        await respond(send, body=visitor.purposes.encode())

    async with (
        running(shop, edge, options={"opt_in_enabled": False}) as (app, alloy),
        Browser(app) as browser,
    ):
        assert (await browser.get("/both", headers=said)).text == "none"
        assert (await browser.get("/both")).text == "all"
        refused, sent = futures
        assert isinstance(refused.exception(), ConsentDeclined)
        await sent
        await delivered(alloy)
    assert len(edge.events) == 1


# What the edge hands back


def state_store(*payload):
    body = {"requestId": "r", "handle": [{"type": "state:store", "payload": list(payload)}]}
    return EdgeResponse(200, {"content-type": "application/json"}, json.dumps(body).encode())


async def test_state_goes_up_and_comes_back(shop, edge):
    """Cookies of the edge go up with an event that needs an answer; what it wants kept is kept, and nothing else."""

    @shop.at("/view")
    async def view(scope, receive, send):
        visitor = request_visitor(scope)
        await visitor.event(view_start=True)
        await respond(send, body=json.dumps(visitor.browser_payload()).encode())

    edge.answers.append(
        state_store(
            {"key": NAMES.identity, "value": IDENTITY, "maxAge": 34_128_000, "attrs": {"SameSite": "None"}},
            {"key": NAMES.cluster, "value": "or2", "maxAge": 1_800},
            {"key": f"{NAMES.prefix}gone", "value": "x", "maxAge": 0},
            {"key": f"{NAMES.prefix}visit", "value": "a b;c"},
            {"key": NAMES.consent, "value": "general=out", "maxAge": 15_552_000},
            {"key": "session", "value": "stolen", "maxAge": 60},
            {"key": f"{NAMES.prefix}bad\r\nSet-Cookie: a", "value": "b", "maxAge": 60},
            {"key": f"{NAMES.prefix}evil", "value": "a\r\nSet-Cookie: b=c", "maxAge": 60},
        )
    )
    async with running(shop, edge, secure=False) as (app, _), Browser(app) as browser:
        browser.page_writes(NAMES.consent, "general=in")
        browser.page_writes(f"{NAMES.prefix}old", "1")
        answer = await browser.get("/view")
    lines = {
        line.partition("=")[0].removeprefix(NAMES.prefix): line
        for line in answer.headers.get_list("set-cookie")
    }
    assert {name.rpartition("_")[2] for name in lines} == {"identity", "cluster", "gone", "visit", "fpid"}
    assert lines["identity"].endswith(f"={IDENTITY}; Path=/; Max-Age=34128000; SameSite=None; Secure")
    assert lines["cluster"].endswith("=or2; Path=/; Max-Age=1800; SameSite=Lax")
    assert lines["gone"].endswith("; Max-Age=0; SameSite=Lax")
    assert lines["visit"].endswith("=a%20b%3Bc; Path=/; SameSite=Lax")
    state = edge.requests[0].body["meta"]["state"]
    assert state["domain"] == "shop.example"
    assert {entry["key"]: entry["value"] for entry in state["entries"]} == {
        NAMES.consent: "general=in",
        f"{NAMES.prefix}old": "1",
    }
    assert answer.json()["responseBody"]["requestId"] == "r"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "private"),
        ("public, max-age=60", "private, max-age=60"),
        ("s-maxage=60, max-age=5", "private, max-age=5"),
        ("private, max-age=60", "private, max-age=60"),
        ("no-store", "no-store"),
    ],
)
async def test_no_shared_cache_keeps_cookies(shop, edge, before, after):
    """Where cookies are written, the response is one visitor's own."""

    @shop.at("/page")
    async def page(scope, receive, send):
        request_visitor(scope).event()
        await respond(send, **({} if before is None else {"cache_control": before}))

    async with running(shop, edge) as (app, _), Browser(app) as browser:
        await browser.choose("all")
        assert (await browser.get("/page")).headers.get_list("cache-control") == [after]


# After the response has begun


@pytest.mark.parametrize("purposes", ["all", "none"])
async def test_without_a_key_a_choice_after_the_response_began_is_an_error(shop, edge, caplog, purposes):
    """Nothing could keep it. A yes opens nothing; a no holds for the rest of the request."""
    outcome = {}

    @shop.at("/late")
    async def late(scope, receive, send):
        await respond(send)
        visitor = request_visitor(scope)
        outcome["choice"] = visitor.opt_in(purposes=purposes)
        outcome["purposes"] = visitor.purposes
        outcome["forgotten"] = visitor.forget()

    async with running(shop, edge) as (app, _), Browser(app) as browser:
        await browser.get("/late")
    for future in (outcome["choice"], outcome["forgotten"]):
        assert isinstance(future.exception(), ConsentStoreError)
    assert outcome["purposes"] == {"all": "pending", "none": "none"}[purposes]
    assert "before answering" in caplog.text


async def test_with_a_key_it_is_kept_and_told_the_next_time(shop, edge):
    """The store knows the refusal; the next response tells it."""

    @shop.at("/late")
    async def late(scope, receive, send):
        await respond(send)
        await request_visitor(scope).opt_in(purposes="none")

    async with (
        running(shop, edge, key=key_from_header) as (app, _),
        Browser(app, **{"x-account": "ada"}) as browser,
    ):
        assert set_cookies(await browser.get("/late")) == {}
        assert (await browser.get("/event")).text == "none"
        assert browser.told() == ("general=out", "none")


# Nothing mixes


async def test_interleaved_requests_never_mix(shop, edge):
    """Thirty browsers, each with a choice of its own, in every order: each event carries its own browser's identity."""
    gate = asyncio.Event()

    @shop.at("/mixed")
    async def mixed(scope, receive, send):
        name = scope["query_string"].decode()
        turns = int(name[1:])
        for _ in range(turns * 7 % 5):
            await asyncio.sleep(0)
        visitor = request_visitor(scope)
        await visitor.opt_in(purposes="all" if turns % 3 else "none")
        await gate.wait()
        for _ in range(turns * 11 % 7):
            await asyncio.sleep(0)
        visitor.event(type=name)
        await respond(send)

    async with running(shop, edge) as (app, alloy):
        browsers = {f"v{n}": Browser(app) for n in range(30)}
        calls = [asyncio.ensure_future(browser.get(f"/mixed?{name}")) for name, browser in browsers.items()]
        await settle()
        gate.set()
        await asyncio.gather(*calls)
        await delivered(alloy)
    sent = {event["xdm"]["eventType"]: event["xdm"]["identityMap"]["FPID"][0]["id"] for event in edge.events}
    assert sent == {
        name: browser.cookies[NAMES.fpid] for name, browser in browsers.items() if int(name[1:]) % 3
    }
    assert len(set(sent.values())) == 20
    for name, browser in browsers.items():
        assert browser.told()[1] == ("all" if int(name[1:]) % 3 else "none")


async def test_accounts_in_one_browser_have_their_own_choice(shop, edge):
    """The store keeps it by key; a refusal of one account is told to the browser, whoever uses it next."""
    async with running(shop, edge, key=key_from_header) as (app, alloy), Browser(app) as browser:
        await browser.post("/consent", json={"purposes": "all"}, headers={"x-account": "ada"})
        browser.cookies.clear()
        assert (await browser.get("/event?x", headers={"x-account": "bob"})).text == "pending"
        await delivered(alloy)
    assert edge.events == []


# Where there is no visitor


async def test_an_instance_that_is_not_configured_does_no_harm(shop, caplog):
    """Pages work, commands end with the reason, which is logged once."""
    futures = []

    @shop.at("/try")
    async def attempt(scope, receive, send):
        visitor = request_visitor(scope)
        futures.extend(
            [visitor.event(), visitor.opt_in(purposes="all"), visitor.get_purposes(), visitor.get_ecid()]
        )
        await respond(send, body=f"{visitor.purposes} {visitor.key} {visitor.browser_payload()}".encode())

    async with Alloy() as alloy, Browser(AlloyMiddleware(shop, alloy)) as browser:
        for _ in range(3):
            answer = await browser.get("/try")
        assert (await browser.choose("all")).status_code == 503
    assert answer.text.startswith("pending None ")
    assert {type(future.exception()) for future in futures} == {NotConfigured}
    assert len({id(future.exception()) for future in futures}) == len(futures), "each has an error of its own"
    assert [record.levelno for record in caplog.records if record.name == "alloy_async"] == [logging.WARNING]


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (lambda scope: 1 / 0, "key raised ZeroDivisionError"),
        (lambda scope: "", "1 to 200 printable characters"),
        (lambda scope: 5, "1 to 200 printable characters"),
        (lambda scope: "secret" * 50, "1 to 200 printable characters"),
    ],
)
async def test_a_key_that_cannot_be_used_does_no_harm(shop, edge, caplog, key, problem):
    """Nobody's choice is taken for another's: such a request sends nothing."""
    async with running(shop, edge, key=key) as (app, alloy), Browser(app) as browser:
        browser.page_writes(NAMES.consent, "general=in")
        assert (await browser.get("/event")).text == "pending"
        await delivered(alloy)
    assert problem in caplog.text
    assert "secret" not in caplog.text
    assert edge.events == []


async def test_errors_that_are_switched_off_stay_off(shop, edge):
    """As everywhere: the command ends with None."""
    futures = []

    @shop.at("/late")
    async def late(scope, receive, send):
        visitor = request_visitor(scope)
        assert visitor.purposes == "pending"
        await respond(send)
        futures.append(visitor.opt_in(purposes="all"))

    async with running(shop, edge, options={"errors_enabled": False}) as (app, _), Browser(app) as browser:
        await browser.get("/late")
    assert futures[0].result() is None


def test_a_request_without_middleware_is_told_so():
    """With what to do."""
    with pytest.raises(ConfigurationError, match="AlloyMiddleware"):
        request_visitor({"type": "http"})


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"gpc": "maybe"}, "gpc"),
        ({"cookie_domain": ".example.com"}, "cookie_domain"),
        ({"cookie_domain": "a; b"}, "cookie_domain"),
        ({"trusted_proxies": ["*"]}, "trusted_proxies"),
        ({"trusted_proxies": [None]}, "trusted_proxies"),
    ],
)
def test_wrong_arguments_are_refused_at_once(shop, arguments, option):
    """When the application is put together, not at the first request."""
    with pytest.raises(ConfigurationError, match=f"^{option}: ") as caught:
        AlloyMiddleware(shop, Alloy(), **arguments)
    assert caught.value.option == option


# Life and websockets


async def test_the_lifespan_configures_and_drains(shop, edge):
    """Events that are released when the application ends are sent before it has ended."""
    alloy = Alloy()
    app = AlloyMiddleware(shop, alloy)
    edge.hold()
    async with lifespan(alloy, **IDS, opt_in_enabled=True, transport=edge, store=MemoryStore()):
        async with Browser(app) as browser:
            await browser.choose("all")
            await browser.get("/event?last")
        asyncio.get_running_loop().call_later(0.05, edge.release)
    assert alloy.statistics().delivered == 1


async def test_a_lifespan_that_cannot_configure_raises():
    """The application does not start with half of it."""
    alloy = Alloy()
    with pytest.raises(ConfigurationError):
        async with lifespan(alloy, config_id=5):
            pytest.fail("started")


async def test_other_scopes_pass_by():
    """A lifespan scope belongs to the application."""
    seen = []

    async def app(scope, receive, send):
        seen.append(dict(scope))

    await AlloyMiddleware(app, Alloy())({"type": "lifespan"}, None, None)
    assert seen == [{"type": "lifespan"}]


async def test_a_websocket_has_a_visitor_and_gets_no_cookies(edge):
    """Its cookies speak for it; what waits ends when it is closed."""
    futures, sent = [], []

    async def app(scope, receive, send):
        visitor = request_visitor(scope)
        await visitor.event(type="message")
        await send({"type": "websocket.accept", "headers": []})

    async def silent(scope, receive, send):
        futures.append(request_visitor(scope).event())

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"shop.example"), (b"cookie", f"{NAMES.consent}=general=in".encode())]
    scope = {"type": "websocket", "path": "/", "query_string": b"", "scheme": "wss", "headers": headers}
    async with running(app, edge) as (wrapped, alloy):
        await wrapped(dict(scope), None, send)
        await AlloyMiddleware(silent, alloy)(scope | {"headers": headers[:1]}, None, send)
    assert sent == [{"type": "websocket.accept", "headers": []}]
    assert edge.event_types == ["message"]
    assert isinstance(futures[0].exception(), ConsentTimeout)


@pytest.mark.parametrize("purposes", ["all", "none"])
async def test_a_websocket_without_a_key_keeps_no_choice(edge, caplog, purposes):
    """It has no response that could tell the browser, and says so; a refusal holds as long as it is open."""
    futures, events = [], []

    async def app(scope, receive, send):
        visitor = request_visitor(scope)
        futures.append(visitor.opt_in(purposes=purposes))
        events.append(visitor.event(type="message"))

    headers = [(b"host", b"shop.example")]
    if purposes == "none":
        headers.append((b"cookie", f"{NAMES.consent}=general=in".encode()))
    scope = {"type": "websocket", "path": "/", "query_string": b"", "scheme": "wss", "headers": headers}
    async with running(app, edge) as (wrapped, _):
        await wrapped(scope, None, None)
    with pytest.raises(ConsentStoreError, match="a websocket tells the browser nothing"):
        await futures[0]
    assert isinstance(events[0].exception(), {"all": ConsentTimeout, "none": ConsentDeclined}[purposes])
    assert edge.requests == []
    assert [record.levelname for record in caplog.records if "websocket" in record.message] == ["WARNING"]


async def test_a_websocket_with_a_key_keeps_a_choice(edge):
    """The store has it, and a response of a request tells the browser."""
    futures = []

    async def app(scope, receive, send):
        futures.append(request_visitor(scope).opt_in(purposes="none"))

    headers = [(b"host", b"shop.example"), (b"x-account", b"ada")]
    scope = {"type": "websocket", "path": "/", "query_string": b"", "scheme": "wss", "headers": headers}
    async with running(app, edge, key=key_from_header) as (wrapped, alloy):
        await wrapped(scope, None, None)
        assert await futures[0] == "none"
        assert await alloy.visitor("ada").get_purposes() == "none"


async def test_an_error_of_the_application_comes_out(shop, edge):
    """And the visitor has ended with the request."""
    futures = []

    @shop.at("/broken")
    async def broken(scope, receive, send):
        futures.append(request_visitor(scope).event())
        raise ZeroDivisionError

    async with running(shop, edge) as (app, _), Browser(app) as browser:
        with pytest.raises(ZeroDivisionError):
            await browser.get("/broken")
    assert isinstance(futures[0].exception(), ConsentTimeout)


class _Mark:
    """Something that can be watched as it goes."""


@pytest.mark.parametrize(
    ("use", "options"),
    [
        (lambda visitor: None, {}),
        (lambda visitor: visitor.event(), {}),
        (lambda visitor: visitor.opt_in(purposes="none"), {}),
        (lambda visitor: visitor.purposes, {"opt_in_enabled": False}),
    ],
    ids=["unused", "used", "refusing", "refused where nobody is asked"],
)
async def test_nothing_of_a_request_waits_for_the_garbage_collector(edge, use, options):
    """A circle through the scope would keep all that the application has hung there."""
    alive = []

    async def app(scope, receive, send):
        scope["hung here"] = mark = _Mark()
        alive.append(weakref.ref(mark))
        use(request_visitor(scope))
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def send(message):
        pass

    cookie = (b"cookie", f"{NAMES.consent}=general=out".encode())
    async with running(app, edge, options=options) as (wrapped, _):
        gc.disable()
        try:
            await wrapped({"type": "http", "path": "/", "headers": [cookie]}, None, send)
            await settle()
            assert alive[0]() is None
        finally:
            gc.enable()


async def test_a_visitor_may_be_met_after_the_request_has_ended(shop, edge):
    """By a task that outlives it: with the cookies of then."""
    met = []

    @shop.at("/later")
    async def later(scope, receive, send):
        met.append(request_visitor(scope))
        await respond(send)

    async with running(shop, edge) as (app, _), Browser(app) as browser:
        browser.page_writes(NAMES.consent, "general=out")
        await browser.get("/later")
        assert met[0].purposes == "none"
