"""Small datasets that a model of a million parameters can learn something from."""

from __future__ import annotations

import random
from pathlib import Path

from instructgen.schema.sample import Label, Origin, Sample
from instructgen.store import write_dataset

COLOURS = ("red", "blue", "green", "white", "black", "brown")
THINGS = ("boat", "house", "stone", "apple", "coat", "table", "river", "bird", "lamp", "door")


def sentences(count: int, *, labels: tuple[Label, ...] = ()) -> list[Sample]:
    """Instructions whose answers repeat a colour and a thing in a fixed sentence."""
    rng = random.Random(7)
    return [
        Sample(
            instruction=f"Write of a {colour} {thing}, number {i}.",
            output=f"The {thing} is {colour}, and everyone likes the {colour} {thing}.",
            language="en",
            source="sentences",
            license="CC0-1.0",
            origin=Origin(record=str(i)),
            labels=labels,
        )
        for i in range(count)
        for colour, thing in [(rng.choice(COLOURS), rng.choice(THINGS))]
    ]


def pairs(count: int) -> list[Sample]:
    """Preferences: a whole sentence is liked better than a row of capitals."""
    rng = random.Random(8)
    found = []
    for i in range(count):
        colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
        found.append(
            Sample(
                instruction=f"Write of a {colour} {thing}, number {i}.",
                output=f"The {thing} is {colour}.",
                rejected_output=f"{thing.upper()} {colour.upper()} {rng.choice(THINGS).upper()}",
                language="en",
                source="pairs",
                license="CC0-1.0",
                origin=Origin(record=str(i)),
            )
        )
    return found


def dataset(folder: Path, rows: list[Sample]) -> Path:
    """A dataset folder of these rows."""
    write_dataset(
        folder,
        rows,
        [],
        lambda contents: "---\n---\n",
        {"read": len(rows), "funnel": []},
        shape=rows[0].shape,
    )
    return folder
