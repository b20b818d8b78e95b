"""The command train: a dataset and a model in, a better model out, with what it took."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import orjson

from instructgen.card import model_card
from instructgen.commands.derived import name_of
from instructgen.config import load_table
from instructgen.contents import Contents
from instructgen.engines.models import default_model, model_digest
from instructgen.errors import ConfigError, InputError, StorageError
from instructgen.plugins import suggest
from instructgen.sample import Sample
from instructgen.store import ModelRun, digest_of, read_log, read_training, storage, training
from instructgen.training.options import (
    OPTIONS,
    Method,
    OnlineOptions,
    PpoOptions,
    SftOptions,
    TrainOptions,
)

if TYPE_CHECKING:
    from instructgen.training.encode import Encoded, Encoder
    from instructgen.training.rows import LeftOut, Rows
    from instructgen.training.trainers import Job, Progress

_PACKAGES = ("instructgen", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
_PAIRS = ("reward", "dpo", "kto")
_ONLINE = ("grpo", "rloo", "ppo")
_PROBES = 4
_PROBE_TOKENS = 64

TrainWatch = Callable[["Progress"], None]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run came to; ``facts`` is what run.json says."""

    out: Path
    method: str
    facts: dict[str, Any]
    messages: tuple[str, ...]
    card: str


def train(
    method: str,
    data: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    recipe: str | Path | None = None,
    reward: Sequence[str] = (),
    held_out: str | Path | None = None,
    watch: TrainWatch | None = None,
    **options: Any,
) -> TrainResult:
    """Train a model on a dataset, or go on with such a run.

    Args:
        method: ``sft``, ``reward``, ``dpo``, ``kto``, ``grpo``, ``rloo`` or ``ppo``.
        data: a dataset or run folder, or a file that import can read: instructions for
            sft, grpo, rloo and ppo, preferences for reward, dpo and kto.
        out: the model's folder. One that holds this run is resumed; a finished run is
            left as it is.
        model: what to begin with: a folder, a Hub name, or ``smollm2``.
        recipe: a TOML file whose table [train] holds options.
        reward: for grpo, rloo and ppo: reward models and ``verifiers:NAME,NAME``.
        held_out: rows to evaluate on before and after; without it the split
            ``validation``, or rows kept from training.
        watch: called after each step.
        options: of the method; see `instructgen.training.options`.

    Raises:
        InputError: the dataset is bad or of the wrong kind.
        ConfigError: an option, the recipe or the model is bad, or packages are missing.
        RunError: the folder holds something else, or is in use.
        StorageError: the disk refuses; the run can be resumed.
        TrainingError: the loss is no number, or the saved model is not the trained one.
    """
    chosen, settings = check(method, data, reward, recipe, options)
    source, folder = Path(data), Path(out)
    from instructgen.training.policy import length_for, needs_packages

    needs_packages()
    _check_strategy(chosen, settings)
    base = model or default_model()
    length = length_for(base, settings.max_length)
    settings = settings.model_copy(update={"max_length": length})
    asked = {
        "command": f"train {chosen}",
        "model": {"name": base, "digest": model_digest(base)},
        "data": {"name": name_of(source), "sha256": digest_of(source)},
        "reward": [_reward_identity(r) for r in reward],
        "held_out": None
        if held_out is None
        else {"name": name_of(Path(held_out)), "sha256": digest_of(Path(held_out))},
        "options": settings.model_dump(mode="json"),
    }
    from instructgen.training.trainers import is_main

    with training(folder, asked) if is_main() else nullcontext(ModelRun(folder, asked)) as run:
        facts = run.finished()
        if facts is None:
            job = _Training(chosen, settings, source, base, tuple(reward), held_out, run, watch)
            facts = job.run()
        return TrainResult(folder, chosen, facts, tuple(run.messages), str(folder / "README.md"))


def check(
    method: str,
    data: str | Path,
    reward: Sequence[str],
    recipe: str | Path | None,
    options: Mapping[str, Any],
) -> tuple[Method, TrainOptions]:
    """The method and its options, checked as far as that goes without a model.

    Raises:
        InputError: the dataset is not there, or of the wrong kind.
        ConfigError: the method, an option or the recipe is bad.
    """
    if method not in OPTIONS:
        raise ConfigError(f"{method!r} is no way to train.", suggest(method, list(OPTIONS)))
    chosen: Method = next(m for m in get_args(Method) if m == method)
    settings = load_table(
        OPTIONS[chosen], None if recipe is None else str(recipe), "train", dict(options)
    )
    if (chosen in _ONLINE) != bool(reward):
        hint = (
            "Give --reward models/rm, or --reward verifiers:ifeval,math."
            if chosen in _ONLINE
            else "Leave --reward out."
        )
        raise ConfigError(
            f"train {method} {'needs a' if chosen in _ONLINE else 'has no'} reward.", hint
        )
    _check_inputs(chosen, Path(data))
    return chosen, settings


