"""What tests of the door to the web share: a browser, a shop, and an instance that runs behind it."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie

import httpx
from common import IDS, settle

from alloy_async import Alloy
from alloy_async._cookies import CookieNames
from alloy_async.asgi import AlloyMiddleware, ConsentEndpoint, request_visitor
from alloy_async.stores import MemoryStore

NAMES = CookieNames.of(IDS["ims_org_id"])
ECID = "41861666193140161934276845651148876988"
IDENTITY = base64.b64encode(b"\x0a\x26" + ECID.encode()).decode()
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


class Browser(httpx.AsyncClient):
    """A browser: it keeps cookies, and says where a request comes from."""

    def __init__(self, app, url="https://shop.example", **headers):
        super().__init__(transport=httpx.ASGITransport(app), base_url=url, headers=SAME_ORIGIN | headers)

    async def choose(self, purposes):
        return await self.post("/consent", json={"purposes": purposes})

    def page_writes(self, name, value):
        """Write a cookie as a script of the page does."""
        self.cookies.set(name, value, domain="shop.example")

    def told(self):
        """What the cookies for alloy.js and for us say."""
        choice = self.cookies.get(NAMES.choice)
        return self.cookies.get(NAMES.consent), choice and choice.partition(".")[0]


def set_cookies(response):
    """Every cookie a response writes, by its short name: its value, or None where it deletes."""
    found = {}
    for line in response.headers.get_list("set-cookie"):
        morsel = next(iter(SimpleCookie(line).values()))
        short = morsel.key.rpartition("_")[2]
        assert short not in found, "one header for each name"
        found[short] = None if morsel["max-age"] == "0" else line.partition(";")[0].partition("=")[2]
    return found


async def delivered(alloy):
    """Let choices be read and written, and wait for what they have released."""
    await settle()
    await alloy.flush()


async def respond(send, status=200, body=b"", **headers):
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


class Shop:
    """A plain ASGI application; each test adds handlers by path."""

    def __init__(self):
        self.handlers = {"/consent": ConsentEndpoint(), "/event": self.event, "/quiet": self.quiet}
        self.problems = []

    async def __call__(self, scope, receive, send):
        await self.handlers[scope["path"]](scope, receive, send)

    def at(self, path):
        return lambda handler: self.handlers.setdefault(path, handler)

    async def event(self, scope, receive, send):
        visitor = request_visitor(scope)
        visitor.event(type=scope["query_string"].decode() or "view")
        await respond(send, body=visitor.purposes.encode())

    async def quiet(self, scope, receive, send):
        await respond(send, body=repr(scope["alloy.visitor"]).encode())


@asynccontextmanager
async def running(app, edge, *, options=None, **arguments):
    """Run an instance, in real time and with everything else in memory, and wrap an application for it."""
    async with Alloy() as alloy:
        base = {**IDS, "opt_in_enabled": True, "transport": edge, "store": MemoryStore()}
        await alloy.configure(**base | (options or {}))
        yield AlloyMiddleware(app, alloy, **arguments), alloy


def key_from_header(scope):
    return dict(scope["headers"])[b"x-account"].decode()
