"""Alpaca Libre's log of a Self-Instruct run: every candidate with its status and similarity.

Its final form is Alpaca's shape without status, and is meant when this source is
named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instructgen.formats import RowError, Source, number, text
from instructgen.formats.alpaca import AlpacaFormat
from instructgen.schema.sample import Label, Sample, Score

_NO_INPUT = ("<noinput>", "<no input>", '"<no input>"', '"<noinput>"')


class AlpacaLibre(Source):
    """Rows of instruction, input, output, status, and similarity, inside "other" since 0.3.

    Written by gpt-3.5-turbo; "all data byproducts are CC0/MIT-licensed" (mobarski/alpaca-libre,
    README), of which the one that asks for something is taken.
    """

    name = "alpaca-libre"
    fields = frozenset({"instruction", "input", "output", "status"})
    license = "MIT"
    language = "en"
    attribution = ("Alpaca Libre, mobarski 2023",)
    method = "self_instruct"
    model = "gpt-3.5-turbo"

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """One sample, whatever its status: the label says that, and a filter can ask for it."""
        (sample,) = AlpacaFormat().samples(record)
        if sample.input.lower() in _NO_INPUT:
            sample = replace(sample, input="")
        status = text(record, "status", required=False)
        other = record.get("other", {})
        if not isinstance(other, Mapping):
            raise RowError('"other" is no object.')
        similarity = number({**other, **record}, "similarity")
        return [
            replace(
                sample,
                labels=(Label("status", status),) if status else (),
                scores=() if similarity is None else (Score("similarity", similarity),),
            )
        ]
