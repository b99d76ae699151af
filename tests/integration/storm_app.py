"""The shop of ``test_visitors_storm``: plain ASGI under uvicorn, consent and events in Redis, a relay sends."""

from __future__ import annotations

import contextlib
import json
import os

from alloy_async import Alloy, StillParked
from alloy_async.asgi import AlloyMiddleware, ConsentEndpoint, lifespan, request_visitor

alloy = Alloy("storm")
SETTINGS = {
    "config_id": "ebebf826",
    "ims_org_id": "ADB3@AdobeOrg",
    "opt_in_enabled": True,
    "store": "redis",
    "outbox": "redis",
    "relay": True,
}
consent = ConsentEndpoint()


async def shop(scope, receive, send):
    """Record what the query says; whoever has consented gets an answer once that is safe."""
    if scope["path"] == "/consent":
        await consent(scope, receive, send)
        return
    visitor = request_visitor(scope)
    kind, _, number = scope["query_string"].decode().partition("=")
    choice = await visitor.get_purposes()
    data = {"visitor": session(scope), "number": int(number)}
    event = visitor.event(type=kind, data=data, ack="stored")
    stored = False
    if choice == "all":
        with contextlib.suppress(StillParked):  # it had to be read again what holds, and that took a while
            await event
            stored = True
    body = json.dumps({"worker": os.getpid(), "choice": choice, "stored": stored}).encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def session(scope) -> str:
    """Return the session's id, as a session middleware would have found it."""
    return dict(scope["headers"])[b"x-session"].decode()


async def app(scope, receive, send):
    """Serve requests, and keep the instance as long as the worker lives."""
    if scope["type"] == "lifespan":
        await receive()
        async with lifespan(alloy, **SETTINGS):
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await served(scope, receive, send)


served = AlloyMiddleware(shop, alloy=alloy, key=session, secure=False)
