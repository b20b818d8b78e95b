"""Rejects rows with an invalid input or output, as in Self-Instruct (section 2.2 and code)."""

from __future__ import annotations

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample

_COLONS = (":", "：")
_DETAILS = {
    "empty_output": "the row has no output",
    "output_is_input": "the output is equal to the input",
    "ends_in_colon": "the input or the output ends in a colon",
}


class InstanceFilter(Filter):
    """Reject rows whose output is empty, is equal to the input, or ends in a colon.

    Rows whose input ends in a colon are also rejected. A colon at the end of a text suggests that
    the text was cut off.
    """

    name = "instance"
    scope = "row"

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection for an invalid input or output, or None to keep the row."""
        # An answer may consist of tool calls only.
        code = None if sample.tool_calls else instance_fault(sample.input, sample.output)
        return self.reject(code, _DETAILS[code]) if code else None


def instance_fault(given: str, output: str) -> str | None:
    """Return the reason code if the input or output is invalid, or None if both are valid."""
    if not output.strip():
        return "empty_output"
    if given.strip() == output.strip():
        return "output_is_input"
    colon = any(text.rstrip().endswith(_COLONS) for text in (given, output))
    return "ends_in_colon" if colon else None
