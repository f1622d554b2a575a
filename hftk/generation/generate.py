"""Text from prompts: batched, sorted by length, one output per row, in data order.

An output depends on its own prompt, the settings and its row number alone: neither on the batch that the row
shared nor on the rows around it (in fp32 up to rounding, which can only decide a tie).
:mod:`hftk.generation.decoding` gives the tokens that transformers' ``generate`` gives, faster; what is
repaired here:

- Sampling. ``generate`` draws for a whole batch from the global random state, so a row's text depends on its
  neighbours. Here every row has random numbers of its own
  (:class:`~hftk.generation.logits_processors.RowSampling`); the global state is neither read nor changed.
- Defaults. ``generate`` fills the unset fields of the ``GenerationConfig`` it is given from the checkpoint
  (sampling flags, minimum lengths, penalties). Here they are what :class:`~hftk.config.GenerationSettings`
  says.
- Padding. It is masked whatever token stands there, on the side that the architecture needs; a tokenizer
  without a padding token works, and one whose padding is also its end-of-text token does not stop early.
- Interruption. :func:`generate_to_file` loses nothing that was finished when the process was killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from hftk.config import GenerationSettings, InputError, Problem
from hftk.console import progress_bar
from hftk.features.batches import split_step
from hftk.generation.decoding import decode, make_generation_config, vocabulary_size
from hftk.generation.logits_processors import RowSampling
from hftk.models import device_map
from hftk.models.architectures import positions
from hftk.models.tokenizers import join_wordpieces

logger = logging.getLogger(__name__)

TOKENS_PER_BATCH = 32768
"""Most tokens of one batch, prompt, padding and new ones, over all beams; 4096 where their cache would take
more than ``CACHE_BYTES``."""
CACHE_BYTES = 2**28
"""Most memory for the keys and values of one batch of more than 4096 tokens."""
LOGITS_BYTES = 2**26
"""Most memory for the logits of one token of every row and beam of a batch."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What was generated for one prompt."""

    index: int
    """Number of the prompt, from 0."""
    text: str
    """The new text alone: neither the prompt nor special tokens."""
    tokens: int
    """New tokens, not counting the end-of-text token."""
    finished: bool
    """True: ended by itself, with an end-of-text token. False: cut off at ``max_new_tokens``."""
    truncated: bool
    """Whether the prompt was too long for the model and was cut (see :func:`generate`)."""


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: GenerationSettings,
    *,
    max_tokens_per_batch: int | None = None,
    max_prompt_tokens: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    numbers: Sequence[int] | None = None,
) -> list[Generated]:
    """One output per prompt, in data order.

    ``model`` is decoder-only or encoder-decoder; it stays on its device, in its dtype and with its train/eval
    modes. Batches go from long prompts to short ones so that ``rows x beams x (longest prompt +
    max_new_tokens)`` stays within ``max_tokens_per_batch`` (default: by the size of the model's cache, at
    most 32768), with at most ``batch_size`` rows (default: by the size of the vocabulary); neither changes
    any output.

    A prompt that does not fit into the context beside ``max_new_tokens`` is cut, and the output says so
    (``truncated``): a decoder-only model loses its start, an encoder-decoder its end; likewise one that is
    longer than ``max_prompt_tokens``, special tokens included. An empty prompt starts from the
    beginning-of-text token where the tokenizer puts one before every text, else from the end-of-text token.
    ``progress`` shows a bar on stderr. A row that is sampled draws by its number: ``numbers``, where the
    prompts are a part of more, else its place among ``prompts``.

    Raises:
        InputError: contradictory settings, ``max_new_tokens`` that leave no room for a prompt, prompts not
            text.
    """
    results = stream(
        model,
        tokenizer,
        prompts,
        settings,
        max_tokens_per_batch=max_tokens_per_batch,
        max_prompt_tokens=max_prompt_tokens,
        batch_size=batch_size,
        progress=progress,
        numbers=numbers,
    )
    return sorted(results, key=lambda result: result.index)


