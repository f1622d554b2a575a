"""Encoders such as BERT as both halves of an encoder-decoder: what is new, what is learned, saved and loaded
again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_pairs
import numpy as np
import pytest
import torch
from datasets import Dataset
from made_pairs import CONTEXT, make_config, rows_of

import hftk
from hftk.config import InputError
from hftk.console import clear_notes, noted
from hftk.models.load import check_model, context_length
from hftk.models.tokenizers import join_wordpieces, train_characters, train_wordpiece
from hftk.task import Splits

CLOSE = 1e-5
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
KINDS = ("bert", "roberta", "electra")
pytestmark = pytest.mark.usefixtures("tiny_runs")


def encoder_folder(folder: Path, kind: str, **fields: Any) -> str:
    """A small encoder with its tokenizer, as it comes from elsewhere: letters are the tokens, between [CLS]
    and [SEP]."""
    from transformers import AutoConfig, AutoModel

    tokenizer = train_characters(["abcd."], 16, frame="bert")
    extra = 1 if kind == "roberta" else 0  # positions begin behind the padding's id, 0
    made = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=CONTEXT + extra,
        **SIZE,
        **fields,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return encoder_folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def loaded(folder: str) -> Any:
    task, model, tokenizer = made_pairs.load(
        make_config("unused", "", name=folder), Splits(train=rows_of(48))
    )
    return task, model.eval(), tokenizer


def batch_of(loaded: Any, rows: Dataset) -> dict[str, torch.Tensor]:
    task, model, tokenizer = loaded
    features = task.encode(rows, tokenizer, max_length=CONTEXT, training=True)
    batch: dict[str, torch.Tensor] = task.collator(tokenizer, model, training=True)(
        [features[i] for i in range(len(rows))]
    )
    return batch


def test_both_halves_have_the_weights_of_the_encoder_and_only_cross_attention_is_new(folder: str) -> None:
    from transformers import AutoModel

    clear_notes()
    _, model, _ = made_pairs.load(make_config("unused", "", name=folder), Splits(train=rows_of(48)))
    own = dict(AutoModel.from_pretrained(folder).named_parameters())
    encoder, decoder = (
        dict(model.encoder.named_parameters()),
        dict(model.decoder.base_model.named_parameters()),
    )
    for name, weight in own.items():
        assert torch.equal(encoder[name], weight), name
        assert name.startswith("pooler.") or torch.equal(decoder[name], weight), name
    assert decoder.keys() - own.keys() and all(
        "crossattention" in name for name in decoder.keys() - own.keys()
    )
    assert any("Rothe et al. 2020" in line and "cross-attention" in line for line in noted())


def test_the_start_token_is_given_and_not_learned_and_the_end_is_learned(loaded: Any) -> None:
    _, model, tokenizer = loaded
    rows = Dataset.from_dict({"source": ["abc", "b"], "target": ["bc", "d"]})
    batch = batch_of(loaded, rows)
    b, c, d = (tokenizer.convert_tokens_to_ids(letter) for letter in "bcd")
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    assert batch["labels"].tolist() == [[b, c, sep], [d, sep, -100]]
    assert batch["decoder_input_ids"].tolist() == [[cls, b, c], [cls, d, sep]]
    for settings in (model.config, model.generation_config):
        assert (settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id) == (
            cls,
            sep,
            pad,
        )


def test_the_decoder_sees_no_later_token_and_the_loss_ignores_padding(loaded: Any) -> None:
    task, model, _ = loaded
    rows = rows_of(6)
    batch = batch_of(loaded, rows)
    with torch.no_grad():
        logits = made_pairs.logits_of(task, model, batch)
        other = {**batch, "decoder_input_ids": batch["decoder_input_ids"].clone()}
        other["decoder_input_ids"][:, 3:] = 7
        changed = made_pairs.logits_of(task, model, other)
        torch.testing.assert_close(changed[:, :3], logits[:, :3])
        assert not torch.allclose(changed[:, 3:], logits[:, 3:])
        total, items = task.loss(model, batch)["tokens"]
        alone = [task.loss(model, batch_of(loaded, rows.select([i])))["tokens"] for i in range(len(rows))]
    assert int(items) == sum(len(text) + 1 for text in rows["target"]) == sum(int(n) for _, n in alone)
    assert float(total) == pytest.approx(sum(float(t) for t, _ in alone), rel=CLOSE)


def test_one_global_batch_gives_one_gradient_however_it_is_split(folder: str, tmp_path: Path) -> None:
    splits = Splits(train=rows_of(48))
    runs = {
        size: made_pairs.fit(
            make_config(tmp_path / str(size), "", name=folder, train={"per_device_batch_size": size}), splits
        )
        for size in (16, 3)
    }
    (_, whole), (_, cut) = runs.values()
    assert made_pairs.difference(whole, cut) < CLOSE
    assert not any("pooler" in name for name in whole), (
        "no decoder looks at it, and DistributedDataParallel waits for every gradient"
    )


def test_every_trained_weight_has_a_gradient(loaded: Any) -> None:
    task, model, _ = loaded
    total, _ = task.loss(model, batch_of(loaded, rows_of(8)))["tokens"]
    total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_what_was_saved_is_loaded_by_transformers_and_by_hftk_alike(folder: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, EncoderDecoderModel

    rows = rows_of(48)
    config = make_config(tmp_path, "", name=folder)
    trained, _ = made_pairs.fit(config, Splits(train=rows))
    made_pairs.scatter(trained.model, 3.0)
    trained.model.save_pretrained(tmp_path)
    judged = hftk.evaluate(
        made_pairs.task_of(config), trained.model, trained.tokenizer, ("test", rows), config.eval
    )
    assert judged is not None
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for auto in (EncoderDecoderModel, AutoModelForSeq2SeqLM):
        model = auto.from_pretrained(tmp_path).eval()
        inputs = tokenizer(rows["source"][0], return_tensors="pt")
        text = tokenizer.decode(
            model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])[0],
            skip_special_tokens=True,
        )
        assert text == judged.predictions[0]["prediction"]
    again = make_config("unused", "", name=str(tmp_path))
    task, model, tokenizer = made_pairs.load(again, Splits(train=rows))
    assert not any(p.requires_grad for name, p in model.named_parameters() if "pooler" in name)
    second = hftk.evaluate(task, model, tokenizer, ("test", rows), config.eval)
    assert second is not None and second.predictions == judged.predictions


def test_the_context_is_that_of_both_halves_and_longer_sources_are_cut(loaded: Any) -> None:
    task, model, tokenizer = loaded
    assert context_length(model.config) == CONTEXT
    rows = Dataset.from_dict({"source": ["ab" * 50, "c"], "target": ["b", "c" * (CONTEXT - 1)]})
    features = task.encode(rows, tokenizer, max_length=CONTEXT, training=True)
    assert features.facts["truncated_rows"] == 1 and len(features.columns["input_ids"][0]) == CONTEXT
    assert features.facts["tokens_lost"] == 100 + 2 - CONTEXT
    hftk.evaluate(
        task, model, tokenizer, ("test", rows), task.config.eval
    )  # the longest inputs and targets that fit
    with pytest.raises(InputError, match=f"at most {CONTEXT} tokens"):
        task.encode(
            Dataset.from_dict({"source": ["a"], "target": ["c" * CONTEXT]}),
            tokenizer,
            max_length=CONTEXT,
            training=True,
        )


def test_a_limit_of_targets_above_the_positions_of_the_decoder_is_refused(folder: str) -> None:
    config = make_config("unused", "", name=folder, max_target_length=CONTEXT + 1)
    with pytest.raises(InputError, match=f"at most {CONTEXT}, the positions of the model's decoder"):
        made_pairs.load(config, Splits(train=rows_of(8)))


def test_an_encoder_without_a_decoder_of_its_kind_is_refused_with_what_to_use(tmp_path: Path) -> None:
    from transformers import AutoModel, DistilBertConfig

    AutoModel.from_config(
        DistilBertConfig(vocab_size=16, dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    ).save_pretrained(tmp_path)
    config = make_config("unused", "", name=str(tmp_path))
    with pytest.raises(InputError, match="no decoder with cross-attention") as caught:
        check_model(config.model, made_pairs.task_of(config))
    assert "BERT, RoBERTa" in caught.value.problems[0].fix


def test_dropout_is_set_on_both_halves(folder: str, tmp_path: Path) -> None:
    trained, _ = made_pairs.fit(
        make_config(tmp_path, "", name=folder, model={"dropout": 0.3}), Splits(train=rows_of(48))
    )
    config: Any = trained.model.config
    assert {config.encoder.hidden_dropout_prob, config.decoder.attention_probs_dropout_prob} == {0.3}
    task = made_pairs.task_of(make_config("unused", "", name=str(tmp_path), model={"dropout": 0.1}))
    made: Any = check_model(task.config.model, task)
    assert {made.encoder.hidden_dropout_prob, made.decoder.hidden_dropout_prob} == {0.1}


def test_wordpieces_are_joined_as_they_are_written() -> None:
    tokenizer = train_wordpiece(["今天天气很好 2020 年 don't it's the dogs ' tail hello, world!"], 200)
    assert join_wordpieces("今 天 天 气 很 好 ， 2020 年 。", tokenizer) == "今天天气很好，2020年。"
    assert join_wordpieces("i don ' t say it ' s", tokenizer) == "i don't say it's"
    assert join_wordpieces("the dogs ' tail", tokenizer) == "the dogs ' tail"
    assert join_wordpieces("a ' s 今 天", train_characters(["abc"], 9, frame="t5")) == "a ' s 今 天"


def test_chinese_comes_out_as_it_went_in(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    texts = ["今天天气很好。", "我们去公园，好吗？", "他在2020年来过。"]
    tokenizer = train_wordpiece(texts, 200)
    BertModel(BertConfig(vocab_size=len(tokenizer), **SIZE)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    task, _, tokenizer = made_pairs.load(
        make_config("unused", "", name=str(tmp_path)),
        Splits(train=Dataset.from_dict({"source": texts, "target": texts})),
    )
    for text, ids in zip(texts, task.way.answers(texts, tokenizer), strict=True):
        assert ids[-1] == tokenizer.sep_token_id and ids[0] != tokenizer.cls_token_id
        assert join_wordpieces(tokenizer.decode(ids, skip_special_tokens=True), tokenizer) == text
    assert np.mean([len(ids) for ids in task.way.answers(texts, tokenizer)]) > 5
