"""Cookies: what a browser may say with them, and what is written into it."""

from __future__ import annotations

import base64
import http.cookies
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from alloy_async._cookies import (
    CHOICE_MAX_AGE,
    MAX_ENTRIES_SIZE,
    MAX_VALUE,
    BrowserChoice,
    BrowserCookies,
    CookieAttributes,
    CookieNames,
    ToldChoice,
    browser_choice,
    delete_cookie,
    parse_consent,
    parse_ecid,
    read_cookies,
    set_cookie,
    write_consent,
    write_told_choice,
)

ORG = "97D1F3F459CE0AD80A495CBE@AdobeOrg"
NAMES = CookieNames.of(ORG)
PLAIN = CookieAttributes()
FPID = "6f1c0f7e-3f0a-4a1c-9d58-0d6f6c1f2b3a"
ECID = "41861666193140161934276845651148876988"
IDENTITY = "CiY0MTg2MTY2NjE5MzE0MDE2MTkzNDI3Njg0NTY1MTE0ODg3Njk4OA=="
NOW = 1_767_225_600.0
LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+=[!#-+\--:<-\[\]-~]*(; [A-Za-z-]+(=[A-Za-z0-9./-]+)?)+")


def read(*headers: str) -> BrowserCookies:
    return read_cookies([header.encode("latin-1") for header in headers], NAMES)


def sent_back(line: bytes) -> str:
    """What a browser sends for a Set-Cookie header: everything before the first semicolon."""
    return line.decode().partition(";")[0]


def test_names_are_those_of_the_browser_client():
    """Only the first @ becomes _; what a name must not hold is escaped."""
    assert NAMES.consent == "kndctr_97D1F3F459CE0AD80A495CBE_AdobeOrg_consent"
    assert NAMES.choice == "alloy_97D1F3F459CE0AD80A495CBE_AdobeOrg_choice"
    assert CookieNames.of("a@b@c").identity == "kndctr_a_b%40c_identity"


@given(st.text(max_size=40))
def test_whatever_an_organisation_is_called_its_cookies_can_be_written(organisation):
    """No name ends a header, or another cookie."""
    names = CookieNames.of(organisation.encode("utf-8", "replace").decode())
    for name in (names.consent, names.identity, names.cluster, names.choice, names.fpid):
        assert LINE.fullmatch(set_cookie(name, "x", PLAIN, max_age=1))


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        ("general=in", "all"),
        ("general=out", "none"),
        ("other=1; general=in", "all"),
        ("general=in;general=out", "none"),
        ("general=in;general=maybe", None),
        ("general=pending", None),
        ("general=IN", None),
        ("General=in", None),
        ("general=in ", "all"),
        ("general=inn", None),
        ("general", None),
        ("general=", None),
        ("in", None),
        ("all", None),
        ("true", None),
        ("", None),
    ],
)
def test_only_two_words_decide(value, choice):
    """Whatever is not exactly known counts as not said."""
    assert parse_consent(value) == choice


@given(st.text(max_size=60))
def test_no_unknown_word_opens_the_gate(value):
    """A yes always has the pair of a yes in it, and no other word for it."""
    if parse_consent(value) == "all":
        words = [part.strip() for part in value.split(";") if part.strip().partition("=")[0] == "general"]
        assert set(words) == {"general=in"}


@pytest.mark.parametrize(
    ("header", "consent"),
    [
        (f"{NAMES.consent}=general=in", "all"),
        (f"{NAMES.consent}=general%3Din", "all"),
        (f'{NAMES.consent}="general=in"', "all"),
        (f'{NAMES.consent}="general%3Dout"', "none"),
        (f"a=b;{NAMES.consent}=general=in;c=d", "all"),
        (f"; =; a; {NAMES.consent} = general=out ;", "none"),
        (f"{NAMES.consent}=general%253Din", None),
        (f"{NAMES.consent.upper()}=general=in", None),
        (f"x{NAMES.consent}=general=in", None),
        (f"{NAMES.consent}", None),
        (f"{NAMES.consent}=general=in%ff", None),
        (f"{NAMES.consent}=general=in%0d%0a", None),
        (f"{NAMES.consent}=general=in{'x' * MAX_VALUE}", None),
        (f"{NAMES.consent}=general=in; {NAMES.consent}=general=out", "none"),
        (f"{NAMES.consent}=general=out; {NAMES.consent}=general=in", "none"),
        (f"{NAMES.consent}=general=in; {NAMES.consent}=general=in", "all"),
        (f"{NAMES.consent}=general=in; {NAMES.consent}=%ff", None),
        (f"{'x=' + 'y' * 70_000}; {NAMES.consent}=general=out", "none"),
    ],
)
def test_a_header_is_read_as_browsers_and_frameworks_write_it(header, consent):
    """Raw, escaped once or quoted; of two the stricter; the refusal at the end of an endless header too."""
    assert read(header).consent == consent


