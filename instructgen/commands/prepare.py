"""What each method of training makes of a dataset: tokens, a trainer, and a measure of both models.

`instructgen.commands.train` runs it; nothing here writes files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from instructgen.errors import ConfigError
from instructgen.plugins import suggest
from instructgen.schema.sample import Sample
from instructgen.training.options import Method, OnlineOptions, SftOptions, TrainOptions

if TYPE_CHECKING:
    from instructgen.training.encode import Encoded, Encoder
    from instructgen.training.rows import LeftOut, Rows
    from instructgen.training.trainers import Job

PAIRS = ("reward", "dpo", "kto")
ONLINE = ("grpo", "rloo", "ppo")


def fits(sample: Sample, encoder: Encoder, options: TrainOptions) -> bool:
    """Whether a row can be measured: all of it within the length that is trained."""
    from instructgen.training.encode import Unusable

    answers = [sample.output, *([sample.rejected_output] if sample.rejected_output else [])]
    rows = [encoder.encode(sample, answer) for answer in answers]
    return not any(isinstance(r, Unusable) or len(r.ids) > options.max_length for r in rows)


@dataclass(frozen=True)
class Prepared:
    """What one method makes of its rows.

    ``count`` is how many there are to train on, ``trained`` the samples they come from,
    ``probes`` their tokens, for the check of what is saved. ``trainer`` makes a trainer and
    counts supervised tokens, where the method has them; ``evaluation`` compares the model
    before with the one after.
    """

    count: int
    trained: list[Sample]
    probes: list[list[int]]
    trainer: Callable[[Job], tuple[Any, int | None]]
    evaluation: Callable[[str, str], dict[str, Any] | None]


def prepare(
    method: Method,
    rows: Rows,
    encoder: Encoder,
    options: TrainOptions,
    left_out: LeftOut,
    reward: Sequence[str],
) -> Prepared:
    """The rows as this method trains on them and measures them.

    Raises:
        ConfigError: an option names what the rows do not have, or a reward is not known.
    """
    if isinstance(options, SftOptions):
        return _supervised(rows, encoder, options, left_out)
    if method in PAIRS:
        return _preferences(method, rows, encoder, options, left_out)
    assert isinstance(options, OnlineOptions)
    return _online(method, rows, encoder, options, left_out, reward)


def _supervised(rows: Rows, encoder: Encoder, options: SftOptions, left_out: LeftOut) -> Prepared:
    from instructgen.evaluation.measures import Framing, bits_per_byte, compared
    from instructgen.training.rows import encoded
    from instructgen.training.trainers import sft_trainer

    known = {sample.source for sample in rows.train}
    for source in options.weights:
        if source not in known:
            raise ConfigError(
                f"weights: no row is of the source {source!r}.", suggest(source, sorted(known))
            )
    truncate = options.too_long == "truncate"
    made = encoded(rows.train, encoder, options.max_length, left_out, truncate=truncate)
    weights = [_weight(sample, options) for sample, _ in made]
    both: list[Encoded] = [row for _, row in made]
    if options.rationale:
        tasks = [t for s, _ in made if (t := _rationale(s)) is not None]
        if not tasks:
            raise ConfigError(
                "rationale is given, and no row has a label `rationale`.",
                "Import with --map label.rationale=FIELD, or leave it out.",
            )
        second = encoded(tasks, encoder, options.max_length, left_out, truncate=truncate)
        both += [row for _, row in second]
        weights += [options.rationale * _weight(s, options) for s, _ in second]

    def evaluation(before: str, after: str) -> dict[str, Any] | None:
        framing = Framing(options.max_length, options.format, options.pad_token)
        return compared(
            bits_per_byte(after, rows.held_out, framing),
            bits_per_byte(before, rows.held_out, framing),
        )

    return Prepared(
        count=len(both),
        trained=[sample for sample, _ in made],
        probes=[row.ids for row in both],
        trainer=lambda job: sft_trainer(job, both, weights),
        evaluation=evaluation,
    )


def _weight(sample: Sample, options: SftOptions) -> float:
    weight = options.weights.get(sample.source, 1.0)
    if options.weight_score is not None:
        score = sample.score(options.weight_score)
        if score is None or score.value is None or score.value < 0:
            raise ConfigError(
                f"row {sample.id} has no score {options.weight_score!r} of 0 or more.",
                "Curate with the filter that gives it, or leave weight_score out.",
            )
        weight *= score.value
    return weight


def _rationale(sample: Sample) -> Sample | None:
    """The second task of a row: to write down its reasons (Hsieh et al. 2023, section 3.2)."""
    from instructgen.verifiers import label

    reasons = label(sample, "rationale")
    if not reasons:
        return None
    return replace(sample, instruction=f"[rationale] {sample.instruction}", output=reasons)


def _preferences(
    method: Method, rows: Rows, encoder: Encoder, options: TrainOptions, left_out: LeftOut
) -> Prepared:
    from instructgen.evaluation.measures import (
        Framing,
        compared,
        pair_accuracy,
        pair_margins,
        reward_margins,
    )
    from instructgen.training.rows import encoded
    from instructgen.training.trainers import Pair, dpo_trainer, kto_trainer, reward_trainer

    chosen = {
        s.id: (s, row) for s, row in encoded(rows.train, encoder, options.max_length, left_out)
    }
    rejected = encoded(
        [s for s, _ in chosen.values()],
        encoder,
        options.max_length,
        left_out,
        answer=lambda s: s.rejected_output or "",
    )
    pairs = [Pair(chosen[s.id][1], row) for s, row in rejected]
    make = {"reward": reward_trainer, "dpo": dpo_trainer, "kto": kto_trainer}[method]

    def evaluation(before: str, after: str) -> dict[str, Any] | None:
        framing = Framing(options.max_length, options.format, options.pad_token)
        if method == "reward":
            return compared(pair_accuracy(reward_margins(after, rows.held_out, framing)))
        then = pair_margins(before, rows.held_out, framing)
        now = pair_margins(after, rows.held_out, framing)
        by_token = compared(
            pair_accuracy({k: v[1] for k, v in now.items()}),
            pair_accuracy({k: v[1] for k, v in then.items()}),
        )
        # What DPO optimises: which answer has become likelier than the other.
        gained = {k: v[0] - then[k][0] for k, v in now.items() if k in then}
        return {**by_token, "reward_accuracy": compared(pair_accuracy(gained, "reward_accuracy"))}

    return Prepared(
        count=len(pairs),
        trained=[s for s, _ in rejected],
        probes=[p.chosen.ids for p in pairs],
        trainer=lambda job: (make(job, pairs), None),
        evaluation=evaluation,
    )


def _online(
    method: Method,
    rows: Rows,
    encoder: Encoder,
    options: OnlineOptions,
    left_out: LeftOut,
    reward: Sequence[str],
) -> Prepared:
    from instructgen.engines.transformers import TransformersEngine
    from instructgen.evaluation.answers import completions, requests_for
    from instructgen.evaluation.measures import compared, rewards_measured
    from instructgen.training.ppo import PpoTrainer
    from instructgen.training.rewards import rewards_of, tasks_of
    from instructgen.training.rollouts import vllm_sampler
    from instructgen.training.trainers import group_trainer

    rewards = rewards_of(reward)
    for name in options.reward_weights:
        if name not in (names := [r.name for r in rewards]):
            raise ConfigError(
                f"reward_weights: no reward is called {name!r}.", suggest(name, names)
            )
    tasks, others = tasks_of(rewards, rows.train, options.seed)
    for sample in others:
        left_out.add(sample, "no_reward", "no verifier can judge it")
    usable, prompts, probes = [], [], []
    for task in tasks:
        text = encoder.prompt(task)
        if not isinstance(text, str):
            left_out.add(task, text.reason, text.detail)
            continue
        ids = encoder.ids(text)
        if len(ids) + options.max_new_tokens > options.max_length:
            left_out.add(task, "too_long", f"{len(ids)} tokens and {options.max_new_tokens} new")
            continue
        usable.append(task)
        prompts.append(text)
        probes.append(ids)
    unseen = [
        task
        for task in tasks_of(rewards, rows.held_out, options.seed + 1)[0]
        if isinstance(text := encoder.prompt(task), str)
        and len(encoder.ids(text)) + options.max_new_tokens <= options.max_length
    ]
    # Tokens, so that both models are asked in the format that was trained.
    asked = [tuple(encoder.ids(str(encoder.prompt(task)))) for task in unseen]

    def weighted(tasks: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        total = [0.0] * len(tasks)
        for one in rewards:
            weight = options.reward_weights.get(one.name, 1.0)
            for i, value in enumerate(one.score(tasks, answers)):
                total[i] += weight * (value or 0.0)
        return total

    def scores(answers: list[str], at: list[int]) -> list[float]:
        return weighted([usable[i] for i in at], answers)

    def scored(one: Any, answers: list[str], at: list[int]) -> Any:
        return one.score([usable[i] for i in at], answers)

    def trainer(job: Job) -> tuple[Any, int | None]:
        sampler = None
        if options.rollouts == "vllm":
            sampler = vllm_sampler(job.tokenizer, options, job.checkpoints)
        if method == "ppo":
            return PpoTrainer(job, prompts, scores, sampler), None
        named = {r.name: partial(scored, r) for r in rewards}
        return group_trainer(job, prompts, named, sampler), None

    def evaluation(before: str, after: str) -> dict[str, Any] | None:
        if not unseen:
            return None

        def measured(name: str) -> Any:
            engine = TransformersEngine(model=name, max_model_len=max(256, options.max_length))
            # Sampled as in training: that is the number the method raises.
            requests = requests_for(
                asked,
                temperature=options.temperature,
                max_tokens=options.max_new_tokens,
                seed=options.seed,
            )
            made = completions(engine, requests)
            engine.close()
            values = weighted(unseen, [c.text for c in made])
            return rewards_measured("reward", values, [t.id for t in unseen])

        return compared(measured(after), measured(before))

    return Prepared(
        count=len(usable),
        trained=usable,
        probes=probes,
        trainer=trainer,
        evaluation=evaluation,
    )
