"""Decoder-only models prompted: what is read, what is learned, what is cut, and outputs that are those of
transformers."""

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
from hftk.models.load import load_trained
from hftk.models.tokenizers import train_byte_bpe
from hftk.task import Splits
from hftk.tasks.prompts import PromptedDecoder, fit_prompts, frame_of

CLOSE = 1e-5
KINDS = ("gpt2", "llama", "opt")
TEMPLATE = "in {source} out "
CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
pytestmark = pytest.mark.usefixtures("tiny_runs")


def byte_tokenizer(*, chat: bool = False, start: bool = False) -> Any:
    """Bytes are the tokens, all but a few words; with a chat template and with a token before every text if
    asked."""
    tokenizer = train_byte_bpe(["in out Ġ"], 258)
    if chat:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|user|>", "<|assistant|>"]})
        tokenizer.chat_template = CHAT
    if start:
        from tokenizers.processors import TemplateProcessing

        tokenizer.add_special_tokens({"bos_token": "<s>"})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    return tokenizer


def decoder_folder(folder: Path, kind: str, context: int = CONTEXT, **tokenizer_settings: Any) -> str:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_tokenizer(**tokenizer_settings)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": context,
    }
    shape |= {"gpt2": {"n_inner": 64}, "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}}.get(
        kind, {"intermediate_size": 64}
    )
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, vocab_size=len(tokenizer), **shape, **ids)
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    kind = request.param
    return decoder_folder(tmp_path_factory.mktemp(kind), kind, start=kind == "llama")


def config_of(folder: str, output: Any = "unused", **changes: Any) -> Any:
    return make_config(output, "", name=folder, **{"prompt_template": TEMPLATE, **changes})


def pairs(count: int = 48, seed: int = 0) -> Dataset:
    return rows_of(count, seed=seed, longest=14)


@pytest.fixture
def loaded(folder: str) -> Any:
    task, model, tokenizer = made_pairs.load(config_of(folder), Splits(train=pairs()))
    made_pairs.scatter(model, 3.0)
    return task, model.eval(), tokenizer


def batch_of(loaded: Any, rows: Dataset) -> dict[str, torch.Tensor]:
    task, model, tokenizer = loaded
    features = task.encode(rows, tokenizer, max_length=CONTEXT, training=True)
    batch: dict[str, torch.Tensor] = task.collator(tokenizer, model, training=True)(
        [features[i] for i in range(len(rows))]
    )
    return batch


# --- What is read and learned


def test_the_target_and_its_end_are_learned_behind_the_prompt_and_nothing_else(loaded: Any) -> None:
    _, _, tokenizer = loaded
    rows = Dataset.from_dict({"source": ["abc", "b"], "target": ["bc", "ddd"]})
    batch = batch_of(loaded, rows)
    for ids, labels, source, target in zip(
        batch["input_ids"], batch["labels"], rows["source"], rows["target"], strict=True
    ):
        whole = [*tokenizer(f"in {source} out {target}")["input_ids"], tokenizer.eos_token_id]
        assert ids.tolist()[: len(whole)] == whole and set(ids.tolist()[len(whole) :]) <= {
            tokenizer.pad_token_id
        }
        learned = labels[labels != -100].tolist()
        assert tokenizer.decode(learned[:-1]) == f" {target}" and learned[-1] == tokenizer.eos_token_id
        assert labels.tolist().index(learned[0]) == len(whole) - len(learned)


def test_the_loss_is_that_of_transformers_over_the_same_labels(loaded: Any) -> None:
    task, model, _ = loaded
    for row in range(4):
        batch = batch_of(loaded, pairs(4).select([row]))
        with torch.no_grad():
            total, items = task.loss(model, batch)["tokens"]
            logits = model(batch["input_ids"]).logits[:, :-1].flatten(0, 1)
            own = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")
        assert int(items) == int((batch["labels"] != -100).sum()) > 1
        assert float(total) == pytest.approx(float(own), rel=CLOSE)


