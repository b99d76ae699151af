"""What a request says about its visitor."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given, strategies as st

from alloy_async._request_context import (
    MAX_URL,
    MAX_USER_AGENT,
    RequestHeaders,
    client_address,
    parse_networks,
    request_context,
)

PROXIES = parse_networks(["10.0.0.0/8", "fd00::/8"])
PAGE = {"sec-fetch-mode": "navigate"}


def scope(extra=None, /, **parts):
    """A request for https://shop.example/cart?x=1, from 203.0.113.7."""
    headers = {"host": "shop.example"} | (extra or {})
    return {
        "type": "http",
        "scheme": "https",
        "path": "/cart",
        "raw_path": b"/cart",
        "query_string": b"x=1",
        "client": ("203.0.113.7", 50_000),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    } | parts


def page_url(request):
    return request_context(request).get("web", {}).get("webPageDetails", {}).get("URL")


def test_a_page_request_is_about_its_own_address():
    """Referer is where the visitor came from."""
    context = request_context(scope(PAGE | {"referer": "https://search.example/?q=shoes#top"}))
    assert context["web"] == {
        "webPageDetails": {"URL": "https://shop.example/cart?x=1"},
        "webReferrer": {"URL": "https://search.example/?q=shoes"},
    }


@pytest.mark.parametrize("mode", ["cors", "same-origin", "no-cors", "websocket"])
def test_a_call_is_about_the_page_that_makes_it(mode):
    """Referer is that page, whatever the call accepts."""
    request = scope({"sec-fetch-mode": mode, "accept": "text/html", "referer": "https://shop.example/cart"})
    assert request_context(request)["web"] == {"webPageDetails": {"URL": "https://shop.example/cart"}}


def test_an_old_browser_is_known_by_what_it_accepts():
    """Without fetch metadata, who asks for HTML asks for a page."""
    assert page_url(scope({"accept": "text/html,*/*;q=0.8"})) == "https://shop.example/cart?x=1"
    assert page_url(scope({"accept": "application/json"})) is None
    assert page_url(scope()) is None


def test_the_browser_describes_itself():
    """User agent, first language, client hints as XDM names them."""
    context = request_context(
        scope(
            {
                "user-agent": "Mozilla/5.0",
                "accept-language": "de-CH, de;q=0.9, *;q=0.5",
                "sec-ch-ua-arch": '"x86"',
                "sec-ch-ua-bitness": '"64"',
                "sec-ch-ua-model": '"A \\"B\\" \\\\"',
                "sec-ch-ua-platform-version": '"13.0.0"',
                "sec-ch-ua-wow64": "?0",
            }
        )
    )
    assert context["environment"] == {
        "type": "browser",
        "browserDetails": {
            "userAgent": "Mozilla/5.0",
            "acceptLanguage": "de-CH",
            "userAgentClientHints": {
                "architecture": "x86",
                "bitness": "64",
                "model": 'A "B" \\',
                "platformVersion": "13.0.0",
                "wow64": False,
            },
        },
    }


def test_a_request_that_says_nothing_gives_no_empty_fields():
    """What is not known is not there."""
    assert request_context(scope()) == {"environment": {"type": "browser"}}


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("accept-language", "*"),
        ("accept-language", "de_CH"),
        ("accept-language", "x" * 100),
        ("sec-ch-ua-arch", "x86"),
        ("sec-ch-ua-arch", '"x'),
        ("sec-ch-ua-arch", '"' + "x" * 200 + '"'),
        ("sec-ch-ua-wow64", "true"),
        ("user-agent", "Moz\x1billa"),
        ("referer", "javascript:alert(1)"),
        ("referer", "https://user:password@shop.example/"),
        ("referer", "https://[::1/"),
        ("referer", "https://shop.example/\x00"),
        ("referer", "https:///nowhere"),
        ("referer", "about:blank"),
    ],
)
def test_what_is_malformed_is_left_out(header, value):
    """And does no harm to the rest."""
    assert request_context(scope({header: value})) == {"environment": {"type": "browser"}}


def test_what_is_remembered_is_small():
    """By these headers something is remembered for later requests; whoever sends long ones takes no memory for good."""
    names = ["user-agent", "accept-language", "sec-ch-ua-model", "host"]
    headers = RequestHeaders([(name.encode(), b"x" * 60_000) for name in names])
    assert sum(map(len, headers.of_the_browser())) < 5_000
    assert len(headers.host) < 5_000


def test_what_is_long_is_cut_or_left_out():
    """A user agent is cut; an address loses its query, and is left out when that is not enough."""
    context = request_context(
        scope({"user-agent": "x" * 5_000, "referer": "https://s.example/a?" + "q" * MAX_URL})
    )
    assert len(context["environment"]["browserDetails"]["userAgent"]) == MAX_USER_AGENT
    assert context["web"]["webPageDetails"]["URL"] == "https://s.example/a"
    assert "web" not in request_context(scope({"referer": "https://s.example/" + "a" * MAX_URL}))