def stream(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: GenerationSettings,
    *,
    max_tokens_per_batch: int | None = None,
    max_prompt_tokens: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    numbers: Sequence[int] | None = None,
) -> Iterator[Generated]:
    """As :func:`generate`, but handed out batch by batch as they finish, long prompts first. Errors come at
    once."""
    job = _prepare(
        model, tokenizer, prompts, settings, max_tokens_per_batch, batch_size, max_prompt_tokens, numbers
    )
    return (result for batch in _shown(job.batches, progress) for result in _run(job, batch))


def generate_to_file(
    path: str | Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: GenerationSettings,
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    max_tokens_per_batch: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    finish: Callable[[Generated], Generated] = lambda result: result,
) -> list[Generated]:
    """Write one JSON line per prompt to ``path``, in data order, and continue where an interrupted call
    stopped.

    A line is ``{"index", ...columns, "prediction", "finished", "tokens", "truncated"}``; ``columns`` gives
    what else to put there, one entry per prompt, and ``finish`` may change an output before it is written
    there. Outputs are kept in ``path + ".partial"`` as they come; ``path`` appears (or is replaced) when all
    are there, by one rename. The same call after an interruption, SIGKILL included, repeats the unfinished
    batches alone and ends in the same file, byte for byte. Partial outputs of other weights, prompts or
    settings are not mixed in: they are logged and dropped.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    kept = _go_on(
        _prepare(model, tokenizer, prompts, settings, max_tokens_per_batch, batch_size), partial, progress
    )
    results = [finish(result) for result in kept]
    whole = path.with_name(path.name + ".new")
    with open(whole, "wb") as file:
        for result in results:
            extra = {name: column[result.index] for name, column in (columns or {}).items()}
            file.write(_line(to_record(result, **extra)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(whole, path)
    partial.unlink()
    return results


def generate_keeping(
    path: str | Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: GenerationSettings,
    *,
    max_prompt_tokens: int | None = None,
    progress: bool = False,
    numbers: Sequence[int] | None = None,
) -> list[Generated]:
    """As :func:`generate`, with the outputs kept in the file ``path`` as they come: the same call after an
    interruption continues from there. The caller removes the file, once the results are stored elsewhere."""
    job = _prepare(model, tokenizer, prompts, settings, None, None, max_prompt_tokens, numbers)
    return _go_on(job, Path(path), progress)


def _go_on(job: _Job, partial: Path, progress: bool) -> list[Generated]:
    """The outputs of all rows in data order: those that ``partial`` holds, and the rest, written there batch
    by batch."""
    done = _finished_rows(partial, _fingerprint(job))
    # Whole batches, planned over all rows: in the same company a row comes out the same to the last bit, also
    # in bf16.
    batches = [batch for batch in job.batches if not all(row in done for row in batch)]
    with open(partial, "ab") as file:
        for batch in _shown(batches, progress):
            for result in _run(job, batch):
                done[result.index] = result
                file.write(_line(asdict(result)))
            file.flush()
    return [done[row] for row in range(len(job.inputs))]


def to_record(result: Generated, **columns: Any) -> dict[str, Any]:
    """``result`` as it stands in a predictions file: ``index``, then ``columns``, then what was generated."""
    return {
        "index": result.index,
        **columns,
        "prediction": result.text,
        "finished": result.finished,
        "tokens": result.tokens,
        "truncated": result.truncated,
    }


@dataclass(frozen=True, kw_only=True)
class _Job:
    model: Any
    tokenizer: PreTrainedTokenizerBase
    settings: GenerationSettings
    config: GenerationConfig
    inputs: list[list[int]]
    """Token ids of each prompt."""
    truncated: list[bool]
    batches: list[list[int]]
    """Rows of each batch, from the longest prompts to the shortest."""
    numbers: list[int]
    """Of each row: by which number it draws."""


def _prepare(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: GenerationSettings,
    max_tokens: int | None,
    batch_size: int | None,
    max_prompt_tokens: int | None = None,
    numbers: Sequence[int] | None = None,
) -> _Job:
    room = min(
        (most for most in (_check(model, prompts, settings), max_prompt_tokens) if most is not None),
        default=None,
    )
    config = make_generation_config(model, tokenizer, settings)
    inputs, truncated = _encode(model, tokenizer, prompts, room, config)
    costs = settings.num_beams * (
        np.array([len(ids) for ids in inputs], dtype=np.int64) + settings.max_new_tokens
    )
    batches: list[list[int]] = []
    if len(prompts):
        most = batch_size or max(1, LOGITS_BYTES // (4 * vocabulary_size(model) * settings.num_beams))
        tokens = max_tokens or tokens_per_batch(model.config)
        pieces = split_step(np.arange(len(prompts)), costs, processes=1, max_rows=most, max_tokens=tokens)[0]
        batches = [piece.tolist() for piece in pieces]
    return _Job(
        model=model,
        tokenizer=tokenizer,
        settings=settings,
        config=config,
        inputs=inputs,
        truncated=truncated,
        batches=batches,
        numbers=list(range(len(prompts)) if numbers is None else numbers),
    )


def tokens_per_batch(made: PretrainedConfig) -> int:
    """As many tokens as have keys and values of ``CACHE_BYTES``, from 4096 to ``TOKENS_PER_BATCH``."""
    config = made.get_text_config(decoder=True)
    both = 2 if made.is_encoder_decoder else 1  # a source token has keys and values for the decoder too
    each = (
        2
        * both
        * (getattr(config, "num_hidden_layers", None) or 1)
        * (getattr(config, "hidden_size", None) or 1)
    )
    return min(TOKENS_PER_BATCH, max(4096, CACHE_BYTES // (4 * each)))


def _check(model: Any, prompts: Sequence[str], settings: GenerationSettings) -> int | None:
    """Most tokens of a prompt, None for no limit; InputError for what cannot be generated."""
    problems = list(settings.problems())
    if settings.max_new_tokens == 0:
        problems.append(Problem(setting="generation.max_new_tokens", message="expected at least 1, found 0"))
    strange = next((i for i, prompt in enumerate(prompts) if not isinstance(prompt, str)), None)
    if strange is not None:
        kind = type(prompts[strange]).__name__
        problems.append(
            Problem(setting="", message=f"expected text in every prompt, found {kind} in row {strange}")
        )
    config = model.config
    context, new = positions(config.get_text_config(decoder=True)), settings.max_new_tokens
    if context is not None:
        context -= getattr(config, "virtual_tokens", 0)
    if context is not None and new >= context:
        problems.append(
            Problem(
                setting="generation.max_new_tokens",
                message=(
                    f"expected less than {context}, the model's context, which also holds the prompt, found"
                    f" {new}"
                ),
                fix=f"use --generation.max_new_tokens {max(1, context // 2)}",
            )
        )
    if problems:
        raise InputError(*problems)
    if config.is_encoder_decoder:
        return positions(getattr(config, "encoder", config))
    return None if context is None else context - new


def _encode(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    room: int | None,
    config: GenerationConfig,
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of every prompt within ``room`` tokens, and whether it had to be cut."""
    if not prompts:
        return [], []
    encoded: list[list[int]] = tokenizer(list(prompts), add_special_tokens=True, verbose=False)["input_ids"]
    before, after = _frame(tokenizer, prompts, encoded)
    encoder_decoder = model.config.is_encoder_decoder
    starts = (*(config.eos_token_id or []), tokenizer.bos_token_id, config.pad_token_id)
    start = next(token for token in starts if token is not None)
    inputs, truncated = [], []
    for ids in encoded:
        prefix, body, suffix = ids[:before], ids[before : len(ids) - after], ids[len(ids) - after :]
        if not encoder_decoder:
            suffix = []  # an end-of-text token after the prompt would end the text before it began
        keep = len(body) if room is None else max(0, room - len(prefix) - len(suffix))
        truncated.append(len(body) > keep)
        if truncated[-1]:
            body = body[:keep] if encoder_decoder else body[len(body) - keep :]
        inputs.append(prefix + body + suffix or [start])
    return inputs, truncated


def _frame(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], encoded: list[list[int]]
) -> tuple[int, int]:
    """How many special tokens the tokenizer puts before and after a text."""
    longest = max(range(len(encoded)), key=lambda row: len(encoded[row]))
    whole: list[int] = encoded[longest]
    plain: list[int] = tokenizer(prompts[longest], add_special_tokens=False, verbose=False)["input_ids"]
    if not plain:  # no prompt has any text
        before = int(whole[:1] == [tokenizer.bos_token_id])
        return before, len(whole) - before
    extra = len(whole) - len(plain)
    before = next((n for n in range(extra + 1) if whole[n : n + len(plain)] == plain), 0)
    return before, extra - before


def _shown(batches: list[list[int]], progress: bool) -> Iterator[list[int]]:
    with progress_bar(total=sum(map(len, batches)), unit="row", desc="generate", disable=not progress) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def _run(job: _Job, batch: list[int]) -> list[Generated]:
    """The outputs of one batch, in the batch's order."""
    encoder_decoder = job.model.config.is_encoder_decoder
    width = max(len(job.inputs[row]) for row in batch)
    ids = torch.full((len(batch), width), job.config.pad_token_id, dtype=torch.long)  # (rows, prompt tokens)
    mask = torch.zeros_like(ids)
    for position, row in enumerate(batch):
        length = len(job.inputs[row])
        place = slice(0, length) if encoder_decoder else slice(width - length, width)
        ids[position, place] = torch.tensor(job.inputs[row])
        mask[position, place] = 1
    device = device_map.device_of(job.model)
    sampling = (
        RowSampling(job.settings, [job.numbers[row] for row in batch]) if job.settings.do_sample else None
    )
    rows = decode(job.model, ids.to(device), mask.to(device), job.config, sampling)
    return [_result(job, row, new) for row, new in zip(batch, rows, strict=True)]


def _result(job: _Job, row: int, new: list[int]) -> Generated:
    ends = job.config.eos_token_id or []
    length = next((position for position, token in enumerate(new) if token in ends), len(new))
    finished = length < len(new)
    if finished and job.config.forced_eos_token_id is not None:
        finished = length + 1 < job.settings.max_new_tokens  # there the end is forced, over or not
    return Generated(
        index=row,
        text=_decode(job, row, new[:length]),
        tokens=length,
        finished=finished,
        truncated=job.truncated[row],
    )


def _decode(job: _Job, row: int, new: list[int]) -> str:
    def decode(ids: list[int]) -> str:
        text = job.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    if job.model.config.is_encoder_decoder:
        return join_wordpieces(decode(new), job.tokenizer)
    # Sentencepiece-like tokenizers drop the space before the first word that they decode: decode behind the
    # prompt.
    prompt, whole = decode(job.inputs[row]), decode(job.inputs[row] + new)
    return whole[len(prompt) :] if whole.startswith(prompt) else decode(new)


def _fingerprint(job: _Job) -> str:
    """What the outputs depend on: settings, prompts, batches and up to 256 or so values of every weight."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(
        repr((asdict(job.settings), job.config.to_dict(), job.inputs, job.batches, job.numbers)).encode()
    )
    for name, weight in job.model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        if weight.is_meta:  # in main memory, by model.device_map: those on the GPUs tell models apart
            continue
        values = weight.detach().flatten()
        digest.update(values[:: max(1, len(values) // 256)].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _finished_rows(partial: Path, fingerprint: str) -> dict[int, Generated]:
    """Rows that an interrupted call left in ``partial``, which is made ready for appending."""
    head = _line({"fingerprint": fingerprint})
    if partial.exists():
        content = partial.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # the interruption may have cut the last line
        try:
            if whole.startswith(head):
                results = [Generated(**json.loads(line)) for line in whole[len(head) :].split(b"\n")[:-1]]
                os.truncate(partial, len(whole))
                return {result.index: result for result in results}
        except (ValueError, TypeError):
            logger.warning("%s is damaged: starting anew", partial)
        else:
            logger.warning("%s is of other weights, prompts or settings: starting anew", partial)
    partial.write_bytes(head)
    return {}


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()
