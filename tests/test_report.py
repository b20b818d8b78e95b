"""The HTML report: figures with their numbers, escaped text, no external resources, a browser."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from instructgen import curate, generate, import_data, report
from instructgen.errors import DamagedFileError, InputError
from instructgen.reports.charts import Series, bars, histogram, lines, points
from instructgen.reports.html import element, join_markup
from instructgen.schema.measures import Estimate, EvaluationRecord, Measure
from instructgen.schema.sample import Origin, Rejected, Rejection, Sample
from instructgen.store import (
    InputRef,
    Provenance,
    RejectionCount,
    TrainedRows,
    TrainingInputs,
    write_dataset,
)
from instructgen.store.records import TrainingInfo
from tests.conftest import ROOT
from tests.test_card import training_facts

SEEDS = ROOT / "seeds" / "general.jsonl"
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<style>body{display:none}</style>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</text></svg><script>alert(1)</script>",
    "</td></tr></table><h1>x</h1>",
    "</details></figure></main>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    '"><script>alert(1)</script>',
    "'><img src=x onerror=alert(1)>",
    "` onmouseover=alert(1)",
    "<a href=javascript:alert(1)>x</a>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "<iframe src=//evil.example></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<object data=x></object>",
    "<embed src=x>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<link rel=stylesheet href=//evil.example>",
    "<form action=//evil.example><input name=x></form>",
    "<video><source onerror=alert(1)></video>",
    "<details open ontoggle=alert(1)>",
    "<math><mi xlink:href=javascript:alert(1)>x</mi></math>",
    "<!--", "-->", "<!-- --><script>alert(1)</script>", "<![CDATA[", "]]>",
    "<?xml version='1.0'?>", "<!DOCTYPE html>", "&lt;script&gt;", "&#60;script&#62;", "&amp;&quot;",
    "<scr\x00ipt>alert(1)</scr\x00ipt>",
    "\u202egnp.exe", "\u2066\u2067abc\u2069", "\u200f\u200e\u061c", "a\u2028b\u2029c",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m", "\r\nSet-Cookie: a=b",
    "\ufeffbom", "\ud800", "\U000e0041\U000e0042", "{{7*7}}", "${HOME}", "{0.__class__}", "%s%n",
    "../../../etc/passwd", "a" * 5000, "|pipe|`tick`", "=cmd()", "\u0007bell\b",
]  # fmt: skip


class ParsedPage(html.parser.HTMLParser):
    """Tags, names of attributes, and the attribute values that can load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.names: set[tuple[str, str]] = set()
        self.active_values: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.names |= {(tag, name) for name, _ in attrs}
        self.active_values |= {
            v or "" for name, v in attrs if name in ("href", "src", "style", "action")
        }


def samples(text: str, count: int, source: str = "s", name: str = "plain") -> list[Sample]:
    return [
        Sample(
            f"{text} Describe number {i} and {name}.",
            f"{text} given {i}" if i % 3 else "",
            f"{text} answer number {i}.",
            category=text[:40] or None,
            source=source,
            license="CC-BY-4.0" if i % 2 else "MIT",
            language="en",
            attribution=(text,),
            generators=(text,),
            origin=Origin(method="model", model=text, record=text),
        )
        for i in range(count)
    ]


def dataset(folder: Path, text: str) -> Path:
    kept = samples(text, 24, source=text) + samples("plain", 24)
    rejected = [
        Rejected(s, Rejection("length", "too_short", text, 3.0), "curate", i)
        for i, s in enumerate(samples(f"{text} {text}", 8, source=text))
    ]
    borderline = [{"filter": "length", "side": "kept", "value": 4.0, "text": text}]
    rejections = [RejectionCount("curate", "length", "too_short", len(rejected))]
    facts = {"borderline": borderline, "read": 56}
    write_dataset(folder, kept, rejected, lambda _: "", rejections, facts)
    name = text.encode("utf-8", "replace").decode()
    provenance = Provenance("curate", (InputRef(name),), {})
    (folder / "provenance.json").write_bytes(provenance.to_json())
    return folder


def page_of(folder: Path, tmp_path: Path, name: str = "out.html", **options: object) -> str:
    result = report(folder, tmp_path / name, **options)  # type: ignore[arg-type]
    return result.to.read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "a"
    generate(SEEDS, 40, out, engine="echo")
    return out