def test_a_refusal_in_a_second_header_counts():
    """HTTP/2 may send each cookie in a header of its own."""
    assert read(f"{NAMES.consent}=general=in", f"{NAMES.consent}=general=out").consent == "none"


def test_everything_of_the_edge_becomes_an_entry_and_nothing_else():
    """Values are opaque; the application's own cookies are not told."""
    cookies = read(
        f"session=secret; {NAMES.identity}={IDENTITY}; {NAMES.cluster}=or2; {NAMES.prefix}new=a%20b; {NAMES.fpid}={FPID}"
    )
    assert cookies.entries == (
        (NAMES.identity, IDENTITY),
        (NAMES.cluster, "or2"),
        (f"{NAMES.prefix}new", "a b"),
    )
    assert (cookies.ecid, cookies.fpid) == (ECID, FPID)


def test_a_refusal_knows_what_to_delete():
    """Whatever names the visitor, readable or not; what says what it wants stays."""
    cookies = read(
        f"{NAMES.identity}=%ff; {NAMES.fpid}=x; {NAMES.cluster}=or2; {NAMES.choice}=none.1; {NAMES.consent}=general=out;"
        f"{NAMES.prefix}optout=1; {NAMES.prefix}personalization_sessionId=s; session=s"
    )
    assert cookies.identifying(NAMES) == sorted(
        [NAMES.identity, NAMES.fpid, NAMES.cluster, f"{NAMES.prefix}personalization_sessionId"]
    )


def test_a_value_is_bounded():
    """A browser keeps at most 4 096 bytes of a cookie; more than that is none."""
    for length, kept in ((MAX_VALUE, True), (MAX_VALUE + 1, False)):
        assert bool(read(f"{NAMES.prefix}x={'v' * length}").entries) is kept


def test_entries_are_bounded():
    """What a hostile browser sends is not carried to the edge without end."""
    cookies = read("; ".join(f"{NAMES.prefix}{n}={'v' * 4_000}" for n in range(50)))
    size = sum(len(name) + len(value) for name, value in cookies.entries)
    assert MAX_ENTRIES_SIZE - 4_200 < size <= MAX_ENTRIES_SIZE


@pytest.mark.parametrize(
    "fpid",
    ["", "x", FPID.replace("-4a", "-1a"), FPID + "0", FPID.replace("-", ""), f"{{{FPID}}}", FPID[:-1] + "٣"],
)
def test_what_is_no_uuid_of_version_4_is_no_fpid(fpid):
    """The edge takes no other."""
    assert read(f"{NAMES.fpid}={FPID.upper()}").fpid == FPID
    assert read_cookies([f"{NAMES.fpid}={fpid}".encode()], NAMES).fpid is None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("all.1767225600000", ToldChoice("all", 1_767_225_600_000)),
        ("none.1", ToldChoice("none", 1)),
        ("all", None),
        ("all.", None),
        ("all.-1", None),
        ("all.1.2", None),
        ("ALL.1", None),
        ("yes.1", None),
        ("all.٣", None),
        ("all.1\n", None),
        ("all." + "9" * 15, None),
    ],
)
def test_our_own_choice_is_read_strictly(value, told):
    """Only what we write is understood."""
    assert read_cookies([f"{NAMES.choice}={value}".encode()], NAMES).told == told


def test_of_two_choices_of_ours_the_later_counts():
    """And at the same moment the refusal."""
    assert read(f"{NAMES.choice}=none.1; {NAMES.choice}=all.2").told == ToldChoice("all", 2)
    assert read(f"{NAMES.choice}=none.2; {NAMES.choice}=all.1").told == ToldChoice("none", 2)
    assert read(f"{NAMES.choice}=none.2; {NAMES.choice}=all.2").told == ToldChoice("none", 2)


