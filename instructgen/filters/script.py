"""Rejects instructions written in another script than their language is."""

from __future__ import annotations

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity.scripts import fits_language, main_script


class Script(Filter):
    """A Persian prompt that drew an English task, and the like."""

    name = "script"

    def reason(self, sample: Sample) -> Rejection | None:
        """``other_script``."""
        if fits_language(sample.instruction, sample.language):
            return None
        script = main_script(sample.instruction)
        return self.reject("other_script", f"{script} letters in a text marked {sample.language}")
