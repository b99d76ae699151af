"""The browser's own SDK, unchanged and in a real browser, against the development edge.

It is somebody else's, so it is no part of this project: npm fetches it for each run. Where npm or a browser is missing
these tests are skipped.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

for _module in ("starlette", "uvicorn", "trustme"):
    pytest.importorskip(_module)

from starlette.responses import HTMLResponse, Response  # noqa: E402 - after the check
from starlette.routing import Route  # noqa: E402

from alloy_async.devserver import (  # noqa: E402
    DEMO_ORG,
    DevelopmentEdge,
    Fault,
    create_app,
    serving,
    throw_away_certificate,
)
from alloy_async.devserver.identity import unpack_identity_cookie  # noqa: E402

pytestmark = pytest.mark.integration

SDK = "@adobe/alloy@2.33.1"
PATIENCE = 20  # seconds for what a browser does by itself
SHOP = "www.shop.test"
OUR_EDGE, FOREIGN_EDGE = "edge.shop.test", "edge.cloud.test"
"""Under the shop's domain, where cookies travel with the request, and elsewhere, where the SDK copies them into it."""

REAL_EDGE, REAL_IDENTIFICATION = "edge.adobedc.net", "adobedc.demdex.net"
"""Where the SDK sends to unless told otherwise; to the second until it knows the visitor."""

IDENTITY, CONSENT, CLUSTER = (
    f"kndctr_{DEMO_ORG.replace('@', '_')}_{name}" for name in ("identity", "consent", "cluster")
)
SET_CONSENT, HINTED = "/ee/v1/privacy/set-consent", "/ee/or2"

YES = {"standard": "Adobe", "version": "2.0", "value": {"collect": {"val": "y"}}}
NO = {"standard": "Adobe", "version": "2.0", "value": {"collect": {"val": "n"}}}
TCF_YES = {
    "standard": "IAB TCF",
    "version": "2.0",
    "value": "CO052l-O052l-DGAMBFRACBgAIBAAAAAAIYgEawAQEagAAAA",
    "gdprApplies": True,
}
TCF_NO = TCF_YES | {"value": "CO052l-O052l-DGAMBFRACBgAAAAAAAAAAYgAAAAAAAA"}

PAGE = """<!doctype html><title>Shop</title><link rel="icon" href="data:,">
<script>
// Commands wait here until the library is there; it finds the queue by the name listed first.
window.__alloyNS = ["alloy"];
window.alloy = (...command) =>
  new Promise((resolve, reject) => window.alloy.q.push([resolve, reject, command]));
window.alloy.q = [];
</script>
<script src="/alloy.js"></script>
<h1 id="hero">Welcome</h1>
"""

OFFER = {"scopes": {
    "hero": [{"schema": "https://ns.adobe.com/personalization/json-content-item", "content": {"price": 9}}],
    "__view__": [{
        "schema": "https://ns.adobe.com/personalization/dom-action",
        "type": "setHtml", "selector": "#hero", "content": "For <b>you</b>",
    }],
}}  # fmt: skip
"""A file of decisions: one for the page's own script, and one that the SDK carries out itself."""

