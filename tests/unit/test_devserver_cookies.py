"""What the development edge reads of a browser's cookies."""

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import DEMO_ORG, DevelopmentEdge, create_app
from alloy_async.devserver.handles import StateEntries
from alloy_async.devserver.identity import pack_identity_cookie

KEYS = StateEntries(DEMO_ORG)
ECID = "41861666193140161934276845651148876988"
OTHER = "58172812167590243656904778955519426275"
INTERACT = "/ee/v1/interact?configId=ds"
STATE = {"domain": "shop.test", "cookiesEnabled": True}


@pytest.fixture
def development_edge():
    return DevelopmentEdge()


@pytest.fixture
async def browser(development_edge):
    transport = httpx.ASGITransport(create_app(development_edge))
    async with httpx.AsyncClient(transport=transport, base_url="https://edge.shop.test") as opened:
        yield opened


def body(**state):
    return {
        "events": [{"xdm": {}}],
        "query": {"identity": {"fetch": ["ECID"]}},
        "meta": {"state": {**STATE, **state}},
    }


def cookie(ecid=ECID, **more):
    values = {KEYS.identity_key: pack_identity_cookie(ecid), **more}
    return {"cookie": "; ".join(f"{name}={value}" for name, value in values.items())}


def ecid_of(answer):
    return next(h["payload"][0]["id"] for h in answer.json()["handle"] if h["type"] == "identity:result")


async def test_cookies_say_who_the_visitor_is_where_no_entries_do(browser):
    """The page is under the edge's domain; its client leaves the entries to the browser."""
    answer = await browser.post(INTERACT, json=body(), headers=cookie())
    assert ecid_of(answer) == ECID
    assert KEYS.identity_key not in answer.text


async def test_a_refusal_in_a_cookie_holds(browser, development_edge):
    """Percent-encoded and quoted as well: other writers of cookies do so."""
    for value in ("general=out", "general%3Dout", '"general=out"'):
        answer = await browser.post(INTERACT, json=body(), headers=cookie(**{KEYS.consent_key: value}))
        assert "EXEG-0301-200" in answer.json()["warnings"][0]["type"]
    assert development_edge.events == []


async def test_an_entry_wins_over_a_cookie(browser):
    """It is what the client said; the browser may add what belongs to somebody else."""
    entries = [{"key": KEYS.identity_key, "value": pack_identity_cookie(OTHER)}]
    assert ecid_of(await browser.post(INTERACT, json=body(entries=entries), headers=cookie())) == OTHER


async def test_cookies_are_left_alone_where_they_are_not_enabled(browser):
    """The client has to say that its state is in cookies."""
    answer = await browser.post(INTERACT, json=body(cookiesEnabled=False), headers=cookie())
    assert ecid_of(answer) != ECID


async def test_foreign_and_broken_cookies_do_no_harm(browser):
    """A browser sends whatever a site has set."""
    header = f'a b=c; =; ;x@[]="; {cookie()["cookie"]}; theme=dark'
    assert ecid_of(await browser.post(INTERACT, json=body(), headers={"cookie": header})) == ECID
