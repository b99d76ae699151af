"""Two instances in one process, each for one visitor. They share connections, and nothing that says who they are or what they
chose. For the many visitors of a web server one instance is enough: ``alloy.visitor(key)``, see ``fastapi_shop``.
"""

from __future__ import annotations

import asyncio

import httpx

from alloy_async import Alloy, AlloyError
from alloy_async.stores import MemoryStore


async def visitor(name: str, client: httpx.AsyncClient) -> Alloy:
    alloy = Alloy(name)
    await alloy.configure(
        config_id="ebebf826",
        ims_org_id="ADB3@AdobeOrg",
        opt_in_enabled=True,
        client=client,
        store=MemoryStore(),
        max_parked=100,
    )
    return alloy


async def main() -> None:
    async with (
        httpx.AsyncClient() as client,
        await visitor("ada", client) as ada,
        await visitor("bob", client) as bob,
    ):
        orders = {
            alloy.name: alloy.event(type="commerce.purchases", data={"by": alloy.name})
            for alloy in (ada, bob)
        }
        await ada.opt_in(purposes="all")
        await bob.opt_in(purposes="none")
        for name, order in orders.items():
            print(name, await outcome(order))


async def outcome(event) -> str:
    try:
        await event
    except AlloyError as error:
        return type(error).__name__
    return "delivered"


if __name__ == "__main__":
    asyncio.run(main())
