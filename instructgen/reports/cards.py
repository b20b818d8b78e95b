"""The dataset card: README.md with the Hub's front matter, made from what made the data.

No dates and no host names, so that the same data always has the same card.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructgen.licensing.licenses import obligations, terms
from instructgen.licensing.model_terms import generator_terms
from instructgen.schema.statistics import Contents

if TYPE_CHECKING:
    from instructgen.generation.loop import Loop, Stop
    from instructgen.schema.sample import Sample
    from instructgen.store import Run

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def generated_card(
    run: Run, loop: Loop, contents: Contents, funnel: dict[str, Any], stopped: Stop
) -> str:
    """The card of a generated dataset, as Markdown."""
    config = run.info["config"]
    title = run.folder.name
    return "\n".join(
        [
            *_front_matter(title, contents),
            f"# {title}",
            "",
            f"{contents.rows:,} rows of instruction data, written by the model "
            f"`{config['engine']['model'] or config['engine']['name']}` with the method "
            f"`{config['method']['name']}` from {len(loop.pool.seeds):,} seed tasks. "
            "Made with instructgen. No person has read the rows.",
            "",
            "## Licences",
            "",
            "A row has the licences of the demonstrations it was written from. "
            "The terms of the model that wrote it apply beside them.",
            "",
            *_licences(contents),
            *_languages(contents),
            "## Seeds",
            "",
            *_sources(_contents_of(loop.pool.seeds), "tasks"),
            f"SHA-256 of the seeds: `{run.info['seeds']['sha256']}`",
            "",
            "## Funnel",
            "",
            f"{funnel['requests']:,} requests gave {funnel['candidates']:,} candidates: "
            f"{funnel['kept_instructions']:,} instructions entered the pool and "
            f"{funnel['kept_rows']:,} rows the dataset. The run ended for the reason "
            f"`{stopped.reason}`: {stopped.detail}.",
            "",
            *rejected_table(funnel["rejected"]),
            "",
            f"Of the instructions in the pool {funnel['not_expanded']:,} never had rows asked for. "
            "All these are in `rejected/`, each with its reason, and with score and nearest "
            "row where the filter compares.",
            "",
            "## How to make it again",
            "",
            f"Run `{run.id}`, seed {config['generate']['seed']}. "
            "`instructgen rebuild` makes the same bytes from `journal.jsonl`.",
            "",
            "```json",
            json.dumps({**config, "form": run.info["form"]}, indent=1, ensure_ascii=False),
            "```",
            "",
        ]
    )


def derived_card(
    title: str,
    contents: Contents,
    inputs: Sequence[str],
    what: str,
    sections: Iterable[str],
    made: Mapping[str, Any],
) -> str:
    """The card of a dataset that a command made out of others.

    Args:
        title: its name.
        contents: what it holds.
        inputs: what it was made from.
        what: the end of the sentence that begins with the rows and the inputs.
        sections: Markdown about what was done, line by line.
        made: the command, inputs and options, to make it again.
    """
    synthetic = sum(n for p, n in contents.counts.items() if not p.human)
    models = sorted({f"`{p.model}`" for p in contents.counts if p.model and not p.human})
    by = " and ".join(models) or "models"
    return "\n".join(
        [
            *_front_matter(title, contents),
            f"# {title}",
            "",
            f"{contents.rows:,} rows of {' and '.join(inputs)}{what}. Made with instructgen.",
            "",
            *([f"{synthetic:,} of them were written by {by}.", ""] if synthetic else []),
            "## Licences",
            "",
            *_licences(contents),
            *_languages(contents),
            "## Sources",
            "",
            *_sources(contents, "rows"),
            *sections,
            "",
            "## How to make it again",
            "",
            "```json",
            json.dumps(made, indent=1, ensure_ascii=False),
            "```",
            "",
        ]
    )


def model_card(title: str, data: str, contents: Contents, facts: Mapping[str, Any]) -> str:
    """The card of a trained model: what it was trained on, under which terms, and what came of it.

    Args:
        title: its name.
        data: the dataset's name.
        contents: the rows it was trained on.
        facts: what run.json says.
    """
    rows, options = facts["rows"], facts["options"]
    tokens = facts["supervised_tokens"]
    left_out = [(reason, f"{n:,}") for reason, n in rows["left_out"].items()]
    trained = f", {tokens:,} supervised tokens" if tokens is not None else ""
    return "\n".join(
        [
            *_model_front_matter(title, facts["root"], facts["method"], contents),
            f"# {title}",
            "",
            f"`{facts['base']}`, trained by `{facts['method']}` on {rows['train']:,} rows of "
            f"{data}: {facts['steps']:,} steps{trained}. Made with instructgen.",
            "",
            "## Licences of the data",
            "",
            "The terms of the model it began as apply beside these.",
            "",
            *_licences(contents),
            *_languages(contents),
            "## Sources",
            "",
            *_sources(contents, "rows"),
            *(
                ["## Rows left out, or cut", "", *table(("reason", "rows"), left_out), ""]
                * bool(left_out)
            ),
            "## Evaluation",
            "",
            *_evaluated(facts),
            "",
            "## How to make it again",
            "",
            f"Rows `{rows['sha256'][:16]}`; on a CPU the same options give the same weights.",
            "",
            "```json",
            json.dumps({"options": options, "versions": facts["versions"]}, indent=1),
            "```",
            "",
        ]
    )


def _model_front_matter(title: str, root: str, method: str, contents: Contents) -> Iterable[str]:
    names = list(contents.licenses)
    yield "---"
    yield "license: other"
    yield f"license_name: {json.dumps(' and '.join(names) or 'none')}"
    if root.count("/") == 1 and not Path(root).expanduser().exists():
        yield f"base_model: {json.dumps(root)}"
    yield "library_name: transformers"
    yield f"pipeline_tag: text-{'classification' if method == 'reward' else 'generation'}"
    yield f"model_name: {json.dumps(title, ensure_ascii=False)}"
    yield from ("tags:", "- instructgen", "---", "")


def _evaluated(facts: Mapping[str, Any]) -> list[str]:
    found = facts["evaluation"]
    if not found:
        return ["None: no row was held out."]
    every = (found, *(v for v in found.values() if isinstance(v, Mapping) and "measure" in v))
    lines = [
        (one["measure"], *(estimated(one.get(k)) for k in ("before", "after", "difference")))
        for one in every
    ]
    held_out = facts["rows"]
    return [
        f"On {held_out['held_out']:,} rows held out ({held_out['held_out_from']}), with 95% "
        "bootstrap intervals over rows.",
        "",
        *table(("measure", "before", "after", "difference"), lines),
    ]


def estimated(value: Mapping[str, Any] | None) -> str:
    """A number with its interval, as a cell; empty where there is none."""
    if value is None:
        return ""
    return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def _contents_of(samples: Iterable[Sample]) -> Contents:
    found = Contents()
    found.add(samples)
    return found


def _licences(contents: Contents) -> list[str]:
    head = ("licence", "rows", "attribution", "share alike", "commercial use")
    licences = contents.licenses
    lines = [(name, f"{n:,}", *_asked(name)) for name, n in licences.items()]
    asked = obligations(licences, contents.generators, contents.attributions)
    return [
        *table(head, lines),
        "",
        *_generators(contents),
        "What this obliges and forbids (a summary; the texts rule):",
        "",
        *(f"- {_one_line(sentence)}" for sentence in asked),
        "",
    ]


def _generators(contents: Contents) -> list[str]:
    if not contents.generators:
        return []
    lines = []
    for model, rows in contents.generators.items():
        known = generator_terms(model)
        said = ("see its text", "not known here") if known is None else (known.name, known.asks)
        lines.append((model, f"{rows:,}", *said))
    return [*table(("written by, or from text by", "rows", "terms", "ask"), lines), ""]


def _languages(contents: Contents) -> list[str]:
    lines = [(key[0], f"{n:,}") for key, n in contents.by("language").items()]
    return ["## Languages", "", *table(("language", "rows"), lines), ""]


def _sources(contents: Contents, counted: str) -> list[str]:
    lines = [(*key, f"{n:,}") for key, n in contents.by("source", "license", "language").items()]
    return [*table(("source", "licence", "language", counted), lines), ""]


def rejected_table(counts: Sequence[Mapping[str, Any]]) -> list[str]:
    """A funnel's rejections as a Markdown table."""
    return table(
        ("stage", "filter", "reason", "rejected"),
        [(r["stage"], r["filter"], r["reason"], f"{r['count']:,}") for r in counts],
    )