FETCH = """async ([url, headers, body]) => {
  const answer = await fetch(url, {method: "POST", credentials: "include", headers, body: JSON.stringify(body)});
  return {status: answer.status, region: answer.headers.get("X-Adobe-Edge"),
          id: answer.headers.get("X-Request-Id"), retryAfter: answer.headers.get("Retry-After"),
          body: await answer.json()};
}"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The text of the SDK."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm, which fetches {SDK}, is not on PATH")
    folder = tmp_path_factory.mktemp("sdk")
    fetched = subprocess.run(
        [npm, "pack", SDK], check=False, cwd=folder, capture_output=True, text=True, timeout=120
    )
    if fetched.returncode:
        pytest.skip(f"npm cannot fetch {SDK}: {fetched.stderr.strip()[-200:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as package:
        return package.extractfile("package/dist/alloy.min.js").read()


def shop_and_edge(library, edge):
    """The edge, and beside it a site whose pages load the SDK; a browser knows them by different names."""
    app = create_app(edge)
    app.router.routes[:0] = [
        Route("/alloy.js", lambda request: Response(library, media_type="text/javascript")),
        Route("/home", lambda request: HTMLResponse(PAGE)),
        Route("/elsewhere", lambda request: HTMLResponse(PAGE)),
    ]
    return app


class Servers(NamedTuple):
    """The shop and the edge while they run, and how a browser finds and believes them."""

    edge: DevelopmentEdge
    decisions: Path
    switches: tuple[str, ...]


@pytest.fixture(scope="module")
def servers(library, tmp_path_factory):
    decisions = tmp_path_factory.mktemp("edge") / "decisions.json"
    decisions.write_text("{}")
    certificate, edge = throw_away_certificate(), DevelopmentEdge(decisions=decisions)
    with serving(shop_and_edge(library, edge), tls=certificate) as server:
        names = (SHOP, OUR_EDGE, FOREIGN_EDGE, REAL_EDGE, REAL_IDENTIFICATION)
        rules = [f"MAP {name}:443 {server.url.removeprefix('https://')}" for name in names]
        yield Servers(
            edge,
            decisions,
            (
                f"--host-resolver-rules={','.join(rules)}",
                f"--ignore-certificate-errors-spki-list={certificate.key_hash}",
            ),
        )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def chromium(servers, launch):
    """A browser that finds the servers under their names."""
    async with launch(*servers.switches) as browser:
        yield browser


class Visit:
    """A visitor of the shop, and what the edge hears of the visit."""

    def __init__(self, page, edge, edge_domain, address=f"https://{SHOP}"):
        self.page, self.edge, self.edge_domain, self.address = page, edge, edge_domain, address
        self.complaints = []
        page.on("console", lambda line: line.type == "error" and self.complaints.append(line.text))

    async def begin(self, **options):
        await self.page.goto(f"{self.address}/home")
        base = {"datastreamId": "ds", "orgId": DEMO_ORG, "edgeDomain": self.edge_domain}
        quiet = {"clickCollectionEnabled": False, "thirdPartyCookiesEnabled": False}
        await self.alloy("configure", **base, **quiet, **{"defaultConsent": "pending"} | options)

    async def alloy(self, command, **options):
        """Run a command; return what its promise resolves to."""
        arguments = [command, options]
        return await self.page.evaluate("([command, options]) => alloy(command, options)", arguments)

    async def send(self, event_type, **options):
        return await self.alloy("sendEvent", xdm={"eventType": event_type}, **options)

    async def choose(self, *consent):
        return await self.alloy("setConsent", consent=list(consent))

    async def post(self, path, body, content_type="text/plain"):
        """Send a request from the page by hand, past the SDK."""
        url = f"https://{self.edge_domain}{path}?configId=ds"
        return await self.page.evaluate(FETCH, [url, {"Content-Type": content_type}, body])

    async def ecid(self):
        return (await self.alloy("getIdentity", namespaces=["ECID"]))["identity"]["ECID"]

    async def cookies(self):
        return {cookie["name"]: cookie for cookie in await self.page.context.cookies()}

    async def state(self):
        """What the SDK would send along of the page's cookies."""
        kept = {name: cookie["value"] for name, cookie in (await self.cookies()).items()}
        return {
            "domain": "shop.test",
            "cookiesEnabled": True,
            "entries": [{"key": name, "value": value} for name, value in kept.items()],
        }

    def visitors(self):
        """Whose each request was, as the edge saw it."""
        exchanges, _ = self.edge.recorder.exchanges()
        return [exchange.entry()["visitor"] for exchange in exchanges]

    def recorded(self):
        return [item["event"]["xdm"]["eventType"] for item in self.edge.events]

    async def recorded_eventually(self, event_type):
        async with asyncio.timeout(PATIENCE):
            while event_type not in self.recorded():
                await asyncio.sleep(0.01)


