"""Rejects rows that contain a prompt from a benchmark.

A model trained on such rows has seen the benchmark, so its score on
that benchmark is not valid.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from instructgen.errors import InputError
from instructgen.filters import LONGEST_NGRAM, Filter, Verdict
from instructgen.formats.records import BadRecord, read_records
from instructgen.printable import printable
from instructgen.resources import shipped
from instructgen.schema.messages import texts_of
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import EmbeddingIndex
from instructgen.similarity.benchmark_prompts import BenchmarkPrompt, BenchmarkPrompts, PromptMatch
from instructgen.similarity.encoders import MINILM, check_model

_FUNCTION = re.compile(
    r"^[ \t]*(?:(?:async[ \t]+)?def[ \t]+(?=\w+[ \t]*\()|(?=\w+[ \t]*=[ \t]*lambda\b))(\w+)",
    re.MULTILINE,
)
_FIELDS = ("turns", "prompt", "question", "problem", "query", "instruction", "text", "messages")


class Contamination(Filter):
    """Reject rows that contain a benchmark prompt from one of the files in ``against``.

    A text contains a benchmark prompt in three cases: both consist of the same words, or the text
    contains at least ``ngram_share`` of the prompt's n-grams, or it contains at least
    ``words_share`` of the prompt's words, in order and close together, including enough of the
    rare words (see ``weight_share``). If ``cosine`` is set, a row is also rejected if its question
    has nearly the same meaning as a benchmark prompt.
    """

    name = "contamination"
    scope = "row"

    against: tuple[str, ...] = Field(
        (), description="Files with the benchmark prompts to search for."
    )
    look_in: Literal["row", "prompt"] = Field(
        "row",
        description="Text to search: the complete row (row), or all text except answers (prompt).",
    )
    ngram: int = Field(
        13,
        ge=3,
        le=LONGEST_NGRAM,
        description="Number of words per n-gram. The default 13 is the value in Brown et al. 2020.",
    )
    ngram_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Reject a row with at least this fraction of a benchmark prompt's n-grams.",
    )
    words_share: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Reject a row that contains at least this fraction of a benchmark prompt's "
        "words in the same order, with gaps allowed, and also reaches weight_share.",
    )
    weight_share: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Used with words_share: the matching words must have at least this fraction of "
        "the total weight of the prompt's words. Rare words have higher weights.",
    )
    function_names: bool = Field(
        False,
        description="Reject a row that defines a function with the name of one in a benchmark "
        "prompt.",
    )
    cosine: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Reject a row if the cosine similarity of its question to a benchmark prompt "
        "is above this value. By default, similarities are not computed.",
    )
    model: str = Field(
        MINILM,
        description="Embedding model for the option cosine: minilm (included, for English), a "
        "folder, or the name of a model on the Hugging Face Hub.",
    )

    def files(self) -> tuple[Path, ...]:
        """Return the paths of the benchmark files."""
        return tuple(Path(name).expanduser() for name in self.against)

    def thresholds(self) -> tuple[float, ...]:
        """Return the lower of ``words_share`` and ``weight_share``; reports show rows near it."""
        return (min(self.words_share, self.weight_share),)

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection, or None to keep the row.

        The reason for a rejection is ``equal_prompt``, ``prompt_ngrams``, ``prompt_words``,
        ``function_name`` or ``prompt_meaning``.
        """
        return self.evaluate([sample])[0].rejection

    def evaluate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict (keep or reject) for each sample, in order."""
        parts = [list(self._parts(sample)) for sample in samples]
        matches = iter(self._prompts.find([text for own in parts for _, text in own]))
        verdicts = []
        for sample, own in zip(samples, parts, strict=True):
            hits = [(where, match) for where, _ in own if (match := next(matches)) is not None]
            best = max(hits, key=lambda h: (_TIERS.index(h[1].tier), h[1].share), default=None)
            verdicts.append(Verdict(sample, None if best is None else self._rejection(*best)))
        if self.function_names:
            verdicts = [v if v.rejection else self._by_name(v) for v in verdicts]
        return self._by_meaning(verdicts) if self.cosine is not None else verdicts

    def _parts(self, sample: Sample) -> Iterator[tuple[str, str]]:
        yield "the instruction", sample.instruction
        if sample.input:
            yield "the question", sample.question
            yield "the input", sample.input
        for message in (*sample.history, *sample.steps):
            if self.look_in == "row" or message.role != "assistant":
                yield "an earlier message", texts_of([message])
        if self.look_in == "row":
            yield "the output", sample.output
            if sample.rejected_output:
                yield "the rejected output", sample.rejected_output
            if sample.calls:
                yield "a tool call or the reasoning", sample.calls

    def _rejection(self, where: str, match: PromptMatch) -> Rejection:
        reason = {"equal": "equal_prompt", "ngrams": "prompt_ngrams", "words": "prompt_words"}
        prompt = f"{match.prompt.benchmark} {match.prompt.place}"
        detail = {
            "equal": f"{where} has the same words as the prompt {prompt}",
            "ngrams": f"{where} contains {match.share:.0%} of the n-grams of the prompt {prompt}",
            "words": f"{where} has {match.share:.0%} of the words of the prompt {prompt}, in order",
        }
        return self.reject(reason[match.tier], detail[match.tier], match.share, prompt)

    def _by_name(self, verdict: Verdict) -> Verdict:
        sample = verdict.sample
        for name in _FUNCTION.findall(f"{sample.question}\n{sample.output}"):
            if (place := self._functions.get(name)) is not None:
                detail = f"it defines {name}, as the prompt {place} does"
                rejection = self.reject("function_name", detail, nearest=place)
                return verdict._replace(rejection=rejection)
        return verdict

    @cached_property
    def _functions(self) -> dict[str, str]:
        """The functions that the benchmark prompts define, each with the place of its prompt."""
        return {
            name: f"{prompt.benchmark} {prompt.place}"
            for prompt in self._prompts.prompts
            for name in _FUNCTION.findall(prompt.text)
        }

    def _by_meaning(self, verdicts: list[Verdict]) -> list[Verdict]:
        kept = [i for i, v in enumerate(verdicts) if v.rejection is None]
        matches = self._index.nearest([verdicts[i].sample.question for i in kept])
        for i, match in zip(kept, matches, strict=True):
            if match is not None:
                p = self._prompts.prompts[match.row]
                prompt = f"{p.benchmark} {p.place}"
                detail = (
                    f"cosine similarity {match.score:.3f} to prompt {prompt}, above {self.cosine}"
                )
                rejection = self.reject("prompt_meaning", detail, match.score, prompt)
                verdicts[i] = verdicts[i]._replace(rejection=rejection)
        return verdicts

    def searched(self) -> dict[str, int]:
        """Return the number of prompts of each benchmark, as a dict keyed by benchmark name."""
        return dict(Counter(p.benchmark for p in self._prompts.prompts))

    @cached_property
    def _prompts(self) -> BenchmarkPrompts:
        names = _benchmark_names(self.files())
        prompts = [p for path in self.files() for p in benchmark_prompts(path, names[path])]
        return BenchmarkPrompts(
            prompts,
            _background(),
            self.ngram,
            self.ngram_share,
            self.words_share,
            self.weight_share,
        )

    @cached_property
    def _index(self) -> EmbeddingIndex:
        check_model(self.model)
        assert self.cosine is not None
        index = EmbeddingIndex(self.cosine, self.model)
        index.add([p.text for p in self._prompts.prompts])
        return index


# In order of increasing certainty.
_TIERS = ("words", "ngrams", "equal")


def _benchmark_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return a name for each path: its file name, with parent folders if file names are equal."""
    names = {path: printable(path.name) for path in paths}
    depth = 1
    while len(set(names.values())) < len(names) and depth < 20:
        depth += 1
        counts = Counter(names.values())
        names = {
            path: name if counts[name] == 1 else printable("/".join(path.resolve().parts[-depth:]))
            for path, name in names.items()
        }
    return names