AT = 1_767_225_500_000


@pytest.mark.parametrize(
    ("consent", "told", "choice"),
    [
        (None, None, BrowserChoice(None)),
        ("all", None, BrowserChoice("all", 0.0)),
        ("none", None, BrowserChoice("none", 0.0)),
        (None, ToldChoice("all", AT), BrowserChoice("all", AT / 1_000)),
        (None, ToldChoice("none", AT), BrowserChoice("none", AT / 1_000)),
        ("none", ToldChoice("all", AT), BrowserChoice("none", AT / 1_000)),
        ("all", ToldChoice("none", AT), BrowserChoice("all", AT / 1_000)),
        (None, ToldChoice("all", int((NOW - CHOICE_MAX_AGE) * 1_000)), BrowserChoice(None)),
        (None, ToldChoice("all", int((NOW + 301) * 1_000)), BrowserChoice(None)),
        ("all", ToldChoice("none", int((NOW + 301) * 1_000)), BrowserChoice("all", 0.0)),
    ],
)
def test_the_page_and_our_cookie_are_weighed(consent, told, choice):
    """A refusal of the page holds; its yes answers what the browser was told, and nothing later."""
    assert browser_choice(BrowserCookies(consent=consent, told=told), now=NOW) == choice


@given(st.floats(min_value=1, max_value=4e9))
def test_a_told_choice_covers_the_moment_it_was_told(now):
    """Its milliseconds never round to before a refusal of that very moment."""
    told = read(f"{NAMES.choice}={write_told_choice('none', now)}").told
    assert told is not None
    assert now <= told.at / 1_000 < now + 0.002


@pytest.mark.parametrize(
    ("value", "ecid"),
    [
        (IDENTITY, ECID),
        (IDENTITY.rstrip("="), ECID),
        (
            base64.urlsafe_b64encode(
                b"\x50\xff\x83\x01\x59\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\x0a\x26" + ECID.encode()
            ).decode(),
            ECID,
        ),
        (
            base64.b64encode(
                b"\x65\xff\xfe\xfd\xfc\x52\x02\x08\x01\x0a\x26" + ECID.encode() + b"\xf0\x01\x00"
            ).decode(),
            ECID,
        ),
        (base64.b64encode(b"\x0a\x25" + ECID[1:].encode()).decode(), None),
        (base64.b64encode(b"\x0a\x26" + ECID[1:].encode()).decode(), None),
        (base64.b64encode(b"\x0a\x26" + b"x" * 38).decode(), None),
        (base64.b64encode(b"\x0a\x26" + "٣".encode() * 19).decode(), None),
        (base64.b64encode(b"\x12\x26" + ECID.encode()).decode(), None),
        (base64.b64encode(b"\x0b\x26" + ECID.encode()).decode(), None),
        (base64.b64encode(b"\x50" + b"\x80" * 11 + b"\x01\x0a\x26" + ECID.encode()).decode(), None),
        ("", None),
        ("=", None),
        ("a", None),
        (ECID, None),
        ("💥", None),
    ],
)
def test_the_ecid_is_read_out_of_an_identity_cookie(value, ecid):
    """Between other fields, in both base64 alphabets; only 38 digits are one."""
    assert parse_ecid(value) == ecid


def test_published_identity_cookies_are_understood():
    """The values are those of recorded answers."""
    folder = Path(__file__).parents[3] / "shared/data/edge-responses"
    if not folder.is_dir():
        pytest.skip("the recorded answers are not here")
    for path in folder.glob("state-store-identity*.json"):
        body = json.loads(path.read_text("utf-8"))["body"]
        values = {h["type"]: h["payload"] for h in body["handle"]}
        cookie = next(item for item in values["state:store"] if item["key"].endswith("_identity"))
        assert parse_ecid(cookie["value"]) == values["identity:result"][0]["id"]


@given(
    st.text(max_size=80)
    | st.binary(max_size=80).map(lambda raw: base64.b64encode(raw).decode())
    | st.just(base64.b64encode(b"\x80" * 48_000).decode())
)
def test_no_identity_cookie_breaks_the_reader(value):
    """What cannot be read counts as no identity."""
    ecid = parse_ecid(value)
    assert ecid is None or re.fullmatch(r"[0-9]{38}", ecid)


