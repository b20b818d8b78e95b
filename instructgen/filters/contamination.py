"""Rejects rows that contain a prompt of a benchmark.

A model trained on such rows has seen the test, so its benchmark score is not valid.
"""

from __future__ import annotations

from collections import Counter
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
    """Reject rows that contain a benchmark prompt of the files ``against`` in any part.

    A prompt counts as contained in a text if one of these tests succeeds: the text has the same
    words; it has a minimum fraction of the prompt's n-grams; it has a minimum fraction of the
    prompt's words in order and close together, rare words included. If ``cosine`` is set, a
    prompt with the same meaning as the row's question also counts.
    """

    name = "contamination"
    scope = "row"

    against: tuple[str, ...] = Field((), description="Files of benchmark prompts.")
    look_in: Literal["row", "prompt"] = Field(
        "row", description="Parts of the row to search; prompt excludes the outputs."
    )
    ngram: int = Field(13, ge=3, description="Words per n-gram (default: Brown et al. 2020).")
    ngram_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Minimum fraction of a prompt's n-grams that counts as contamination.",
    )
    words_share: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Minimum fraction of a prompt's words, in order, that counts as contamination.",
    )
    weight_share: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Minimum fraction of words weighted by rarity, required in addition.",
    )
    cosine: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Cosine to a prompt above which a question counts as contamination.",
    )
    model: str = Field(
        MINILM, description="Embedding model for cosine: minilm, a folder, or a Hub name."
    )

    def files(self) -> tuple[Path, ...]:
        """Return the benchmark files."""
        return tuple(Path(name) for name in self.against)

    def thresholds(self) -> tuple[float, ...]:
        """Return the minimum fraction of words that counts as contamination."""
        return (min(self.words_share, self.weight_share),)

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection, or None.

        Its reason is ``equal_prompt``, ``prompt_ngrams``, ``prompt_words`` or ``prompt_meaning``.
        """
        return self.evaluate([sample])[0].rejection

    def evaluate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict for each sample, in order."""
        parts = [list(self._parts(sample)) for sample in samples]
        matches = iter(self._prompts.find([text for own in parts for _, text in own]))
        verdicts = []
        for sample, own in zip(samples, parts, strict=True):
            hits = [(where, match) for where, _ in own if (match := next(matches)) is not None]
            best = max(hits, key=lambda h: (_TIERS.index(h[1].tier), h[1].share), default=None)
            verdicts.append(Verdict(sample, None if best is None else self._rejection(*best)))
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

    def _rejection(self, where: str, match: PromptMatch) -> Rejection:
        reason = {"equal": "equal_prompt", "ngrams": "prompt_ngrams", "words": "prompt_words"}
        prompt = f"{match.prompt.benchmark} {match.prompt.place}"
        detail = {
            "equal": f"{where} has the same words as {prompt}",
            "ngrams": f"{where} contains {match.share:.0%} of the n-grams of {prompt}",
            "words": f"{where} contains {match.share:.0%} of the words of {prompt}, in order",
        }
        return self.reject(reason[match.tier], detail[match.tier], match.share, prompt)

    def _by_meaning(self, verdicts: list[Verdict]) -> list[Verdict]:
        kept = [i for i, v in enumerate(verdicts) if v.rejection is None]
        matches = self._index.nearest([verdicts[i].sample.question for i in kept])
        for i, match in zip(kept, matches, strict=True):
            if match is not None:
                p = self._prompts.prompts[match.row]
                prompt = f"{p.benchmark} {p.place}"
                detail = f"cosine {match.score:.3f} to {prompt}, above {self.cosine}"
                rejection = self.reject("prompt_meaning", detail, match.score, prompt)
                verdicts[i] = verdicts[i]._replace(rejection=rejection)
        return verdicts

    def searched(self) -> dict[str, int]:
        """Return the number of prompts that are searched for, by benchmark."""
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
    """Return file names, with the folders that are needed to distinguish the files."""
    names = {path: path.name for path in paths}
    depth = 1
    while len(set(names.values())) < len(names) and depth < 20:
        depth += 1
        counts = Counter(names.values())
        names = {
            path: name if counts[name] == 1 else "/".join(path.resolve().parts[-depth:])
            for path, name in names.items()
        }
    return names


def benchmark_prompts(path: Path, name: str = "") -> list[BenchmarkPrompt]:
    """Return all prompts of a benchmark file, with one prompt for each user turn.

    The prompt is the first field of a row whose name is known, such as ``prompt``. ``name`` is
    the name of the benchmark, by default that of the file.

    Raises:
        InputError: the file is missing or unreadable, or a row is invalid or has no prompt.
    """
    if not path.is_file():
        raise InputError(
            "the file does not exist.", path=path, hint="Give a file of benchmark prompts."
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
                hint=f"The prompt's field must be one of {', '.join(_FIELDS)}.",
            )
        for turn, text in enumerate(texts, start=1):
            place = f"row {record.line}" + (f" turn {turn}" if len(texts) > 1 else "")
            prompts.append(BenchmarkPrompt(name or path.name, place, text))
        if not prompts:
            break
    if not prompts:
        raise InputError(
            "no row has a prompt.",
            path=path,
            hint=f"The prompt's field must be one of {', '.join(_FIELDS)}.",
        )
    return prompts


def _texts(fields: Mapping[str, Any]) -> list[str]:
    """Return the prompts in the first known field of a row."""
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
    """Return the shipped seed tasks, from which the rarity of words is estimated."""
    return [
        str(record.fields["instruction"])
        for path in sorted(shipped("seeds").glob("*.jsonl"))
        for record in read_records(path)
        if not isinstance(record, BadRecord)
    ]