@pytest.mark.parametrize(
    ("parts", "url"),
    [
        ({"raw_path": None, "path": "/größe", "query_string": b""}, "https://shop.example/gr%C3%B6%C3%9Fe"),
        ({"raw_path": b"/a%20b", "path": "/a b"}, "https://shop.example/a%20b?x=1"),
        ({"raw_path": b"/cart?x=1"}, "https://shop.example/cart?x=1"),
        ({"raw_path": b'/a b"<'}, "https://shop.example/a%20b%22%3C?x=1"),
        ({"query_string": b"a\x00b"}, None),
        ({"scheme": "ftp"}, None),
        ({"raw_path": b"*"}, None),
        ({"raw_path": b".evil/cart"}, None),
        ({"query_string": b"x=1#top"}, "https://shop.example/cart?x=1"),
        ({"headers": [(b"sec-fetch-mode", b"navigate")]}, None),
        ({"headers": [(b"sec-fetch-mode", b"navigate"), (b"host", b"a b")]}, None),
        (
            {"headers": [(b"sec-fetch-mode", b"navigate"), (b"host", b"[::1]:8000")]},
            "https://[::1]:8000/cart?x=1",
        ),
    ],
)
def test_the_address_is_put_together_from_the_request(parts, url):
    """As it was asked for; a request without a usable host has none."""
    assert page_url(scope(PAGE, **parts)) == url


def test_only_a_trusted_proxy_says_that_it_was_https():
    """Others may write what they like."""
    forwarded = PAGE | {"x-forwarded-proto": "https"}
    for client, scheme in (("10.0.0.1", "https"), ("203.0.113.7", "http")):
        context = request_context(scope(forwarded, scheme="http", client=(client, 1)), proxies=PROXIES)
        assert context["web"]["webPageDetails"]["URL"] == f"{scheme}://shop.example/cart?x=1"


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("fd00::1", "2001:db8::1,fd00::2", "2001:db8::1"),
        ("::ffff:10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, unknown, 10.0.0.2", None),
        ("10.0.0.1", "198.51.100.1, , 10.0.0.2", None),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", None),
        ("10.0.0.1", "198.51.100.1" + ", 10.0.0.2" * 40, None),
        ("10.0.0.1", "", None),
        ("unix", "198.51.100.1", None),
    ],
)
def test_the_address_is_read_from_the_right_through_trusted_proxies(peer, forwarded, expected):
    """What the visitor wrote itself stands further left, and is never believed."""
    address = client_address(scope({"x-forwarded-for": forwarded}, client=(peer, 1)), PROXIES)
    assert (None if address is None else str(address)) == expected


def test_several_headers_of_proxies_are_one_list():
    """The last header is the nearest proxy's."""
    request = scope(client=("10.0.0.1", 1))
    request["headers"] += [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"198.51.100.1")]
    assert str(client_address(request, PROXIES)) == "198.51.100.1"


def test_an_address_is_told_only_when_asked_for():
    """It is personal data; a server on a Unix socket knows none."""
    assert "ipV4" not in request_context(scope())["environment"]
    assert request_context(scope(), tell_address=True)["environment"]["ipV4"] == "203.0.113.7"
    six = scope(client=("2001:db8::1", 1))
    assert request_context(six, tell_address=True)["environment"]["ipV6"] == "2001:db8::1"
    assert request_context(scope(client=None), tell_address=True) == {"environment": {"type": "browser"}}


@pytest.mark.parametrize("proxy", ["", "10.0.0.0/33", "proxy.example", "*"])
def test_a_proxy_must_be_an_address_or_a_network(proxy):
    """ "*" would believe everybody."""
    with pytest.raises(ValueError, match=r"."):
        parse_networks([proxy])


@pytest.mark.parametrize(
    ("headers", "refuses"),
    [
        ([], False),
        ([(b"sec-gpc", b"1")], True),
        ([(b"dnt", b"1")], True),
        ([(b"sec-gpc", b"0"), (b"dnt", b"1")], True),
        ([(b"sec-gpc", b"0"), (b"sec-gpc", b"1")], True),
        ([(b"sec-gpc", b" 1 ")], True),
        ([(b"sec-gpc", b"0")], False),
        ([(b"dnt", b"0")], False),
        ([(b"sec-gpc", b"true")], False),
    ],
)
def test_a_refusal_in_the_headers_is_heard(headers, refuses):
    """No other header takes it back."""
    assert RequestHeaders(headers).refuses is refuses


HEADER_NAMES = st.sampled_from(
    [
        b"host",
        b"referer",
        b"user-agent",
        b"accept",
        b"accept-language",
        b"sec-fetch-mode",
        b"sec-ch-ua-arch",
        b"x-forwarded-for",
        b"x-forwarded-proto",
    ]
)
HEADER_VALUES = st.binary(max_size=40) | st.sampled_from(
    [
        b"navigate",
        b"https://a.example/\xe9?b",
        b"10.0.0.1",
        b"[::1]",
        b"a.example",
        b"http://[",
        b'"x"',
        b"text/html",
    ]
)


@given(
    st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=8),
    st.text(max_size=20),
    st.none() | st.binary(max_size=20),
    st.binary(max_size=20),
    st.sampled_from([None, ("10.0.0.1", 1), ("x", 1), ("::1", 1)]),
)
def test_no_request_breaks_the_reader(headers, path, raw_path, query, client):
    """Whatever a request holds, what is said about it is small, printable and fit to be sent."""
    request = scope(path=path, raw_path=raw_path, query_string=query, client=client) | {"headers": headers}
    context = request_context(request, proxies=PROXIES, tell_address=True)
    text = json.dumps(context, ensure_ascii=False)
    assert text.isprintable()
    assert len(text) < 3 * MAX_URL
    for field in ("ipV4", "ipV6"):
        if field in context["environment"]:
            ipaddress.ip_address(context["environment"][field])
