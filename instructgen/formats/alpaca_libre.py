"""Reads Alpaca Libre's log of a Self-Instruct run, which contains accepted and rejected rows.

The final dataset of Alpaca Libre has the columns of Stanford Alpaca and no status column. That
dataset is therefore read as Stanford Alpaca, unless the user names this format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from instructgen.formats import Format, RowError, number, text
from instructgen.formats.alpaca import AlpacaFormat
from instructgen.schema.sample import Label, Sample, Score

_NO_INPUT = ("<noinput>", "<no input>", '"<no input>"', '"<noinput>"')


class AlpacaLibre(Format):
    """Rows with ``instruction``, ``input``, ``output``, ``status`` and ``similarity``.

    Since version 0.3 of Alpaca Libre, ``similarity`` is a field of the object ``other``. The rows
    were written by gpt-3.5-turbo. The README of mobarski/alpaca-libre says "all data byproducts
    are CC0/MIT-licensed"; the license used here is MIT, which requires attribution.
    """

    name = "alpaca-libre"
    fields = frozenset({"instruction", "input", "output", "status"})
    example: ClassVar[Mapping[str, Any]] = {
        "instruction": "Name a metal.",
        "input": "<noinput>",
        "output": "Iron.",
        "status": "ok",
        "other": {"similarity": 0.3},
    }
    license = "MIT"
    language = "en"
    attribution = ("Alpaca Libre, mobarski 2023",)
    method = "self_instruct"
    model = "gpt-3.5-turbo"

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return one sample, with ``status`` as a label and ``similarity`` as a score."""
        (sample,) = AlpacaFormat().samples(record)
        if sample.input.lower() in _NO_INPUT:
            sample = replace(sample, input="")
        status = text(record, "status", required=False)
        other = record.get("other", {})
        if not isinstance(other, Mapping):
            raise RowError('the field "other" must be a JSON object.')
        similarity = number({**other, **record}, "similarity")
        return [
            replace(
                sample,
                labels=(Label("status", status),) if status else (),
                scores=() if similarity is None else (Score("similarity", similarity),),
            )
        ]
