"""Reads Self-Instruct's seed tasks: instructions, each with one or more inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from instructgen.formats import Format, RowError, text
from instructgen.schema.sample import Kind, Sample


class SelfInstructFormat(Format):
    """Rows with ``instruction``, ``instances`` and ``is_classification`` (license Apache-2.0)."""

    name = "self-instruct"
    fields = frozenset({"instruction", "instances"})
    example: ClassVar[Mapping[str, Any]] = {
        "instruction": "Add the numbers.",
        "instances": [{"input": "2 and 3", "output": "5"}],
        "is_classification": False,
    }
    license = "Apache-2.0"
    language = "en"
    attribution = ("Self-Instruct, Wang et al. 2022",)
    takes = ("first", "all")

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return a sample for the first instance or, with ``--take=all``, for each instance."""
        instances = record.get("instances")
        if not isinstance(instances, list) or not instances:
            raise RowError('"instances" must be a list of one or more objects with an "output".')
        is_classification = record.get("is_classification")
        kinds = {True: Kind.CLASSIFICATION, False: Kind.GENERATION}
        kind = kinds.get(is_classification) if isinstance(is_classification, bool) else None
        # By default a seed task counts once, so only its first instance is used.
        selected = instances if self.take == "all" else instances[:1]
        return [self._sample(text(record, "instruction"), kind, each) for each in selected]

    def _sample(self, instruction: str, kind: Kind | None, instance: Any) -> Sample:
        if not isinstance(instance, Mapping):
            raise RowError('"instances" must be a list of one or more objects with an "output".')
        return Sample(
            instruction=instruction,
            input=text(instance, "input", required=False),
            output=text(instance, "output"),
            kind=kind,
        )
