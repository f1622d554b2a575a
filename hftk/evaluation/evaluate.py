"""Evaluate a model on a split: run it over every row, in data order, and score its outputs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hftk.config import EvalConfig, GenerationSettings
from hftk.console import note, progress_bar
from hftk.features import encode
from hftk.features.batches import fill_batches, sort_rows
from hftk.generation.generate import generate, generate_keeping
from hftk.launch import on_main
from hftk.launch.files import remove_unfinished, write_atomically
from hftk.launch.output_folder import PREDICTIONS
from hftk.models import device_map
from hftk.models.load import context_length, default_length, is_pretrained
from hftk.models.sharded import compute_dtype, is_sharded
from hftk.task import Features, Outputs, Score, Splits, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGITS_BYTES = 2**28
"""Most memory for the logits over the vocabulary of one batch: batches of a judged split shrink to fit (no
score changes)."""
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TOKENS = 2**14
"""Most tokens of one batch, padding included, where the vocabulary does not matter."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a model on a split, its predictions and what else was found."""

    scores: list[Score]
    samples: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    split: str = ""
    outputs: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Name to one entry per feature, as :meth:`hftk.task.Task.outputs` gives them."""
    predictions: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """One per row, in data order."""
    analysis: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """Sections for the report."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts from encoding: tokens, truncated rows; ``precision`` of the forward passes."""


def evaluate(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: tuple[str, Dataset] | None,
    config: EvalConfig,
    *,
    max_length: int | None = None,
    when: str = "after",
    samples: bool = True,
    output: str | Path | None = None,
) -> Evaluation | None:
    """Scores and samples of ``model`` on ``held_out`` (name and rows of a split), or None where there is no
    such split.

    ``max_length`` is the context of each window in tokens; default: the model's, at most 1024. All processes
    call this and get the same result. No score depends on ``eval.batch_size`` or on the number of processes,
    and none on ``train.precision``: forward passes are computed in the precision of the weights, here and on
    the validation split during training (FSDP2 has gathered them in 16 bits where it trained so:
    ``precision`` among the facts). With ``output``, a folder, the main process writes ``predictions.jsonl``
    there, one line per row, before anything is scored.
    """
    if held_out is None:
        return None
    started = time.perf_counter()
    split, rows = held_out
    task = task.with_config(eval=config)
    rows = first_rows(rows, config.max_rows)
    max_length = max_length or default_length(model.config)
    features = encode(task, rows, tokenizer, max_length=max_length, training=False)
    title = f"evaluating {when} training" if when in ("before", "after") else "evaluating"
    arrays = run_model(task, model, tokenizer, features, batch_size=config.batch_size, title=title)
    if "generation" in task.judged_by and (when != "before" or is_pretrained(task.config.model)):
        texts = _generate(task, model, tokenizer, rows, max_length, output)
        arrays["generated"] = np.array(texts, dtype=object)
    outputs = Outputs(
        arrays=arrays,
        features=features,
        rows=rows,
        tokenizer=tokenizer,
        model_config=model.config,
        resamples=config.resamples,
        seed=config.seed,
    )
    predictions = task.predictions(outputs)
    if output is not None:
        on_main(write_predictions, Path(output), predictions)
    scores = task.scores(outputs)
    return Evaluation(
        scores=[replace(s, split=split, when=when) for s in scores],
        samples=_complete(task, model, tokenizer, task.samples(outputs)) if samples else [],
        seconds=time.perf_counter() - started,
        split=split,
        outputs=arrays,
        predictions=predictions,
        analysis=task.analysis(outputs) if when == "after" else [],
        facts={**features.facts, "precision": PRECISIONS.get(compute_dtype(model), str(model.dtype))},
    )


GENERATED = ".generated.jsonl"
"""Where each process keeps outputs as they come, until the predictions are written: a kill in between loses
none."""


def generation_scores(
    task: Task,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    features: Features,
    outputs: Mapping[str, np.ndarray],
    *,
    count: int,
    max_length: int,
) -> list[Score]:
    """Scores of text generated for the first ``count`` of ``rows``, during training; [] where the task
    generates none.

    ``features`` and ``outputs`` are those of all ``rows``. All processes call this and get the same; no
    random number is drawn. The likeliest tokens are taken whatever ``generation`` says: beams need several
    times as long, and samples would add their own noise to the choice of the best weights.
    """
    if "generation" not in task.judged_by or not count:
        return []
    rows = first_rows(rows, count)
    features = features.of_rows(len(rows))
    some = {name: values[: len(features)] for name, values in outputs.items()}
    texts = _generate(task, model, tokenizer, rows, max_length, None, greedy=True)
    some["generated"] = np.array(texts, dtype=object)
    return task.scores(
        Outputs(arrays=some, features=features, rows=rows, tokenizer=tokenizer, model_config=model.config)
    )


