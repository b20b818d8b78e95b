"""Rejects instructions in a script that their language does not use."""

from __future__ import annotations

from instructgen.filters import Filter
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity.scripts import fits_language, main_script


class Script(Filter):
    """Reject instructions in a foreign script, such as English text in a row marked Persian.

    It catches models that answer a prompt in one language with a task in another.
    """

    name = "script"

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``other_script``), or None."""
        if fits_language(sample.instruction, sample.language):
            return None
        script = main_script(sample.instruction)
        return self.reject("other_script", f"{script} script in a row marked {sample.language}")
