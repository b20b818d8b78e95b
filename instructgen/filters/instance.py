"""Rejects instances that cannot be right (Self-Instruct, section 2.2 and its code)."""

from __future__ import annotations

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample

_COLONS = (":", "：")
_DETAILS = {
    "empty_output": "the row has no output",
    "output_is_input": "the output is the input",
    "ends_in_colon": "the input or the output ends in a colon",
}


class InstanceFilter(Filter):
    """An empty output, one equal to its input, or a text cut before it began."""

    name = "instance"
    scope = "row"

    def reason(self, sample: Sample) -> Rejection | None:
        """``empty_output``, ``output_is_input`` or ``ends_in_colon``."""
        fault = instance_fault(sample.input, sample.output)
        return self.reject(fault, _DETAILS[fault]) if fault else None


def instance_fault(given: str, output: str) -> str | None:
    """Why an input with its output cannot be right, as a short code; None for no reason."""
    if not output.strip():
        return "empty_output"
    if given.strip() == output.strip():
        return "output_is_input"
    colon = any(text.rstrip().endswith(_COLONS) for text in (given, output))
    return "ends_in_colon" if colon else None
