"""Small datasets that a model of a million parameters can learn from."""

from __future__ import annotations

import random
from pathlib import Path

from instructgen.schema.sample import Label, Origin, Sample
from instructgen.store import write_dataset

COLORS = ("red", "blue", "green", "white", "black", "brown")
THINGS = ("boat", "house", "stone", "apple", "coat", "table", "river", "bird", "lamp", "door")


def sentences(count: int, *, labels: tuple[Label, ...] = ()) -> list[Sample]:
    """Return instructions whose answers repeat a color and a thing in a fixed sentence."""
    rng = random.Random(7)
    return [
        Sample(
            instruction=f"Write of a {color} {thing}, number {i}.",
            output=f"The {thing} is {color}, and everyone likes the {color} {thing}.",
            language="en",
            source="sentences",
            license="CC0-1.0",
            origin=Origin(record=str(i)),
            labels=labels,
        )
        for i in range(count)
        for color, thing in [(rng.choice(COLORS), rng.choice(THINGS))]
    ]


def pairs(count: int) -> list[Sample]:
    """Return preferences: a complete sentence is chosen, words in capitals are rejected."""
    rng = random.Random(8)
    rows = []
    for i in range(count):
        color, thing = rng.choice(COLORS), rng.choice(THINGS)
        rows.append(
            Sample(
                instruction=f"Write of a {color} {thing}, number {i}.",
                output=f"The {thing} is {color}.",
                rejected_output=f"{thing.upper()} {color.upper()} {rng.choice(THINGS).upper()}",
                language="en",
                source="pairs",
                license="CC0-1.0",
                origin=Origin(record=str(i)),
            )
        )
    return rows


def dataset(folder: Path, rows: list[Sample]) -> Path:
    """Write the rows as a dataset folder, and return its path."""
    write_dataset(folder, rows, [], lambda counts: "---\n---\n", shape=rows[0].shape)
    return folder
