"""Rejects instructions in a writing system that their language does not use."""

from __future__ import annotations

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity.scripts import fits_language, main_script


class Script(Filter):
    """Reject instructions in a writing system that the language of their row does not use.

    An example is an English text in a row marked as Persian. The filter catches models that
    answer a prompt in one language with a task in a different language.
    """

    name = "script"

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``other_script``), or None to keep the sample."""
        if fits_language(sample.instruction, sample.language):
            return None
        script = main_script(sample.instruction)
        return self.reject("other_script", f"{script} letters in a row marked as {sample.language}")
