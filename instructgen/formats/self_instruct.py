"""Self-Instruct's seed tasks: an instruction with one or more instances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructgen.formats import RowError, Source, text
from instructgen.schema.sample import Kind, Sample


class SelfInstructFormat(Source):
    """Rows of instruction, instances and is_classification (Apache-2.0)."""

    name = "self-instruct"
    fields = frozenset({"instruction", "instances"})
    license = "Apache-2.0"
    language = "en"
    attribution = ("Self-Instruct, Wang et al. 2022",)
    takes = ("first", "all")

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """One sample of the first instance, as a task counts once among seeds, or one of each."""
        instances = record.get("instances")
        if not isinstance(instances, list) or not instances:
            raise RowError('"instances" is no list of input and output.')
        is_classification = record.get("is_classification")
        kinds = {True: Kind.CLASSIFICATION, False: Kind.GENERATION}
        kind = kinds.get(is_classification) if isinstance(is_classification, bool) else None
        taken = instances if self.take == "all" else instances[:1]
        return [self._sample(text(record, "instruction"), kind, instance) for instance in taken]

    def _sample(self, instruction: str, kind: Kind | None, instance: Any) -> Sample:
        if not isinstance(instance, Mapping):
            raise RowError('"instances" is no list of input and output.')
        return Sample(
            instruction=instruction,
            input=text(instance, "input", required=False),
            output=text(instance, "output"),
            kind=kind,
        )