def _front_matter(title: str, contents: Contents) -> Iterable[str]:
    names = list(contents.licenses)
    size = next((name for most, name in _SIZES if contents.rows < most), "n>1M")
    yield "---"
    if len(names) == 1 and " " not in names[0]:
        yield f"license: {names[0].lower()}"
    else:
        yield "license: other"
        yield f"license_name: {json.dumps(' and '.join(names) or 'none')}"
    known = [key[0] for key in contents.by("language") if key[0] != "und"]
    if known:
        yield "language:"
        # Quoted: the code for Norwegian is a YAML boolean.
        yield from (f"- {json.dumps(code)}" for code in known)
    yield f"pretty_name: {json.dumps(title, ensure_ascii=False)}"
    yield from ("task_categories:", "- text-generation", "size_categories:", f"- {size}")
    yield "tags:"
    tags = ["synthetic"] if any(not p.human for p in contents.counts) else []
    yield from (f"- {tag}" for tag in (*tags, "instruction-tuning", "instructgen"))
    yield "configs:"
    configs = [("default", "data", contents.splits)]
    if contents.rejected:
        # `datasets` opens no file without a row.
        configs.append(("rejected", "rejected", ("part",)))
    for name, folder, files in configs:
        yield f"- config_name: {name}"
        yield "  data_files:"
        for file in files:
            yield f"  - split: {'train' if file == 'part' else file}"
            yield f"    path: {folder}/{file}-*.parquet"
    yield "---"
    yield ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _asked(licence: str) -> tuple[str, str, str]:
    known = terms(licence)
    if known is None:
        return ("see its text",) * 3
    yes_no = {True: "yes", False: "no"}
    return yes_no[known.attribution], yes_no[known.share_alike], yes_no[known.commercial_use]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]
