"""LongForm: instructions for long texts that people wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructgen.formats import Source, text
from instructgen.schema.sample import Sample


class LongForm(Source):
    """Rows of input (the instruction), output, source and subset.

    "MIT License with custom limitations": of OpenAI for the instructions of its
    corpora part, of WikiHow for that subset (akoksal/LongForm, data card), for
    which SPDX has no identifier.
    """

    name = "longform"
    fields = frozenset({"input", "output", "source", "subset"})
    license = "MIT AND LicenseRef-LongForm-limitations"
    language = "en"
    attribution = ("LongForm, Köksal et al. 2023",)

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """One sample; its source and subset become the category."""
        parts = [text(record, "source", required=False), text(record, "subset", required=False)]
        return [
            Sample(
                instruction=text(record, "input"),
                output=text(record, "output"),
                category="/".join(p for p in parts if p) or None,
            )
        ]
