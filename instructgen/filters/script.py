"""Rejects instructions whose writing system does not fit the language of their row."""

from __future__ import annotations

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity.scripts import fits_language, main_script


class Script(Filter):
    """Reject instructions whose writing system does not fit the language of their row.

    An example is an English text in a row whose ``language`` is Persian. Such rows occur if a
    model gets a prompt in one language and writes a task in a different language.
    """

    name = "script"

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection with the reason ``other_script``, or None to keep the sample."""
        if fits_language(sample.instruction, sample.language):
            return None
        script = main_script(sample.instruction)
        return self.reject("other_script", f"{script} letters in a row marked as {sample.language}")
