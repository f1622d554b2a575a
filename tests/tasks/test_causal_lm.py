"""Every token is trained and judged exactly once, in its own document alone, and the loss is the one that can
be worked out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hftk import console
from hftk.config import EvalConfig, InputError, ModelConfig, TrainConfig
from hftk.evaluation.evaluate import run_model
from hftk.models.load import load_model
from hftk.models.tokenizers import train_byte_bpe, train_characters
from hftk.task import Features, Outputs, Splits
from hftk.tasks.causal_lm import CausalLM, CausalLMConfig
from hftk.tasks.decoder_inputs import IGNORED, collate, end_of_text, next_token_logits, start_of_text
from hftk.tasks.tokenization import tokenize

LENGTHS = (
    1,
    3,
    7,
    8,
    9,
    16,
    17,
    30,
    2,
    5,
)  # shorter than, equal to and longer than blocks of 8, with and without the end
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DOCUMENTS = [
    "".join(LETTERS[(7 * row + 3 * i * i + i) % 26] for i in range(n)) for row, n in enumerate(LENGTHS)
]
BLOCK = 8


def task_of(packing: Any = "documents", stride: int | None = None, **train: Any) -> CausalLM:
    return CausalLM(
        CausalLMConfig(packing=packing, train=TrainConfig(**train), eval=EvalConfig(stride=stride))
    )


def rows_of(*texts: str) -> Dataset:
    return Dataset.from_dict({"text": list(texts)})


FIELDS = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32, "vocab_size": 64},
    "llama": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "vocab_size": 64,
    },
}


def make_model(architecture: str, attention: Any = "auto") -> Any:
    config = ModelConfig(
        size="tiny",
        architecture=architecture,
        tokenizer="characters",
        config=FIELDS[architecture],
        initialization="xavier",
        attention=attention,
    )
    model, _ = load_model(config, task_of(), Splits(train=rows_of(*DOCUMENTS)))
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: make_model(name) for name in FIELDS}


# --- Training blocks


def pieces_of(features: Features) -> list[tuple[list[int], list[int]]]:
    """(inputs, labels) of every piece of every block."""
    found = []
    for i in range(len(features)):
        row, at = features[i], 0
        for n in row["pieces"]:
            found.append((row["input_ids"][at : at + n].tolist(), row["labels"][at : at + n].tolist()))
            at += n
        assert at == len(row["input_ids"]) == len(row["labels"]) == features.lengths[i] <= BLOCK
    return found


@pytest.mark.parametrize("packing", ["documents", "concatenate"])
def test_every_token_and_every_end_of_text_is_a_target_exactly_once(tokenizer: Any, packing: str) -> None:
    features = task_of(packing).encode(rows_of(*DOCUMENTS), tokenizer, max_length=BLOCK, training=True)
    targets = Counter(
        label for row in features.columns["labels"] for label in row.tolist() if label != IGNORED
    )
    expected = Counter(token for d in tokenize(DOCUMENTS, tokenizer) for token in d.tolist())
    expected[end_of_text(tokenizer)] += len(DOCUMENTS)
    assert targets == expected
    assert features.facts["tokens"] == sum(LENGTHS) and features.facts["documents"] == len(LENGTHS)


def test_pieces_of_packed_blocks_read_as_the_documents(tokenizer: Any) -> None:
    features = task_of().encode(rows_of(*DOCUMENTS), tokenizer, max_length=BLOCK, training=True)
    start, end = start_of_text(tokenizer), end_of_text(tokenizer)
    wanted = Counter()
    for document in tokenize(DOCUMENTS, tokenizer):
        whole = [start, *document.tolist(), end]
        for at in range(0, len(whole) - 1, BLOCK):
            wanted[tuple(whole[:-1][at : at + BLOCK]), tuple(whole[1:][at : at + BLOCK])] += 1
    assert Counter((tuple(i), tuple(t)) for i, t in pieces_of(features)) == wanted


def test_concatenated_blocks_read_as_one_long_text(gpt2_tokenizer: Any) -> None:
    features = task_of("concatenate").encode(
        rows_of(*DOCUMENTS), gpt2_tokenizer, max_length=BLOCK, training=True
    )
    by_text = sorted(pieces_of(features), key=lambda piece: -len(piece[0]))
    assert [len(i) for i, _ in by_text].count(BLOCK) == len(by_text) - 1  # all full but the last
    labels = [label for _, row in by_text for label in row]
    text = gpt2_tokenizer.decode(labels)
    assert text == "".join(d + "<|endoftext|>" for d in DOCUMENTS)


def test_where_padding_is_the_end_of_text_the_end_is_still_trained(gpt2_tokenizer: Any) -> None:
    assert gpt2_tokenizer.pad_token_id == gpt2_tokenizer.eos_token_id
    task = task_of()
    features = task.encode(rows_of("abc", "abcde"), gpt2_tokenizer, max_length=BLOCK, training=True)
    batch = collate([features[i] for i in range(len(features))])
    end = gpt2_tokenizer.eos_token_id
    assert batch["input_ids"].shape == (2, 6)
    assert sorted((row == end).nonzero().flatten().tolist() for row in batch["labels"]) == [[3], [5]]
    assert (batch["labels"] == IGNORED).sum() == 2 and task.items(batch)["tokens"] == 10


def test_a_document_without_a_token_trains_its_end_and_is_judged_on_nothing(gpt2_tokenizer: Any) -> None:
    task = task_of()
    features = task.encode(rows_of("", "ab", ""), gpt2_tokenizer, max_length=BLOCK, training=True)
    assert sum(int((row == 0).sum()) for row in features.columns["labels"]) == 3
    judged = task.encode(rows_of("", "ab", ""), gpt2_tokenizer, max_length=BLOCK, training=False)
    assert judged.rows.tolist() == [1] and [row.tolist() for row in judged.columns["labels"]] == [
        tokenize(["ab"], gpt2_tokenizer)[0].tolist()
    ]


def test_no_documents_give_no_blocks(gpt2_tokenizer: Any) -> None:
    for packing in ("documents", "concatenate"):
        features = task_of(packing).encode({"text": []}, gpt2_tokenizer, max_length=BLOCK, training=True)
        assert len(features) == 0
    assert len(task_of().encode({"text": []}, gpt2_tokenizer, max_length=BLOCK, training=False)) == 0


def test_chinese_is_trained_whole() -> None:
    poem = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。🌕"
    for made in (train_byte_bpe([poem], 300), train_characters([poem], 100)):
        features = task_of().encode(rows_of(poem), made, max_length=BLOCK, training=True)
        pieces = {tuple(i): t for i, t in pieces_of(features)}
        first = next(i for i in pieces if i[0] == made.eos_token_id)
        order, last = [], first
        while last:  # a piece goes on with the label that ended the one before
            order += pieces.pop(last)
            last = next((i for i in pieces if i[0] == order[-1]), ())
        assert not pieces and made.decode(order) == poem + "<|endoftext|>"


def test_packing_wastes_little(gpt2_tokenizer: Any) -> None:
    texts = [LETTERS[: 1 + (5 * i) % 23] for i in range(200)]
    features = task_of().encode(rows_of(*texts), gpt2_tokenizer, max_length=64, training=True)
    trained = sum(int((row != IGNORED).sum()) for row in features.columns["labels"])
    assert trained == sum(len(t) + 1 for t in texts)
    assert features.facts["padding"] == pytest.approx(1 - trained / (64 * len(features)))
    assert features.facts["padding"] < 0.02


# --- Tokens that start and end a document


def test_a_document_starts_with_the_start_token_that_the_tokenizer_adds_and_else_with_the_end(
    gpt2_tokenizer: Any, llama_tokenizer: Any
) -> None:
    assert start_of_text(gpt2_tokenizer) == end_of_text(gpt2_tokenizer) == gpt2_tokenizer.eos_token_id
    assert start_of_text(llama_tokenizer) == llama_tokenizer.bos_token_id != end_of_text(llama_tokenizer)
    for tokenizer in (gpt2_tokenizer, llama_tokenizer):
        for training in (True, False):
            features = task_of().encode(rows_of("abc"), tokenizer, max_length=BLOCK, training=training)
            assert features[0]["input_ids"][0] == start_of_text(tokenizer)


def test_a_tokenizer_without_an_end_of_text_is_an_input_error() -> None:
    from transformers import PreTrainedTokenizerFast

    backend = train_characters(["abc"], 10).backend_tokenizer
    without = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<|unknown|>")
    with pytest.raises(InputError, match=r"the tokenizer has no end-of-text \(eos\) token"):
        task_of().encode(rows_of("abc"), without, max_length=BLOCK, training=True)


# --- Windows


@pytest.mark.parametrize("stride", [1, 4, 7, 8, None])
def test_every_token_is_judged_once_in_as_much_context_as_the_stride_leaves(
    tokenizer: Any, stride: int | None
) -> None:
    features = task_of(stride=stride).encode(rows_of(*DOCUMENTS), tokenizer, max_length=BLOCK, training=False)
    start = start_of_text(tokenizer)
    judged: dict[int, list[int]] = {row: [] for row in range(len(DOCUMENTS))}
    for i, row in enumerate(features.rows.tolist()):
        inputs, labels = features[i]["input_ids"].tolist(), features[i]["labels"].tolist()
        whole = [start, *tokenize([DOCUMENTS[row]], tokenizer)[0].tolist()]
        at = len(judged[row])
        counted = [n for n, label in enumerate(labels) if label != IGNORED]
        first = at - counted[0]  # the window begins at this token of the document
        assert inputs == whole[first : first + len(inputs)] and first % (stride or BLOCK) == 0
        assert [labels[n] for n in counted] == whole[at + 1 : at + 1 + len(counted)]
        assert counted[0] >= (
            BLOCK - (stride or BLOCK) if first else 0
        )  # context before the first judged token
        judged[row] += [labels[n] for n in counted]
    assert [judged[r] for r in judged] == [d.tolist() for d in tokenize(DOCUMENTS, tokenizer)]
    assert features.rows.tolist() == sorted(features.rows.tolist())
    assert features.lengths.max() <= BLOCK


@pytest.mark.parametrize(
    ("tokens", "stride", "windows"),
    [(8, None, 1), (9, None, 2), (16, None, 2), (8, 4, 1), (9, 4, 2), (16, 4, 3), (17, 1, 10)],
)
def test_there_are_no_more_windows_than_needed(
    gpt2_tokenizer: Any, tokens: int, stride: int | None, windows: int
) -> None:
    features = task_of(stride=stride).encode(
        rows_of(LETTERS[:tokens]), gpt2_tokenizer, max_length=BLOCK, training=False
    )
    assert len(features) == windows


# --- Loss


def alone(model: Any, inputs: list[int]) -> torch.Tensor:
    """(tokens, vocabulary) logits of one piece by itself."""
    with torch.no_grad():
        return model(torch.tensor([inputs]), use_cache=False).logits[0]


def by_hand(model: Any, inputs: list[int], labels: list[int]) -> float:
    """Sum of -log p of the labels, in nats, worked out token by token."""
    log_p = torch.log_softmax(alone(model, inputs).double(), -1)
    return -sum(log_p[n, label].item() for n, label in enumerate(labels) if label != IGNORED)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_packed_piece_has_the_logits_of_the_piece_alone(
    architecture: str, attention: str, gpt2_tokenizer: Any
) -> None:
    model = make_model(architecture, attention)
    features = task_of().encode(rows_of(*DOCUMENTS), gpt2_tokenizer, max_length=24, training=True)
    assert max(len(p) for p in features.columns["pieces"]) > 2
    batch = collate([features[i] for i in range(len(features))])
    with torch.no_grad():
        logits = next_token_logits(model, batch)
    for i in range(len(features)):
        at = 0
        for n in features[i]["pieces"]:
            piece = slice(at, at + n)
            torch.testing.assert_close(
                logits[i, piece], alone(model, batch["input_ids"][i, piece].tolist()), rtol=1e-5, atol=1e-5
            )
            at += n


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_loss_is_the_sum_that_can_be_worked_out_by_hand(
    models: dict[str, Any], architecture: str, gpt2_tokenizer: Any
) -> None:
    model, task = models[architecture], task_of()
    features = task.encode(rows_of(*DOCUMENTS), gpt2_tokenizer, max_length=24, training=True)
    with torch.no_grad():
        total, items = task.loss(model, collate([features[i] for i in range(len(features))]))["tokens"]
    expected, count = 0.0, 0
    for i in range(len(features)):
        row, at = features[i], 0
        for n in row["pieces"]:
            labels = row["labels"][at : at + n].tolist()
            expected += by_hand(model, row["input_ids"][at : at + n].tolist(), labels)
            count += n
            at += n
    assert items == count == sum(LENGTHS) + len(LENGTHS)
    assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_attention_crosses_documents_where_they_are_concatenated_and_nowhere_else(
    models: dict[str, Any], architecture: str, gpt2_tokenizer: Any
) -> None:
    for packing, crosses in (("concatenate", True), ("documents", False)):
        changed = []
        for first in ("aaaa", "zzzz"):
            features = task_of(packing).encode(
                rows_of(first, "abcd"), gpt2_tokenizer, max_length=24, training=True
            )
            assert len(features) == 1
            with torch.no_grad():
                changed.append(next_token_logits(models[architecture], collate([features[0]]))[0, 6:10])
        difference = (changed[0] - changed[1]).abs().max().item()
        assert difference > 1e-3 if crosses else difference == 0


def test_padding_does_not_change_the_loss(models: dict[str, Any], gpt2_tokenizer: Any) -> None:
    task = task_of()
    features = task.encode(rows_of(*DOCUMENTS), gpt2_tokenizer, max_length=24, training=True)
    rows = [features[i] for i in range(len(features))]
    with torch.no_grad():
        together = task.loss(models["gpt2"], collate(rows))["tokens"]
        single = [task.loss(models["gpt2"], collate([row]))["tokens"] for row in rows]
    assert together[0].item() == pytest.approx(sum(t.item() for t, _ in single), rel=1e-6)
    assert together[1] == sum(n for _, n in single)


def test_label_smoothing_is_in_training_only_and_is_the_published_one(
    models: dict[str, Any], gpt2_tokenizer: Any
) -> None:
    model, plain, smooth = models["gpt2"], task_of(), task_of(label_smoothing=0.1)
    features = plain.encode(rows_of("abcdefg"), gpt2_tokenizer, max_length=BLOCK, training=True)
    batch = collate([features[0]])
    with torch.no_grad():
        losses = [task.loss(model, batch)["tokens"][0].item() for task in (plain, smooth)]
        outputs = [task.outputs(model, batch)["nats"].sum().item() for task in (plain, smooth)]
        log_p = torch.log_softmax(next_token_logits(model, batch)[0].double(), -1)  # (tokens, vocabulary)
    truth = -log_p[torch.arange(8), batch["labels"][0]].sum().item()
    spread = -log_p.mean(-1).sum().item()  # the target that is spread evenly over all classes
    assert losses == pytest.approx([truth, 0.9 * truth + 0.1 * spread], rel=1e-6)
    assert outputs == pytest.approx([truth, truth], rel=1e-6)


def test_outputs_of_the_rows_add_up_to_the_loss(models: dict[str, Any], gpt2_tokenizer: Any) -> None:
    task = task_of(stride=4)
    features = task.encode(rows_of(*DOCUMENTS), gpt2_tokenizer, max_length=BLOCK, training=False)
    batch = collate([features[i] for i in range(len(features))])
    with torch.no_grad():
        total, items = task.loss(models["llama"], batch)["tokens"]
        outputs = task.outputs(models["llama"], batch)
    assert outputs["nats"].dtype == torch.float64 and outputs["nats"].shape == outputs["tokens"].shape == (
        len(features),
    )
    assert outputs["nats"].sum().item() == pytest.approx(total.item(), rel=1e-6)
    assert outputs["tokens"].sum() == items == sum(LENGTHS)
    assert task.eval_loss({k: v.numpy() for k, v in outputs.items()}) == pytest.approx(
        total.item() / sum(LENGTHS), rel=1e-6
    )
    for i in range(len(features)):
        expected = by_hand(models["llama"], features[i]["input_ids"].tolist(), features[i]["labels"].tolist())
        assert outputs["nats"][i].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_evaluated_loss_does_not_depend_on_the_batch_size(
    models: dict[str, Any], architecture: str, gpt2_tokenizer: Any
) -> None:
    task = task_of(stride=4)
    rows = rows_of(*DOCUMENTS)
    features = task.encode(rows, gpt2_tokenizer, max_length=24, training=False)
    found = []
    for batch_size in (1, 3, 8):
        outputs = run_model(task, models[architecture], gpt2_tokenizer, features, batch_size=batch_size)
        scores = task.scores(
            Outputs(
                arrays=outputs, features=features, rows=rows, tokenizer=gpt2_tokenizer, resamples=0, seed=0
            )
        )
        by_name = {s.name: s.value for s in scores}
        found.append(
            (
                task.eval_loss(outputs),
                *(by_name.pop(name) for name in ("loss", "perplexity", "bits_per_byte")),
            )
        )
        assert not by_name
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0] == pytest.approx(found[2], rel=1e-6)
    assert found[0][0] == pytest.approx(found[0][1]) and found[0][2] == pytest.approx(np.exp(found[0][1]))


def test_scores_are_those_of_the_sums_by_hand(models: dict[str, Any], gpt2_tokenizer: Any) -> None:
    task, rows = task_of(), rows_of("abc", "床前明月光", "")
    features = task.encode(rows, gpt2_tokenizer, max_length=BLOCK, training=False)
    outputs = run_model(task, models["gpt2"], gpt2_tokenizer, features, batch_size=2)
    nats = sum(
        by_hand(models["gpt2"], features[i]["input_ids"].tolist(), features[i]["labels"].tolist())
        for i in range(2)
    )
    scores = {
        s.name: s
        for s in task.scores(
            Outputs(
                arrays=outputs, features=features, rows=rows, tokenizer=gpt2_tokenizer, resamples=10, seed=0
            )
        )
    }
    assert scores["loss"].value == pytest.approx(nats / 8, rel=1e-6)
    assert scores["bits_per_byte"].value == pytest.approx(nats / np.log(2) / (3 + 15), rel=1e-6)
    assert "context:8|stride:8" in scores["loss"].signature and scores["loss"].n == 2


def test_a_text_that_is_nothing_to_the_tokenizer_counts_for_nothing(models: dict[str, Any]) -> None:
    from tokenizers import normalizers

    silent = train_characters(["abc "], 10)
    silent.backend_tokenizer.normalizer = normalizers.Strip()
    task, rows = task_of(), rows_of("abc", "   ", "ab")
    features = task.encode(rows, silent, max_length=BLOCK, training=False)
    outputs = run_model(task, models["gpt2"], silent, features, batch_size=2)
    with_blank = task.scores(
        Outputs(arrays=outputs, features=features, rows=rows, tokenizer=silent, resamples=0, seed=0)
    )
    without = rows_of("abc", "ab")
    features = task.encode(without, silent, max_length=BLOCK, training=False)
    assert [s.value for s in with_blank] == [
        s.value
        for s in task.scores(
            Outputs(arrays=outputs, features=features, rows=without, tokenizer=silent, resamples=0, seed=0)
        )
    ]


# --- Baselines


@pytest.mark.parametrize("stride", [None, 3])
def test_baselines_are_judged_on_exactly_the_tokens_of_the_model(
    gpt2_tokenizer: Any, stride: int | None
) -> None:
    from hftk.metrics.ngrams import fit_bigram, fit_unigram

    task, splits = task_of(stride=stride), Splits(train=rows_of(*DOCUMENTS))
    rows = rows_of("", "abcabcabcabc", "zz", "床q")
    features = task.encode(rows, gpt2_tokenizer, max_length=BLOCK, training=False)
    scores = task.baselines(
        splits, Outputs(features=features, rows=rows, tokenizer=gpt2_tokenizer, resamples=0, seed=0)
    )
    found = {(s.when, s.name): s.value for s in scores}
    assert set(found) == {
        (f"baseline:{m}", n) for m in ("unigram", "bigram") for n in ("loss", "perplexity", "bits_per_byte")
    }
    train, held_out = tokenize(DOCUMENTS, gpt2_tokenizer), tokenize(list(rows["text"]), gpt2_tokenizer)
    counted = sum(int((row != IGNORED).sum()) for row in features.columns["labels"])
    for name, fit in (("unigram", fit_unigram), ("bigram", fit_bigram)):
        nats = fit(train, vocab_size=len(gpt2_tokenizer), end_token=0).nats(held_out)
        assert found[f"baseline:{name}", "loss"] == pytest.approx(nats.sum() / counted) and counted == 16


def test_the_sums_of_a_baseline_go_to_the_windows_that_count_the_tokens(gpt2_tokenizer: Any) -> None:
    from hftk.tasks.causal_lm import _over_windows

    features = task_of(stride=3).encode(
        rows_of("", "abcdefghijklm", "xy"), gpt2_tokenizer, max_length=BLOCK, training=False
    )
    nats, tokens = _over_windows(np.arange(15.0), features)
    assert tokens.tolist() == [8, 3, 2, 2] and nats.tolist() == [28, 27, 23, 27]


class Stream:
    """As much of a datasets.IterableDataset as a task needs."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter({"text": text} for text in self.texts)

    def take(self, count: int) -> Stream:
        return Stream(self.texts[:count])


