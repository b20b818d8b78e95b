"""The report page: style sheet, content security policy, chapters, figures and tables."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from instructgen.reports.html import Markup, element, join_markup

_STYLE = """
:root { color-scheme: light dark;
  --ground: #fcfcfd; --card: #fff; --ink: #1c1e26; --dim: #5d6372; --edge: #dfe2ea;
  --c0: #0072b2; --c1: #d98200; --c2: #00916a; --c3: #b8578f;
  --c4: #3d9bd4; --c5: #cc5200; --c6: #8a7a00; --c7: #6b7280; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #14161b; --card: #1c1f27; --ink: #e7e9ee; --dim: #9aa1b2; --edge: #323643;
  --c0: #4ba6e0; --c1: #eba53c; --c2: #2fbf94; --c3: #dd85b6;
  --c4: #86c8f0; --c5: #ff8742; --c6: #cdbb45; --c7: #a0a7b5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .3rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .3rem; border-top: 1px solid var(--edge);
  padding-top: 1.2rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p, ul { margin: .3rem 0; } p.dim, .dim, figcaption { color: var(--dim); }
a { color: var(--c0); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: .7rem; padding: 0; margin: 1rem 0; list-style: none; }
.tiles li, .card { background: var(--card); border: 1px solid var(--edge);
  border-radius: .5rem; padding: .7rem .9rem; }
.tiles b { display: block; font-size: 1.35rem; font-weight: 600; }
.tiles span { color: var(--dim); font-size: .85rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr));
  gap: 1rem; margin: 1rem 0; align-items: start; }
.card { margin: 0; min-width: 0; } .wide { grid-column: 1 / -1; }
svg { display: block; width: 100%; height: auto; margin: .4rem 0; max-width: 54rem; }
svg text { fill: var(--ink); font-size: 12px; } svg text.dim { fill: var(--dim); }
.grid { stroke: var(--edge); } .whisker { stroke: var(--dim); stroke-width: 2; }
.line { fill: none; stroke-width: 1.8; } .dot { fill-opacity: .65; }
.area { fill-opacity: .18; stroke-width: 1.6; }
.s0 { fill: var(--c0); background: var(--c0); stroke: var(--c0); }
.s1 { fill: var(--c1); background: var(--c1); stroke: var(--c1); }
.s2 { fill: var(--c2); background: var(--c2); stroke: var(--c2); }
.s3 { fill: var(--c3); background: var(--c3); stroke: var(--c3); }
.s4 { fill: var(--c4); background: var(--c4); stroke: var(--c4); }
.s5 { fill: var(--c5); background: var(--c5); stroke: var(--c5); }
.s6 { fill: var(--c6); background: var(--c6); stroke: var(--c6); }
.s7 { fill: var(--c7); background: var(--c7); stroke: var(--c7); }
svg .line { fill: none; } rect, .dot { stroke: none; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0;
  font-size: .85rem; color: var(--dim); }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }
section:first-child h2 { border: 0; margin-top: 0; padding-top: 0; }
@media (max-width: 40rem) { svg text { font-size: 15px; } }
details { margin-top: .5rem; } summary { cursor: pointer; color: var(--dim); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: .4rem 0; min-width: 50%; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--edge);
  vertical-align: top; overflow-wrap: break-word; }
th { font-weight: 600; color: var(--dim); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.sample + .sample { border-top: 1px solid var(--edge); padding-top: .5rem; }
.row { white-space: pre-wrap; unicode-bidi: plaintext; margin: .2rem 0 .6rem; max-height: 22rem;
  overflow-y: auto; }
.row b { display: block; color: var(--dim); font-weight: 600; font-size: .8rem; }
@media print { details { display: block; } .card { break-inside: avoid; } }
"""


class Chapter(NamedTuple):
    """A chapter of the report, about a dataset, a run, a model or an evaluation."""

    title: str
    about: str
    nodes: Sequence[Markup]


def page(title: str, chapters: Sequence[Chapter], version: str) -> bytes:
    """Return the complete page as HTML in UTF-8.

    The content security policy of the page blocks scripts, and all style sheets except the one
    of the page, which the policy identifies by its digest.
    """
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    links = [
        element("li", element("a", chapter.title, href=f"#c{number}"))
        for number, chapter in enumerate(chapters)
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content="instructgen"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        # Without this link, a browser requests an icon from the server.
        element("link", rel="icon", href="data:,"),
        # The only text that is not escaped: a constant, in which entities would not be decoded.
        element("style", Markup(_STYLE)),
    )
    body = element(
        "body",
        element(
            "header",
            element("h1", title),
            *([element("nav", element("ul", *links))] if len(chapters) > 1 else []),
        ),
        element("main", *(_chapter(number, c) for number, c in enumerate(chapters))),
        element("footer", element("p", f"Made with instructgen {version}.", class_="dim")),
    )
    html = element("html", head, body, lang="en")
    return f"<!doctype html>\n{html.text}\n".encode("utf-8", "replace")


def _chapter(number: int, chapter: Chapter) -> Markup:
    about = [element("p", chapter.about, class_="dim")] if chapter.about else []
    return element("section", element("h2", chapter.title), *about, *chapter.nodes, id=f"c{number}")


def tiles(facts: Iterable[tuple[str, str]]) -> Markup:
    """Return a row of key numbers for the top of a chapter, from pairs (label, value)."""
    items = [element("li", element("b", value), element("span", label)) for label, value in facts]
    return element("ul", *items, class_="tiles")


def figures(*nodes: Markup | None) -> Markup:
    """Return the figures that are not None, side by side if the window is wide enough."""
    return element("div", *(n for n in nodes if n is not None), class_="figures")


def figure(
    title: str,
    chart: Markup,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    note: str = "",
    *,
    wide: bool = False,
) -> Markup:
    """Return a chart with a title, an optional note, and a table of its numbers below it."""
    numbers = element("details", element("summary", "Numbers"), table(head, rows))
    return element(
        "figure",
        element("h3", title),
        chart,
        *([element("figcaption", note)] if note else []),
        numbers,
        class_="card wide" if wide else "card",
    )


def card(title: str, *nodes: Markup, note: str = "", wide: bool = True) -> Markup:
    """Return a box with a title, an optional note, and HTML elements such as a table."""
    return element(
        "div",
        element("h3", title),
        *([element("p", note, class_="dim")] if note else []),
        *nodes,
        class_="card wide" if wide else "card",
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Return a table; columns that contain only numbers are right-aligned."""
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(head))]
    kinds = ["number" if n else None for n in numeric]
    top = element("tr", *(element("th", h, class_=k) for h, k in zip(head, kinds, strict=True)))
    body = [
        element("tr", *(element("td", c, class_=k) for c, k in zip(row, kinds, strict=True)))
        for row in rows
    ]
    content = element("table", element("thead", top), element("tbody", *body))
    return element("div", content, class_="scroll")


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "0123456789−-+." or cell == "none"


def listed(sentences: Iterable[str]) -> Markup:
    """Return a bulleted list of sentences."""
    return element("ul", *(element("li", s) for s in sentences))


def texts(fields: Iterable[tuple[str, str]]) -> Markup:
    """Return the fields of a dataset row as HTML; the browser detects their text directions."""
    return join_markup(
        element("div", element("b", name), text, class_="row", dir="auto")
        for name, text in fields
        if text
    )