@pytest.fixture(scope="module", autouse=True)
def _no_embeddings() -> object:
    """Replace the embedding map: it takes seconds per page and has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "instructgen.reports.variety.in_plane",
            lambda texts: [(float(i), i / 2) for i in range(len(texts))],
        )
        yield


def test_run_report_has_every_figure_with_its_numbers(run: Path, tmp_path: Path) -> None:
    text = page_of(run, tmp_path, price=(0.15, 0.6), seeds=[SEEDS])
    for title in (
        "Funnel by filter and source", "Acceptance over the run",
        "Similarity to the nearest seed", "Root verbs and their objects",
        "Words per instruction", "Words per output", "Licenses and obligations",
        "Embedding map", "Rows near the thresholds", "Random sample of rows",
        "Tokens, time and cost",
    ):  # fmt: skip
        assert f"<h3>{title}</h3>" in text
    figures = re.findall(r"<figure.*?</figure>", text)
    assert len(figures) >= 8
    assert all("<svg" in f and "<table>" in f for f in figures)
    manifest = orjson.loads((run / "manifest.json").read_bytes())
    by_filters = sum(r["count"] for r in manifest["rejections"] if r["filter"] != "loop")
    assert f"<b>{by_filters:,}</b><span>rejected</span>" in text
    rejected = {(r["filter"], r["reason"]): r["count"] for r in manifest["rejections"]}
    for (name, reason), count in rejected.items():
        assert re.search(rf"{name}: {reason}</td><td class=\"number\">{count:,}</td>", text)


def test_report_of_a_dataset_a_model_and_an_evaluation(run: Path, tmp_path: Path) -> None:
    clean = curate(run, tmp_path / "clean").out
    model, evaluation = tmp_path / "model", tmp_path / "evaluation"
    for folder in (model, evaluation):
        folder.mkdir()
    value = Estimate(0.8, 0.7, 0.9, rows=12)
    measure = Measure("bits_per_byte", value, value, value, better="lower", suite="likelihood")
    smollm2 = InputRef("smollm2")
    inputs = TrainingInputs(
        command="train sft",
        model=smollm2,
        data=InputRef("clean"),
        reward=(),
        held_out=None,
        options={"peft": "lora", "seed": 0},
    )
    result = replace(
        training_facts("smollm2", "sft", base="smollm2"),
        rows=TrainedRows(9, 9, "0" * 64, {"too_long": 2}, 12, "people"),
        supervised_tokens=500,
        evaluation=(measure,),
    )
    (model / "training.json").write_bytes(TrainingInfo(2, inputs, result).to_json())
    (model / "log.jsonl").write_bytes(b'{"step":1,"loss":3.5}\n{"step":2,"loss":2.5}\n')
    record = EvaluationRecord(
        model=InputRef("models/sft"),
        against=smollm2,
        data=("held",),
        format="chat",
        seed=0,
        measures=(measure,),
        notes=(),
        versions={},
    )
    (evaluation / "evaluation.json").write_bytes(record.to_json())
    reported = report([clean, model, evaluation], tmp_path / "all.html", reference=run)
    assert reported.chapters == ("clean", "model", "evaluation")
    text = reported.to.read_text()
    _, _, of_model, of_evaluation = text.split("<section")
    for expected in ("<h3>Loss</h3>", "0.8000 [0.7000, 0.9000]", "too_long", "500"):
        assert expected in of_model
    assert "0.8000 [0.7000, 0.9000]" in of_evaluation
    assert re.search(r"<figcaption>[^<]*\blower\b", of_evaluation)
    assert (
        '<th class="number">words</th><th class="number">rows</th><th class="number">reference a</th>'
        in text
    )


def test_report_of_preferences_shows_both_answers(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Task {i}.", "chosen": "A good long answer " * 9, "rejected": f"Bad {i}."}
        for i in range(12)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    folder = import_data(file, tmp_path / "pairs", shape="preferences", license="CC-BY-4.0").out
    text = page_of(folder, tmp_path)
    assert '<th class="number">chosen</th><th class="number">rejected</th>' in text
    assert "32 to 63</td>" in text and "Bad 3." in text


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_escaped(hostile: str, tmp_path: Path) -> None:
    writable = hostile.encode("utf-8", "replace").decode()
    clean = ParsedPage(page_of(dataset(tmp_path / "clean", "harmless"), tmp_path, "clean.html"))
    text = page_of(dataset(tmp_path / "d", writable), tmp_path)
    parsed = ParsedPage(text)
    # Other words change the number of bars and table rows, but not the kinds of elements.
    assert parsed.tags.keys() == clean.tags.keys()
    assert parsed.names == clean.names
    assert parsed.active_values == clean.active_values
    shown = re.sub(r"<[^>]*>", "", text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)


@pytest.mark.parametrize("name", ["<b>x", "a\"b'c", "`$(x)`", "\u202erev", "\x1b[31m", "a\nb"])
def test_hostile_file_names_are_escaped(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(dataset(tmp_path / "d", "plain"), folder)
    parsed = ParsedPage(page_of(folder, tmp_path))
    assert parsed.names == ParsedPage(page_of(tmp_path / "d", tmp_path, "b.html")).names


def test_page_has_no_scripts_and_no_external_resources(run: Path, tmp_path: Path) -> None:
    text = page_of(run, tmp_path)
    parsed = ParsedPage(text)
    assert not {"script", "iframe", "object", "embed", "form", "img", "base"} & parsed.tags.keys()
    assert {v for v in parsed.active_values if not v.startswith("#")} == {"data:,"}
    assert not any(name.startswith("on") or name == "style" for _, name in parsed.names)
    policy = re.search(r'content="(default-src[^"]*)"', text)
    assert policy is not None
    assert "unsafe" not in policy[1] and "http" not in policy[1] and "*" not in policy[1]


def test_the_same_dataset_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    assert page_of(run, tmp_path) == page_of(run, tmp_path, "again.html")


def test_invalid_inputs_and_outputs_are_rejected(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.html").write_text("mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "evaluation.json").write_text("{}")
    (tmp_path / "unreadable" / "evaluation.json").mkdir(parents=True)
    for name in ("missing", "empty"):
        with pytest.raises(InputError) as error:
            report(tmp_path / name, tmp_path / "r.html")
        assert error.value.path == tmp_path / name
    for name in ("broken", "unreadable"):
        with pytest.raises(DamagedFileError) as damaged:
            report(tmp_path / name, tmp_path / "r.html")
        assert damaged.value.path == tmp_path / name / "evaluation.json"
    assert not (tmp_path / "r.html").exists()
    for name in ("notes.html", "empty"):
        with pytest.raises(InputError) as error:
            report(run, tmp_path / name)
        assert error.value.path == tmp_path / name
    assert (tmp_path / "notes.html").read_text() == "mine"
    first = page_of(run, tmp_path, "r.html")
    assert page_of(run, tmp_path, "r.html") == first


def test_embedding_map_places_similar_texts_near_each_other() -> None:
    pytest.importorskip("sentence_transformers")
    from instructgen.reports.plane import in_plane

    texts = [f"Write a poem about a {w}" for w in "river lake sea pond stream brook".split()]
    texts += [f"Sum the numbers {i} and {i + 1}" for i in range(6)]
    places = in_plane([*texts, "你好"])
    assert places is not None and places[-1] is None
    a, b = [p for p in places[:6] if p], [p for p in places[6:12] if p]

    def distance(p: tuple[float, float], q: tuple[float, float]) -> float:
        return ((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2) ** 0.5

    assert max(min(distance(p, q) for q in a if q != p) for p in a) < min(
        distance(p, q) for p in a for q in b
    )
    assert in_plane(["One text only."]) is None
    # t-SNE computes NaN for equal points, so equal texts count once.
    assert in_plane(["Summarize the following text."] * 13) is None


def test_charts_accept_empty_and_non_finite_values() -> None:
    nan, inf = float("nan"), float("inf")
    for chart in (
        bars(["a"], [Series("", [0])]),
        bars([], []),
        histogram([0, 1], [Series("x", [0])], "n"),
        lines([1], [Series("x", [nan])], "n"),
        lines([1, 2, 3], [Series("x", [nan, inf, 2.0]), Series("y", [1, 1, 1])], "n", share=True),
        points({}),
        points({"a": [(0.0, 0.0, "t")]}),
    ):
        assert "nan" not in chart.text.replace("none", "") and "inf" not in chart.text


def test_markup_escapes_children_and_attributes() -> None:
    node = element("p", "<b>&", element("br"), title='"<x>', class_="a", width=1.5, gone=None)
    assert node.text == ('<p title="&quot;&lt;x&gt;" class="a" width="1.5">&lt;b&gt;&amp;<br></p>')
    assert join_markup(["a", element("i", "b")]).text == "a<i>b</i>"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_page_displays_in_a_browser(width: int, run: Path, tmp_path: Path) -> None:
    """The console is empty, the style is applied, and the page fits the window's width."""
    hostile = dataset(tmp_path / "d", "<script>console.log('ran')</script>")
    report([run, hostile], tmp_path / "out.html", seeds=[SEEDS])
    argv = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--hide-scrollbars", f"--window-size={width},900",
    ]  # fmt: skip
    # The page itself must not run scripts, so a frame around it measures it.
    (tmp_path / "frame.html").write_text(
        "<body style='margin:0'><iframe id=f src=out.html style='border:0;width:100%;height:900px'>"
        "</iframe><script>f.onload = () => { const d = f.contentDocument; document.title = "
        "JSON.stringify([d.documentElement.scrollWidth, f.clientWidth, "
        "getComputedStyle(d.body).margin, d.querySelectorAll('svg').length, d.scripts.length]) }"
        "</script></body>"
    )
    url = f"file://{tmp_path}/frame.html"
    done = subprocess.run(
        [*argv, "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom", url],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stdout[:500]
    page, window, margin, charts, scripts = orjson.loads(title[1])
    assert page <= window and margin == "0px" and charts > 10 and scripts == 0
    shot = tmp_path / "shot.png"
    subprocess.run(
        [*argv, f"--screenshot={shot}", f"file://{tmp_path}/out.html"], check=True, timeout=120,
        capture_output=True,
    )  # fmt: skip
    assert shot.stat().st_size > 20_000
