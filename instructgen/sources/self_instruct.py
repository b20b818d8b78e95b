"""Self-Instruct's seed tasks: an instruction with one or more instances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructgen.sample import Kind, Sample
from instructgen.sources import RowError, Source, text


class SelfInstruct(Source):
    """Rows of instruction, instances and is_classification (Apache-2.0)."""

    name = "self-instruct"
    fields = frozenset({"instruction", "instances"})
    license = "Apache-2.0"
    language = "en"

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """One sample, of the first instance: a task counts once among the seeds."""
        instances = record["instances"]
        if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
            raise RowError('"instances" is no list of input and output.')
        is_classification = record.get("is_classification")
        kinds = {True: Kind.CLASSIFICATION, False: Kind.GENERATION}
        return [
            Sample(
                instruction=text(record, "instruction"),
                input=text(instances[0], "input", required=False),
                output=text(instances[0], "output"),
                kind=kinds.get(is_classification) if isinstance(is_classification, bool) else None,
            )
        ]
