"""Rejects instances that cannot be right (Self-Instruct, section 2.2 and its code)."""

from __future__ import annotations

from instructgen.filters import Filter
from instructgen.generation import prompts
from instructgen.schema.sample import Rejection, Sample

_DETAILS = {
    "empty_output": "the row has no output",
    "output_is_input": "the output is the input",
    "ends_in_colon": "the input or the output ends in a colon",
}


class Instance(Filter):
    """An empty output, one equal to its input, or a text cut before it began."""

    name = "instance"
    scope = "row"

    def reason(self, sample: Sample) -> Rejection | None:
        """``empty_output``, ``output_is_input`` or ``ends_in_colon``."""
        fault = prompts.Instance(sample.input, sample.output).fault
        return self.reject(fault, _DETAILS[fault]) if fault else None