def masks(
    data: str | Path,
    *,
    count: int,
    model: str | None = None,
    recipe: str | Path | None = None,
    **options: Any,
) -> list[list[tuple[str, bool]]]:
    """The first rows as supervised fine-tuning sees them: pieces of text, and whether trained.

    Raises:
        InputError: the dataset is bad.
        ConfigError: an option or the model is bad.
    """
    settings = load_table(SftOptions, None if recipe is None else str(recipe), "train", options)
    _check_inputs("sft", Path(data))
    from instructgen.training.encode import Encoder
    from instructgen.training.policy import length_for, load_tokenizer, needs_packages
    from instructgen.training.rows import LeftOut, encoded, rows_for

    needs_packages()
    base = model or default_model()
    tokenizer = load_tokenizer(base, settings.pad_token)
    encoder = Encoder(tokenizer, settings.format, base)
    rows = rows_for(Path(data), None, 0, lambda _: True)
    truncate, longest = settings.too_long == "truncate", length_for(base, settings.max_length)
    shown: list[list[tuple[str, bool]]] = []
    for sample in rows.train:
        if len(shown) == count:
            break
        for _, row in encoded([sample], encoder, longest, LeftOut(), truncate=truncate):
            pieces: list[tuple[list[int], bool]] = []
            for token, trained in zip(row.ids, row.trained, strict=True):
                if pieces and pieces[-1][1] == trained:
                    pieces[-1][0].append(token)
                else:
                    pieces.append(([token], trained))
            shown.append([(tokenizer.decode(ids), trained) for ids, trained in pieces])
    return shown


def _check_inputs(method: Method, source: Path) -> None:
    from instructgen.training.rows import shape_at

    if not source.exists():
        raise InputError("no such dataset.", path=source, hint="Check the path.")
    wanted = "preferences" if method in _PAIRS else "instructions"
    if (shape := shape_at(source)) != wanted:
        hint = (
            "Run: instructgen import --as preferences, or instructgen prefer."
            if wanted == "preferences"
            else "Train reward, dpo or kto on it."
        )
        raise InputError(
            f"it holds {shape}; train {method} wants {wanted}.", path=source, hint=hint
        )


def _check_strategy(method: Method, options: TrainOptions) -> None:
    """Refuse what would run as something else without a word."""
    import os

    import torch

    from instructgen.training.launch import needs_gpus
    from instructgen.training.trainers import processes

    if method == "ppo" and processes() > 1:
        raise ConfigError("ppo trains in one process.", "Leave --processes out.")
    if isinstance(options, OnlineOptions) and options.rollouts == "vllm":
        if torch.cuda.is_available() and method == "ppo":
            raise ConfigError("On a GPU ppo samples by transformers.", "Leave rollouts out.")
        if not torch.cuda.is_available() and processes() > 1:
            raise ConfigError("vLLM on a CPU serves one process.", "Leave --processes out.")
    if torch.cuda.is_available():
        return
    for name, variable in (("fsdp", "ACCELERATE_USE_FSDP"), ("ZeRO", "ACCELERATE_USE_DEEPSPEED")):
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise needs_gpus(name)


def _reward_identity(spec: str) -> dict[str, str]:
    if spec.startswith("verifiers:"):
        return {"name": spec}
    return {"name": name_of(Path(spec)), "digest": model_digest(spec)}


