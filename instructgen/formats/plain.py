"""Any table: the user says which of its fields is the instruction, which the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from instructgen.errors import ConfigError
from instructgen.formats import RowError, Source, number, text
from instructgen.plugins import suggest
from instructgen.schema.sample import Label, Message, Origin, Sample, Score

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
)
_LABEL = "label."


@dataclass(frozen=True)
class Plain(Source):
    """Rows of which ``mapping`` names the fields; a.b means the field b inside a.

    ``label.NAME`` makes a label of a field, such as the ``rationale`` of an answer, the
    ``test`` of code or the ``pattern`` an answer has to match.
    """

    name = "plain"
    fields = frozenset()

    mapping: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a mapping that makes no samples."""
        for ours in self.mapping:
            if ours not in _FIELDS and not _is_label(ours):
                raise ConfigError(f"--map {ours}: no such field.", suggest(ours, list(_FIELDS)))
        for needed in ("instruction", "output"):
            if needed not in self.mapping:
                raise ConfigError(
                    f"--map {needed}=FIELD is missing.", "Say which field of the file it is."
                )
        shape = "preferences" if "rejected_output" in self.mapping else "instructions"
        if (self.shape or shape) != shape:
            raise ConfigError(f"these fields give {shape}.", "Leave --as out.")
        if self.take:
            raise ConfigError(f"plain cannot take {self.take!r}.", "Leave --take out.")
        object.__setattr__(self, "shape", shape)

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """One sample."""
        found = {ours: _value(record, theirs) for ours, theirs in self.mapping.items()}
        system = text(found, "system", required=False)
        score = number(found, "score")
        attribution = text(found, "attribution", required=False)
        sample = Sample(
            instruction=text(found, "instruction"),
            input=text(found, "input", required=False),
            output=text(found, "output", filled=False),
            rejected_output=text(found, "rejected_output") if self.shape == "preferences" else None,
            history=(Message("system", system),) if system else (),
            category=text(found, "category", required=False) or None,
            language=text(found, "language", required=False) or "und",
            license=text(found, "license", required=False),
            attribution=(attribution,) if attribution else (),
            origin=Origin(group=text(found, "group", required=False) or None),
            scores=() if score is None else (Score("score", score),),
            labels=tuple(
                Label(ours.removeprefix(_LABEL), text(found, ours))
                for ours in self.mapping
                if _is_label(ours) and found[ours] not in (None, "")
            ),
        )
        return [sample]


def _is_label(field: str) -> bool:
    return len(field) > len(_LABEL) and field.startswith(_LABEL)


def _value(record: Mapping[str, Any], path: str) -> Any:
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise RowError(f'"{path}" is missing.')
        value = value[part]
    return value