@pytest.fixture(params=[OUR_EDGE, FOREIGN_EDGE], ids=["our-edge", "foreign-edge"])
def visit(request, servers, page):
    servers.edge.reset()
    yield Visit(page, servers.edge, request.param)
    servers.edge.faults.clear()


def entries(request):
    """What the SDK copied into a request of the page's cookies; None where it left them to the browser."""
    listed = request["body"]["meta"]["state"].get("entries")
    return listed and {entry["key"]: entry["value"] for entry in listed}


async def test_nothing_is_sent_before_consent_and_everything_after(visit):
    """The parked event follows the choice; the page keeps identity, choice and region, and speaks with them from then on."""
    await visit.begin()
    parked = asyncio.create_task(visit.send("first"))
    await visit.alloy("getLibraryInfo")  # comes after it in the page's queue, and waits for nobody's consent
    assert visit.edge.requests == []
    assert not parked.done()

    assert await visit.choose(YES) == {}
    await parked
    cookies = await visit.cookies()
    assert cookies[CONSENT]["value"] == "general=in"
    assert cookies[CLUSTER]["value"] == "or2"
    assert cookies[IDENTITY]["secure"] and cookies[IDENTITY]["sameSite"] == "None"
    assert {cookie["domain"] for cookie in cookies.values()} == {".shop.test"}

    await visit.send("second")
    first, second, third = visit.edge.requests
    assert (first["path"], second["path"]) == (SET_CONSENT, "/ee/v1/interact")
    assert third["path"] == f"{HINTED}/v1/interact"
    assert entries(first) is None and "cookie" not in first["headers"]
    if visit.edge_domain == FOREIGN_EDGE:
        kept = {name: cookies[name]["value"] for name in (IDENTITY, CONSENT, CLUSTER)}
        assert entries(third) == kept and "cookie" not in third["headers"]
    else:
        assert entries(third) is None and "cookie" in third["headers"]
    ecid = await visit.ecid()
    assert unpack_identity_cookie(cookies[IDENTITY]["value"]) == ecid
    assert visit.visitors() == [f"ECID {ecid}"] * 3
    assert visit.recorded() == ["first", "second"]
    assert visit.complaints == []


async def test_a_refusal_holds_in_the_page_and_at_the_edge(visit):
    """The SDK sends nothing more; what is sent past it is answered with a warning, and not recorded. A yes ends it."""
    await visit.begin()
    await visit.choose(YES)
    await visit.send("before")
    await visit.choose(NO)
    assert (await visit.cookies())[CONSENT]["value"] == "general=out"
    before = len(visit.edge.requests)
    assert await visit.send("refused") == {}
    assert len(visit.edge.requests) == before

    body = {"events": [{"xdm": {"eventType": "forced"}}], "meta": {"state": await visit.state()}}
    answer = await visit.post("/ee/v1/interact", body)
    assert answer["status"] == 200
    assert [warning["type"][-13:] for warning in answer["body"]["warnings"]] == ["EXEG-0301-200"]
    assert visit.recorded() == ["before"]

    await visit.choose(YES)
    await visit.send("after")
    assert visit.recorded() == ["before", "after"]


async def test_a_choice_outlives_the_page(visit):
    """The next page finds it in its cookies, and its event goes at once, from the same visitor."""
    await visit.begin()
    await visit.choose(YES)
    ecid = await visit.ecid()
    await visit.begin()
    await visit.send("next page")
    assert visit.visitors()[-1] == f"ECID {ecid}"
    assert visit.recorded() == ["next page"]


async def test_tc_strings_decide_as_choices_do(visit):
    """One with purpose 1 and Adobe's number opens the gate, one without closes it."""
    await visit.begin()
    await visit.choose(TCF_YES)
    await visit.send("allowed")
    await visit.choose(TCF_NO)
    assert await visit.send("denied") == {}
    assert (await visit.cookies())[CONSENT]["value"] == "general=out"
    assert visit.recorded() == ["allowed"]