OUR_NAMES = st.sampled_from(
    [NAMES.consent, NAMES.identity, NAMES.choice, NAMES.fpid, f"{NAMES.prefix}x"]
).map(str.encode)
PIECES = (
    OUR_NAMES
    | st.sampled_from([b"=", b";", b"; ", b'"', b"%", b"general=in", b"all.1", b"%0d%0a"])
    | st.binary(max_size=8)
)


@given(st.lists(st.lists(PIECES, max_size=12).map(b"".join), max_size=3))
def test_no_header_breaks_the_reader(headers):
    """Whatever bytes come, reading them raises nothing, and a yes stands in them where there is one."""
    cookies = read_cookies(headers, NAMES)
    assert cookies.consent != "all" or any(b"in" in header for header in headers)
    assert cookies.told is None or any(cookies.told.purposes.encode() in header for header in headers)
    assert all(value.isprintable() for _, value in cookies.entries)


@given(st.text(max_size=60).filter(str.isprintable))
def test_what_is_written_comes_back(value):
    """Any value survives the way to the browser and back, and the line holds what RFC 6265 allows."""
    line = set_cookie(f"{NAMES.prefix}x", value, PLAIN, max_age=60)
    assert LINE.fullmatch(line)
    assert read(sent_back(line)).entries == ((f"{NAMES.prefix}x", value),)


def test_consent_is_written_byte_for_byte_as_the_browser_client_does():
    """Where Python's own cookies would put quotes around it."""
    line = set_cookie(NAMES.consent, write_consent("all"), PLAIN, max_age=CHOICE_MAX_AGE)
    assert line == (
        b"kndctr_97D1F3F459CE0AD80A495CBE_AdobeOrg_consent=general=in; Path=/; Max-Age=15552000; SameSite=Lax; Secure"
    )
    assert '"' in http.cookies.SimpleCookie({NAMES.consent: "general=in"}).output()
    assert write_consent("none") == "general=out"


def test_attributes_are_those_asked_for():
    """Domain only where there is one; None is never sent without Secure."""
    apex = CookieAttributes(domain="example.com", secure=False)
    assert set_cookie("a", "b", apex, max_age=None) == b"a=b; Path=/; Domain=example.com; SameSite=Lax"
    assert set_cookie("a", "b", apex, max_age=5, same_site="none", http_only=True) == (
        b"a=b; Path=/; Domain=example.com; Max-Age=5; SameSite=None; Secure; HttpOnly"
    )
    assert set_cookie("a", "b", PLAIN, max_age=5, same_site="Lax\r\nX: y").endswith(b"; SameSite=Lax; Secure")
    assert delete_cookie("a", apex) == b"a=; Path=/; Domain=example.com; Max-Age=0; SameSite=Lax"


@pytest.mark.parametrize("name", ["", "a b", "a;b", "a=b", "a\r\nb", "a,b", "ä", "a@b", '"a"', "a\0"])
def test_a_name_that_is_no_token_is_refused(name):
    """And what it was is not told."""
    with pytest.raises(ValueError, match=r"must be a token$"):
        set_cookie(name, "x", PLAIN, max_age=1)


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b=c", "a\0", "\ud800", "x" * 4_097, "a\x85b"])
def test_a_value_that_could_begin_another_header_is_refused(value):
    """And what it was is not told."""
    with pytest.raises(ValueError, match=r"without control characters$"):
        set_cookie("a", value, PLAIN, max_age=1)


@given(st.text(max_size=30), st.text(max_size=30))
def test_nothing_that_is_written_leaves_its_place(name, value):
    """A line is written whole and in order, or not at all."""
    try:
        line = set_cookie(name, value, PLAIN, max_age=1)
    except ValueError:
        return
    assert LINE.fullmatch(line)
    assert line.count(b";") == 4


@pytest.mark.parametrize(
    "domain", ["", ".", ".example.com", "exa mple.com", "example.com; Secure", "a\r\nb", "Ex.com", "a" * 64]
)
def test_a_domain_must_be_one(domain):
    """It is checked once, where it is configured."""
    with pytest.raises(ValueError, match="not a domain"):
        CookieAttributes(domain=domain)
