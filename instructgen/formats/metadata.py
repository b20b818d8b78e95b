"""Reads the columns that many datasets add to their rows, such as license, language and model.

A column with an unexpected value never costs the row: the value is ignored, and an edit says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from instructgen.formats.conversation import record_tools
from instructgen.formats.fields import RowError, checked, trimmed, word
from instructgen.licensing.licenses import spdx_of
from instructgen.licensing.model_terms import UNNAMED_MODEL
from instructgen.schema.messages import Message
from instructgen.schema.sample import Edit, Sample

_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
# The columns of the model that wrote a row. The columns with several models are lists or texts.
_MODELS = ("generators", "generator", "model", "model_name", "chosen_model", "rejected_model",
           "chosen-model", "rejected-model")  # fmt: skip
_SYSTEMS = ("system", "system_prompt", "system_message")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_HUMAN = ("human", "humans")
_TEXTS = ("category", "language", "license", "source")


def with_metadata(sample: Sample, record: Mapping[str, Any]) -> Sample:
    """Return the sample with what the usual columns of a record say about it.

    The columns are ``category``, ``language``, ``license``, ``source``, ``attribution``,
    ``generators``, ``generator``, ``model`` and ``id``, and the parts of a conversation that may
    have their own columns: ``system``, ``tools`` and ``reasoning``. Values that the sample already
    has are not replaced.

    Raises:
        RowError: the tool definitions are not valid.
    """
    sample = _with_columns(sample, record)
    ignored = [
        name
        for name in _TEXTS
        if record.get(name) not in (None, "", [], {}) and not _read(record, name)
    ]
    language = _read(record, "language")
    named = {*_models(record)} - {*_HUMAN}
    # A named model is the one that the role "gpt" means.
    others = {m for m in sample.generators if m != UNNAMED_MODEL or not named}
    models = tuple(sorted(others | named))
    attribution = tuple(_texts(record.get("attribution")))
    origin = sample.origin
    if models:
        # The row was not written by a person, even if the model is unknown to instructgen.
        method = "model" if origin.method == "human" else origin.method
        model = origin.model or (models[0] if named and len(models) == 1 else None)
        origin = replace(origin, method=method, model=model)
    edits = tuple(
        Edit("import", name, f"the value of the column {name} was not usable") for name in ignored
    )
    return replace(
        sample,
        category=sample.category or _read(record, "category") or None,
        language=language if sample.language == "und" and language else sample.language,
        license=sample.license or _read(record, "license"),
        source=sample.source or _read(record, "source"),
        attribution=sample.attribution or attribution,
        generators=models,
        origin=replace(origin, record=origin.record or word(record, "id") or None),
        edits=(*sample.edits, *edits),
    )


def _with_columns(sample: Sample, record: Mapping[str, Any]) -> Sample:
    """Add a system message, tools and reasoning that have their own columns."""
    system = next((t for name in _SYSTEMS if (t := _column(record, name))), "")
    if system and not any(m.role == "system" for m in sample.history):
        sample = replace(sample, history=(Message("system", system), *sample.history))
    if not sample.tools:
        sample = replace(sample, tools=record_tools(record))
    reasoning = next((t for name in _REASONING if (t := _column(record, name))), "")
    if reasoning and not sample.reasoning_content and sample.rejected_output is None:
        sample = replace(sample, reasoning_content=reasoning.strip())
    return sample


def _column(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return checked(trimmed(value), f'the field "{name}"') if isinstance(value, str) else ""


def language_code(value: str) -> str:
    """Return a language code in the usual spelling, such as pt-BR for pt_br; "" for other texts."""
    code = value.strip().replace("_", "-")
    base, *rest = code.split("-")
    code = "-".join([base.lower(), *rest])
    return code if _LANGUAGE.fullmatch(code) else ""


def _read(record: Mapping[str, Any], name: str) -> str:
    if name == "license":
        return spdx_of(record.get(name))
    value = word(record, name)
    return language_code(value) if name == "language" else value


def _models(record: Mapping[str, Any]) -> Iterator[str]:
    for name in _MODELS:
        yield from _texts(record.get(name))


def _texts(value: Any) -> Iterator[str]:
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and text.strip():
            try:
                yield checked(text.strip(), "the field")
            except RowError:
                continue