def test_of_a_stream_only_the_first_documents_train_tokenizer_and_baselines(
    monkeypatch: pytest.MonkeyPatch, gpt2_tokenizer: Any
) -> None:
    monkeypatch.setattr("hftk.tasks.causal_lm.STREAM_SAMPLE", 2)
    task, splits, rows = task_of(), Splits(train=Stream(["ab", "cd", "ef"])), rows_of("abcd")
    assert list(task.tokenizer_texts(splits)) == ["ab", "cd"]
    features = task.encode(rows, gpt2_tokenizer, max_length=BLOCK, training=False)
    found = task.baselines(
        splits, Outputs(features=features, rows=rows, tokenizer=gpt2_tokenizer, resamples=0, seed=0)
    )
    whole = task.baselines(
        Splits(train=rows_of("ab", "cd")),
        Outputs(features=features, rows=rows, tokenizer=gpt2_tokenizer, resamples=0, seed=0),
    )
    assert [s.value for s in found] == [s.value for s in whole]
    assert [
        line for line in console.noted() if "first 2 documents of the stream" in line
    ] == console.noted() and len(console.noted()) == 2


# --- Samples


def test_samples_are_prompt_and_how_the_document_goes_on() -> None:
    task = CausalLM(CausalLMConfig(prompts=3))
    shown = task.samples(
        Outputs(
            features=None, rows=rows_of("  one two\nthree", "   ", "长" * 45, "not shown"), tokenizer=None
        )  # type: ignore[arg-type]
    )
    assert shown == [
        {"prompt": "one two", "reference": "\nthree"},
        {"prompt": "长" * 40, "reference": "长" * 5},
    ]


def test_a_saved_and_loaded_tokenizer_gives_the_same_blocks(tmp_path: Path, llama_tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    llama_tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert start_of_text(loaded) == start_of_text(llama_tokenizer)
    task, rows = task_of("concatenate"), rows_of(*DOCUMENTS)
    found, expected = (
        task.encode(rows, t, max_length=BLOCK, training=True) for t in (loaded, llama_tokenizer)
    )
    assert [a.tolist() for a in found.columns["labels"]] == [a.tolist() for a in expected.columns["labels"]]
