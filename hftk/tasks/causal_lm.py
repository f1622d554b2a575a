"""Causal language modelling: predict each token from those before it (GPT-2, Llama and their like).

Needs     one column of text.
When      to teach a model the language of your texts, to go on pre-training, or to pre-train a small model from nothing.
Siblings  masked_lm for encoders; chat for instructions and dialogues; summarization and translation for pairs of texts.

| input         | shape           | meaning                                                                          |
|---------------|-----------------|----------------------------------------------------------------------------------|
| input_ids     | (batch, tokens) | start token, then the document                                                   |
| labels        | (batch, tokens) | the token that comes next (already shifted), -100 where nothing is trained       |
| position_ids  | (batch, tokens) | starts at 0 in every packed piece; absent where every row is one piece           |

    accelerate launch recipes/gpt2_clm.py --data.path my_texts/ --model.name openai-community/gpt2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hftk.batching import pack
from hftk.choices import note
from hftk.config import InputError, Problem, RunConfig
from hftk.task import Column, Features, Score, Splits

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hftk.task import Batch, Rows

IGNORED = -100
"""Label of a position that is not trained and not counted (torch's and transformers' convention)."""

STREAM_SAMPLE = 10_000
"""Documents of a stream that the n-gram baselines are fitted on."""

_GPT2_WIDTHS = {"tiny": (4, 4, 128, 128), "mini": (4, 4, 256, 256), "small": (12, 12, 768, 1024),
                "medium": (24, 16, 1024, 1024), "large": (36, 20, 1280, 1024), "xl": (48, 25, 1600, 1024)}  # fmt: skip
_LLAMA_WIDTHS = {"tiny": (4, 4, 128, 256), "mini": (4, 4, 256, 256), "small": (12, 12, 768, 1024),
                 "medium": (24, 16, 1024, 2048), "large": (24, 16, 2048, 2048), "xl": (32, 32, 4096, 4096)}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CausalLMConfig(RunConfig):
    """Settings of causal language modelling."""

    packing: Literal["documents", "concatenate"] = "documents"
    """How documents fill a block. documents: whole pieces packed by best fit, attention never crosses from one document to another; concatenate: one long stream cut into blocks (the classic way), attention crosses."""
    prompts: int = 3
    """Samples of generated text at the end of the run, from the first words of held-out documents."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.prompts < 0:
            yield Problem(setting="prompts", message=f"expected 0 or more, found {self.prompts}")


