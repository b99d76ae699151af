"""What tests import from each other's neighbourhood: ids for configure, and patience without time."""

from __future__ import annotations

import asyncio

IDS = {"config_id": "ebebf826-a01f-4458-8cec-ef61de241c93", "ims_org_id": "ADB3LETTERSANDNUMBERS@AdobeOrg"}


async def settle(turns: int = 20) -> None:
    """Let the event loop take some turns, so that whatever can go on without time passing has gone on."""
    for _ in range(turns):
        await asyncio.sleep(0)