def _generate(
    task: Task,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    max_length: int,
    output: str | Path | None,
    greedy: bool = False,
) -> list[str]:
    """One output per row, in data order; the rows are dealt to the processes. With ``output`` an interrupted
    call is continued."""
    process, processes = rank_and_world_size()
    settings = task.generation(model)
    if greedy:
        kept = {
            name: getattr(settings, name)
            for name in ("max_new_tokens", "no_repeat_ngram_size", "repetition_penalty")
        }
        settings = GenerationSettings(**kept)
    sources, _ = task.prompts(
        list(rows[task.inputs[0]]), tokenizer, max_length=max_length, new=settings.max_new_tokens
    )
    # Sharded weights are gathered in every forward pass: then all processes write all rows, in step, and from
    # the first one on, since each would have kept another number of them.
    together = processes > 1 and is_sharded(model)
    mine = list(range(len(sources))) if together else list(range(process, len(sources), processes))
    prompts = [sources[i] for i in mine]
    if output is None or together:
        found = generate(model, tokenizer, prompts, settings, max_prompt_tokens=max_length, numbers=mine)
    else:
        path = Path(output) / f"{GENERATED}{process}"
        path.parent.mkdir(parents=True, exist_ok=True)
        found = generate_keeping(
            path,
            model,
            tokenizer,
            prompts,
            settings,
            max_prompt_tokens=max_length,
            progress=process == 0,
            numbers=mine,
        )
    own = list(zip(mine, (g.text.strip() for g in found), strict=True))
    parts: list[Any] = [own]
    if processes > 1 and not together:
        parts = [None] * processes
        torch.distributed.all_gather_object(parts, own)
    return [text for _, text in sorted(pair for part in parts for pair in part)]