def test_padding_and_the_company_of_a_row_do_not_change_its_loss(loaded: Any) -> None:
    task, model, _ = loaded
    rows = pairs(9)
    with torch.no_grad():
        alone = [task.loss(model, batch_of(loaded, rows.select([i])))["tokens"] for i in range(9)]
        batch = batch_of(loaded, rows)
        total, items = task.loss(model, batch)["tokens"]
        nats = task.outputs(model, batch)["nats"]
    assert int(items) == sum(int(n) for _, n in alone)
    assert float(total) == pytest.approx(sum(float(t) for t, _ in alone), rel=CLOSE)
    np.testing.assert_allclose(nats, [float(t) for t, _ in alone], rtol=CLOSE)


def test_one_global_batch_gives_one_gradient_however_it_is_split(folder: str, tmp_path: Path) -> None:
    splits = Splits(train=pairs())
    runs = {
        size: made_pairs.fit(
            config_of(folder, tmp_path / str(size), train={"per_device_batch_size": size}), splits
        )
        for size in (16, 3)
    }
    (_, whole), (_, cut) = runs.values()
    assert made_pairs.difference(whole, cut) < CLOSE


# --- Chat


def test_a_chat_template_is_used_where_there_is_one_and_its_end_of_turn_ends_the_target(
    tmp_path: Path,
) -> None:
    folder = decoder_folder(tmp_path, "gpt2", chat=True)
    clear_notes()
    task, model, tokenizer = made_pairs.load(make_config("unused", "", name=folder), Splits(train=pairs()))
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert end != tokenizer.eos_token_id and set(model.generation_config.eos_token_id) == {
        tokenizer.eos_token_id,
        end,
    }
    rows = Dataset.from_dict({"source": ["abc"], "target": ["bc"]})
    features = task.encode(rows, tokenizer, max_length=1024, training=True)
    said = "<|user|>Summarize the following text.\n\nabc<|end|><|assistant|>"
    assert tokenizer.decode(features.columns["input_ids"][0]) == said
    assert features.columns["labels"][0].tolist() == [*tokenizer("bc")["input_ids"], end]
    assert any("gpt2 is a decoder alone" in line and "{source}" in line for line in noted())
    plain, _, _ = made_pairs.load(make_config("unused", "", name=folder, chat=False), Splits(train=pairs()))
    features = plain.encode(rows, tokenizer, max_length=1024, training=True)
    assert tokenizer.decode(features.columns["input_ids"][0]) == "abc\n\nSummary:"
    assert tokenizer.decode(features.columns["labels"][0]) == f" bc{tokenizer.eos_token}"


def test_a_start_token_that_tokenizer_and_chat_template_both_put_there_stands_once() -> None:
    tokenizer = byte_tokenizer(chat=True, start=True)
    tokenizer.chat_template = "{{ bos_token }}" + CHAT
    way = PromptedDecoder(template="", chat_prompt="{source}", chat=True)
    columns, _ = way.encode(["abc"], ["d"], tokenizer, 256)
    assert tokenizer.decode(columns["input_ids"][0]) == "<s><|user|>abc<|end|><|assistant|>"


def test_a_chat_template_that_loses_the_source_is_refused() -> None:
    tokenizer = byte_tokenizer(chat=True)
    tokenizer.chat_template = "{{ 'hello' }}"
    with pytest.raises(InputError, match="leaves out what the user says"):
        frame_of(tokenizer, "{source}", chat=True)


def test_languages_are_named_in_the_prompt() -> None:
    for source, target, plain in (
        ("en", "zh-CN", "English: {source}\nChinese: "),
        ("eng_Latn", "xx", "eng_Latn: {source}\nxx: "),
        (None, "de", "{source}\n\nTranslation: "),
    ):
        task = hftk.Translation(hftk.TranslationConfig(source_language=source, target_language=target))
        assert task.instructions()[0] == plain and task.instructions()[1].endswith("\n\n{source}")


