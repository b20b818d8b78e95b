"""The command `train`: trains a model on a dataset, evaluates it, and writes the model folder.

The training algorithms themselves are in `instructgen.training`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from instructgen.commands.derive import name_of
from instructgen.commands.interface import command
from instructgen.commands.options import TrainOptions
from instructgen.config import load_table
from instructgen.errors import ConfigError, InputError, StorageError, first_line
from instructgen.models.folders import default_model, model_digest
from instructgen.plugins import classes, provenance
from instructgen.reports.cards import model_card
from instructgen.schema.progress import Watch
from instructgen.schema.records import InputRef
from instructgen.schema.sample import Sample, Shape
from instructgen.schema.statistics import RowCounts
from instructgen.store import (
    LicenseCounts,
    ModelRun,
    TrainedRows,
    TrainingFacts,
    TrainingInputs,
    digest_of,
    read_log,
    root_of,
    step_of,
    storage,
    training,
)
from instructgen.training.options import (
    ONLINE,
    OPTIONS,
    PAIRS,
    OnlineOptions,
    PpoOptions,
    SftOptions,
    Trainer,
    TrainerOptions,
)
from instructgen.versions import OF_MODELS, versions

if TYPE_CHECKING:
    from instructgen.training.callbacks import Pace
    from instructgen.training.encode import Encoder
    from instructgen.training.online import Tasks
    from instructgen.training.rows import RejectedRows, Rows
    from instructgen.training.trainer import Prepared

_PROBES = 4
_PROBE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of a training run.

    ``facts`` is what training.json records under the key ``result``, such as the number of steps.
    In distributed training, ``facts`` is None in all processes except the main process.
    ``messages`` are notes for the user. ``card`` is the path of the model card. ``unchanged`` is
    true if the model had already been trained.
    """

    out: Path
    trainer: str
    facts: TrainingFacts | None
    messages: tuple[str, ...]
    card: str
    unchanged: bool = False


@command(TrainOptions, "trainer", "data", "out")
def train(options: TrainOptions, watch: Watch | None = None) -> TrainResult:
    """Train a model on a dataset, or resume a training run.

    The trainers ``sft``, ``grpo``, ``rloo`` and ``ppo`` require instruction rows; ``reward``,
    ``dpo`` and ``kto`` require preference rows. If the training run is already finished, its
    result is returned. Pass trainer settings as keywords, or as one object, such as
    ``settings=SftOptions(tokens=20_000)``.

    Raises:
        InputError: the dataset is invalid or of the wrong kind.
        ConfigError: an option, the recipe or the model is invalid, or a package is missing.
        RunError: the folder contains anything other than this training run, or is in use.
        StorageError: the files cannot be written; the training run can be resumed.
        TrainingError: the loss is not finite, or the saved model differs from the trained one.
    """
    settings = check(options)
    folder = options.out
    if folder is None:
        raise ConfigError("--out is missing.", "Pass --out=FOLDER.")
    if options.held_out is not None:
        check_rows(options.trainer, options.held_out)
    from instructgen.training.policy import length_for, require_training_packages

    require_training_packages()
    _check_strategy(options.trainer, settings)
    base = default_model() if options.model is None else options.model
    length = length_for(base, settings.max_length)
    settings = settings.model_copy(update={"max_length": length})
    inputs = _inputs(options, base, settings)
    from instructgen.training.launch import is_main

    with training(folder, inputs) if is_main() else nullcontext(ModelRun(folder, inputs)) as run:
        facts = run.finished()
        unchanged = facts is not None
        if facts is None:
            facts = _Training(options, settings, base, run, watch).run()
        card = str(folder / "README.md")
        return TrainResult(folder, options.trainer, facts, tuple(run.messages), card, unchanged)


def _inputs(options: TrainOptions, base: str, settings: TrainerOptions) -> TrainingInputs:
    """Return everything that determines the trained model, such as the data and the settings."""
    from instructgen.training.rewards import verifiers_in

    held_out = options.held_out
    # The format of a file is recognized, so any installed format may be used.
    read = any(path is not None and path.is_file() for path in (options.data, held_out))
    formats = classes("sources").values() if read else ()
    return TrainingInputs(
        command=f"train {options.trainer}",
        model=InputRef(base, model_digest(base)),
        data=InputRef(name_of(options.data), digest_of(options.data)),
        reward=tuple(_reward_identity(r) for r in options.reward),
        held_out=None if held_out is None else InputRef(name_of(held_out), digest_of(held_out)),
        # Models of earlier versions were trained without this setting.
        options=settings.model_dump(
            mode="json", exclude=set() if settings.pass_rate else {"pass_rate"}
        ),
        plugins=provenance(sources=formats, verifiers=verifiers_in(options.reward)),
    )


