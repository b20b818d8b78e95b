"""Rejects rows that hold a prompt of a benchmark: a model trained on them knows the test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from instructgen.errors import InputError
from instructgen.filters import Filter, Verdict
from instructgen.formats.records import BadRecord, read_records
from instructgen.resources import shipped
from instructgen.schema.sample import Rejection, Sample
from instructgen.similarity import EmbeddingIndex
from instructgen.similarity.benchmark_prompts import BenchmarkPrompt, BenchmarkPrompts, PromptMatch
from instructgen.similarity.encoders import MINILM, check_model

_FIELDS = ("turns", "prompt", "question", "problem", "query", "instruction", "text", "messages")


class Contamination(Filter):
    """Prompts of the files ``against``, looked for in every part of a row.

    Tiers: the same words; a share of n-grams; the words in order and close
    together, with enough of the rare ones; where ``cosine`` is given, the same
    meaning as the question.
    """

    name = "contamination"
    scope = "row"

    against: tuple[str, ...] = Field((), description="files of benchmark prompts")
    look_in: Literal["row", "prompt"] = Field("row", description="prompt: not in the output")
    ngram: int = Field(13, ge=3, description="words of an n-gram (Brown et al. 2020)")
    ngram_share: float = Field(
        0.5, gt=0, le=1, description="share of a prompt's n-grams that tells"
    )
    words_share: float = Field(
        0.6, gt=0, le=1, description="share of its words, in order, that tells"
    )
    weight_share: float = Field(
        0.6, gt=0, le=1, description="share of its words by rarity that has to be there too"
    )
    cosine: float | None = Field(
        None, gt=0, lt=1, description="cosine of the question to a prompt above which it tells"
    )
    model: str = Field(MINILM, description="for cosine: minilm, a folder, or a Hub name")

    def files(self) -> tuple[Path, ...]:
        """The benchmarks."""
        return tuple(Path(name) for name in self.against)

    def thresholds(self) -> tuple[float, ...]:
        """The least share of words that tells."""
        return (min(self.words_share, self.weight_share),)

    def reason(self, sample: Sample) -> Rejection | None:
        """``equal_prompt``, ``prompt_ngrams``, ``prompt_words`` or ``prompt_meaning``."""
        return self.judge([sample])[0].rejection

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """See `Filter.judge`."""
        parts = [list(self._parts(sample)) for sample in samples]
        found = iter(self._prompts.find([text for some in parts for _, text in some]))
        verdicts = []
        for sample, some in zip(samples, parts, strict=True):
            held = [(where, f) for where, _ in some if (f := next(found)) is not None]
            best = max(held, key=lambda h: (_TIERS.index(h[1].tier), h[1].share), default=None)
            verdicts.append(Verdict(sample, None if best is None else self._held(*best)))
        return self._by_meaning(verdicts) if self.cosine is not None else verdicts

    def _parts(self, sample: Sample) -> Iterator[tuple[str, str]]:
        yield "the instruction", sample.instruction
        if sample.input:
            yield "the question", sample.question
            yield "the input", sample.input
        for message in sample.history:
            if self.look_in == "row" or message.role != "assistant":
                yield "an earlier message", message.content
        if self.look_in == "row":
            yield "the output", sample.output
            if sample.rejected_output:
                yield "the rejected output", sample.rejected_output

    def _held(self, where: str, found: PromptMatch) -> Rejection:
        reason = {"equal": "equal_prompt", "ngrams": "prompt_ngrams", "words": "prompt_words"}
        prompt = f"{found.prompt.benchmark} {found.prompt.place}"
        how = {
            "equal": f"{where} is {prompt}",
            "ngrams": f"{where} holds {found.share:.0%} of the n-grams of {prompt}",
            "words": f"{where} holds {found.share:.0%} of {prompt}, in order",
        }
        return self.reject(reason[found.tier], how[found.tier], found.share, prompt)

    def _by_meaning(self, verdicts: list[Verdict]) -> list[Verdict]:
        left = [i for i, v in enumerate(verdicts) if v.rejection is None]
        matches = self._index.nearest([verdicts[i].sample.question for i in left])
        for i, match in zip(left, matches, strict=True):
            if match is not None:
                p = self._prompts.prompts[match.row]
                prompt = f"{p.benchmark} {p.place}"
                detail = f"cosine {match.score:.3f} to {prompt}, above {self.cosine}"
                rejection = self.reject("prompt_meaning", detail, match.score, prompt)
                verdicts[i] = verdicts[i]._replace(rejection=rejection)
        return verdicts

    @cached_property
    def _prompts(self) -> BenchmarkPrompts:
        prompts = [p for path in self.files() for p in benchmark_prompts(path)]
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


# The later, the surer.
_TIERS = ("words", "ngrams", "equal")


def benchmark_prompts(path: Path) -> list[BenchmarkPrompt]:
    """Every prompt of a file, its field sniffed; each turn of a conversation is one.

    Raises:
        InputError: the file cannot be read, a row is bad, or no row has a known field.
    """
    if not path.is_file():
        raise InputError("no such file.", path=path, hint="Give a file of benchmark prompts.")
    found: list[BenchmarkPrompt] = []
    for record in read_records(path):
        if isinstance(record, BadRecord):
            raise InputError(record.reason, path=path, line=record.line, hint="Mend the row.")
        texts = [t for t in _texts(record.fields) if t.strip()]
        if not texts and found:
            raise InputError(
                "the row has no prompt, and those before it have.",
                path=path,
                line=record.line,
                hint=f"Its field has to be one of {', '.join(_FIELDS)}.",
            )
        for turn, text in enumerate(texts, start=1):
            place = f"row {record.line}" + (f" turn {turn}" if len(texts) > 1 else "")
            found.append(BenchmarkPrompt(path.name, place, text))
        if not found:
            break
    if not found:
        raise InputError(
            "no row has a prompt in it.",
            path=path,
            hint=f"Its field has to be one of {', '.join(_FIELDS)}.",
        )
    return found


def _texts(fields: Mapping[str, Any]) -> list[str]:
    """The prompts of a row: of the first field that is known."""
    for name in _FIELDS:
        value = fields.get(name)
        if isinstance(value, str):
            given = fields.get("input")
            if name == "instruction" and isinstance(given, str) and given:
                return [f"{value}\n\n{given}"]
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
    """The shipped seed tasks: what people ask for in several languages."""
    return [
        str(record.fields["instruction"])
        for path in sorted(shipped("seeds").glob("*.jsonl"))
        for record in read_records(path)
        if not isinstance(record, BadRecord)
    ]