# --- Cutting


@pytest.mark.parametrize(
    "text", ["abcd" * 30, "größe 今天天气很好 " * 9, "🙂" * 40, "Thai ภาษาไทย हिन्दी " * 8]
)
@pytest.mark.parametrize("start", [False, True])
def test_a_long_source_loses_its_end_and_the_template_nothing(text: str, start: bool) -> None:
    tokenizer = byte_tokenizer(start=start)
    frame = frame_of(tokenizer, TEMPLATE, chat=False)
    for room in (12, 37, 64):
        [prompt, short], lost = fit_prompts([text, "a"], frame, tokenizer, room)
        size, whole = (len(tokenizer(p)["input_ids"]) for p in (prompt, frame.around(text)))
        assert (
            size <= room
            and prompt.startswith("in ")
            and prompt.endswith(" out")
            and text.startswith(prompt[3:-4])
        )
        assert room - size < 4, "no more than a character of several bytes is lost beside what must be"
        assert (short, lost.tolist()) == ("in a out", [whole - size, 0])


def test_a_template_that_leaves_no_room_is_refused() -> None:
    tokenizer = byte_tokenizer()
    frame = frame_of(tokenizer, TEMPLATE, chat=False)
    least = len(tokenizer("in  out")["input_ids"])
    assert fit_prompts(["abc"], frame, tokenizer, least + 1)[0] == ["in a out"]
    with pytest.raises(InputError, match=f"the prompt template alone has {least} tokens"):
        fit_prompts(["abc"], frame, tokenizer, least)


