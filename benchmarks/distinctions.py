"""Measures how many planted duplicates `deduplicate` finds, with and without the exact check.

Copies of Dolly's rows are changed in form or in meaning and added to the rows. Copies changed in
form should be rejected, and copies changed in meaning kept. Writes distinctions.json.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy

from instructgen import __version__
from instructgen.formats import read
from instructgen.schema.sample import Sample
from instructgen.similarity import dedup

HERE = Path(__file__).parent
DATA = Path(os.environ.get("INSTRUCTGEN_DATA", HERE.parent.parent / "shared" / "data"))
PLANTED = 1_000
rng = random.Random(0)


def every_tenth_word(text: str, words: list[str]) -> str:
    parts = text.split(" ")
    for place in range(rng.randrange(10), len(parts), 10):
        # A changed number or negation is another meaning, which has its own kinds below.
        if parts[place].isalpha() and len(parts[place]) > 3:
            parts[place] = rng.choice(words)
    return " ".join(parts)


def number(text: str) -> str:
    return re.sub(r"\d+", lambda m: str(int(m[0]) + 1), text, count=1)


def negation(text: str) -> str:
    return re.sub(r"\b(is|are|was|can|do|does)\b", r"\1 not", text, count=1)


def main() -> None:
    rows = [s for s in read(DATA / "dolly" / "databricks-dolly-15k.rejoined.jsonl")
            if isinstance(s, Sample) and len(s.output.split()) >= 20]  # fmt: skip
    words = [w for s in rows[:2_000] for w in s.instruction.split()
             if w.isalpha() and len(w) > 3 and w != "without"]  # fmt: skip
    form: dict[str, Callable[[str], str]] = {
        "verbatim": lambda t: t,
        "case and white space": lambda t: "  ".join(t.swapcase().split()),
        "punctuation": lambda t: re.sub(r"(?<=\w)[.,;](?=\s|$)", "", t),
        "list marks": lambda t: re.sub(r"(?m)^(?=\w)", "- ", t),
        "full-width letters": lambda t: t.translate({c: c + 0xFEE0 for c in range(97, 123)}),
        "a tenth of the words replaced": lambda t: every_tenth_word(t, words),
    }
    meaning = {"a number changed": number, "a negation added": negation}
    results = []
    for name, change in {**form, **meaning}.items():
        changed = [(s, replace(s, instruction=change(s.instruction), output=change(s.output)))
                   for s in rows]  # fmt: skip
        usable = [(s, c) for s, c in changed if name == "verbatim" or c.output != s.output]
        chosen = rng.sample(usable, min(PLANTED, len(usable)))
        samples = [s for s, _ in chosen] + [c for _, c in chosen]
        found = {}
        for check in (False, True):
            original = dedup.may_be_duplicates
            if not check:
                dedup.may_be_duplicates = lambda a, b, ordered: True
            result = dedup.deduplicate(samples, ["exact", "minhash"], priority=())
            dedup.may_be_duplicates = original
            found["with" if check else "without"] = sum(
                r.row >= len(chosen) and r.partner_row == r.row - len(chosen)
                for r in result.rejected
            )
        kind = "form" if name in form else "meaning"
        results.append({"change": name, "of": kind, "planted": len(chosen), "rejected": found})
        print(results[-1], flush=True)
    versions = {
        "instructgen": __version__,
        "numpy": numpy.__version__,
        "python": sys.version.split()[0],
    }
    (HERE / "distinctions.json").write_text(
        json.dumps(
            {"rows_from": "databricks-dolly-15k", "results": results, "versions": versions},
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
