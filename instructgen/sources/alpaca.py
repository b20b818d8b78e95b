"""Alpaca's three columns, as used by Alpaca, Alpaca Libre and many others.

The shape says nothing about the licence, so the user does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructgen.sample import Sample
from instructgen.sources import Source, text


class Alpaca(Source):
    """Rows of instruction, input and output; what else a row says of itself is kept."""

    name = "alpaca"
    fields = frozenset({"instruction", "output"})

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """One sample; of unknown kind."""
        return [
            Sample(
                instruction=text(record, "instruction"),
                input=text(record, "input", required=False),
                # Published Alpaca files hold rows with no output.
                output=text(record, "output", filled=False),
                category=text(record, "category", required=False) or None,
                language=text(record, "language", required=False) or "und",
                license=text(record, "license", required=False),
            )
        ]
