"""Decisions out of a file, as the library and its user see them."""

import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async import Alloy
from alloy_async.devserver import DevelopmentEdge, create_app, serving

pytestmark = pytest.mark.integration

ITEM = {"schema": "https://ns.adobe.com/personalization/json-content-item", "content": {"title": "Sale"}}


async def test_the_propositions_of_an_event_come_from_the_file(tmp_path):
    """Of the scopes that are asked for, those that the file knows."""
    file = tmp_path / "decisions.json"
    file.write_text(json.dumps({"scopes": {"hero": [ITEM]}}))
    edge = DevelopmentEdge(decisions=file)
    with serving(create_app(edge)) as server:
        async with Alloy() as alloy:
            await alloy.configure(
                config_id="ds",
                ims_org_id="o@AdobeOrg",
                endpoint=server.url,
                opt_in_enabled=True,
                state_dir=tmp_path,
            )
            await alloy.opt_in(purposes="all")
            result = await alloy.event(type="web.page", decision_scopes=["hero", "footer"])
            plain = await alloy.event(type="web.page")
    assert [proposition["scope"] for proposition in result.propositions] == ["hero"]
    assert result.propositions[0]["items"][0]["data"]["content"] == {"title": "Sale"}
    assert plain.propositions == []
