"""Why a row is in a dataset that was made from others, or why not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.errors import InputError, quoted
from instructgen.licensing.licenses import obligations
from instructgen.licensing.model_terms import generator_terms
from instructgen.store import find_row, read_made, read_manifest


@dataclass(frozen=True, slots=True)
class RowExplanation:
    """Everything that a dataset knows about one of its rows, kept or rejected.

    ``command`` made the dataset from ``inputs``. ``passed`` are the filters that saw
    the row and did not object. ``nearest`` is the text of the row that it was
    compared with, where that is in the dataset. ``obliges`` is what its licence, its
    credits and the models that wrote it ask.
    """

    id: str
    verdict: str
    row: dict[str, Any]
    command: str
    inputs: tuple[str, ...]
    passed: tuple[str, ...]
    nearest: str | None
    obliges: tuple[str, ...]


def explain_row(folder: Path, row_id: str) -> RowExplanation:
    """See `instructgen.explain`.

    Raises:
        RunError: there is no complete dataset, or a part was changed.
        InputError: nothing in it has this id.
    """
    made, manifest = read_made(folder), read_manifest(folder) or {}
    found = find_row(folder, row_id)
    if found is None:
        raise InputError(
            f"{folder}: nothing has the id {quoted(row_id)}.",
            hint="Ids stand in the column id of data/ and rejected/.",
        )
    table, row = found
    filters = tuple(manifest.get("filters", ()))
    if table == "rejected":
        filters = filters[: filters.index(row["filter"])] if row["filter"] in filters else ()
    near = find_row(folder, row["nearest"]) if row.get("nearest") else None
    return RowExplanation(
        id=row_id,
        verdict="kept" if table == "data" else "rejected",
        row=row,
        command=made["command"],
        inputs=tuple(each["name"] for each in made["inputs"]),
        passed=filters,
        nearest=near[1]["instruction"] if near else None,
        obliges=_obliges(row),
    )


def _obliges(row: dict[str, Any]) -> tuple[str, ...]:
    if not row["license"]:
        return ()
    models = {model: 1 for model in row["generators"] if generator_terms(model) is not None}
    said = obligations({row["license"]: 1}, models, dict.fromkeys(row["attribution"], 1))
    return tuple(sentence.replace("1 rows", "this row") for sentence in said)
