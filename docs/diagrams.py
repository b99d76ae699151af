"""Draws the gate from its own tables, so that the picture cannot disagree with the code.

Inline SVG without fonts or colours of its own: text and lines take the page's colour, and the three accents are
readable on light and on dark.
"""

from __future__ import annotations

from html import escape
from math import hypot

from alloy_async._consent._rules import (
    PURPOSES,
    STARTS_EPOCH,
    TRANSITIONS,
    VERDICT,
    Consent,
    Occurrence,
    Verdict,
)

__all__ = ["gate_svg", "gate_table"]

PLACES = {Consent.PENDING: (400, 115), Consent.IN: (645, 395), Consent.OUT: (155, 395)}
LOOPS = {Consent.PENDING: (0, -1), Consent.IN: (0, 1), Consent.OUT: (0, 1)}
"""In which direction a state's own loop leaves it."""

ACCENTS = {Verdict.PASS: "#2f9e60", Verdict.PARK: "#c58a1a", Verdict.REFUSE: "#d9534f"}
WIDTH, HEIGHT = 204, 66  # of a state's box
LINE = 17  # from one line of text to the next
BOW = 46  # how far an arrow keeps from the straight line, so that there and back are two

ARROW = (
    '<marker id="gate-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0 0 8 4 0 8z" fill="currentColor"/></marker>'
)
STYLE = "width:100%;max-width:800px;height:auto;color:inherit;font-family:inherit;font-size:14px"


def gate_svg() -> str:
    """Return the state diagram as an SVG element."""
    parts = [_arrow(start, end, happened) for (start, end), happened in _edges().items()]
    parts += [_state(consent, x, y) for consent, (x, y) in PLACES.items()]
    title = "<title>The consent gate: its states, and what leads from one to another</title>"
    legend = _text(400, 492, "✕ what was called before it can never be sent")
    body = "\n".join([title, f"<defs>{ARROW}</defs>", *parts, legend])
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 505" role="img" style="{STYLE}">\n{body}\n</svg>\n'


def gate_table() -> str:
    """Return the same as a Markdown table: a row for each occurrence, a column for each state."""
    head = ["what happens", *(f"from {consent.name}" for consent in Consent), "what was called before"]
    lines = [_row(head), _row(["---"] * len(head))]
    for occurrence in Occurrence:
        goals = [TRANSITIONS[consent, occurrence].name for consent in Consent]
        before = "can never be sent" if occurrence in STARTS_EPOCH else "stays as it is"
        lines.append(_row([f"{occurrence.name} ({occurrence.value})", *goals, before]))
    return "\n".join(lines) + "\n"


def _edges() -> dict[tuple[Consent, Consent], list[Occurrence]]:
    edges: dict[tuple[Consent, Consent], list[Occurrence]] = {}
    for (start, occurrence), end in TRANSITIONS.items():
        edges.setdefault((start, end), []).append(occurrence)
    return edges


def _state(consent: Consent, x: float, y: float) -> str:
    verdict = VERDICT[consent]
    accent = ACCENTS[verdict]
    box = (
        f'<rect x="{x - WIDTH / 2}" y="{y - HEIGHT / 2}" width="{WIDTH}" height="{HEIGHT}" rx="12" '
        f'fill="{accent}" fill-opacity="0.14" stroke="{accent}" stroke-width="2"/>'
    )
    words = f'purposes "{PURPOSES[consent]}": {verdict.value}'
    return box + _text(x, y - 6, consent.name, weight=600) + _text(x, y + 16, escape(words))


def _arrow(start: Consent, end: Consent, happened: list[Occurrence]) -> str:
    return _loop(start, happened) if start is end else _bow(start, end, happened)


def _bow(start: Consent, end: Consent, happened: list[Occurrence]) -> str:
    """An arc that keeps to the left of its direction, its words outside of it."""
    (x1, y1), (x2, y2) = PLACES[start], PLACES[end]
    length = hypot(x2 - x1, y2 - y1)
    left = ((y2 - y1) / length, -(x2 - x1) / length)
    middle = ((x1 + x2) / 2 + left[0] * BOW, (y1 + y2) / 2 + left[1] * BOW)
    a, b = _border(start, middle), _border(end, middle)
    path = f"M{a[0]:.0f} {a[1]:.0f}Q{middle[0]:.0f} {middle[1]:.0f} {b[0]:.0f} {b[1]:.0f}"
    peak = [(p + 2 * q + r) / 4 for p, q, r in zip(a, middle, b, strict=True)]
    anchor = "middle" if abs(left[0]) < 0.3 else "start" if left[0] > 0 else "end"
    x, y = peak[0] + left[0] * 10, peak[1] + left[1] * 14
    return _line(path) + _words(x, y, happened, anchor, upwards=left[1])


def _loop(state: Consent, happened: list[Occurrence]) -> str:
    (x, y), (_, down) = PLACES[state], LOOPS[state]
    edge, far = y + down * HEIGHT / 2, y + down * (HEIGHT / 2 + 44)
    path = f"M{x - 70} {edge}C{x - 70} {far} {x - 25} {far} {x - 25} {edge}"
    return _line(path) + _words(
        x - 18, edge + down * (10 + len(happened) * LINE / 2), happened, "start", upwards=0
    )


def _border(state: Consent, towards: tuple[float, float]) -> tuple[float, float]:
    """Where the line from a state's middle leaves its box."""
    x, y = PLACES[state]
    dx, dy = towards[0] - x, towards[1] - y
    scale = min(
        (WIDTH / 2 + 4) / abs(dx) if dx else float("inf"), (HEIGHT / 2 + 4) / abs(dy) if dy else float("inf")
    )
    return x + dx * scale, y + dy * scale


def _line(path: str) -> str:
    return (
        f'<path d="{path}" fill="none" stroke="currentColor" stroke-opacity="0.65" stroke-width="1.5" '
        f'marker-end="url(#gate-arrow)"/>'
    )


def _words(x: float, y: float, happened: list[Occurrence], anchor: str, *, upwards: float) -> str:
    """One line for each occurrence; the block stands above, below or beside its point."""
    first = y - (len(happened) - 1) * LINE * (0.5 - 0.5 * upwards) + 5
    return "".join(
        _text(x, first + index * LINE, escape(_word(occurrence)), anchor=anchor)
        for index, occurrence in enumerate(happened)
    )


def _word(occurrence: Occurrence) -> str:
    """Name the occurrence; a cross marks those after which nothing called before can be sent."""
    return occurrence.value + (" ✕" if occurrence in STARTS_EPOCH else "")


def _text(x: float, y: float, text: str, *, anchor: str = "middle", weight: int = 400) -> str:
    place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text {place} fill="currentColor">{text}</text>'


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