class _Training:
    """One run, from rows to files."""

    def __init__(
        self,
        method: Method,
        options: TrainOptions,
        source: Path,
        base: str,
        reward: Sequence[str],
        held_out: str | Path | None,
        run: ModelRun,
        watch: TrainWatch | None,
    ) -> None:
        self.method, self.options, self.source, self.base = method, options, source, base
        self.reward, self.run_folder, self.watch = reward, run, watch
        self.held_out = None if held_out is None else Path(held_out)
        self.head: Any = "reward" if method == "reward" else "causal"
        self.progress: Progress | None = None

    def _told(self, progress: Progress) -> None:
        self.progress = progress
        if self.watch is not None:
            self.watch(progress)

    def run(self) -> dict[str, Any]:
        """Train, save, check and evaluate; what run.json says of it."""
        import torch
        from transformers import set_seed

        from instructgen.evaluation.plots import log_plot
        from instructgen.training import policy
        from instructgen.training.encode import Encoder
        from instructgen.training.rows import LeftOut, digest_of_rows, rows_for
        from instructgen.training.trainers import Hooks, Job, fit, is_main

        options, run = self.options, self.run_folder
        began = time.monotonic()
        tokenizer = policy.load_tokenizer(self.base, options.pad_token)
        encoder = Encoder(tokenizer, options.format, self.base)
        rows = rows_for(
            self.source,
            self.held_out,
            options.held_out_rows,
            lambda sample: _fits(sample, encoder, options),
        )
        left_out = LeftOut()
        prepared = _prepared(self.method, rows, encoder, options, left_out, self.reward)
        if not prepared.count:
            reasons = ", ".join(f"{n} {reason}" for reason, n in left_out.counts().items())
            raise InputError(
                f"no row can be trained on: {reasons or 'all are held out'}.",
                path=self.source,
                hint="See max_length, held_out_rows and the rows' answers.",
            )
        gpu = torch.cuda.is_available()
        adapters = options.peft != "none"
        dtype = options.dtype
        if dtype == "auto":
            dtype = "bfloat16" if gpu and adapters else "float32"
        # New weights, a reward head or adapters, come from the seed.
        set_seed(options.seed)
        model = policy.load_model(
            self.base,
            self.head,
            tokenizer=tokenizer,
            dtype=dtype,
            quantized=options.peft == "qlora",
        )
        if isinstance(getattr(model, "peft_config", None), dict):
            raise ConfigError(
                f"--model {self.base} is an adapter that cannot be merged.",
                "Train on its base, or give a merged model.",
            )
        policy.stop_at(model, encoder.end_id)
        _check_space(model, options, run.folder)
        probes = [ids[:_PROBE_TOKENS] for ids in prepared.probes[:_PROBES]]
        base_outputs = policy.outputs(model, probes)
        job = Job(
            method=self.method,
            options=options,
            model=model,
            tokenizer=tokenizer,
            checkpoints=run.checkpoints,
            tensorboard=run.folder / "tensorboard",
            peft=policy.peft_of(options, model, self.head),
            hooks=Hooks(run.log, run.seal, self._told),
        )
        with storage(run.folder), _weights_written(run.folder):
            trainer, tokens = prepared.trainer(job)
            # The main process clears away what is not complete; the others look after it.
            checkpoint = run.newest() if is_main() else None
            trainer.accelerator.wait_for_everyone()
            checkpoint = checkpoint if is_main() else run.newest()
            if is_main():
                run.forget_after(0 if checkpoint is None else _step_of(checkpoint))
                lines = (orjson.dumps(row) + b"\n" for row in left_out.rows)
                run.write("left_out.jsonl", b"".join(lines))
            if checkpoint is not None:
                run.messages.append(f"resumed from {checkpoint.name}.")
            trained_at = time.monotonic()
            fit(trainer, checkpoint)
            seconds = time.monotonic() - trained_at
            with run.exporting() if is_main() else nullcontext(run.folder / ".export") as export:
                reload_ = self._export(trainer, tokenizer, export, probes, base_outputs)
        if not is_main():
            return {}
        contents = Contents()
        contents.add(prepared.trained)
        steps = trainer.state.global_step
        del trainer, job, model
        facts = {
            "base": self.base,
            # Of a model trained here, what it began as in the end: whose terms go with it.
            "root": _root(self.base),
            "method": self.method,
            "rows": {
                "train": len(prepared.trained),
                "sha256": digest_of_rows(prepared.trained),
                "left_out": left_out.counts(),
                "held_out": len(rows.held_out),
                "held_out_from": rows.held_out_from,
            },
            "steps": steps,
            "supervised_tokens": tokens,
            "seconds": round(seconds, 1),
            "tokens_per_s": round(self.progress.tokens / seconds, 1) if self.progress else None,
            "resumed": checkpoint is not None,
            "reload": reload_,
            "evaluation": prepared.evaluation(self.base, str(run.folder))
            if options.evaluate and rows.held_out
            else None,
            "licenses": contents.licenses,
            "terms": {
                "licenses": contents.licenses,
                "generators": contents.generators,
                "attributions": contents.attributions,
            },
            "versions": versions(),
        }
        if facts["reload"]["moved"] == 0:
            run.messages.append("the saved model equals the one it began as.")
        card = model_card(
            name_of(run.folder),
            name_of(self.source),
            contents,
            {**facts, "options": options.model_dump(mode="json")},
        )
        run.write("README.md", card.encode())
        run.write("log.png", log_plot(read_log(run.folder)))
        facts["total_seconds"] = round(time.monotonic() - began, 1)
        run.finish(facts)
        return run.finished() or {}

    def _export(
        self, trainer: Any, tokenizer: Any, export: Path, probes: Any, base_outputs: Any
    ) -> dict[str, float]:
        """Save the model, whole and as an adapter, and read it back."""
        import torch

        from instructgen.training import policy
        from instructgen.training.trainers import is_main, trainer_shards

        adapters = self.options.peft != "none"
        saved = export / "adapter" if adapters else export
        trained = policy.outputs(trainer.accelerator.unwrap_model(trainer.model), probes)
        trainer.save_model(str(saved))
        if not is_main():
            return {}
        for junk in ("training_args.bin", "README.md", "optimizer.pt"):
            (saved / junk).unlink(missing_ok=True)
        if adapters:
            merged = policy.load_model(str(saved), self.head, tokenizer=tokenizer)
            if merged_is_adapter := hasattr(merged, "peft_config"):
                shutil.copytree(saved, export, dirs_exist_ok=True)
            else:
                merged.save_pretrained(export)
            del merged
            (saved / "README.md").unlink(missing_ok=True)
            for file in saved.iterdir():
                if not file.name.startswith("adapter_"):
                    file.unlink()
            if merged_is_adapter:
                (export / "README.md").unlink(missing_ok=True)
        tokenizer.save_pretrained(export)
        reloaded = policy.load_model(str(export), self.head, tokenizer=tokenizer)
        return policy.check_reload(
            trained,
            policy.outputs(reloaded, probes),
            base_outputs,
            precise=trainer.model.dtype == torch.float32,
            # Of weights in shards, what one process holds is not the model.
            rough=self.options.peft == "qlora" or trainer_shards(trainer),
        )


