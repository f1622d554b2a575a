"""What encoder-decoder tasks share: pairs of texts as features, the exact loss, and outputs that are generated.

| input             | shape                   | meaning                                                                |
|-------------------|-------------------------|------------------------------------------------------------------------|
| input_ids         | (batch, source tokens)  | the source with the model's special tokens                             |
| attention_mask    | (batch, source tokens)  | 1, and 0 for padding                                                   |
| decoder_input_ids | (batch, target tokens)  | the target, one place to the right, behind the decoder's start token   |
| labels            | (batch, target tokens)  | the target and its end token, -100 for padding                         |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.choices import note
from hftk.config import GenerationSettings, InputError, Problem, RunConfig
from hftk.task import Column, Features, Prepared, Score, Splits
from hftk.tasks.encoders import encode_texts

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hftk.task import Batch, Look, Place, Rows, Table

IGNORED = -100
"""Label of a position that is not trained and not counted (torch's and transformers' convention)."""
MARGIN = 1.25
"""An output may be this much longer than the longest training target."""
TARGETS_LOOKED_AT = 20_000
REFERENCES = Column(usual_names=("references",), required=False, kind="any", identity=False, nullable=True)
"""Several right texts for one source, as a list: scores go by them, training by the target."""

_MARIAN = {"tiny": (4, 4, 128, 256), "mini": (4, 4, 256, 1024), "small": (6, 8, 512, 2048), "base": (6, 16, 1024, 4096)}
_T5 = {"tiny": (2, 4, 128, 256), "mini": (4, 4, 256, 1024), "small": (6, 8, 512, 2048), "base": (12, 12, 768, 3072)}


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(RunConfig):
    """Settings of tasks that turn one text into another."""

    source_prefix: str = ""
    """Text before every source, such as "summarize: " for T5."""
    max_target_length: int | None = None
    """Most tokens of a target; a longer one is refused and never cut. Default: as many as of a source."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.max_target_length is not None and self.max_target_length < 1:
            yield Problem(setting="max_target_length", message=f"expected at least 1, found {self.max_target_length}")
        if self.data.streaming:
            yield Problem(setting="data.streaming", message="the lengths of the targets must be known before training", fix="leave it out")


