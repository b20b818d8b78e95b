"""Root verbs and their objects, against labels given by hand."""

from __future__ import annotations

import pytest

from instructgen.generation.seed_pool import load_seeds
from instructgen.reports.verbs import pairs_of
from tests.conftest import ROOT


def test_against_labels() -> None:
    """Of 182 seed tasks; those that give no order are not in the file."""
    lines = (ROOT / "tests" / "root_verbs.tsv").read_text().splitlines()
    labels = {start: (verb, noun) for start, verb, noun in (x.split("\t") for x in lines)}
    seeds, _ = load_seeds([ROOT / "seeds" / "general.jsonl"])
    wrong = []
    for seed in seeds:
        wanted = labels.get(" ".join(seed.instruction.split())[:40])
        found = pairs_of([seed.instruction])
        if found != ([wanted] if wanted else []):
            wrong.append((seed.instruction[:60], found, wanted))
    # The rules were written on these; the accuracy that is stated is of others.
    assert len(labels) > 120
    assert len(wrong) <= 6, wrong


@pytest.mark.parametrize(
    ("instruction", "pair"),
    [
        ("Please write a short, funny poem about rain.", ("write", "poem")),
        ("In one sentence, describe the author's main argument.", ("describe", "argument")),
        ("Draft an email to Bob.", ("draft", "email")),
        ("My cat is ill. Suggest three remedies.", ("suggest", "remedy")),
        ("Explain why the sky is blue.", ("explain", "")),
        ("Pick up the blue boxes.", ("pick", "box")),
        ("Why is the sky blue?", None),
        ("The sky is blue.", None),
        ("Have you seen it.", None),
        ("", None),
        ("?!", None),
        ("写一首诗。", None),
    ],
)
def test_shapes_of_orders(instruction: str, pair: tuple[str, str] | None) -> None:
    assert pairs_of([instruction]) == ([pair] if pair else [])