def _fits(sample: Sample, encoder: Encoder, options: TrainOptions) -> bool:
    """Whether a row can be measured: all of it within the length that is trained."""
    from instructgen.training.encode import Unusable

    answers = [sample.output, *([sample.rejected_output] if sample.rejected_output else [])]
    rows = [encoder.encode(sample, answer) for answer in answers]
    return not any(isinstance(r, Unusable) or len(r.ids) > options.max_length for r in rows)


@dataclass(frozen=True)
class _Prepared:
    """What one method makes of its rows."""

    count: int
    trained: list[Sample]
    probes: list[list[int]]
    trainer: Callable[[Job], tuple[Any, int | None]]
    evaluation: Callable[[str, str], dict[str, Any] | None]


def _prepared(
    method: Method,
    rows: Rows,
    encoder: Encoder,
    options: TrainOptions,
    left_out: LeftOut,
    reward: Sequence[str],
) -> _Prepared:
    if isinstance(options, SftOptions):
        return _supervised(rows, encoder, options, left_out)
    if method in _PAIRS:
        return _preferences(method, rows, encoder, options, left_out)
    assert isinstance(options, OnlineOptions)
    return _online(method, rows, encoder, options, left_out, reward)


def _supervised(rows: Rows, encoder: Encoder, options: SftOptions, left_out: LeftOut) -> _Prepared:
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

    return _Prepared(
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
) -> _Prepared:
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

    return _Prepared(
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
) -> _Prepared:
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

    return _Prepared(
        count=len(usable),
        trained=usable,
        probes=probes,
        trainer=trainer,
        evaluation=evaluation,
    )


@contextmanager
def _weights_written(folder: Path) -> Iterator[None]:
    """Turn the refusals of the disk, as the libraries that write weights say them, into ours."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        said = str(error)
        if "I/O error" not in said and "PytorchStreamWriter failed" not in said:
            raise
        raise StorageError(
            f"{folder}: weights cannot be written ({said.splitlines()[0][:120]}).",
            "Free space; the same command goes on from here.",
        ) from error


def _root(base: str) -> str:
    run = Path(base) / "run.json"
    if not run.is_file():
        return base
    return str(read_training(Path(base)).get("root", base))


def _check_space(model: Any, options: TrainOptions, folder: Path) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        ConfigError: less space is free than two checkpoints and the model need.
    """
    weights = sum(p.numel() for p in model.parameters()) * 4
    share = 0.05 if options.peft != "none" else 1.0
    # A checkpoint holds weights and two moments of each; ppo's two models, whole.
    two = isinstance(options, PpoOptions)
    needed = int(weights * (1 + 2 * 3 * share * (1 + two) + (4 if two else 0)))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{folder}: {free / 1e9:.1f} GB are free, and training needs about "
            f"{needed / 1e9:.1f} GB for checkpoints and the model.",
            "Free space, or give another --out.",
        )


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def versions() -> dict[str, str]:
    """The packages that a model depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
