"""A shop in FastAPI under uvicorn, for ``web.py``: ``python web_server.py plain|gated COLLECTOR``; prints its port."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import asdict

sys.modules["orjson"] = None  # type: ignore[assignment]  # as in run.py

import uvicorn  # noqa: E402 - the line above comes first
from fastapi import FastAPI  # noqa: E402
from purchase import PURCHASE  # noqa: E402
from stage import IDS  # noqa: E402

from alloy_async import Alloy  # noqa: E402
from alloy_async.asgi import AlloyMiddleware, lifespan  # noqa: E402
from alloy_async.fastapi import AlloyVisitor  # noqa: E402

PRODUCTS = {"products": [{"sku": f"SKU-{number}", "price": number} for number in range(20)]}


def plain() -> FastAPI:
    """Return a shop that records nothing."""
    app = FastAPI()

    @app.get("/products")
    @app.get("/unused")
    async def products() -> dict[str, object]:
        return PRODUCTS

    @app.get("/books")
    async def books() -> dict[str, object]:
        return {"cpu": time.process_time(), "open": 0}

    return app


def gated(collector: str) -> FastAPI:
    """Return a shop that records each view, of visitors who have chosen and of those who have not."""
    alloy = Alloy("benchmark")

    @asynccontextmanager
    async def running(_: FastAPI):
        async with lifespan(
            alloy,
            **IDS,
            endpoint=collector,
            opt_in_enabled=True,
            store="memory",
            visitor_max_parked=10_000,
            max_parked=1_000_000,
        ):
            yield

    app = FastAPI(lifespan=running)
    app.add_middleware(AlloyMiddleware, alloy=alloy, key=_key)

    @app.get("/products")
    async def products(visitor: AlloyVisitor) -> dict[str, object]:
        visitor.event(xdm=PURCHASE)
        return PRODUCTS

    @app.get("/unused")
    async def unused(visitor: AlloyVisitor) -> dict[str, object]:  # noqa: ARG001 - which is what is measured
        return PRODUCTS

    @app.get("/books")
    async def books() -> dict[str, object]:
        told = asdict(alloy.statistics())
        return told | {"cpu": time.process_time(), "open": told["queued"] + told["sending"]}

    return app


def _key(scope) -> str | None:
    """Return the session, as a session middleware would have found it."""
    return dict(scope["headers"]).get(b"x-session", b"").decode() or None


async def _serve(app: FastAPI) -> None:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


if __name__ == "__main__":
    name, collector = sys.argv[1:]
    asyncio.run(_serve(plain() if name == "plain" else gated(collector)))