def test_prompt_and_target_fit_together_and_a_long_target_is_refused(loaded: Any) -> None:
    task, model, tokenizer = loaded
    rows = Dataset.from_dict({"source": ["ab" * 60, "c"], "target": ["b" * 14, "c"]})
    features = task.encode(rows, tokenizer, max_length=CONTEXT, training=True)
    assert features.lengths.max() <= CONTEXT and features.lengths[0] >= CONTEXT - 1
    assert (features.facts["truncated_rows"], features.facts["max_length"]) == (1, CONTEXT - CONTEXT // 4)
    assert features.facts["tokens_lost"] == 120 - (
        len(features.columns["input_ids"][0]) - (features.facts["longest"] - 120)
    )
    hftk.evaluate(task, model, tokenizer, ("test", rows), task.config.eval)
    with pytest.raises(InputError, match=f"at most {CONTEXT // 4} tokens, found 1 longer"):
        task.encode(
            Dataset.from_dict({"source": ["a"], "target": ["b" * 20]}),
            tokenizer,
            max_length=CONTEXT,
            training=True,
        )


def test_a_template_needs_the_source_once() -> None:
    for template in ("no place", "{source} {source}"):
        assert [p.setting for p in hftk.SummarizationConfig(prompt_template=template).problems()] == [
            "prompt_template"
        ]
    assert not list(hftk.SummarizationConfig(prompt_template='{"text": "{source}"}').problems())


def test_braces_in_texts_and_templates_are_letters() -> None:
    tokenizer = byte_tokenizer()
    frame = frame_of(tokenizer, '{"a": "{source}"} ', chat=False)
    assert fit_prompts(["{x} {source}"], frame, tokenizer, 99)[0] == ['{"a": "{x} {source}"}']


# --- Judging


def test_outputs_are_those_of_transformers_alone_in_data_order(loaded: Any) -> None:
    task, model, tokenizer = loaded
    rows = pairs(9, seed=3)
    judged = hftk.evaluate(task, model, tokenizer, ("test", rows), task.config.eval)
    assert judged is not None
    most = task.generation(model).max_new_tokens
    assert 1 < most <= CONTEXT // 4
    expected = []
    for text in rows["source"]:
        inputs = tokenizer(f"in {text} out", return_tensors="pt")
        with torch.no_grad():
            made = model.generate(**inputs, max_new_tokens=most, do_sample=False)[
                0, inputs["input_ids"].shape[1] :
            ]
        expected.append(tokenizer.decode(made, skip_special_tokens=True).strip())
    assert [line["prediction"] for line in judged.predictions] == expected and len(set(expected)) > 1
    assert [line["reference"] for line in judged.predictions] == [[text] for text in rows["target"]]
    assert {score.name for score in judged.scores} == {"rouge1", "rouge2", "rougeL", "rougeLsum", "loss"}
    assert [section["title"] for section in judged.analysis][-1] == "Score by source length"


def test_generation_reads_the_very_prompts_that_the_loss_does(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hftk.generation import generate

    task, model, tokenizer = loaded
    rows = Dataset.from_dict({"source": ["abcd " * 40, "a", "größe" * 20], "target": ["b", "c", "d"]})
    read: dict[int, Any] = {}
    original = generate._run
    monkeypatch.setattr(
        generate,
        "_run",
        lambda job, batch: (read.update({i: job.inputs[i] for i in batch}), original(job, batch))[1],
    )
    hftk.evaluate(task, model, tokenizer, ("test", rows), task.config.eval)
    features = task.encode(rows, tokenizer, max_length=CONTEXT, training=False)
    assert [read[i] for i in range(3)] == [ids.tolist() for ids in features.columns["input_ids"]]


def test_more_new_tokens_than_a_target_may_have_leave_less_to_the_source(folder: str) -> None:
    config = config_of(folder, generation={"max_new_tokens": 40})
    task, model, tokenizer = made_pairs.load(config, Splits(train=pairs()))
    [prompt], lost = task.prompts(
        ["ab" * 60], tokenizer, max_length=CONTEXT, new=task.generation(model).max_new_tokens
    )
    assert len(tokenizer(prompt)["input_ids"]) == CONTEXT - 40 and lost[0] > 0 and prompt.endswith(" out")
    rows = Dataset.from_dict({"source": ["ab" * 60], "target": ["b"]})
    assert hftk.evaluate(task, model, tokenizer, ("test", rows), task.config.eval) is not None


def test_a_decoder_learns_a_toy_by_its_prompt_and_keeps_it_when_saved(tmp_path: Path) -> None:
    folder = decoder_folder(tmp_path / "new", "gpt2", chat=True)
    rows = Dataset.from_dict({"source": ["a", "b", "c", "d"], "target": ["bb", "cc", "dd", "aa"]})
    config = config_of(
        folder,
        tmp_path / "out",
        prompt_template="{source}",
        model={"dropout": 0.0},
        train={
            "max_steps": 150,
            "learning_rate": 0.005,
            "optimizer": "adamw",
            "per_device_batch_size": 4,
            "global_batch_size": 4,
            "log_steps": 20,
        },
    )
    trained, _ = made_pairs.fit(config, Splits(train=rows))
    task = made_pairs.task_of(config)
    judged = hftk.evaluate(task, trained.model, trained.tokenizer, ("test", rows), config.eval)
    assert judged is not None and [line["prediction"] for line in judged.predictions] == rows["target"][:]
    model, tokenizer = load_trained(str(tmp_path / "out"))
    again = hftk.evaluate(
        type(task).from_model_config(config, model.config), model, tokenizer, ("test", rows), config.eval
    )
    assert again is not None and again.predictions == judged.predictions


def test_an_encoder_is_no_decoder_and_one_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BertConfig

    folder = decoder_folder(tmp_path, "gpt2")
    made = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        is_decoder=True,
    )
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    assert made_pairs.task_of(config_of(folder)).auto_model == "AutoModelForCausalLM"
    made.is_decoder = False
    made.save_pretrained(folder)
    assert made_pairs.task_of(config_of(folder)).auto_model == "AutoModelForSeq2SeqLM"