def benchmark_prompts(path: Path, name: str = "") -> list[BenchmarkPrompt]:
    """Return all prompts in a benchmark file, one for each user turn.

    The prompt of a row is its first field with a known name, such as ``prompt``. ``name`` is the
    name of the benchmark, by default the file name.

    Raises:
        InputError: the file is missing or unreadable, or a row is invalid or has no prompt.
    """
    if not path.is_file():
        raise InputError(
            "the file does not exist.", path=path, hint="Pass a file of benchmark prompts."
        )
    prompts: list[BenchmarkPrompt] = []
    for record in read_records(path):
        if isinstance(record, BadRecord):
            raise InputError(record.reason, path=path, line=record.line, hint="Fix the row.")
        texts = [t for t in _texts(record.fields) if t.strip()]
        if not texts and prompts:
            raise InputError(
                "the row has no prompt, unlike the rows before it.",
                path=path,
                line=record.line,
                hint=f"Put the prompt in one of the fields {', '.join(_FIELDS)}.",
            )
        for turn, text in enumerate(texts, start=1):
            place = f"row {record.line}" + (f" turn {turn}" if len(texts) > 1 else "")
            prompts.append(BenchmarkPrompt(name or printable(path.name), place, text))
        if not prompts:
            break
    if not prompts:
        raise InputError(
            "no row has a prompt.",
            path=path,
            hint=f"Put the prompt in one of the fields {', '.join(_FIELDS)}.",
        )
    return prompts


def _texts(fields: Mapping[str, Any]) -> list[str]:
    """Return the prompts in a row's first field that has a name in ``_FIELDS`` and is not empty."""
    for name in _FIELDS:
        value = fields.get(name)
        if isinstance(value, str):
            input_ = fields.get("input")
            if name == "instruction" and isinstance(input_, str) and input_:
                return [f"{value}\n\n{input_}"]
            return [value]
        if isinstance(value, list):
            texts = [
                v if isinstance(v, str) else v.get("content", "") if isinstance(v, Mapping) else ""
                for v in value
                if not isinstance(v, Mapping) or v.get("role", "user") == "user"
            ]
            if any(isinstance(t, str) and t for t in texts):
                return [t for t in texts if isinstance(t, str)]
    return []


def _background() -> list[str]:
    """Return the instructions of the included seed tasks, used to estimate how rare words are."""
    return [
        str(record.fields["instruction"])
        for name in ("general.jsonl", "multilingual.jsonl")
        for record in read_records(shipped("seeds") / name)
        if not isinstance(record, BadRecord)
    ]
