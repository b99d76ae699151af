"""One visitor's choice is never another's."""

from __future__ import annotations

import two_visitors


async def test_only_the_one_who_agreed_is_heard_of(edge, capsys):
    """The event of the visitor who agreed arrives, nothing of the other does."""
    await two_visitors.main()
    assert capsys.readouterr().out == "ada delivered\nbob ConsentDeclined\n"
    assert [record["event"]["data"] for record in edge.events] == [{"by": "ada"}]
    assert all("bob" not in str(request) for request in edge.requests)
