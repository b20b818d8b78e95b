"""Dataset and model cards: README.md files with front matter for the Hugging Face Hub.

A card contains no dates and no host names, so the same data always gives the same card.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructgen.licensing.licenses import obligations, terms
from instructgen.licensing.model_terms import generator_terms
from instructgen.printable import printable
from instructgen.schema.statistics import RowCounts

if TYPE_CHECKING:
    from instructgen.commands.generate import RunFacts
    from instructgen.generation.loop import Loop
    from instructgen.schema.measures import Estimate
    from instructgen.schema.sample import Sample
    from instructgen.store import Provenance, RejectionCount, Run, TrainingFacts

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def generated_card(
    run: Run,
    loop: Loop,
    contents: RowCounts,
    facts: RunFacts,
    rejections: Sequence[RejectionCount],
) -> str:
    """Return the card of a dataset that `generate` wrote, as Markdown."""
    config: Any = run.info.config
    title = one_line(printable(run.folder.name))
    return "\n".join(
        [
            *_front_matter(title, contents),
            f"# {title}",
            "",
            f"{contents.rows:,} rows of instruction data, written by the model "
            f"{code(config['engine']['model'] or config['engine']['name'])} with the method "
            f"{code(config['method']['name'])} {_from_seeds(loop)}. "
            "Made with instructgen. The rows were not reviewed by people.",
            "",
            "## Licenses",
            "",
            "A row has the licenses of the seeds it was generated from, or the license set for a "
            "method without seeds. The terms of the model that wrote it also apply.",
            "",
            *_licenses(contents),
            *_languages(contents),
            *_seeds(run, loop),
            "## Funnel",
            "",
            f"{facts.requests:,} requests gave {facts.candidates:,} candidates: "
            f"{facts.kept_instructions:,} instructions were accepted into the pool and "
            f"{facts.kept_rows:,} rows into the dataset. The run stopped for the reason "
            f"`{facts.stopped}`: {one_line(facts.stopped_detail)}.",
            "",
            *rejected_table(rejections),
            "",
            f"For {facts.not_expanded:,} instructions in the pool, no rows were requested. "
            "These instructions and the rejected candidates are in `rejected/`, each with the "
            "reason. Filters that compare rows also record the score and the nearest row.",
            "",
            "## How to reproduce",
            "",
            f"Run `{run.id}`, random seed {config['generate']['seed']}. "
            "`instructgen rebuild` recreates the dataset byte for byte from `journal.jsonl`.",
            "",
            "```json",
            json.dumps({**config, "form": run.info.form}, indent=1, ensure_ascii=False),
            "```",
            "",
        ]
    )


def _from_seeds(loop: Loop) -> str:
    start, count = loop.config.method.starts_from, len(loop.pool.seeds)
    names = {"tasks": "seed tasks", "documents": "texts", "tool_tasks": "tasks"}
    return f"from {count:,} {names.get(start, start)}" if count else "without seeds"


def _seeds(run: Run, loop: Loop) -> list[str]:
    if not loop.pool.seeds:
        return []
    return [
        "## Seeds",
        "",
        *_sources(_contents_of(loop.pool.seeds), "tasks"),
        f"SHA-256 of the seeds: `{run.info.seeds.sha256}`",
        "",
    ]


def derived_card(
    title: str,
    contents: RowCounts,
    what: str,
    sections: Iterable[str],
    provenance: Provenance,
) -> str:
    """Return the card of a dataset that a command made from other datasets, as Markdown.

    Args:
        title: the name of the dataset.
        contents: statistics of the rows of the dataset.
        what: text that continues the sentence "N rows from INPUTS".
        sections: Markdown lines about the processing.
        provenance: the command, inputs and options that reproduce the dataset.
    """
    synthetic = sum(n for p, n in contents.counts.items() if not p.human)
    models = sorted({code(p.model) for p in contents.counts if p.model and not p.human})
    by = " and ".join(models) or "models"
    inputs = " and ".join(ref.name for ref in provenance.inputs)
    return "\n".join(
        [
            *_front_matter(title, contents),
            f"# {one_line(title)}",
            "",
            one_line(f"{contents.rows:,} rows from {inputs}{what}. Made with instructgen."),
            "",
            *([f"{synthetic:,} of them were written by {by}.", ""] if synthetic else []),
            *_splits(contents),
            "## Licenses",
            "",
            *_licenses(contents),
            *_languages(contents),
            "## Sources",
            "",
            *_sources(contents, "rows"),
            *map(one_line, sections),
            "",
            "## How to reproduce",
            "",
            "```json",
            json.dumps(provenance.to_dict(), indent=1, ensure_ascii=False),
            "```",
            "",
        ]
    )


def _splits(contents: RowCounts) -> list[str]:
    sizes = ", ".join(f"{name} {rows:,}" for name, rows in contents.splits.items())
    return [f"Rows by split: {sizes}.", ""] if len(contents.splits) > 1 else []


def model_card(
    title: str,
    data: str,
    contents: RowCounts,
    facts: TrainingFacts,
    options: Mapping[str, Any],
) -> str:
    """Return the card of a trained model: its data, license terms and evaluation, as Markdown.

    Args:
        title: the name of the model.
        data: the name of the training dataset.
        contents: statistics of the training rows.
        facts: the training record that is stored with the model.
    """
    rows, tokens = facts.rows, facts.supervised_tokens
    rejected = [(reason, f"{n:,}") for reason, n in rows.rejected.items()]
    trained = f", {tokens:,} supervised tokens" if tokens is not None else ""
    return "\n".join(
        [
            *_model_front_matter(title, facts.root, facts.trainer, contents),
            f"# {one_line(title)}",
            "",
            f"{code(facts.base)}, trained with {code(facts.trainer)} on {rows.seen:,} of "
            f"{rows.train:,} rows of {one_line(data)}: {facts.steps:,} steps{trained}. Made with "
            "instructgen.",
            "",
            "## Licenses of the training data",
            "",
            "The terms of the original base model also apply.",
            "",
            *_licenses(contents),
            *_languages(contents),
            "## Sources",
            "",
            *_sources(contents, "rows"),
            *(
                ["## Rejected or truncated rows", "", *table(("reason", "rows"), rejected), ""]
                * bool(rejected)
            ),
            "## Evaluation",
            "",
            *_evaluated(facts),
            "",
            "## How to reproduce",
            "",
            f"The SHA-256 of the training rows starts with `{rows.sha256[:16]}`. On a CPU, the "
            "same options give the same weights.",
            "",
            "```json",
            json.dumps({"options": options, "versions": facts.versions}, indent=1),
            "```",
            "",
        ]
    )


def _model_front_matter(title: str, root: str, method: str, contents: RowCounts) -> Iterable[str]:
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


def _evaluated(facts: TrainingFacts) -> list[str]:
    if not facts.evaluation:
        return ["Not evaluated: no rows were held out."]
    lines = [
        (m.measure, *(estimated(value) for value in (m.before, m.after, m.difference)))
        for m in facts.evaluation
    ]
    return [
        f"On {facts.rows.held_out:,} held-out rows (from {one_line(facts.rows.held_out_from)}), "
        "with 95% bootstrap intervals over rows.",
        "",
        *table(("measure", "before", "after", "difference"), lines),
    ]


def estimated(value: Estimate | None) -> str:
    """Return a value and its confidence interval as text for a table cell; "" for None."""
    return "" if value is None else f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"


def _contents_of(samples: Iterable[Sample]) -> RowCounts:
    contents = RowCounts()
    contents.add(samples)
    return contents


def _licenses(contents: RowCounts) -> list[str]:
    head = ("license", "rows", "attribution", "share alike", "commercial use")
    licenses = contents.licenses
    lines = [(name, f"{n:,}", *_license_terms(name)) for name, n in licenses.items()]
    sentences = obligations(licenses, contents.generators, contents.attributions)
    return [
        *table(head, lines),
        "",
        *_generators(contents),
        "License obligations (a summary; the license texts are authoritative):",
        "",
        *(f"- {one_line(sentence)}" for sentence in sentences),
        "",
    ]


def _generators(contents: RowCounts) -> list[str]:
    if not contents.generators:
        return []
    lines = []
    for model, rows in contents.generators.items():
        known = generator_terms(model)
        cells = ("see the model's terms", "unknown") if known is None else (known.name, known.asks)
        lines.append((model, f"{rows:,}", *cells))
    return [*table(("written by, or based on text by", "rows", "terms", "conditions"), lines), ""]


def _languages(contents: RowCounts) -> list[str]:
    lines = [(key[0], f"{n:,}") for key, n in contents.by("language").items()]
    return ["## Languages", "", *table(("language", "rows"), lines), ""]


def _sources(contents: RowCounts, counted: str) -> list[str]:
    lines = [(*key, f"{n:,}") for key, n in contents.by("source", "license", "language").items()]
    return [*table(("source", "license", "language", counted), lines), ""]


def rejected_table(counts: Sequence[RejectionCount]) -> list[str]:
    """Return the lines of a Markdown table of rejected rows by stage, filter and reason."""
    return table(
        ("stage", "filter", "reason", "rejected"),
        [(r.stage, r.filter, r.reason, f"{r.count:,}") for r in counts],
    )


def _front_matter(title: str, contents: RowCounts) -> Iterable[str]:
    names = list(contents.licenses)
    size = next((name for most, name in _SIZES if contents.rows < most), "n>1M")
    yield "---"
    single = len(names) == 1 and names[0].split() == names
    if single and not names[0].startswith("LicenseRef-"):
        yield f"license: {names[0].lower()}"
    else:
        yield "license: other"
        yield f"license_name: {json.dumps(' and '.join(names) or 'none')}"
    known = [key[0] for key in contents.by("language") if key[0] != "und"]
    if known:
        yield "language:"
        # Quoted, because YAML reads the code for Norwegian, "no", as a boolean.
        yield from (f"- {json.dumps(code)}" for code in known)
    yield f"pretty_name: {json.dumps(title, ensure_ascii=False)}"
    yield from ("task_categories:", "- text-generation", "size_categories:", f"- {size}")
    yield "tags:"
    tags = ["synthetic"] if any(not p.human for p in contents.counts) else []
    yield from (f"- {tag}" for tag in (*tags, "instruction-tuning", "instructgen"))
    yield "configs:"
    configs = [("default", "data", tuple(contents.splits))]
    if contents.rejected:
        # The package `datasets` cannot open a Parquet file without rows.
        configs.append(("rejected", "rejected", ("part",)))
    for name, folder, files in configs:
        yield f"- config_name: {name}"
        yield "  data_files:"
        for file in files:
            yield f"  - split: {'train' if file == 'part' else file}"
            yield f"    path: {folder}/{file}-*.parquet"
    yield "---"
    yield ""


def one_line(text: str) -> str:
    """Return a text on one line, so that it cannot begin a heading or a table of its own."""
    return " ".join(text.split())


def code(text: str) -> str:
    """Return a name in backticks, which it cannot end."""
    name = one_line(text).replace("`", "'")
    return f"`{name}`"


def _license_terms(license: str) -> tuple[str, str, str]:
    known = terms(license)
    if known is None:
        return ("see the license text",) * 3
    yes_no = {True: "yes", False: "no"}
    return yes_no[known.attribution], yes_no[known.share_alike], yes_no[known.commercial_use]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    names, *cells = ([_cell(c) for c in row] for row in (head, *rows))
    lines = [names, ["---"] * len(head), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")