async def test_the_identity_is_the_one_that_the_edge_minted(visit):
    """Asked for before any event it is acquired, and stays for the events."""
    await visit.begin(defaultConsent="in")
    ecid = await visit.ecid()
    assert [request["path"] for request in visit.edge.requests] == ["/ee/v1/identity/acquire"]
    identity = await visit.alloy("getIdentity", namespaces=["ECID"])
    assert identity == {"identity": {"ECID": ecid}, "edge": {"regionId": 9}}
    await visit.send("view")
    assert visit.visitors() == [f"ECID {ecid}"] * 2


async def test_events_of_one_moment_are_of_one_visitor(visit):
    """The SDK lets the first go alone, and the others once the answer has brought an identity."""
    await visit.begin(defaultConsent="in")
    await asyncio.gather(*(visit.send(f"event {n}") for n in range(4)))
    assert entries(visit.edge.requests[0]) is None
    assert visit.visitors() == [f"ECID {await visit.ecid()}"] * 4


async def test_a_call_for_decisions_resolves(visit):
    """There are none to tell of, which the SDK says in its own way."""
    await visit.begin(defaultConsent="in")
    answer = await visit.send("view", personalization={"decisionScopes": ["hero"]}, renderDecisions=True)
    assert answer["propositions"] == []
    query = visit.edge.requests[0]["body"]["events"][0]["query"]["personalization"]
    assert "hero" in query["decisionScopes"]


async def test_decisions_are_told_and_carried_out(visit, servers):
    """The page's script gets the ones it asked for, the SDK changes the page itself, and says that it did."""
    servers.decisions.write_text(json.dumps(OFFER))
    try:
        await visit.begin(defaultConsent="in")
        answer = await visit.send("view", personalization={"decisionScopes": ["hero"]}, renderDecisions=True)
        await visit.page.wait_for_selector("#hero b")
    finally:
        servers.decisions.write_text("{}")
    contents = {one["scope"]: one["items"][0]["data"]["content"] for one in answer["propositions"]}
    assert contents == {"hero": {"price": 9}, "__view__": "For <b>you</b>"}
    assert await visit.page.inner_text("#hero") == "For you"
    await visit.recorded_eventually("decisioning.propositionDisplay")


async def test_the_checks_find_nothing_wrong_with_its_events(visit):
    """What the SDK adds to an event by itself is known."""
    await visit.begin(defaultConsent="in")
    await visit.send("web.webpagedetails.pageViews")
    await visit.alloy("sendEvent", type="commerce.purchases", xdm={"commerce": {"purchases": {"value": 1}}})
    exchanges, _ = visit.edge.recorder.exchanges()
    events = [event for exchange in exchanges for event in exchange.entry()["events"]]
    assert [event["outcome"] for event in events] == ["recorded", "recorded"]
    assert [one for event in events for one in event["findings"] if one["level"] == "error"] == []


async def test_overrides_of_the_datastream_are_taken(visit):
    """The event is the other datastream's; what is meant for applications behind the edge passes by."""
    await visit.begin(defaultConsent="in")
    override = {"datastreamId": "other", "com_adobe_analytics": {"reportSuites": ["rs1"]}}
    await visit.send("view", edgeConfigOverrides=override)
    assert [event["datastreamId"] for event in visit.edge.events] == ["other"]
    meta = visit.edge.requests[0]["body"]["meta"]
    assert meta["sdkConfig"] == {"datastream": {"original": "ds"}}
    assert meta["configOverrides"]["com_adobe_analytics"] == {"reportSuites": ["rs1"]}