def write_predictions(folder: Path, predictions: list[dict[str, Any]]) -> None:
    """``predictions.jsonl`` into ``folder``, whole or not at all; what generation kept for it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder, PREDICTIONS)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
    write_atomically(folder / PREDICTIONS, lines)
    for kept in folder.glob(f"{GENERATED}*"):
        kept.unlink()


def evaluate_baselines(
    task: Task, tokenizer: PreTrainedTokenizerBase, splits: Splits, config: EvalConfig, *, max_length: int
) -> list[Score]:
    """Scores of trivial systems, fitted on the training split, on the rows that :func:`evaluate` takes."""
    if splits.held_out is None:
        return []
    split, rows = splits.held_out
    task = task.with_config(eval=config)
    rows = first_rows(rows, config.max_rows)
    features = Features(columns={}, rows=np.empty(0, np.int64), lengths=np.empty(0, np.int64))
    if task.baselines_read_tokens:
        features = encode(task, rows, tokenizer, max_length=max_length, training=False)
    given = Outputs(
        features=features, rows=rows, tokenizer=tokenizer, resamples=config.resamples, seed=config.seed
    )
    scores = on_main(task.baselines, splits, given)
    return [replace(s, split=split) for s in scores]


def _complete(
    task: Task, model: Any, tokenizer: PreTrainedTokenizerBase, samples: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Let the model continue the samples that have a ``prompt``, by the settings of ``generation``.

    At least half of a decoder's context is left to the prompt, so that a run never fails over its samples.
    """
    prompts = [s["prompt"] for s in samples if "prompt" in s]
    if not prompts:
        return samples
    settings, half = task.config.generation, max(1, context_length(model.config) // 2)
    if settings.max_new_tokens > half and not model.config.is_encoder_decoder:
        note(f"samples have at most {half} new tokens: half of the model's context, the rest is the prompt's")
        settings = replace(settings, max_new_tokens=half)
    texts = iter([g.text for g in generate(model, tokenizer, prompts, settings)])
    return [{**s, "prediction": next(texts)} if "prompt" in s else s for s in samples]


def first_rows(rows: Dataset, count: int | None) -> Dataset:
    """The first ``count`` rows, or all."""
    return rows if count is None or count >= len(rows) else rows.select(range(count))


def run_model(
    task: Task,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    features: Features,
    *,
    batch_size: int,
    title: str = "",
) -> dict[str, np.ndarray]:
    """``task.outputs`` of every feature, one entry per feature in the order of ``features``, on every
    process.

    Features are sorted by length, so that a batch has little padding, and dealt to the processes in turn. The
    last result is remembered: where the validation split is judged at the end too, the same weights are not
    run over the same rows twice.
    """
    collate = task.collator(tokenizer, model, training=False)
    key = _key(task, model, features, batch_size)
    if key is not None and key in _last:
        return dict(_last[key])
    order = sort_rows(np.arange(len(features)), features.padded, batch_size)
    batches = fill_batches(order, features.padded, batch_size, _token_budget(task, model))
    process, processes = rank_and_world_size()
    mine = list(range(process, len(batches), processes))
    while len(mine) < -(-len(batches) // processes):
        mine.append(
            0
        )  # every process runs equally many forward passes: a sharded model gathers weights in each
    parts = []
    with eval_mode(model):
        for number in _progress(mine, title):
            batch = collate([features[int(i)] for i in batches[number]])
            batch = {name: value.to(device_map.device_of(model)) for name, value in batch.items()}
            parts.append(
                {
                    name: value.float().cpu().numpy()
                    if value.dtype == torch.bfloat16
                    else value.cpu().numpy()
                    for name, value in task.outputs(model, batch).items()
                }
            )
    outputs = _in_order(list(zip(mine, parts, strict=True)), batches, len(features))
    _last.clear()
    if key is not None:
        _last[key] = dict(outputs)
    return outputs


WRITTEN_BY_SAVING = ("architectures", "dtype", "transformers_version", "use_cache", "_name_or_path")
"""Fields of a model's config that saving and training set, and that change no output."""
_last: dict[bytes, dict[str, np.ndarray]] = {}
"""What :func:`run_model` computed last, under the digest of all that it depends on."""


def _key(task: Task, model: Any, features: Features, batch_size: int) -> bytes | None:
    """Digest of weights, settings, rows and batches; None on a GPU, whose weights would have to come to the
    CPU, and on several processes, each of which may hold a part of them.

    Every byte counts: a digest runs at about 1 GB/s, far faster than a model does on a CPU.
    """
    if rank_and_world_size()[1] > 1 or device_map.is_spread(model) or model.device.type != "cpu":
        return None
    settings = {k: v for k, v in model.config.to_dict().items() if k not in WRITTEN_BY_SAVING}
    digest = hashlib.blake2b(repr((task.name, task.config, settings, batch_size)).encode(), digest_size=16)
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    for name, column in features.columns.items():
        digest.update(name.encode())
        for entry in column:
            digest.update(np.ascontiguousarray(entry).tobytes() + b"|")
    return digest.digest()


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; training mode comes back if it was on."""
    was_training = model.training
    model.eval()
    try:
        with (
            torch.no_grad()
        ):  # what inference_mode leaves in a model's caches cannot be trained with afterwards
            yield
    finally:
        model.train(was_training)


def _token_budget(task: Task, model: Any) -> int:
    if "loss" not in task.judged_by:
        return TOKENS
    vocabulary = getattr(model.config, "vocab_size", None) or 1
    return max(1, LOGITS_BYTES // (4 * int(vocabulary)))


def rank_and_world_size() -> tuple[int, int]:
    """Rank and number of processes of the running group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _in_order(
    parts: list[tuple[int, dict[str, np.ndarray]]], batches: list[np.ndarray], count: int
) -> dict[str, np.ndarray]:
    """Gather the batches of all processes and put their entries back into the order of the features."""
    if rank_and_world_size()[1] > 1:
        gathered: list[Any] = [None] * rank_and_world_size()[1]
        torch.distributed.all_gather_object(gathered, parts)
        parts = [part for process in gathered for part in process]
    outputs: dict[str, np.ndarray] = {}
    for number, part in parts:
        for name, values in part.items():
            if name not in outputs:
                outputs[name] = np.empty((count, *values.shape[1:]), values.dtype)
            outputs[name][batches[number]] = values
    return outputs


def _progress(numbers: list[int], title: str) -> Any:
    hidden = rank_and_world_size()[0] != 0 or not title
    return progress_bar(numbers, desc=title, unit="batch", leave=False, disable=hidden, delay=1)