def check(options: TrainOptions, *, look_at_data: bool = True) -> TrainerOptions:
    """Check the options, recipe and dataset without loading a model; return the trainer settings.

    Args:
        options: the options of `train`.
        look_at_data: whether to check that the dataset exists and has the right kind of rows.

    Raises:
        InputError: the dataset does not exist, or is of the wrong kind.
        ConfigError: an option or the recipe is invalid.
    """
    trainer = options.trainer
    recipe = None if options.recipe is None else str(options.recipe)
    settings = load_table(OPTIONS[trainer], recipe, "train", dict(options.settings))
    if trainer in ONLINE and not options.reward:
        raise ConfigError(
            f"train {trainer} requires a reward.",
            "Pass --reward=FOLDER of a reward model, or --reward=verifiers:ifeval,math.",
        )
    if options.reward and trainer not in ONLINE:
        raise ConfigError(f"train {trainer} does not use a reward.", "Omit --reward.")
    if options.reward:
        from instructgen.training.rewards import verifiers_of

        verifiers_of(options.reward, unsafe=options.unsafe_code_execution)
    if look_at_data:
        check_rows(trainer, options.data)
    return settings


def masks(options: TrainOptions, count: int) -> tuple[list[list[tuple[str, bool]]], RejectedRows]:
    """Return the text of the first rows for ``sft``, in pieces that the loss covers or not.

    Args:
        options: the options of `train` for the trainer ``sft``.
        count: the number of rows.

    Returns:
        For each row, a list of (piece of text, whether the loss is computed on this piece); and
        the rows before the last of them that cannot be used or are truncated.

    Raises:
        InputError: the dataset is invalid, or no row can be used.
        ConfigError: an option or the model is invalid.
    """
    settings = check(options)
    assert isinstance(settings, SftOptions)
    from instructgen.models.loading import load_tokenizer
    from instructgen.training.encode import Encoder
    from instructgen.training.policy import length_for, require_training_packages
    from instructgen.training.rows import RejectedRows, encoded, rows_for

    require_training_packages()
    base = default_model() if options.model is None else options.model
    tokenizer = load_tokenizer(base, settings.pad_token)
    encoder = Encoder(tokenizer, settings.prompt_format(), base)
    rows, rejected = rows_for(options.data, None, 0, lambda _: True), RejectedRows()
    truncate, longest = settings.too_long == "truncate", length_for(base, settings.max_length)
    shown: list[list[tuple[str, bool]]] = []
    for sample in rows.train:
        if len(shown) == count:
            break
        for _, row in encoded([sample], encoder, longest, rejected, truncate=truncate):
            pieces: list[tuple[list[int], bool]] = []
            for token, trained in zip(row.ids, row.trained, strict=True):
                if pieces and pieces[-1][1] == trained:
                    pieces[-1][0].append(token)
                else:
                    pieces.append(([token], trained))
            shown.append([(tokenizer.decode(ids), trained) for ids, trained in pieces])
    if not shown:
        raise _no_rows(options.data, rejected)
    return shown, rejected


def _no_rows(source: Path, rejected: RejectedRows) -> InputError:
    reasons = ", ".join(f"{n} {reason}" for reason, n in rejected.counts().items())
    if rejected.rows:
        reasons += f"; the first: {rejected.rows[0]['detail']}"
    return InputError(
        f"no row can be used for training: {reasons or 'all rows are held out for evaluation'}.",
        path=source,
        hint="Increase max_length, decrease held_out_rows, or use rows with nonempty answers.",
    )


def check_rows(trainer: Trainer, source: Path) -> None:
    """Check that a dataset exists and that the trainer can use its rows.

    Raises:
        InputError: the dataset does not exist, or contains the wrong kind of rows.
    """
    from instructgen.training.rows import shape_at

    if not source.exists():
        raise InputError("the dataset does not exist.", path=source, hint="Check the path.")
    supported: tuple[Shape, ...] = ("preferences",) if trainer in PAIRS else ("instructions",)
    supported = ("feedback", *supported) if trainer == "kto" else supported
    if (shape := shape_at(source)) not in supported:
        required = " or ".join(supported)
        hints: dict[Shape, str] = {
            "instructions": "Create preferences with instructgen import --as=preferences or "
            "instructgen prefer.",
            "preferences": "Use another dataset, or the trainer reward, dpo or kto.",
            "feedback": "Use another dataset, or the trainer kto.",
            "documents": "Create rows with instructgen generate --method document.",
        }
        message = f"the dataset contains {shape}, but train {trainer} requires {required}."
        raise InputError(message, path=source, hint=hints[shape])