async def test_an_event_of_a_page_that_goes_arrives_by_beacon(visit):
    """It is sent while the page is being left, to collect, from the same visitor."""
    await visit.begin(defaultConsent="in")
    ecid = await visit.ecid()
    leaving = """() => addEventListener("pagehide", () => {
      alloy("sendEvent", {documentUnloading: true, xdm: {eventType: "leave"}});
    })"""
    await visit.page.evaluate(leaving)
    await visit.page.goto(f"https://{SHOP}/elsewhere")
    await visit.recorded_eventually("leave")
    beacon = visit.edge.requests[-1]
    assert (beacon["path"], beacon["status"]) == (f"{HINTED}/v1/collect", 204)
    assert visit.visitors()[-1] == f"ECID {ecid}"


async def test_the_page_reads_a_refusal(visit):
    """The SDK's error carries the edge's reason: the browser let it be read."""
    await visit.begin(defaultConsent="in")
    with pytest.raises(Exception, match="EXEG-0305-400"):
        await visit.alloy("sendEvent", xdm={"identityMap": {"CRMID": [{"id": ""}]}})
    assert visit.recorded() == []


async def test_the_sdk_meets_faults_as_in_production(visit):
    """It asks again after a 503, and says of a connection that was reset that the network failed."""
    await visit.begin(defaultConsent="in")
    visit.edge.faults.replace([Fault(status=503, retry_after=0, times=1)])
    await visit.send("again")
    statuses = [request["status"] for request in visit.edge.requests]
    assert (statuses, visit.recorded()) == ([503, 200], ["again"])

    visit.edge.faults.replace([Fault(reset="before")])
    with pytest.raises(Exception, match="Failed to fetch"):
        await visit.send("lost")

    visit.edge.faults.replace([Fault(status=503, retry_after=7)])
    answer = await visit.post("/ee/v1/interact", {"events": [{"xdm": {}}]})
    assert (answer["status"], answer["retryAfter"]) == (503, "7")


async def test_what_the_browser_demands_of_answers_to_other_pages(visit):
    """The SDK's text/plain needs no leave; JSON from a page does. Either way the page reads status, body and headers."""
    await visit.begin()
    body = {"events": [{"xdm": {"eventType": "by hand"}}], "meta": {"state": await visit.state()}}
    for content_type, methods in (("text/plain", ["POST"]), ("application/json", ["OPTIONS", "POST"])):
        visit.edge.reset()
        answer = await visit.post("/ee/v1/interact", body, content_type)
        assert [request["method"] for request in visit.edge.requests] == methods
        assert (answer["status"], answer["region"]) == (200, "OR2;9")
        assert answer["id"] == answer["body"]["requestId"]
        assert visit.recorded() == ["by hand"]
    with pytest.raises(Exception, match="Failed to fetch"):
        await visit.page.evaluate("url => fetch(url)", f"https://{visit.edge_domain}/_dev/events")


async def test_a_page_that_is_set_up_for_the_real_edge_needs_no_change(servers, page):
    """Names are resolved otherwise, the page is as in production: the SDK's own defaults, third-party identification too."""
    servers.edge.reset()
    await page.goto(f"https://{SHOP}/home")
    options = {"datastreamId": "ds", "orgId": DEMO_ORG}
    for command, given in [("configure", options), ("sendEvent", {}), ("sendEvent", {})]:
        await page.evaluate("([command, options]) => alloy(command, options)", [command, given])
    hosts = [request["headers"]["host"] for request in servers.edge.requests]
    assert hosts == [REAL_IDENTIFICATION, REAL_EDGE]
    assert len(set(Visit(page, servers.edge, REAL_EDGE).visitors())) == 1
    assert len(servers.edge.events) == 2


async def test_a_page_on_localhost_is_served_as_well(servers, library, page):
    """Without https of its own, and without a domain for cookies."""
    servers.edge.reset()
    with serving(shop_and_edge(library, DevelopmentEdge())) as shop:
        visit = Visit(page, servers.edge, FOREIGN_EDGE, shop.url.replace("127.0.0.1", "localhost"))
        await visit.begin()
        await visit.choose(YES)
        await visit.send("view")
        await visit.send("view")
    assert visit.recorded() == ["view", "view"]
    assert visit.visitors() == [f"ECID {await visit.ecid()}"] * 3
