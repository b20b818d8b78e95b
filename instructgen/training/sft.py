"""Supervised fine-tuning: encode the rows, weight them, batch them, and compute the loss.

The loss is the cross-entropy of the answer tokens, each multiplied by the loss weight of its row.
The module `encode` marks the answer tokens. TRL's `SFTTrainer` runs the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from instructgen.errors import ConfigError
from instructgen.plugins import suggest
from instructgen.schema.sample import Sample
from instructgen.training.callbacks import Log
from instructgen.training.encode import IGNORED, Encoded, Encoder
from instructgen.training.launch import processes
from instructgen.training.options import SftOptions
from instructgen.training.rows import RejectedRows, Rows, encoded
from instructgen.training.schedule import schedule, schedule_tokens
from instructgen.training.trainer import Built, Job, Prepared, arguments, batches, ready
from instructgen.verifiers import label


def prepare(rows: Rows, encoder: Encoder, options: SftOptions, rejected: RejectedRows) -> Prepared:
    """Encode the rows and compute their loss weights.

    If ``options.rationale`` is not 0, a second training example is created from each row with the
    label `rationale`; its answer is the text of that label. Rows that cannot be used are added to
    ``rejected``.

    Raises:
        ConfigError: an option names a source, score or label that the rows do not have.
    """
    known = {sample.source for sample in rows.train}
    for source in options.weights:
        if source not in known:
            raise ConfigError(
                f"The option weights contains the source {source!r}, but no row has this source.",
                suggest(source, sorted(known)),
            )
    truncate = options.too_long == "truncate"
    main = encoded(rows.train, encoder, options.max_length, rejected, truncate=truncate)
    weights = [_weight(sample, options) for sample, _ in main]
    examples: list[Encoded] = [row for _, row in main]
    if options.rationale:
        tasks = [t for s, _ in main if (t := _rationale(s)) is not None]
        if not tasks:
            raise ConfigError(
                "The option rationale is set, but no row has the label `rationale`.",
                "Import the rows with --map=label.rationale=FIELD, or remove the option rationale.",
            )
        second = encoded(tasks, encoder, options.max_length, rejected, truncate=truncate)
        examples += [row for _, row in second]
        weights += [options.rationale * _weight(s, options) for s, _ in second]

    return Prepared(
        count=len(examples),
        trained=[sample for sample, _ in main],
        probes=[row.ids for row in examples],
        trainer=lambda job: trainer(job, examples, weights),
    )


def _weight(sample: Sample, options: SftOptions) -> float:
    weight = options.weights.get(sample.source, 1.0)
    if options.weight_score is not None:
        score = sample.score(options.weight_score)
        if score is None or score.value is None or score.value < 0:
            raise ConfigError(
                f"row {sample.id}: the score {options.weight_score!r} is missing or negative.",
                "Curate with a filter that computes the score, or remove the option weight_score.",
            )
        weight *= score.value
    return weight


def _rationale(sample: Sample) -> Sample | None:
    """Return a sample that asks for the rationale (Hsieh et al. 2023, section 3.2), or None."""
    rationale = label(sample, "rationale")
    if not rationale:
        return None
    return replace(sample, instruction=f"[rationale] {sample.instruction}", output=rationale)


def trainer(job: Job, rows: Sequence[Encoded], weights: Sequence[float]) -> Built:
    """Build the trainer, and count the rows and supervised tokens that it will train on.

    Args:
        job: model and settings; its options must be `SftOptions`.
        rows: encoded rows.
        weights: loss weight of each row. The weights are scaled so that their mean over the
            supervised tokens is 1.

    Raises:
        ConfigError: every weight is 0, or the batch cannot be divided evenly into micro-batches.
    """
    options = job.options
    assert isinstance(options, SftOptions)
    sequences = _sequences(rows, weights, options)
    tokens = [sum(label != IGNORED for label in labels) for labels in sequences["labels"]]
    sizes = [len(labels) for labels in sequences["labels"]]
    order = (
        schedule(
            len(tokens),
            options.batch_size,
            options.seed,
            epochs=options.epochs,
            steps=options.steps,
        )
        if options.tokens is None
        else schedule_tokens(tokens, options.tokens, options.batch_size, options.seed)
    )
    data = sequences.select(order.order)
    counts = [tokens[i] for i in order.order]
    if order.last is not None and order.last < counts[-1]:
        cut = _limit_labels(data[len(data) - 1], order.last)
        data, counts[-1] = _append(data.select(range(len(data) - 1)), [cut]), order.last
    if processes() > 1 and (missing := -len(data) % options.batch_size):
        # Accelerate would fill up the last step with rows of the first. Add rows without labels.
        data = _append(data, [_limit_labels(data[0], 0)] * missing)
    # A packed micro-batch is one long sequence, and attention is quadratic in its length.
    shared, accumulated = batches(options, most=1 if options.packing else 4)
    args = SFTConfig(
        **arguments(job, order.steps, shared, accumulated),
        max_length=options.max_length,
        packing=options.packing,
        completion_only_loss=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        shuffle_dataset=False,
        remove_unused_columns=False,
    )
    supervised, read = (
        [sum(each[at : at + options.batch_size]) for at in range(0, len(each), options.batch_size)]
        for each in (counts, [sizes[i] for i in order.order])
    )
    sft = _Sft(
        model=job.model,
        args=args,
        train_dataset=data,
        processing_class=job.tokenizer,
        peft_config=job.peft,
        callbacks=[Log(job.hooks, order.steps, supervised, read)],
    )
    # TRL rejects a custom collator with packing when it is passed, but uses one that is set later.
    sft.data_collator = _Collator(
        pad_token_id=job.tokenizer.pad_token_id, padding_free=options.packing
    )
    return Built(ready(sft), _rows_used(sequences, order.order), sum(counts))


def _rows_used(sequences: Dataset, order: Sequence[int]) -> int:
    """Return the number of rows in the scheduled sequences; a packed sequence contains several."""
    packed = "seq_lengths" in sequences.column_names
    return sum(len(sequences[i]["seq_lengths"]) if packed else 1 for i in set(order))


def _sequences(rows: Sequence[Encoded], weights: Sequence[float], options: SftOptions) -> Dataset:
    columns: dict[str, list[Any]] = {
        "input_ids": [row.ids for row in rows],
        "labels": [row.labels for row in rows],
    }
    if not any(weights):
        raise ConfigError("Every row has weight 0.", "Change the option weights or weight_score.")
    if len(set(weights)) > 1:
        counts = [sum(row.trained) for row in rows]
        mean = sum(w * n for w, n in zip(weights, counts, strict=True)) / max(1, sum(counts))
        columns["weights"] = [
            [w / mean] * len(row.ids) for w, row in zip(weights, rows, strict=True)
        ]
    data = Dataset.from_dict(columns)
    return pack_dataset(data, options.max_length, "bfd") if options.packing else data


def _limit_labels(sequence: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Return a sequence in which only the first ``tokens`` supervised tokens have labels."""
    labels, left = [], tokens
    for token in sequence["labels"]:
        counts = token != IGNORED and left > 0
        left -= counts
        labels.append(token if counts else IGNORED)
    return {**sequence, "labels": labels}


def _append(data: Dataset, rows: list[dict[str, Any]]) -> Dataset:
    from datasets import concatenate_datasets

    return concatenate_datasets([data, Dataset.from_list(rows, features=data.features)])


class _Collator(DataCollatorForLanguageModeling):
    """TRL's collator, which also pads or joins the loss weights of the tokens if there are any."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super().torch_call(examples)
        if "weights" in examples[0]:
            parts = [torch.tensor(e["weights"], dtype=torch.float32) for e in examples]
            if self.padding_free:
                output["weights"] = torch.cat(parts)[None]
            else:
                output["weights"] = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return output


class _Sft(SFTTrainer):
    """TRL's SFT trainer, extended with per-token loss weights."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        weights = inputs.pop("weights", None)
        if weights is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        output = model(**inputs, use_cache=False, fused_lm_head=True)
        count = output.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        # Logits at position t predict the token at t + 1.
        loss = -(output.log_probs * weights[:, 1:]).sum() / count
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss
