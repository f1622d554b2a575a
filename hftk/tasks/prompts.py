"""Decoder-only models (GPT-2, Llama, Qwen) for tasks that turn one text into another: a prompt, and behind it the target.

| input          | shape           | meaning                                                                              |
|----------------|-----------------|--------------------------------------------------------------------------------------|
| input_ids      | (batch, tokens) | the prompt with the source in it, the target and the token that ends it              |
| labels         | (batch, tokens) | the same for the target and its end, -100 for the prompt and padding                 |

The model predicts each token from those before it, so the first target token is predicted at the last token of the prompt.
Padding is on the right, where no token sees it.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.config import InputError, Problem
from hftk.console import note
from hftk.models.architectures import LONGEST_DEFAULT, positions
from hftk.task import IGNORED
from hftk.tasks.decoder_inputs import check_attention, end_of_text
from hftk.tasks.encoder_inputs import template_of
from hftk.tasks.tokenization import tokenize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hftk.task import Batch

SOURCE = "{source}"
"""Where a template has the source."""
MARK, ANSWER = "SOURCE_OF_THE_TEXT", "ANSWER_TO_THE_TEXT"
"""Stand in for source and target while a chat template is read: the template may strip or escape what is no
plain word."""
TARGET_SHARE = 4
"""Without a limit of its own, a target may take up one in so many tokens of the context."""
FIXED_DATE = "26 Jul 2024"
"""Llama 3's chat templates put today's date into the prompt unless they are told one: this is their own
default."""


@dataclass(frozen=True, kw_only=True)
class PromptedDecoder:
    """A decoder reads a prompt with the source in it, and writes the target behind it; the other way is
    :class:`hftk.tasks.encoder_decoder_inputs.EncoderDecoder`."""

    template: str
    """What it reads, with ``{source}`` in it."""
    chat_prompt: str
    """The same for a chat model: what the user says."""
    chat: bool
    """Whether the tokenizer's chat template is used, where it has one."""
    max_target_length: int | None = None

    auto_model = "AutoModelForCausalLM"
    two_sided = False

    def frame(self, tokenizer: PreTrainedTokenizerBase) -> Frame:
        """What stands around the source for this tokenizer."""
        chat = self.chat and bool(getattr(tokenizer, "chat_template", None))
        return frame_of(tokenizer, self.chat_prompt if chat else self.template, chat=chat)

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int | None) -> int:
        """Say what the model reads, let generation end where targets do, and return the most tokens of an
        output, where prompt and target together have ``length`` (default: the context, at most
        :data:`~hftk.models.architectures.LONGEST_DEFAULT`).

        Raises:
            InputError: the model is no causal one; its tokenizer has no token that ends a text.
        """
        check_attention(model, packed=False)
        frame = self.frame(tokenizer)
        settings: Any = model.generation_config
        note(
            f"{model.config.model_type} is a decoder alone: it reads {frame.around(SOURCE)!r}, and the loss"
            " is over the target behind it"
        )
        ends = settings.eos_token_id
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        settings.eos_token_id = list(dict.fromkeys([*ends, frame.end]))
        return self.longest_target(length or min(positions(model.config) or LONGEST_DEFAULT, LONGEST_DEFAULT))

    def longest_target(self, max_length: int) -> int:
        """Most tokens of a target, its end included, where prompt and target together have ``max_length``."""
        return self.max_target_length or max(1, max_length // TARGET_SHARE)

    def prompts(
        self, sources: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, new: int
    ) -> tuple[list[str], np.ndarray]:
        """Prompts that leave room for ``new`` tokens in ``max_length``, and (sources,) how many tokens each
        lost for that."""
        room = max_length - max(self.longest_target(max_length), new)
        return fit_prompts(sources, self.frame(tokenizer), tokenizer, room)

    def encode(
        self,
        sources: list[str],
        targets: list[str] | None,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, Any]]:
        """(``input_ids`` of the prompts, and ``labels`` of the targets where there are some; facts).

        A target is tokenized behind its prompt, as it will be written. Where the last token of the prompt
        would come out another one then, which nobody who writes could know, it is tokenized by itself.
        """
        frame, most = self.frame(tokenizer), max_length - self.longest_target(max_length)
        prompts, lost = fit_prompts(sources, frame, tokenizer, most)
        asked = tokenize(prompts, tokenizer)
        head = np.array(_head(tokenizer), np.int32)
        start = np.array([end_of_text(tokenizer)], np.int32)
        inputs = [
            np.concatenate([head, ids]).astype(np.int32) if len(head) + len(ids) else start for ids in asked
        ]
        columns = {"input_ids": inputs}
        if targets is not None:
            whole = tokenize(
                [prompt + frame.joint + text for prompt, text in zip(prompts, targets, strict=True)],
                tokenizer,
            )
            columns["labels"] = [
                np.append(both[len(ids) :], frame.end).astype(np.int32) if _begins(both, ids) else alone
                for ids, both, alone in zip(asked, whole, self.answers(targets, tokenizer), strict=True)
            ]
        facts = {
            "tokens": int(sum(map(len, inputs))),
            "truncated_rows": int((lost > 0).sum()),
            "tokens_lost": int(lost.sum()),
            "longest": int(max((len(ids) + n for ids, n in zip(inputs, lost, strict=True)), default=0)),
            "max_length": most,
            "truncation": "head",
            "prompt": frame.around(SOURCE),
        }
        return columns, facts

    def answers(self, targets: list[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
        """Ids of each target by itself, and its end."""
        frame = self.frame(tokenizer)
        return [
            np.append(ids, frame.end).astype(np.int32)
            for ids in tokenize([frame.joint + text for text in targets], tokenizer)
        ]

    def collate(
        self, features: list[dict[str, Any]], model: PreTrainedModel, pad_id: int
    ) -> dict[str, torch.Tensor]:
        """One batch: (batch, tokens) ``input_ids`` of prompts and targets end to end, and ``labels``."""
        import torch

        rows = [np.concatenate([f["input_ids"], f.get("labels", [])]) for f in features]
        ids = np.full((len(rows), max(map(len, rows))), pad_id, np.int64)
        labels = np.full_like(ids, IGNORED)
        for i, (row, feature) in enumerate(zip(rows, features, strict=True)):
            ids[i, : len(row)] = row
            labels[i, len(feature["input_ids"]) : len(row)] = feature.get("labels", [])
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}

    def aligned(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What the model is called with, and (batch, tokens) labels, each what comes after the token in its
        place."""
        labels = batch["labels"].roll(-1, dims=1)
        labels[:, -1] = IGNORED
        return {"input_ids": batch["input_ids"]}, labels


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What stands around the source, as text, and what ends the target."""

    before: str
    after: str
    joint: str
    """Space between prompt and target; it belongs to the target's first token, as in any running text."""
    end: int
    """Id of the token that ends a target."""

    def around(self, source: str) -> str:
        """The prompt of one source."""
        return self.before + source + self.after


def frame_of(tokenizer: PreTrainedTokenizerBase, template: str, *, chat: bool) -> Frame:
    """The frame of a ``template`` with ``{source}`` in it: as it stands, or as a user's message in the
    tokenizer's chat template.

    Spaces at the end of a plain template go to the target, since tokenizers of GPT-2 and Llama keep a space
    with the word behind it.

    Raises:
        InputError: the tokenizer has no token that ends a text, or a chat template that loses the source.
    """
    if not chat:
        before, _, after = template.partition(SOURCE)
        stripped = after.rstrip(" ")
        return Frame(before=before, after=stripped, joint=after[len(stripped) :], end=end_of_text(tokenizer))
    messages = [{"role": "user", "content": template.replace(SOURCE, MARK)}]
    options: dict[str, Any] = {"tokenize": False, "date_string": FIXED_DATE, "enable_thinking": False}
    prompt: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    before, found, after = prompt.partition(MARK)
    if not found:
        message = f"the chat template of {type(tokenizer).__name__} leaves out what the user says"
        raise InputError(
            Problem(
                setting="chat", message=message, fix="use --chat false, and a --prompt_template of your own"
            )
        )
    bos: Any = tokenizer.bos_token
    if bos and before.startswith(bos) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        before = before.removeprefix(bos)  # the tokenizer puts it there too
    whole: Any = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": ANSWER}], **options
    )
    return Frame(
        before=before, after=after, joint="", end=_end_of_turn(whole.partition(ANSWER)[2], tokenizer)
    )


def _end_of_turn(rest: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the special token that a chat template puts right behind an answer (Gemma's is not its
    end-of-text token)."""
    ids = tokenize([rest], tokenizer)[0].tolist()
    special = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(
        tokenizer.all_special_ids
    )
    found = [token for token in ids if token in special]
    return found[0] if found else end_of_text(tokenizer)


def fit_prompts(
    sources: Sequence[str], frame: Frame, tokenizer: PreTrainedTokenizerBase, room: int
) -> tuple[list[str], np.ndarray]:
    """Prompts of at most ``room`` tokens, and (sources,) how many tokens of each source were cut off its end.

    What stands around the source is never cut.

    Raises:
        InputError: the template alone leaves no room for a source.
    """
    head = len(_head(tokenizer))
    least = head + len(tokenize([frame.around("")], tokenizer)[0])
    if least >= room:
        message = (
            f"the prompt template alone has {least} tokens, and only {max(room, 0)} are left to prompt and"
            " source beside the target"
        )
        raise InputError(
            Problem(
                setting="train.max_length",
                message=message,
                fix="use a longer one, or a shorter --prompt_template or --max_target_length",
            )
        )
    prompts = [frame.around(text) for text in sources]
    lengths = np.array([head + len(ids) for ids in tokenize(prompts, tokenizer)], np.int64)
    lost = np.zeros(len(prompts), np.int64)
    for row in np.flatnonzero(lengths > room).tolist():
        prompts[row], kept = _cut(sources[row], frame, tokenizer, room - head)
        lost[row] = lengths[row] - head - kept
    return prompts, lost


def _cut(source: str, frame: Frame, tokenizer: PreTrainedTokenizerBase, room: int) -> tuple[str, int]:
    """The prompt with as much of a source's beginning as fits into ``room`` tokens, and its tokens."""
    ends = _token_ends(source, tokenizer)
    keep = len(ends)
    while True:
        text = source[: ends[keep - 1]] if keep else ""
        prompt = frame.around(text)
        size = len(tokenize([prompt], tokenizer)[0])
        if size <= room or not keep:
            return prompt, size
        keep = max(0, keep - max(1, size - room))


def _token_ends(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where each token of a text ends, in characters; every character for a tokenizer that does not tell."""
    if not getattr(tokenizer, "is_fast", False):
        return list(range(1, len(text) + 1))
    made: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [end for _, end in made["offset_mapping"]]


def _head(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens that the tokenizer puts before every text (Llama's <s>)."""
    pieces = template_of(tokenizer, pair=False).pieces
    return (
        [int(i) for piece in pieces[: pieces.index(0)] if not isinstance(piece, int) for i in piece[0]]
        if 0 in pieces
        else []
    )


def _begins(whole: np.ndarray, start: np.ndarray) -> bool:
    return len(whole) > len(start) and np.array_equal(whole[: len(start)], start)
