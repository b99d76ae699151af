"""A small shop's XDM schemas in the shape of the public repository: its spelling, its folders, its way of referring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NS = "https://ns.adobe.com/xdm"
CLASS = f"{NS}/context/experienceevent"
DRAFT = "http://json-schema.org/draft-06/schema#"


def document(name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Write a schema as the repository does: its fields are a definition that it refers to."""
    own = name.rpartition("/")[2]
    context = {"$ref": f"{NS}/common/extensible#/definitions/@context"}
    parts = [{"$ref": part} for part in more.pop("parts", [])]
    return {
        "$id": name,
        "$schema": DRAFT,
        "title": own,
        "type": "object",
        "meta:extensible": True,
        "definitions": {own: {"properties": properties}},
        "allOf": [context, *parts, {"$ref": f"#/definitions/{own}"}],
        **more,
    }


def field_group(name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return document(name, properties, **{"meta:intendedToExtend": [CLASS], **more})


SCHEMAS: dict[str, dict[str, Any]] = {
    "components/behaviors/time-series.schema.json": document(
        f"{NS}/data/time-series",
        {
            "@id": {"type": "string", "format": "uri-reference"},
            "xdm:timestamp": {"type": "string", "format": "date-time"},
            "xdm:eventType": {"type": "string", "meta:enum": {"commerce.purchases": "Purchases"}},
        },
    ),
    "components/classes/experienceevent.schema.json": document(
        CLASS,
        {"xdm:eventMergeId": {"type": "string"}},
        parts=[f"{NS}/data/time-series", f"{NS}/context/identitymap"],
        required=["@id", "xdm:timestamp"],
    ),
    "components/fieldgroups/shared/identitymap.schema.json": document(
        f"{NS}/context/identitymap",
        {
            "xdm:identityMap": {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"$ref": f"{NS}/context/identityitem"}},
            }
        },
    ),
    "components/datatypes/identityitem.schema.json": document(
        f"{NS}/context/identityitem",
        {
            "xdm:id": {"type": "string"},
            "xdm:authenticatedState": {"type": "string", "enum": ["ambiguous", "authenticated", "loggedOut"]},
            "xdm:primary": {"type": "boolean"},
        },
    ),
    "components/fieldgroups/experience-event/shop.schema.json": field_group(
        f"{NS}/context/experienceevent-shop",
        {
            "xdm:commerce": {"$ref": f"{NS}/context/commerce", "title": "Commerce"},
            "xdm:productListItems": {"type": "array", "items": {"$ref": f"{NS}/content/productlistitem"}},
        },
    ),
    "components/datatypes/commerce.schema.json": document(
        f"{NS}/context/commerce",
        {"xdm:order": {"$ref": f"{NS}/data/order"}, "xdm:purchases": {"$ref": f"{NS}/data/measure"}},
    ),
    "components/datatypes/order.schema.json": document(
        f"{NS}/data/order",
        {
            "xdm:priceTotal": {"type": "number"},
            "xdm:purchaseID": {"type": "string"},
            "xdm:currencyCode": {"type": "string", "pattern": "^[A-Z]{3}$"},
            "xdm:orderType": {"type": "string", "enum": ["checkout", "instant_purchase"]},
            "xdm:createdDate": {"type": "string", "format": "date-time"},
            "xdm:discount": {"type": "number", "minimum": 0},
        },
    ),
    "components/datatypes/measure.schema.json": document(
        f"{NS}/data/measure",
        {"xdm:id": {"type": "string"}, "xdm:value": {"type": "number"}},
        required=["xdm:value"],
    ),
    "components/datatypes/productlistitem.schema.json": document(
        f"{NS}/content/productlistitem",
        {"xdm:SKU": {"type": "string"}, "xdm:quantity": {"type": "integer"}, "xdm:set": {"$ref": "#"}},
    ),
    "components/fieldgroups/experience-event/place.schema.json": field_group(
        f"{NS}/context/experienceevent-place",
        {
            "xdm:placeContext": {
                "type": "object",
                "properties": {
                    "schema:latitude": {"type": "number", "minimum": -90, "maximum": 90},
                    "schema:longitude": {"type": "number"},
                    "xdm:city": {"type": "string"},
                },
            },
            "xdm:notes": {"type": "object"},
            "xdm:extras": {"type": "object", "properties": {"xdm:a": {}}, "additionalProperties": True},
            "xdm:metrics": {"type": "object", "patternProperties": {"^m[0-9]+$": {"type": "integer"}}},
        },
    ),
    "extensions/adobe/experience/target.schema.json": {
        "$id": "https://ns.adobe.com/experience/target-event",
        "$schema": DRAFT,
        "type": "object",
        "meta:extends": [CLASS],
        "properties": {
            "https://ns.adobe.com/experience/target/mbox": {"type": "string"},
            "https://ns.adobe.com/experience/target/pageId": {"type": "integer"},
        },
    },
}

EVENT: dict[str, Any] = {
    "xdm": {
        "_id": "0b9f4f0e-9f5c-4c1e-8d55-3c0e2a4c7a10",
        "timestamp": "2026-11-23T15:20:48.830Z",
        "eventType": "commerce.purchases",
        "identityMap": {
            "FPID": [
                {
                    "id": "6f1c0f7e-3f0a-4a1c-9d58-0d6f6c1f2b3a",
                    "authenticatedState": "ambiguous",
                    "primary": True,
                }
            ]
        },
        "commerce": {
            "order": {
                "priceTotal": 59.9,
                "purchaseID": "4711",
                "currencyCode": "EUR",
                "orderType": "checkout",
            },
            "purchases": {"value": 1},
        },
        "productListItems": [{"SKU": "A-1", "quantity": 2, "set": {"SKU": "B-1"}}],
        "placeContext": {"_schema": {"latitude": 52.1}, "city": "Berlin"},
        "notes": {"free": ["text"]},
        "extras": {"anything": 1},
        "metrics": {"m1": 1},
        "_experience": {"target": {"mbox": "hero", "pageId": 3}},
        "_shop": {"anything": {"goes": [1]}},
    },
    "data": {"prop1": "v"},
}
"""An event that all of them allow."""


def write_schemas(folder: Path, schemas: dict[str, Any] | None = None) -> Path:
    """Write schemas below a folder, by default all of the shop's; text is written as it is."""
    for name, content in (SCHEMAS if schemas is None else schemas).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder
