"""From prompts to new tokens: greedy and beam search with the model's own forward pass and cache.

:func:`decode` gives the tokens that ``model.generate`` gives, in a fraction of its time on small models: rows
that have ended leave the batch and its cache, the encoder and the first step run once per row and not once
per beam, constraints are set up once, and nothing but the model's forward stands between two tokens. In fp32
the two differ in rounding alone (matrix products of other sizes), which can decide between candidates that
are tied. For a model that prepares its inputs in a way of its own, and for settings that are not known here,
``model.generate`` decodes: :func:`is_proved`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutput

from hftk.config import GenerationSettings
from hftk.generation import logits_processors
from hftk.generation.beam_search import search
from hftk.generation.logits_processors import Constraints, RowSampling
from hftk.models import device_map, sharded
from hftk.models.architectures import TWO_MODELS, halves

FIELDS = frozenset(logits_processors.FIELDS) | {
    "max_new_tokens",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "decoder_start_token_id",
    "do_sample",
    "use_cache",
    "transformers_version",
}
"""Fields of a ``GenerationConfig`` that may be set."""
PROVED = frozenset(
    {
        "t5",
        "mt5",
        "bart",
        "mbart",
        "pegasus",
        "marian",
        "m2m_100",
        "encoder-decoder bert",
        "gpt2",
        "llama",
        "qwen2",
        "mistral",
        "gpt_neox",
        "opt",
        "bloom",
    }
)
"""Model types whose tokens a test compares with those of ``generate``."""
FRAME = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""What an encoder-decoder keeps of its checkpoint's generation config: which tokens it must and must not
write."""
DEFAULTS = {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False}
"""What ``generate`` takes where these fields are None."""
LEAVE = 0.1
"""Share of a batch that has ended before those rows leave: leaving copies the cache of the others."""


def decode(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    config: GenerationConfig,
    sampling: RowSampling | None = None,
) -> list[list[int]]:
    """The new tokens of each row, up to and with its end-of-text token: what ``model.generate`` gives with
    ``config``.

    ``ids`` and ``mask`` are (rows, prompt tokens), the prompts of a decoder-only model padded on the left.
    ``sampling`` draws the tokens of greedy decoding at random. The model is in eval mode meanwhile; its
    random state, modes and generation defaults stay as they were. Nothing is inherited from those defaults.
    """
    config = copy.copy(config)
    for name, value in DEFAULTS.items():
        setattr(config, name, value if getattr(config, name) is None else getattr(config, name))
    with _ready(model), torch.no_grad():
        if not is_proved(model, config):
            rows = _generate(model, ids, mask, config, sampling)
        elif config.num_beams > 1:
            steps = Steps(model, ids, mask, config)
            rows = search(
                steps, steps.prompt, Constraints(config, steps.prompt.shape[1], steps.starts), config
            )
        else:
            rows = _greedy(Steps(model, ids, mask, config), config, sampling)
    ends = set(config.eos_token_id or [])
    cuts = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[:cut] for row, cut in zip(rows, cuts, strict=True)]


def make_generation_config(
    model: Any, tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings
) -> GenerationConfig:
    """What ``generate`` is asked to do, with nothing of the checkpoint but the tokens that frame a decoder's
    output."""
    own = model.generation_config
    ends = _end_ids(model, tokenizer)
    rows = vocabulary_size(model)
    # Padding is masked, so any token will do; one that the tokenizer has and the embeddings lack would crash.
    pads = [tokenizer.pad_token_id, *ends, 0]
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        repetition_penalty=settings.repetition_penalty,
        do_sample=False,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=next(pad for pad in pads if pad is not None and pad < rows),
        bos_token_id=tokenizer.bos_token_id,
    )
    if model.config.is_encoder_decoder:
        start = own.decoder_start_token_id
        config.decoder_start_token_id = model.config.decoder_start_token_id if start is None else start
        for name in FRAME:
            setattr(config, name, getattr(own, name))
    return config


def vocabulary_size(model: Any) -> int:
    """Tokens that the model has embeddings for."""
    rows: int = sharded.shape(model.get_input_embeddings().weight)[0]
    return rows


def _end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text: the tokenizer's, and those of the model that are special tokens of this tokenizer
    too.

    The condition keeps out a model class's default (2 for Llama), which is a letter to a tokenizer of one's
    own.
    """
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return list(
        dict.fromkeys(i for i in [tokenizer.eos_token_id, *(i for i in own if i in special)] if i is not None)
    )


def is_proved(model: Any, config: GenerationConfig) -> bool:
    """Whether this module decodes; False: ``model.generate`` does.

    A test compares the tokens of both for each model type of :data:`PROVED`.
    """
    inner: Any = _inner(model)
    set_fields = {name for name in config.to_diff_dict() if not name.startswith("_")}
    adapters = getattr(model, "peft_config", {}).values()
    return (
        _types(inner.config) <= PROVED
        and type(inner).__module__.startswith("transformers.models.")
        and set_fields <= FIELDS
        and not config.do_sample
        and config.use_cache is not False
        and not any(getattr(adapter, "is_prompt_learning", False) for adapter in adapters)
        and not sharded.is_sharded(inner)
        and not device_map.is_spread(inner)
    )


def _types(config: Any) -> set[str]:
    """The model types of both halves of an ``EncoderDecoderModel`` with their kind; of any other model its
    own."""
    joined = config.model_type == TWO_MODELS
    return {f"{TWO_MODELS} {half.model_type}" if joined else half.model_type for half in halves(config)}


def _inner(model: Any) -> Any:
    """The model of transformers inside a PEFT model, its adapters in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _ready(model: Any) -> Iterator[None]:
    """Dropout off and the checkpoint's generation defaults away; both are put back as they were, module by
    module."""
    modes = [(module, module.training) for module in model.modules()]
    # In place: a PEFT model hands this very object on to the model that it wraps.
    defaults = vars(model.generation_config)
    saved = dict(defaults)
    try:
        defaults.clear()
        defaults.update(vars(GenerationConfig()))
        model.eval()
        yield
    finally:
        defaults.clear()
        defaults.update(saved)
        for module, mode in modes:
            module.training = mode


def _generate(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, config: GenerationConfig, sampling: RowSampling | None
) -> list[list[int]]:
    processors = LogitsProcessorList([] if sampling is None else [sampling])
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors
    )  # (rows, tokens)
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    rows: list[list[int]] = output[:, start:].tolist()
    return rows


class Steps:
    """A model's forward pass over a batch, step by step: each step takes one token per row and gives the next
    one's logits.

    Attributes:
        prompt: (rows, tokens) what stands before the new tokens: the prompts, or the decoder's start token.
        starts: (rows,) padding tokens before each row's prompt.
    """

    def __init__(self, model: Any, ids: torch.Tensor, mask: torch.Tensor, config: GenerationConfig) -> None:
        self._model = model = _inner(model)
        self._accepted = inspect.signature(model.forward).parameters
        layout = model.config.get_text_config(decoder=True)
        self._cache: Any = DynamicCache(config=layout)
        self._both = model.config.is_encoder_decoder
        self._mask: torch.Tensor | None = None if mask.all() else mask  # (rows, prompt tokens)
        self._positions: torch.Tensor | None = None  # (rows, 1): the place of the last token
        self._room = config.max_new_tokens
        if self._both:
            self._encoded = model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)[0]
            self._cache = EncoderDecoderCache(self._cache, DynamicCache(config=layout))
            self.prompt = torch.full_like(ids[:, :1], config.decoder_start_token_id)
            self.starts = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        else:
            self.prompt, self.starts = ids, mask.long().argmax(1)

    def first(self) -> torch.Tensor:
        """Logits, (rows, vocabulary) in float32, of the first new token."""
        inputs: dict[str, Any] = {}
        if not self._both:
            inputs["attention_mask"] = self._mask
            if "position_ids" in self._accepted:
                if self._mask is None:
                    places = torch.arange(self.prompt.shape[1], device=self.prompt.device)[None]
                else:
                    places = (self._mask.long().cumsum(1) - 1).clamp(min=0)
                inputs["position_ids"] = places
                self._positions = places[:, -1:].expand(len(self.prompt), 1)
            if "logits_to_keep" in self._accepted:
                inputs["logits_to_keep"] = 1
            if self._mask is not None:
                new = self._mask.new_ones(len(self._mask), self._room)
                self._mask = torch.cat((self._mask, new), 1)  # (rows, prompt and new tokens)
        return self._forward(self.prompt, inputs)

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits, (rows, vocabulary) in float32, of the token after ``tokens``, (rows,)."""
        inputs: dict[str, Any] = {}
        if not self._both:
            if self._positions is not None:
                inputs["position_ids"] = self._positions = self._positions + 1
            if self._mask is not None:
                inputs["attention_mask"] = self._mask[:, : self._cache.get_seq_length() + 1]
        return self._forward(tokens[:, None], inputs)

    def _forward(self, tokens: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        if self._both:
            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=self._encoded)
            inputs["attention_mask"] = self._mask
        name = "decoder_input_ids" if self._both else "input_ids"
        inputs |= {name: tokens, "past_key_values": self._cache, "use_cache": True, "return_dict": True}
        logits: torch.Tensor = self._model(**inputs).logits
        return logits[:, -1].float()

    def repeat(self, beams: int) -> None:
        """Each row ``beams`` times, one after the other."""
        rows = torch.arange(len(self.prompt), device=self.prompt.device).repeat_interleave(beams)
        self.keep(rows)

    def keep(self, rows: torch.Tensor, parents: torch.Tensor | None = None) -> None:
        """Go on with ``rows`` alone; the text so far of each is that of ``parents`` (default: its own), which
        has the same prompt."""
        self._encoded = self._encoded[rows] if self._both else None
        self._mask = None if self._mask is None else self._mask[rows]
        self._positions = None if self._positions is None else self._positions[rows]
        if self._both:
            self._cache.cross_attention_cache.reorder_cache(rows)
        self.turn(rows if parents is None else parents)

    def turn(self, parents: torch.Tensor) -> None:
        """The text so far of each row becomes that of ``parents``, (rows,), which has the same prompt."""
        (self._cache.self_attention_cache if self._both else self._cache).reorder_cache(parents)


def _greedy(steps: Steps, config: GenerationConfig, sampling: RowSampling | None) -> list[list[int]]:
    """The likeliest token at each step, row by row; what comes after a row's end is cut off by the caller."""
    prompt, most = steps.prompt, config.max_new_tokens
    constrain = Constraints(config, prompt.shape[1], steps.starts)
    written = torch.cat(
        (prompt, prompt.new_zeros(len(prompt), most)), 1
    )  # (rows present, prompt and new tokens)
    ends = torch.tensor(config.eos_token_id or [], device=prompt.device)
    ended = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    present = list(range(len(prompt)))
    results: list[list[int]] = [[] for _ in present]
    logits = steps.first()
    for length in range(prompt.shape[1], prompt.shape[1] + most):
        if constrain:
            logits = constrain(written[:, :length], logits)
        if sampling is not None:
            logits = sampling(written[:, :length], logits)
        written[:, length] = tokens = logits.argmax(-1)
        ended |= torch.isin(tokens, ends)
        over = int(ended.sum())
        last = over == len(present) or length + 1 == written.shape[1]
        if last or over > LEAVE * len(present):
            for place in range(len(present)) if last else ended.nonzero()[:, 0].tolist():
                results[present[place]] = written[place, prompt.shape[1] : length + 1].tolist()
            if last:
                break
            rows = (~ended).nonzero()[:, 0]
            steps.keep(rows)
            constrain.keep(rows)
            written, tokens, ended = written[rows], tokens[rows], ended[rows]
            present = [present[place] for place in rows.tolist()]
            if sampling is not None:
                sampling.keep(rows.tolist())
        logits = steps.next(tokens)
    return results
