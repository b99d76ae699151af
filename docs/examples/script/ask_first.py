"""A script that records what it does, and asks the person at the terminal before anything is sent.

Run it twice: the second time the choice is known. ``ask_first.py --forget`` makes it ask again.
"""

from __future__ import annotations

import asyncio
import sys

from alloy_async import Alloy, AlloyError


async def main(arguments: list[str], ask=input) -> None:
    async with Alloy("ask_first") as alloy:
        await alloy.configure(config_id="ebebf826", ims_org_id="ADB3@AdobeOrg", opt_in_enabled=True)
        if "--forget" in arguments:
            await alloy.forget()

        started = alloy.event(type="application.launch")
        work_done = alloy.event(type="report.made", data={"rows": sum(range(100))})

        if alloy.statistics().parked:  # nobody has chosen yet
            answer = await asyncio.to_thread(ask, "May we record that you used this script? [y/N] ")
            await alloy.opt_in(purposes="all" if answer.strip().lower() in {"y", "yes"} else "none")

        for event in (started, work_done):
            print(await outcome(event))


async def outcome(event) -> str:
    try:
        result = await event
    except AlloyError as error:
        return f"not sent: {type(error).__name__}"
    return f"delivered: {result.event_id}"


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
