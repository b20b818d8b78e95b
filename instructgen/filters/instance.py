"""Rejects instances that cannot be right (Self-Instruct, section 2.2 and its code)."""

from __future__ import annotations

from instructgen.filters import Filter
from instructgen.sample import Rejection, Sample

_COLONS = (":", "：")


class Instance(Filter):
    """An empty output, one equal to its input, or a text cut before it began."""

    name = "instance"
    scope = "row"

    def reason(self, sample: Sample) -> Rejection | None:
        """``empty_output``, ``output_is_input`` or ``ends_in_colon``."""
        if not sample.output.strip():
            return self.reject("empty_output")
        if sample.input.strip() == sample.output.strip():
            return self.reject("output_is_input")
        for field in ("input", "output"):
            if getattr(sample, field).rstrip().endswith(_COLONS):
                return self.reject("ends_in_colon", f"the {field} ends in a colon")
        return None