def _check_strategy(trainer: Trainer, options: TrainerOptions) -> None:
    """Raise ConfigError if the trainer does not support the settings, processes or hardware."""
    import os

    import torch

    from instructgen.training.launch import needs_gpus, processes

    if trainer == "ppo" and processes() > 1:
        raise ConfigError("ppo can train only in one process.", "Omit --processes.")
    if isinstance(options, OnlineOptions) and options.rollouts == "vllm":
        if torch.cuda.is_available() and trainer == "ppo":
            raise ConfigError(
                "ppo on a GPU cannot sample answers with vLLM.", "Omit the setting rollouts=vllm."
            )
        if not torch.cuda.is_available() and processes() > 1:
            raise ConfigError("vLLM on a CPU supports only one process.", "Omit --processes.")
    if torch.cuda.is_available():
        return
    for name, variable in (("fsdp", "ACCELERATE_USE_FSDP"), ("ZeRO", "ACCELERATE_USE_DEEPSPEED")):
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise needs_gpus(name)


def _reward_identity(spec: str) -> InputRef:
    if spec.startswith("verifiers:"):
        return InputRef(spec)
    return InputRef(name_of(Path(spec)), model_digest(spec))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The result of the training steps; ``rows`` is the number of distinct rows that were used."""

    steps: int
    seconds: float
    resumed: bool
    reload: dict[str, float]
    supervised_tokens: int | None
    rows: int


class _Training:
    """A training run, from reading the rows to writing the files of the model."""

    def __init__(
        self,
        command: TrainOptions,
        options: TrainerOptions,
        base: str,
        run: ModelRun,
        watch: Watch | None,
    ) -> None:
        self.trainer, self.options, self.base = command.trainer, options, base
        self.source, self.held_out = command.data, command.held_out
        self.reward, self.unsafe = command.reward, command.unsafe_code_execution
        self.run_folder, self.watch = run, watch
        self.head: Any = "reward" if command.trainer == "reward" else "causal"
        self.pace: Pace | None = None
        self.tasks: Tasks | None = None

    def _report(self, pace: Pace) -> None:
        self.pace = pace
        if self.watch is not None:
            self.watch(pace.progress())

    def run(self) -> TrainingFacts | None:
        """Train, save, check and evaluate the model; return facts only in the main process."""
        from instructgen.models.loading import load_tokenizer
        from instructgen.training import policy
        from instructgen.training.callbacks import Hooks
        from instructgen.training.encode import Encoder
        from instructgen.training.launch import is_main
        from instructgen.training.rows import RejectedRows
        from instructgen.training.trainer import Job

        options, run = self.options, self.run_folder
        began = time.monotonic()
        tokenizer = load_tokenizer(self.base, options.pad_token)
        encoder = Encoder(tokenizer, options.prompt_format(), self.base)
        rows, rejected = self._rows(encoder), RejectedRows()
        prepared = self._prepared(rows, encoder, rejected)
        model = self._model(tokenizer)
        policy.set_eos(model, encoder.end_id)
        if is_main():
            # The folder may not exist yet in the other processes, which do not write files.
            _check_space(model, options, run.folder)
        probes = [ids[:_PROBE_TOKENS] for ids in prepared.probes[:_PROBES]]
        base_outputs = policy.outputs(model, probes)
        job = Job(
            trainer=self.trainer,
            options=options,
            model=model,
            tokenizer=tokenizer,
            checkpoints=run.checkpoints,
            tensorboard=run.folder / "tensorboard",
            peft=policy.peft_of(options, model, self.head),
            hooks=Hooks(run.log, run.seal, self._report),
        )
        with storage(run.folder), _weights_written(run.folder):
            built = prepared.trainer(job)
            seconds, resumed = self._fitted(built.trainer, rejected)
            with run.exporting() if is_main() else nullcontext(run.folder / ".export") as export:
                reload = self._export(built.trainer, tokenizer, export, probes, base_outputs)
        if not is_main():
            return None
        steps = built.trainer.state.global_step
        outcome = _Outcome(steps, seconds, resumed, reload, built.supervised_tokens, built.rows)
        del built, job, model
        return self._finished(rows, prepared, rejected, outcome, began)

    def _rows(self, encoder: Encoder) -> Rows:
        """Return the rows to train on and the held-out rows to evaluate on."""
        from instructgen.training.rows import rows_for
        from instructgen.training.trainer import fits

        options = self.options
        rows = rows_for(
            self.source,
            self.held_out,
            options.held_out_rows,
            lambda sample: fits(sample, encoder, options),
        )
        if len(rows.held_out) < (options.held_out_rows or 0) or (
            self.held_out is not None and not rows.held_out
        ):
            self.run_folder.messages.append(
                f"only {len(rows.held_out):,} rows are held out: no other row can be evaluated."
            )
        if options.pass_rate is not None:
            rows = replace(rows, train=self._in_range(rows.train, options.pass_rate))
        return rows

    def _in_range(self, samples: list[Sample], limits: tuple[float, float]) -> list[Sample]:
        """Return the rows whose pass rate is within the limits.

        Raises:
            InputError: no row has a pass rate, or none is within the limits.
        """
        rates = [score.value if (score := s.score("pass_rate")) else None for s in samples]
        if not any(rate is not None for rate in rates):
            raise InputError(
                "no row has the score pass_rate.",
                path=self.source,
                hint="Omit --pass-rate, or use rows from generate --method solve.",
            )
        low, high = limits
        kept = [
            sample
            for sample, rate in zip(samples, rates, strict=True)
            if rate is not None and low <= rate <= high
        ]
        self.run_folder.messages.append(
            f"{len(kept):,} of {len(samples):,} rows have a pass rate from {low:g} to {high:g}."
        )
        if not kept:
            raise InputError(
                "no row has a pass rate in this range.",
                path=self.source,
                hint="Pass a wider range in --pass-rate.",
            )
        return kept

    def _prepared(self, rows: Rows, encoder: Encoder, rejected: RejectedRows) -> Prepared:
        """Create the training examples; see the modules `sft`, `preference` and `online`."""
        from instructgen.training import online, preference, sft
        from instructgen.training.rewards import rewards_of

        options = self.options
        if isinstance(options, SftOptions):
            prepared = sft.prepare(rows, encoder, options, rejected)
        elif isinstance(options, OnlineOptions):
            rewards = rewards_of(self.reward, unsafe=self.unsafe)
            self.tasks = online.prepare_tasks(rows, encoder, options, rejected, rewards)
            prepared = online.prepare(self.trainer, self.tasks, options)
        else:
            prepared = preference.prepare(self.trainer, rows, encoder, options, rejected)
        if not prepared.count:
            raise _no_rows(self.source, rejected)
        return prepared

    def _model(self, tokenizer: Any) -> Any:
        """Load the base model; new weights, such as a reward head, depend on the random seed."""
        import torch
        from transformers import set_seed

        from instructgen.models.loading import load_model

        options, dtype = self.options, self.options.dtype
        if dtype == "auto":
            adapters = options.peft != "none"
            dtype = "bfloat16" if torch.cuda.is_available() and adapters else "float32"
        set_seed(options.seed)
        model = load_model(
            self.base,
            self.head,
            tokenizer=tokenizer,
            dtype=dtype,
            quantized=options.peft == "qlora",
            new_head=True,
        )
        if isinstance(getattr(model, "peft_config", None), dict):
            raise ConfigError(
                f"--model={self.base} is an adapter that cannot be merged into its base model.",
                "Pass the base model, or a different model.",
            )
        return model

    def _fitted(self, trainer: Any, rejected: RejectedRows) -> tuple[float, bool]:
        """Train; return the time in seconds, and whether training resumed from a checkpoint."""
        from instructgen.training.launch import is_main
        from instructgen.training.trainer import fit

        run = self.run_folder
        # The main process removes incomplete checkpoints before the others search for checkpoints.
        checkpoint = run.latest_complete_checkpoint() if is_main() else None
        trainer.accelerator.wait_for_everyone()
        checkpoint = checkpoint if is_main() else run.latest_complete_checkpoint()
        if is_main():
            run.truncate_log(0 if checkpoint is None else step_of(checkpoint))
            lines = (orjson.dumps(row) + b"\n" for row in rejected.rows)
            run.write("rejected.jsonl", b"".join(lines))
        if checkpoint is not None:
            run.messages.append(f"resumed from {checkpoint.name}.")
        began = time.monotonic()
        fit(trainer, checkpoint)
        return time.monotonic() - began, checkpoint is not None

    def _finished(
        self,
        rows: Rows,
        prepared: Prepared,
        rejected: RejectedRows,
        outcome: _Outcome,
        began: float,
    ) -> TrainingFacts:
        """Evaluate the model; write training.json, the model card and a plot of the log."""
        from instructgen.evaluation.before_after import before_after
        from instructgen.evaluation.plots import log_plot
        from instructgen.training.rows import digest_of_rows

        options, run = self.options, self.run_folder
        contents = RowCounts()
        contents.add(prepared.trained)
        evaluation = (
            before_after(self.trainer, options, rows, self.tasks, self.base, str(run.folder))
            if options.evaluate and rows.held_out
            else ()
        )
        if outcome.reload["moved"] == 0:
            run.messages.append("training did not change the model.")
        facts = TrainingFacts(
            base=self.base,
            root=root_of(self.base),
            trainer=self.trainer,
            rows=TrainedRows(
                train=len(prepared.trained),
                # A row with a rationale gives two examples.
                seen=min(outcome.rows, len(prepared.trained)),
                sha256=digest_of_rows(prepared.trained),
                rejected=rejected.counts(),
                held_out=len(rows.held_out),
                held_out_from=rows.held_out_from,
            ),
            steps=outcome.steps,
            supervised_tokens=outcome.supervised_tokens,
            seconds=round(outcome.seconds, 1),
            total_seconds=round(time.monotonic() - began, 1),
            tokens_per_s=round(self.pace.tokens / outcome.seconds, 1) if self.pace else None,
            resumed=outcome.resumed,
            reload=outcome.reload,
            evaluation=evaluation,
            terms=LicenseCounts(contents.licenses, contents.generators, contents.attributions),
            versions=versions(OF_MODELS),
        )
        data, recorded = name_of(self.source), options.model_dump(mode="json")
        card = model_card(name_of(run.folder), data, contents, facts, recorded)
        run.write("README.md", card.encode())
        run.write("log.png", log_plot(read_log(run.folder)))
        run.finish(facts)
        return facts

    def _export(
        self, trainer: Any, tokenizer: Any, export: Path, probes: Any, base_outputs: Any
    ) -> dict[str, float]:
        """Save the model with adapters merged, reload it, and compare it with the trained model."""
        import torch

        from instructgen.models.loading import load_model
        from instructgen.training import policy
        from instructgen.training.launch import is_main
        from instructgen.training.trainer import trainer_shards

        adapters = self.options.peft != "none"
        saved = export / "adapter" if adapters else export
        # Without the autocast to bfloat16 that training on a GPU adds to the model.
        plain = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        trained = policy.outputs(plain, probes)
        trainer.save_model(str(saved))
        if not is_main():
            return {}
        for unused in ("training_args.bin", "README.md"):
            (saved / unused).unlink(missing_ok=True)
        if adapters:
            merged = load_model(str(saved), self.head, tokenizer=tokenizer)
            if hasattr(merged, "peft_config"):
                shutil.copytree(saved, export, dirs_exist_ok=True)
            else:
                merged.save_pretrained(export)
            del merged
            for file in saved.iterdir():
                if not file.name.startswith("adapter_"):
                    file.unlink()
        tokenizer.save_pretrained(export)
        reloaded = load_model(str(export), self.head, tokenizer=tokenizer)
        return policy.check_reload(
            trained,
            policy.outputs(reloaded, probes),
            base_outputs,
            precise=trainer.model.dtype == torch.float32,
            # With sharded weights, one process does not have the whole model.
            rough=self.options.peft == "qlora" or trainer_shards(trainer),
        )


@contextmanager
def _weights_written(folder: Path) -> Iterator[None]:
    """Raise StorageError if safetensors or PyTorch cannot write the weights."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        text = str(error)
        if "I/O error" not in text and "PytorchStreamWriter failed" not in text:
            raise
        raise StorageError(
            f"{folder}: the weights cannot be written ({first_line(error)}).",
            "Free up disk space, then rerun the same command to resume.",
        ) from error


def _check_space(model: Any, options: TrainerOptions, folder: Path) -> None:
    """Check that the disk has enough free space for training.

    Raises:
        ConfigError: there is too little space for two checkpoints and the model.
    """
    weights = sum(p.numel() for p in model.parameters()) * 4
    share = 0.05 if options.peft != "none" else 1.0
    # A checkpoint contains the weights and two moments per weight; ppo trains two models.
    two = isinstance(options, PpoOptions)
    needed = int(weights * (1 + 2 * 3 * share * (1 + two) + (4 if two else 0)))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{folder}: {free / 1e9:.1f} GB are free, but training requires about "
            f"{needed / 1e9:.1f} GB for checkpoints and the model.",
            "Free up disk space, or use another --out.",
        )
