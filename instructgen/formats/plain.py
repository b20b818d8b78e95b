"""Reads rows with any fields: the user names the fields for instruction, output and so on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from instructgen.errors import ConfigError
from instructgen.formats import Format, RowError, number, text
from instructgen.formats.fields import truth, word
from instructgen.formats.metadata import with_metadata
from instructgen.plugins import suggest
from instructgen.schema.messages import Message
from instructgen.schema.sample import Label, Origin, Sample, Score, Shape

_FIELDS = (
    "instruction",
    "input",
    "output",
    "rejected_output",
    "system",
    "category",
    "language",
    "license",
    "attribution",
    "group",
    "score",
    "label",
    "source",
    "model",
    "id",
)
_LABEL, _SCORE = "label.", "score."


@dataclass(frozen=True)
class Plain(Format):
    """Rows with any fields; ``mapping`` names the field of the row for each field of a sample.

    The path ``a.b`` means the field ``b`` of the object in ``a``. The name ``label.NAME`` stores a
    field as the label NAME, for example ``label.rationale`` (the reasoning behind an answer),
    ``label.test`` (a test for code) or ``label.pattern`` (a pattern that an answer must match). The
    name ``score.NAME`` stores a number as the score NAME, by which filters can select rows, and
    ``label`` states whether an answer is good, for feedback rows.
    """

    name = "plain"
    fields = frozenset()
    example: ClassVar[Mapping[str, Any]] = {"question": "Add 2 and 3.", "answer": "5"}

    mapping: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Set the shape of the dataset; raise ConfigError for an invalid or incomplete mapping."""
        for name in self.mapping:
            if name not in _FIELDS and not (_is_named(name, _LABEL) or _is_named(name, _SCORE)):
                raise ConfigError(
                    f"--map: {name!r} is not a sample field.", suggest(name, list(_FIELDS))
                )
        for required in ("instruction", "output"):
            if required not in self.mapping:
                raise ConfigError(
                    f"--map: {required}=FIELD is missing.",
                    "Add it; FIELD is the name of a field in the file.",
                )
        shape: Shape = "feedback" if "label" in self.mapping else "instructions"
        shape = "preferences" if "rejected_output" in self.mapping else shape
        if (self.shape or shape) != shape:
            raise ConfigError(
                f"--map has the fields of {shape}, but --as={self.shape} is set.", "Omit --as."
            )
        if self.take:
            raise ConfigError(f"--map and --take={self.take} cannot be combined.", "Omit --take.")
        object.__setattr__(self, "shape", shape)

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return a list with the one sample that a record is converted to."""
        row = {name: _value(record, path) for name, path in self.mapping.items()}
        system = text(row, "system", required=False)
        label = truth(row["label"]) if self.shape == "feedback" else None
        if self.shape == "feedback" and label is None:
            raise RowError(f'the field "{self.mapping["label"]}" is neither true nor false.')
        sample = Sample(
            instruction=text(row, "instruction"),
            input=text(row, "input", required=False),
            output=text(row, "output", filled=False),
            rejected_output=text(row, "rejected_output") if self.shape == "preferences" else None,
            label=label,
            history=(Message("system", system),) if system else (),
            origin=Origin(group=word(row, "group") or None),
            scores=tuple(
                Score(name.removeprefix(_SCORE), value)
                for name in self.mapping
                if name == "score" or _is_named(name, _SCORE)
                if (value := number(row, name)) is not None
            ),
            labels=tuple(
                Label(name.removeprefix(_LABEL), text(row, name))
                for name in self.mapping
                if _is_named(name, _LABEL) and row[name] not in (None, "")
            ),
        )
        return [with_metadata(sample, row)]


def _is_named(field: str, prefix: str) -> bool:
    return len(field) > len(prefix) and field.startswith(prefix)


def _value(record: Mapping[str, Any], path: str) -> Any:
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if isinstance(value, Mapping) and part not in value:
            # The names of columns in spreadsheets differ in case and spaces.
            part = next((n for n in value if str(n).strip().lower() == part.lower()), part)
        if not isinstance(value, Mapping) or part not in value:
            raise RowError(f'the field "{path}" is missing.')
        value = value[part]
    return value