class CausalLM:
    """The task object for one config; see the module's docstring."""

    name = "causal_lm"
    columns: Mapping[str, Column] = {
        "text": Column(usual_names=("text", "content", "document", "body", "sentence", "article", "story"))
    }
    auto_model = "AutoModelForCausalLM"
    architecture = "gpt2"
    judged_by = frozenset({"loss"})

    def __init__(self, config: CausalLMConfig) -> None:
        self.config = config

    def sizes(self, architecture: str) -> Mapping[str, Mapping[str, Any]]:
        """Config fields of a model made on the spot: GPT-2 as published (tiny and mini are ours), Llama-like models beside it."""
        if architecture == "gpt2":
            # gelu_pytorch_tanh is GPT-2's own activation computed by one kernel instead of eight (2-3 times as fast).
            common = {"activation_function": "gelu_pytorch_tanh", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            return {
                name: {**common, "n_layer": layers, "n_head": heads, "n_embd": width, "n_positions": context}
                for name, (layers, heads, width, context) in _GPT2_WIDTHS.items()
            }
        if architecture == "llama":
            return {
                name: {
                    "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width,
                    "intermediate_size": -(-width * 8 // 3 // 64) * 64, "max_position_embeddings": context,
                    "tie_word_embeddings": width < 2048,
                }
                for name, (layers, heads, width, context) in _LLAMA_WIDTHS.items()
            }  # fmt: skip
        raise InputError(
            Problem(
                setting="model.architecture",
                message=f"there is a size table for gpt2 and llama, not for {architecture}",
                fix="use --model.architecture gpt2 or llama, or --model.name with a checkpoint of that architecture",
            )
        )

    def texts(self, splits: Splits) -> Iterator[str]:
        for row in splits.train:
            yield row["text"]

    def model_settings(self, splits: Splits) -> dict[str, Any]:
        return {}

    # Encoding -----------------------------------------------------------------------------------------------------------

    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, training: bool
    ) -> Features:
        """Documents to blocks of at most ``max_length`` tokens.

        Training: every token of every document and its end-of-text token is a target exactly once, first tokens and tokens at
        block borders included; nothing is dropped. Judging: windows over each document by itself, ``eval.stride`` apart; every
        token of the text is a target exactly once, the added end-of-text token never is.
        """
        documents = tokenize(list(rows["text"]), tokenizer)
        if training:
            return self._training_blocks(documents, tokenizer, max_length)
        return self._windows(documents, tokenizer, max_length)

    def _training_blocks(
        self, documents: list[np.ndarray], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Features:
        end = end_of_text(tokenizer)
        start = [start_of_text(tokenizer)]
        if self.config.packing == "concatenate":
            stream = np.concatenate([np.array(start, np.int32), *(np.append(d, end).astype(np.int32) for d in documents)])
            sequences, owners = [stream], [0]
        else:
            sequences = [np.concatenate([start, d, [end]]).astype(np.int32) for d in documents]
            owners = list(range(len(documents)))
        pieces, rows = [], []
        for sequence, owner in zip(sequences, owners, strict=True):
            for at in range(0, len(sequence) - 1, max_length):
                pieces.append(sequence[at : at + max_length + 1])  # one token more than the block: the last target
                rows.append(owner)
        blocks = pack(np.array([len(p) - 1 for p in pieces]), max_length)
        facts = {
            "documents": len(documents),
            "tokens": int(sum(len(d) for d in documents)),
            "blocks": len(blocks),
            "block_size": max_length,
            "padding": 1 - sum(len(s) - 1 for s in sequences) / (len(blocks) * max_length),
        }
        return Features(
            columns={
                "input_ids": [np.concatenate([pieces[i][:-1] for i in block]) for block in blocks],
                "labels": [np.concatenate([pieces[i][1:] for i in block]) for block in blocks],
                "pieces": [[len(pieces[i]) - 1 for i in block] for block in blocks],
            },
            rows=np.array([rows[block[0]] for block in blocks]),
            lengths=np.array([sum(len(pieces[i]) - 1 for i in block) for block in blocks]),
            facts=facts,
        )

    def _windows(self, documents: list[np.ndarray], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Features:
        stride = min(self.config.eval.stride or max_length, max_length)
        start = [start_of_text(tokenizer)]
        inputs, labels, rows = [], [], []
        for row, document in enumerate(documents):
            sequence = np.concatenate([start, document]).astype(np.int32)
            done = 0  # targets of this document that earlier windows have counted
            for at in range(0, len(document), stride):
                piece = sequence[at : at + max_length + 1]
                target = piece[1:].copy()
                target[: done - at] = IGNORED
                inputs.append(piece[:-1])
                labels.append(target)
                rows.append(row)
                done = at + len(target)
                if done >= len(document):
                    break
        return Features(
            columns={"input_ids": inputs, "labels": labels},
            rows=np.array(rows, np.int64),
            lengths=np.array([len(i) for i in inputs], np.int64),
            facts={"documents": len(documents), "tokens": int(sum(len(d) for d in documents)), "context": max_length, "stride": stride},
        )  # fmt: skip

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, training: bool
    ) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        """Right-pads. No attention mask is needed: in a causal model padding on the right is never seen by a real token."""
        return collate

    # Loss ---------------------------------------------------------------------------------------------------------------

    def items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """An item is a token that is predicted."""
        return {"tokens": (batch["labels"] != IGNORED).sum()}

    def loss(self, model: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Cross-entropy in nats, summed over the predicted tokens."""
        from torch.nn.functional import cross_entropy

        logits = next_token_logits(model, batch)  # (batch, tokens, vocabulary)
        total = cross_entropy(
            logits.flatten(0, 1).float(), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum",
            label_smoothing=self.config.train.label_smoothing,
        )  # fmt: skip
        return {"tokens": (total, self.items(batch)["tokens"])}

    def outputs(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """``nats``: (batch,) summed cross-entropy of each feature, float64; ``tokens``: (batch,) its predicted tokens."""
        from torch.nn.functional import cross_entropy

        logits = next_token_logits(model, batch)
        nats = cross_entropy(logits.transpose(1, 2).float(), batch["labels"], ignore_index=IGNORED, reduction="none")
        return {"nats": nats.double().sum(1), "tokens": (batch["labels"] != IGNORED).sum(1)}

    # Judging ------------------------------------------------------------------------------------------------------------

    def eval_loss(self, outputs: Mapping[str, np.ndarray]) -> float:
        return float(outputs["nats"].sum() / outputs["tokens"].sum())

    def scores(
        self, outputs: Mapping[str, np.ndarray], features: Features, rows: Dataset, tokenizer: PreTrainedTokenizerBase,
        *, resamples: int, seed: int,
    ) -> list[Score]:  # fmt: skip
        return self._scores(outputs["nats"], outputs["tokens"], features, rows, tokenizer, resamples, seed)

    def baselines(
        self, splits: Splits, features: Features, rows: Dataset, tokenizer: PreTrainedTokenizerBase,
        *, resamples: int, seed: int,
    ) -> list[Score]:  # fmt: skip
        """Unigram and interpolated Kneser-Ney bigram models of the training tokens, on the same tokens as the model."""
        from dataclasses import replace

        from hftk.metrics.ngrams import fit_bigram, fit_unigram

        train = splits.train
        if not hasattr(train, "__len__"):
            train = take(train, STREAM_SAMPLE)
            note(f"n-gram baselines are fitted on the first {len(train)} documents of the stream")
        documents = tokenize(list(train["text"]), tokenizer)
        held_out = tokenize(list(rows["text"]), tokenizer)
        scores = []
        for name, fit in (("unigram", fit_unigram), ("bigram", fit_bigram)):
            model = fit(documents, vocab_size=len(tokenizer), end_token=end_of_text(tokenizer))
            nats, tokens = _over_windows(model.token_nats(held_out), features)
            for score in self._scores(nats, tokens, features, rows, tokenizer, resamples, seed, details=model.details):
                scores.append(replace(score, when=f"baseline:{name}"))
        return scores

    def _scores(
        self, nats: np.ndarray, tokens: np.ndarray, features: Features, rows: Dataset,
        tokenizer: PreTrainedTokenizerBase, resamples: int, seed: int, details: str = "",
    ) -> list[Score]:  # fmt: skip
        from hftk.metrics.perplexity import Counts, perplexity_scores

        texts = list(rows["text"])
        size = np.array([len(t.encode()) for t in texts], np.float64)
        by_row = np.bincount(features.rows, tokens, minlength=len(texts))
        # A window's share of its document's bytes goes by tokens: exact in the sum, close enough for an interval.
        share = size[features.rows] * tokens / np.maximum(by_row[features.rows], 1)
        return perplexity_scores(
            nats=np.bincount(features.rows, nats, minlength=len(texts)),
            tokens=by_row,
            bytes=size,
            blocks=Counts(nats, tokens, share),
            context=features.facts["context"],
            stride=features.facts["stride"],
            tokenizer_name=describe(tokenizer),
            resamples=resamples,
            seed=seed,
            details=details,
        )

    def show(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Prompts (the first words of held-out documents) for samples of generated text."""
        chosen = list(rows["text"])[: self.config.prompts]
        return [{"prompt": opening(text), "reference": text[len(opening(text)) :][:200]} for text in chosen]


# Shared with other tasks on decoder-only models --------------------------------------------------------------------------


def next_token_logits(model: Any, batch: Batch) -> torch.Tensor:
    """(batch, tokens, vocabulary). Packed pieces are told apart by ``position_ids`` alone: with an attention mask or a cache,
    transformers lets attention leak between documents (see masking_utils.find_packed_sequence_indices)."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
    return model(**inputs, use_cache=False).logits


def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Features to a batch; padding is a piece of its own, so that packed attention keeps it apart."""
    import torch

    width = max(len(f["input_ids"]) for f in features)
    input_ids = np.zeros((len(features), width), np.int64)
    labels = np.full((len(features), width), IGNORED, np.int64)
    for i, feature in enumerate(features):
        n = len(feature["input_ids"])
        input_ids[i, :n], labels[i, :n] = feature["input_ids"], feature["labels"]
    batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
    if any(len(f.get("pieces", ())) > 1 for f in features):
        batch["position_ids"] = torch.from_numpy(np.stack([_positions(f["pieces"], width) for f in features]))
    return batch


def _positions(pieces: list[int], width: int) -> np.ndarray:
    """(width,) 0, 1, 2 ... from the start of every piece; the padding counts as one more piece."""
    starts = [0, *accumulate(pieces)]
    lengths = [*pieces, width - starts[-1]]
    return np.arange(width) - np.repeat(starts, lengths)


def tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Token ids of each text, without special tokens, as int32 arrays. Uses the Rust tokenizer directly where there is one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [np.array(ids, np.int32) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    ids: list[np.ndarray] = []
    for at in range(0, len(texts), 1000):  # the Rust objects are large: convert them chunk by chunk
        encodings = backend.encode_batch_fast(texts[at : at + 1000], add_special_tokens=False)
        ids.extend(np.array(e.ids, np.int32) for e in encodings)
    return ids


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends a document.

    Raises:
        InputError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            Problem(
                setting="model.name",
                message="the tokenizer has no end-of-text (eos) token, so documents cannot be ended",
                fix='save it with one: tokenizer.add_special_tokens({"eos_token": "</s>"}), and resize the model',
            )
        )
    return int(tokenizer.eos_token_id)


def start_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token in whose context the first token of a document is predicted.

    The tokenizer's bos token where it puts one itself (Llama); else the end-of-text token, which in packed pre-training stands
    before every document (GPT-2).
    """
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("a")["input_ids"][:1] == [bos]:
        return int(bos)
    return end_of_text(tokenizer)


def describe(tokenizer: PreTrainedTokenizerBase) -> str:
    """A tokenizer's name and size for signatures."""
    return f"{type(tokenizer).__name__}[{len(tokenizer)}]"


def opening(text: str, words: int = 8, characters: int = 40) -> str:
    """The first words of a text: a prompt. Texts without spaces give their first characters."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    head = " ".join(line.split()[:words])
    return head if len(head) <= characters else head[: characters if " " not in head else head.rfind(" ", 0, characters)]


def take(rows: Any, count: int) -> Any:
    """The first ``count`` rows of a stream as a Dataset."""
    from datasets import Dataset

    return Dataset.from_list(list(rows.take(count)))


def _over_windows(nats: np.ndarray, features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Sum the nats of all tokens, in order, over the counted targets of each window: ((features,), (features,))."""
    counted = np.array([int((labels != IGNORED).sum()) for labels in features.columns["labels"]])
    ends = np.cumsum(counted)
    total = np.concatenate([[0.0], np.cumsum(nats)])
    return total[ends] - total[ends - counted], counted
