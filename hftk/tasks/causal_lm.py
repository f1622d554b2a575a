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
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hftk.config import Problem, RunConfig
from hftk.console import note
from hftk.features.packing import pack
from hftk.task import IGNORED, Column, Features, Outputs, Score, Splits, Task
from hftk.tasks.decoder_inputs import (
    check_attention,
    collate,
    decoder_inputs,
    end_of_text,
    join,
    opening,
    start_of_text,
)
from hftk.tasks.tokenization import describe, tokenize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hftk.task import Batch, Rows

STREAM_SAMPLE = 10_000
"""Documents of a stream that a tokenizer is trained on and the n-gram baselines are fitted on."""


@dataclass(frozen=True, kw_only=True)
class CausalLMConfig(RunConfig):
    """Settings of causal language modelling."""

    packing: Literal["documents", "concatenate"] = "documents"
    """How documents fill a block. documents: whole pieces packed by best fit, attention never crosses from
    one document to another; concatenate: one long stream cut into blocks (the classic way), attention
    crosses. Measured after one epoch (results/packing.json): documents gives 0.90 and 0.96 times the
    perplexity on poems and speeches, shorter than a block; concatenate is better by 6 % on documents longer
    than a block."""
    prompts: int = 3
    """Samples of generated text at the end of the run, from the first words of held-out documents."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.generation.max_new_tokens < 1:
            yield Problem(
                setting="generation.max_new_tokens",
                message=f"expected at least 1, found {self.generation.max_new_tokens}",
            )
        if self.prompts < 0:
            yield Problem(setting="prompts", message=f"expected 0 or more, found {self.prompts}")


class CausalLM(Task):
    """The task object for one config; see the module's docstring."""

    name = "causal_lm"
    columns: Mapping[str, Column] = {
        "text": Column(usual_names=("text", "content", "document", "body", "sentence", "article", "story"))
    }
    auto_model = "AutoModelForCausalLM"
    architecture = "gpt2"
    title = "Causal language model"
    pipeline_tag = "text-generation"
    tokenizer_kind = "bpe"
    token_frame = "document"
    judged_by = frozenset({"loss"})
    baselines_read_tokens = True
    generates = True
    config: CausalLMConfig

    def tokenizer_texts(self, splits: Splits) -> Iterator[str]:
        rows = splits.train
        if not hasattr(rows, "__len__"):
            note(f"the tokenizer is trained on at most the first {STREAM_SAMPLE} documents of the stream")
            rows = rows.take(STREAM_SAMPLE)
        for row in rows:
            yield row["text"]

    # --- Encoding

    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, training: bool
    ) -> Features:
        """Documents to blocks of at most ``max_length`` tokens.

        Training: every token of every document and its end-of-text token is a target exactly once, first
        tokens and tokens at block borders included; nothing is dropped. Judging: windows over each document
        by itself, ``eval.stride`` apart; every token of the text is a target exactly once, the added
        end-of-text token never is.
        """
        documents = tokenize(list(rows["text"]), tokenizer)
        if training:
            return self._training_blocks(documents, tokenizer, max_length)
        return self._windows(documents, tokenizer, max_length)

    def encoded_by(self) -> dict[str, Any]:
        return {"packing": self.config.packing, "stride": self.config.eval.stride}

    def _training_blocks(
        self, documents: list[np.ndarray], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Features:
        start, end = start_of_text(tokenizer), end_of_text(tokenizer)
        if self.config.packing == "concatenate":
            sequences = [join(documents, start, end)]
        else:
            sequences = [join([d], start, end) for d in documents]
        inputs, labels, rows = [], [], []
        for row, (tokens, targets) in enumerate(sequences):
            for at in range(0, len(tokens) - 1, max_length):
                inputs.append(tokens[:-1][at : at + max_length])
                labels.append(targets[1:][at : at + max_length])
                rows.append(row)
        lengths = np.array([len(piece) for piece in inputs], np.int64)
        blocks = pack(lengths, max_length)
        facts = {
            "documents": len(documents),
            "tokens": int(sum(len(d) for d in documents)),
            "blocks": len(blocks),
            "block_size": max_length,
            "padding": 1 - float(lengths.sum()) / max(1, len(blocks) * max_length),
        }
        return Features(
            columns={
                "input_ids": [np.concatenate([inputs[i] for i in block]) for block in blocks],
                "labels": [np.concatenate([labels[i] for i in block]) for block in blocks],
                "pieces": [lengths[block].tolist() for block in blocks],
            },
            rows=np.array([rows[block[0]] for block in blocks], np.int64),
            lengths=np.array([lengths[block].sum() for block in blocks], np.int64),
            facts=facts,
        )

    def _windows(
        self, documents: list[np.ndarray], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Features:
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
            facts={
                "documents": len(documents),
                "tokens": int(sum(len(d) for d in documents)),
                "context": max_length,
                "stride": stride,
            },
        )

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, training: bool
    ) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        """Right-pads. No attention mask is needed: in a causal model padding on the right is never seen by a
        real token.

        Raises:
            InputError: the model is not causal, or cannot keep packed documents apart.
        """
        check_attention(model, packed=training and self.config.packing == "documents")
        return collate

    # --- Loss

    def items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """An item is a token that is predicted."""
        return {"tokens": (batch["labels"] != IGNORED).sum()}

    def loss(self, model: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Cross-entropy in nats, summed over the predicted tokens."""
        from hftk.models.chunked_cross_entropy import cross_entropy_sum

        smoothing = self.config.train.label_smoothing
        total = cross_entropy_sum(model, decoder_inputs(batch), batch["labels"], label_smoothing=smoothing)
        return {"tokens": (total, self.items(batch)["tokens"])}

    def outputs(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """``nats``: (batch,) summed cross-entropy of each feature, float64; ``tokens``: (batch,) its
        predicted tokens."""
        from hftk.models.chunked_cross_entropy import token_losses

        nats = token_losses(model, decoder_inputs(batch), batch["labels"])
        # On the CPU, since Apple's GPU has no float64.
        return {"nats": nats.cpu().double().sum(1), "tokens": (batch["labels"] != IGNORED).sum(1)}

    # --- Judging

    def eval_loss(self, outputs: Mapping[str, np.ndarray]) -> float:
        return float(outputs["nats"].sum() / outputs["tokens"].sum())

    def scores(self, outputs: Outputs) -> list[Score]:
        return self._scores(outputs["nats"], outputs["tokens"], outputs)

    def baselines(self, splits: Splits, given: Outputs) -> list[Score]:
        """Unigram and interpolated Kneser-Ney bigram models of the training tokens, on the same tokens as the
        model."""
        from hftk.metrics.ngrams import fit_bigram, fit_unigram

        tokenizer = given.tokenizer
        train = splits.train
        if not hasattr(train, "__len__"):
            train = take(train, STREAM_SAMPLE)
            note(f"n-gram baselines are fitted on the first {len(train)} documents of the stream")
        documents = tokenize(list(train["text"]), tokenizer)
        held_out = tokenize(list(given.rows["text"]), tokenizer)
        scores = []
        for order, name, fit in ((1, "unigram", fit_unigram), (2, "bigram", fit_bigram)):
            model = fit(documents, vocab_size=len(tokenizer), end_token=end_of_text(tokenizer))
            nats, tokens = _over_windows(model.token_nats(held_out), given.features)
            for score in self._scores(nats, tokens, given, order=order, details=model.details):
                scores.append(replace(score, when=f"baseline:{name}"))
        return scores

    def _scores(
        self,
        nats: np.ndarray,
        tokens: np.ndarray,
        given: Outputs,
        order: int | None = None,
        details: str = "",
    ) -> list[Score]:
        from hftk.metrics.perplexity import Counts, perplexity_scores

        features, texts = given.features, list(given.rows["text"])
        by_row = np.bincount(features.rows, tokens, minlength=len(texts))
        # A text that is nothing to the tokenizer has no bytes that tokens stand for.
        size = np.array([len(t.encode()) if n else 0 for t, n in zip(texts, by_row, strict=True)], np.float64)
        # A window's share of its document's bytes goes by tokens: exact in the sum, close enough for an
        # interval.
        share = size[features.rows] * tokens / np.maximum(by_row[features.rows], 1)
        return perplexity_scores(
            nats=np.bincount(features.rows, nats, minlength=len(texts)),
            tokens=by_row,
            bytes=size,
            blocks=Counts(nats, tokens, share),
            context=order or features.facts["context"],
            stride=1 if order else features.facts["stride"],
            tokenizer_name=describe(given.tokenizer),
            **given.bootstrap,
            details=details,
        )

    def predictions(self, outputs: Outputs) -> list[dict[str, Any]]:
        """Per document: ``nats`` (the loss, summed), ``tokens``, ``bytes`` of its text, so that runs can be
        compared row by row."""
        rows, features = outputs.rows, outputs.features
        nats = np.bincount(features.rows, outputs["nats"], minlength=len(rows))
        tokens = np.bincount(features.rows, outputs["tokens"], minlength=len(rows)).astype(int)
        return [
            {"index": i, "nats": round(float(n), 6), "tokens": int(t), "bytes": len(text.encode())}
            for i, (n, t, text) in enumerate(zip(nats, tokens, list(rows["text"]), strict=True))
        ]

    @classmethod
    def compare(
        cls,
        lines: tuple[list[dict[str, Any]], list[dict[str, Any]]],
        names: tuple[str, str],
        config: Mapping[str, Any],
        *,
        resamples: int,
        seed: int,
    ) -> tuple[list[Any], list[str]]:
        """Bits per byte, which compare across tokenizers; perplexity where both have the same tokens."""
        from hftk.metrics.bootstrap import paired_bootstrap
        from hftk.metrics.comparison import Comparison

        columns = {
            key: [np.array([line[key] for line in run], float) for run in lines]
            for key in ("nats", "tokens", "bytes")
        }
        statistics: dict[str, Callable[[int], Callable[[np.ndarray], Any]]] = {
            "bits_per_byte": lambda i: (
                lambda w: (w @ columns["nats"][i]) / (w @ columns["bytes"][i]) / np.log(2)
            )
        }
        if (columns["tokens"][0] == columns["tokens"][1]).all():
            statistics["perplexity"] = lambda i: (
                lambda w: np.exp((w @ columns["nats"][i]) / (w @ columns["tokens"][i]))
            )
        whole, found = np.ones((1, len(lines[0]))), []
        for name, make in statistics.items():
            test = paired_bootstrap(make(0), make(1), len(lines[0]), resamples=resamples, seed=seed)
            values = [float(make(i)(whole)[0]) for i in (0, 1)]
            found.append(
                Comparison(
                    name=name,
                    a=values[0],
                    b=values[1],
                    difference=test.difference,
                    interval=test.interval,
                    p_value=test.p_value,
                    higher_is_better=False,
                )
            )
        return found, []

    def example_batch(
        self, rows: int, length: int, target_length: int = 0, *, training: bool = True
    ) -> dict[str, torch.Tensor]:
        import torch

        ids = torch.ones(rows, length, dtype=torch.long)
        packed = training and self.config.packing == "documents"
        return {"input_ids": ids, "labels": ids.clone(), **({"position_ids": ids.clone()} if packed else {})}

    def samples(self, outputs: Outputs) -> list[dict[str, Any]]:
        """The first words of held-out documents as prompts, and how the documents go on."""
        chosen = [text for text in list(outputs.rows["text"])[: self.config.prompts] if text.strip()]
        prompts = [opening(text) for text in chosen]
        return [
            {"prompt": p, "reference": t.lstrip()[len(p) :][:200]}
            for p, t in zip(prompts, chosen, strict=True)
        ]


def take(rows: Any, count: int) -> Any:
    """The first ``count`` rows of a stream as a Dataset."""
    from datasets import Dataset

    return Dataset.from_list(list(rows.take(count)))


def _over_windows(nats: np.ndarray, features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Sum the nats of all tokens, in order, over the counted targets of each window: ((features,),
    (features,))."""
    counted = np.array([int((labels != IGNORED).sum()) for labels in features.columns["labels"]])
    ends = np.cumsum(counted)
    total = np.concatenate([[0.0], np.cumsum(nats)])
    return total[ends] - total[ends - counted], counted
