"""The event that the benchmarks record: a purchase of 650 bytes as compact JSON."""

from __future__ import annotations

from typing import Any

PURCHASE: dict[str, Any] = {
    "eventType": "commerce.purchases",
    "web": {
        "webPageDetails": {
            "name": "checkout: thank you",
            "URL": "https://shop.example/checkout/thank-you",
            "siteSection": "checkout",
        },
        "webReferrer": {"URL": "https://shop.example/checkout/payment"},
    },
    "commerce": {
        "purchases": {"value": 1},
        "order": {
            "purchaseID": "2026-11-0047213",
            "currencyCode": "EUR",
            "priceTotal": 127.4,
            "payments": [
                {"paymentType": "credit_card", "paymentAmount": 127.4, "transactionID": "tx-93-441-07"}
            ],
        },
    },
    "productListItems": [
        {
            "SKU": "RUN-0427-42",
            "name": "Running shoe",
            "quantity": 1,
            "priceTotal": 99.9,
            "currencyCode": "EUR",
        },
        {
            "SKU": "SOCK-11-M",
            "name": "Socks, pack of 3",
            "quantity": 2,
            "priceTotal": 27.5,
            "currencyCode": "EUR",
        },
    ],
}
