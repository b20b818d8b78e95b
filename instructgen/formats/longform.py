"""Reads LongForm: instructions whose answers are long human-written texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from instructgen.formats import Format, text
from instructgen.schema.sample import Sample


class LongForm(Format):
    """Rows with ``input`` (the instruction), ``output``, ``source`` and ``subset``.

    The data card of akoksal/LongForm says "MIT License with custom limitations": the terms of
    OpenAI apply to the instructions of the subsets made from text corpora, and the terms of
    WikiHow apply to the WikiHow subset. SPDX has no identifier for these limitations.
    """

    name = "longform"
    fields = frozenset({"input", "output", "source", "subset"})
    example: ClassVar[Mapping[str, Any]] = {
        "input": "Describe a river.",
        "output": "A river is a natural stream of water.",
        "source": "C4",
        "subset": "question-answering",
    }
    license = "MIT AND LicenseRef-LongForm-limitations"
    language = "en"
    attribution = ("LongForm, Köksal et al. 2023",)

    @classmethod
    def matches(cls, record: Mapping[str, Any]) -> int:
        """Return the number of fields, or 0 for a row that also has an instruction."""
        return 0 if "instruction" in record else super().matches(record)

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample, with ``source`` and ``subset`` as its category."""
        parts = [text(record, "source", required=False), text(record, "subset", required=False)]
        return [
            Sample(
                instruction=text(record, "input"),
                output=text(record, "output"),
                category="/".join(p for p in parts if p) or None,
            )
        ]