class Seq2Seq(ABC):
    """What summarization and translation have in common; each adds its name, columns, scores and baselines."""

    auto_model = "AutoModelForSeq2SeqLM"
    architecture = "marian"
    tokenizer = "bpe"
    frame = "t5"
    score_names: Sequence[str] = ()
    fixed: Sequence[str] = ()
    judged_by = frozenset({"loss", "generation"})
    baselines_read_tokens = False
    name: str
    columns: Mapping[str, Column]

    def __init__(self, config: Seq2SeqConfig) -> None:
        self.config = config

    @classmethod
    def of_model(cls, config: Any, made: PretrainedConfig) -> Seq2Seq:
        """The task for judging or using a model that was trained."""
        return cls(config)

    def sizes(self, architecture: str) -> Mapping[str, Mapping[str, Any]]:
        """Config fields of a model made on the spot: (layers on each side, heads, width, inner width)."""
        if architecture == "marian":
            return {name: _marian(*widths) for name, widths in _MARIAN.items()}
        if architecture == "t5":
            return {name: _t5(*widths) for name, widths in _T5.items()}
        near = get_close_matches(architecture, ("marian", "t5"), n=1)
        message = f"there is a size table for marian and t5, not for {architecture}" + (f" (did you mean {near[0]}?)" if near else "")
        raise InputError(Problem(setting="model.architecture", message=message, fix="use one of these, or --model.name"))

    def texts(self, splits: Splits) -> Iterator[str]:
        for role in ("source", "target"):
            yield from splits.train[role]

    def model_settings(self, splits: Splits) -> dict[str, Any]:
        return {}

    def prepare(
        self, tables: Mapping[str, Table], places: Mapping[str, Sequence[Place]], columns: Mapping[str, str]
    ) -> Prepared:
        """Texts are taken as they are; ``references`` have to be lists of texts."""
        return Prepared(tables=tables, problems=list(_reference_problems(tables, places, columns)))

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, new: Collection[str]) -> None:
        """Derive how long an output may become from the training targets; it is saved with the model."""
        self.set_languages(model, tokenizer)
        targets = list(splits.train["target"][:TARGETS_LOOKED_AT])
        longest = max((len(ids) for ids in target_ids(targets, tokenizer)), default=1)
        config: Any = model.generation_config
        config.max_new_tokens, config.max_length = math.ceil(longest * MARGIN), None
        positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if isinstance(positions, int):
            config.max_new_tokens = min(config.max_new_tokens, positions - 1)
        note(f"outputs have at most {config.max_new_tokens} tokens: the longest training target has {longest}")

    @abstractmethod
    def set_languages(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Tell tokenizer and model which languages are meant, where they need to know."""

    # Encoding -----------------------------------------------------------------------------------------------------------

    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, training: bool
    ) -> Features:
        """One feature per row. Sources are cut to ``max_length``, counted; a target that is too long is refused.

        A feature's length is that of its source and its target together.
        """
        columns, facts = encode_texts(self.sources(rows), None, tokenizer, max_length=max_length, truncation="head")
        columns = {"input_ids": columns["input_ids"]}
        if facts["truncated_rows"]:
            note(f"{facts['truncated_rows']:,} of {len(rows):,} sources are longer than {max_length} tokens: {facts['tokens_lost']:,} tokens are cut off their ends")  # fmt: skip
        lengths = np.array([len(ids) for ids in columns["input_ids"]], np.int64)
        sides = None
        if "target" in rows.column_names:
            labels = target_ids(list(rows["target"]), tokenizer)
            self._check_targets(labels, max_length)
            columns["labels"] = labels
            sides = np.stack([lengths, np.array([len(ids) for ids in labels], np.int64)], axis=1)
            lengths = sides.sum(1)
        return Features(columns=columns, rows=np.arange(len(lengths)), lengths=lengths, sides=sides, facts=facts)

    def sources(self, rows: Dataset) -> list[str]:
        """What the model reads of each row: the prefix and the source."""
        return [self.config.source_prefix + text for text in rows["source"]]

    def _check_targets(self, labels: list[np.ndarray], max_length: int) -> None:
        most = self.config.max_target_length or max_length
        long = [row for row, ids in enumerate(labels) if len(ids) > most]
        if long:
            longest = max(len(labels[row]) for row in long)
            raise InputError(
                Problem(
                    setting="max_target_length",
                    message=f"expected targets of at most {most} tokens, found {len(long):,} longer ones (the longest {longest:,}; first: row {long[0] + 1})",
                    fix=f"use --max_target_length {longest} where the model allows it, or leave these rows out",
                )
            )

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, training: bool
    ) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        """Pads both sides on the right."""
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

        def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            from hftk.tasks.encoders import pad

            batch = pad(features, pad_id)
            if "labels" in features[0]:
                batch["labels"] = _padded([f["labels"] for f in features], IGNORED)
                batch["decoder_input_ids"] = shift_right(model, batch["labels"], pad_id)
            return batch

        return collate

    # Loss ---------------------------------------------------------------------------------------------------------------

    def items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """An item is a target token, the end token included."""
        return {"tokens": (batch["labels"] != IGNORED).sum()}

    def loss(self, model: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Cross-entropy in nats, summed over the target tokens."""
        from hftk.tasks.vocabulary import summed_nats

        smoothing = self.config.train.label_smoothing
        total = summed_nats(model, _inputs(batch), batch["labels"], label_smoothing=smoothing)
        return {"tokens": (total, self.items(batch)["tokens"])}

    def outputs(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """``nats``: (batch,) summed cross-entropy of each target, float64; ``tokens``: (batch,) its tokens."""
        from hftk.tasks.vocabulary import token_nats

        nats = token_nats(model, _inputs(batch), batch["labels"])
        return {"nats": nats.cpu().double().sum(1), "tokens": (batch["labels"] != IGNORED).sum(1)}

    # Judging ------------------------------------------------------------------------------------------------------------

    def eval_loss(self, outputs: Mapping[str, np.ndarray]) -> float:
        return float(outputs["nats"].sum() / outputs["tokens"].sum())

    def generation(self, model: PreTrainedModel) -> GenerationSettings:
        """Settings of generation for judging: as asked, with the length that :meth:`start` derived."""
        settings = self.config.generation
        if settings.max_new_tokens:
            return settings
        derived = getattr(model.generation_config, "max_new_tokens", None)
        return replace(settings, max_new_tokens=derived or GenerationSettings.max_new_tokens)

    def scores(
        self, outputs: Mapping[str, np.ndarray], features: Features, rows: Dataset, tokenizer: PreTrainedTokenizerBase,
        *, resamples: int, seed: int,
    ) -> list[Score]:  # fmt: skip
        """Scores of the generated texts, where there are some, and the loss per target token."""
        from hftk.metrics.bootstrap import ratio_interval

        interval = ratio_interval(outputs["nats"], outputs["tokens"], resamples=resamples, seed=seed)
        loss = Score(
            name="loss", value=self.eval_loss(outputs), unit="nats/token", higher_is_better=False, n=len(rows), interval=interval,
            signature=f"teacher forcing, end tokens included|{type(tokenizer).__name__}[{len(tokenizer)}]",
        )  # fmt: skip
        if "generated" not in outputs:
            return [loss]
        return [*self.text_scores(list(outputs["generated"]), rows, resamples=resamples, seed=seed), loss]

    @abstractmethod
    def text_scores(self, predictions: list[str], rows: Dataset, *, resamples: int, seed: int) -> list[Score]:
        """Scores of texts against the references of ``rows``."""

    @abstractmethod
    def sentence_scores(self, predictions: list[str], rows: Dataset) -> np.ndarray:
        """(rows,) a score of each text by itself, for picking examples."""

    @abstractmethod
    def systems(self, rows: Dataset) -> dict[str, list[str]]:
        """Name to the outputs of trivial systems."""

    def baselines(
        self, splits: Splits, features: Features | None, rows: Dataset, tokenizer: PreTrainedTokenizerBase,
        *, resamples: int, seed: int,
    ) -> list[Score]:  # fmt: skip
        return [
            replace(score, when=f"baseline:{name}")
            for name, texts in self.systems(rows).items()
            for score in self.text_scores(texts, rows, resamples=resamples, seed=seed)
        ]

    def finish(self, model: PreTrainedModel, splits: Splits, look: Look) -> list[dict[str, Any]]:
        """Nothing is chosen after training."""
        return []

    def predictions(
        self, outputs: Mapping[str, np.ndarray], features: Features, rows: Dataset, model: PreTrainedModel
    ) -> list[dict[str, Any]]:
        """``prediction`` and ``reference`` of each row; without generation its loss alone."""
        said = [{"prediction": text} for text in outputs["generated"]] if "generated" in outputs else [{}] * len(rows)
        return [
            {"index": i, **said[i], "reference": references_of(rows[i]), "nats": round(float(nats), 6), "tokens": int(tokens)}
            for i, (nats, tokens) in enumerate(zip(outputs["nats"], outputs["tokens"], strict=True))
        ]

    def analysis(
        self, outputs: Mapping[str, np.ndarray], features: Features, rows: Dataset, *, resamples: int, seed: int
    ) -> list[dict[str, Any]]:
        """Best, median and worst examples by sentence score, facts about the outputs, and the score by source length."""
        if "generated" not in outputs:
            return []
        from hftk.metrics.overlap import output_facts

        predictions = list(outputs["generated"])
        scores = self.sentence_scores(predictions, rows)
        order = np.argsort(-scores, kind="stable")
        middle = len(order) // 2
        facts = output_facts(predictions, [references_of(row) for row in rows], list(rows["source"]), self.target_language)
        sections: list[dict[str, Any]] = [{"title": "About the outputs", "kind": "facts", "facts": facts}]
        for title, some in (("Best", order[:5]), ("Median", order[max(0, middle - 2) : middle + 3]), ("Worst", order[::-1][:5])):
            lines = [
                {"source": rows[int(i)]["source"][:1000], "prediction": predictions[int(i)], "reference": " | ".join(references_of(rows[int(i)])),
                 "score": round(float(scores[i]), 2)}
                for i in some
            ]  # fmt: skip
            sections.append({"title": f"{title} outputs", "kind": "examples", "rows": lines})
        return [*sections, _by_length(features, scores)]

    @property
    def target_language(self) -> str | None:
        """Language of the targets, by which metrics choose their tokens; None: by script."""
        return None

    def show(self, rows: Dataset, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """The first rows, with what was generated for them."""
        if "generated" not in outputs:
            return []
        return [
            {"source": rows[i]["source"][:500], "prediction": outputs["generated"][i], "reference": " | ".join(references_of(rows[i]))}
            for i in range(min(3, len(rows)))
        ]  # fmt: skip


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}


def target_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Ids of each target as the tokenizer frames targets (Marian and mBART frame them in their own way), whole, and with the end
    token where the tokenizer (GPT-2's) puts none: else no model would learn to end."""
    if not texts:
        return []
    made: Any = tokenizer(text_target=["a", *texts], add_special_tokens=True, truncation=False, verbose=False)
    probe, *every = made["input_ids"]
    end = tokenizer.eos_token_id
    added = [] if end is None or end in probe else [end]
    return [np.array([*ids, *added], np.int32) for ids in every]


def shift_right(model: Any, labels: torch.Tensor, pad_id: int) -> torch.Tensor:
    """(batch, target tokens) inputs of the decoder: by the model's own rule where it has one, else behind its start token."""
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        shifted: torch.Tensor = own(labels=labels)
        return shifted
    start = model.config.decoder_start_token_id
    shifted = labels.new_full(labels.shape, pad_id)
    shifted[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, pad_id)
    shifted[:, 0] = pad_id if start is None else start
    return shifted


def references_of(row: Mapping[str, Any]) -> list[str]:
    """The references of a row: ``references`` where it has several, else the target."""
    several = row.get("references")
    return list(several) if several else [row["target"]]


def _reference_problems(
    tables: Mapping[str, Table], places: Mapping[str, Sequence[Place]], columns: Mapping[str, str]
) -> Iterator[Problem]:
    for split, table in tables.items():
        for row, value in enumerate(table.get("references", ())):
            if value is not None and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
                file, number = places[split][row]
                message = f"expected a list of texts in column {columns['references']}, found {value!r:.60} in row {number} of {file}"
                yield Problem(setting="data.columns.references", message=message, fix='write references as ["one", "another"]')
                break


def _padded(rows: list[np.ndarray], filler: int) -> torch.Tensor:
    import torch

    width = max(map(len, rows))
    made = np.full((len(rows), width), filler, np.int64)
    for i, ids in enumerate(rows):
        made[i, : len(ids)] = ids
    return torch.from_numpy(made)


def _by_length(features: Features, scores: np.ndarray) -> dict[str, Any]:
    """Mean sentence score of the rows in each quarter of source lengths."""
    lengths = np.array([len(ids) for ids in features.columns["input_ids"]])
    edges = np.unique(np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]).astype(int))
    edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    lines = []
    for low, high in pairwise(edges):
        inside = (lengths >= low) & ((lengths < high) | (high == edges[-1]))
        if inside.any():
            lines.append({"tokens": f"{low} to {high}", "rows": int(inside.sum()), "score": round(float(scores[inside].mean()), 2)})
    columns = [{"key": key, "title": title} for key, title in (("tokens", "source tokens"), ("rows", "rows"), ("score", "mean score"))]
    return {"title": "Score by source length", "kind": "table", "columns": columns, "rows": lines}


def _marian(layers: int, heads: int, width: int, inner: int) -> dict[str, Any]:
    return {
        "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": heads, "decoder_attention_heads": heads,
        "d_model": width, "encoder_ffn_dim": inner, "decoder_ffn_dim": inner, "max_position_embeddings": 512,
        "activation_function": "relu", "scale_embedding": True, "share_encoder_decoder_embeddings": True, "num_beams": 1,
    }  # fmt: skip


def _t5(layers: int, heads: int, width: int, inner: int) -> dict[str, Any]:
    return {
        "num_layers": layers, "num_decoder_layers": layers, "num_heads": heads, "d_model": width, "d_kv": width // heads,
        "d_ff": inner, "feed_forward_proj": "gated-gelu",
    }  # fmt: skip
