"""T5, BART and Marian made tiny: exact losses, whole targets, and one generated output per row in data
order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_pairs
import numpy as np
import pytest
import torch
from datasets import Dataset
from made_pairs import ARCHITECTURES, CONTEXT, make_config, rows_of

import hftk
from hftk.config import GenerationSettings, InputError
from hftk.console import noted
from hftk.evaluation import evaluate
from hftk.generation import generate
from hftk.models.load import check_model, load_trained
from hftk.models.sizes import model_sizes
from hftk.models.tokenizers import train_byte_bpe
from hftk.task import Splits
from hftk.tasks import encoder_decoder_inputs, seq2seq

CLOSE = 1e-5
pytestmark = pytest.mark.usefixtures("tiny_runs")


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_pairs.bart_folder(tmp_path_factory.mktemp("bart"))


@pytest.fixture(params=ARCHITECTURES)
def config_of(request: pytest.FixtureRequest, bart: str) -> Any:
    """``config_of(output, ...)`` for one of the architectures."""

    def make(output: Any = "unused", **changes: Any) -> Any:
        return make_config(output, request.param, name=bart if request.param == "bart" else None, **changes)

    return make


@pytest.fixture(scope="module")
def taught() -> dict[str, Any]:
    """Weights by architecture, so that each is trained once."""
    return {}


@pytest.fixture
def loaded(config_of: Any, taught: dict[str, Any]) -> Any:
    """Task, model (in evaluation mode, a little trained) and tokenizer."""
    task, model, tokenizer = made_pairs.load(config_of(), Splits(train=rows_of(48)))
    name = model.config.model_type
    if name not in taught:
        made_pairs.teach(task, model, tokenizer)
        taught[name] = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(taught[name])
    return task, model.eval(), tokenizer


def batches_of(loaded: Any, rows: Dataset, size: int) -> list[dict[str, torch.Tensor]]:
    task, model, tokenizer = loaded
    features = task.encode(rows, tokenizer, max_length=CONTEXT, training=True)
    collate = task.collator(tokenizer, model, training=True)
    return [
        collate([features[i] for i in range(at, min(at + size, len(rows)))])
        for at in range(0, len(rows), size)
    ]


# --- The exact loss


def test_the_loss_of_one_row_is_that_of_transformers(loaded: Any) -> None:
    task, model, _ = loaded
    for batch in batches_of(loaded, rows_of(5), 1):
        with torch.no_grad():
            total, items = task.loss(model, batch)["tokens"]
            own = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
            )
            assert int(items) == batch["labels"].shape[1] and float(total / items) == pytest.approx(
                float(own.loss), rel=CLOSE
            )
            # The model's own shift, which it does where it is given labels alone, and ours lead to the same
            # logits.
            torch.testing.assert_close(
                made_pairs.logits_of(task, model, batch), own.logits, rtol=1e-5, atol=1e-5
            )


def test_the_decoder_reads_the_target_one_place_later_behind_its_start_token(loaded: Any) -> None:
    _, model, tokenizer = loaded
    [batch] = batches_of(loaded, rows_of(5), 5)
    start, pad = model.config.decoder_start_token_id, tokenizer.pad_token_id
    labels = batch["labels"]
    assert (labels == -100).any(), "else padding is not seen"
    for target, inputs in zip(labels.tolist(), batch["decoder_input_ids"].tolist(), strict=True):
        assert inputs == [start, *(pad if token == -100 else token for token in target[:-1])]
    texts = tokenizer(rows_of(5)["target"][:], add_special_tokens=False)["input_ids"]
    assert [[t for t in row if t != -100] for row in labels.tolist()] == [
        [*ids, tokenizer.eos_token_id] for ids in texts
    ]


def test_a_model_without_a_rule_of_its_own_gets_its_start_token() -> None:
    from types import SimpleNamespace

    labels = torch.tensor([[5, 6, 1], [7, 1, -100]])
    for start, first in ((9, 9), (None, 0)):
        model = SimpleNamespace(config=SimpleNamespace(decoder_start_token_id=start))
        assert encoder_decoder_inputs.shift_right(model, labels, 0).tolist() == [[first, 5, 6], [first, 7, 1]]


def test_padding_does_not_change_the_loss(loaded: Any) -> None:
    task, model, _ = loaded
    rows = rows_of(12)
    with torch.no_grad():
        alone = [task.loss(model, batch)["tokens"] for batch in batches_of(loaded, rows, 1)]
        [(total, items)] = [task.loss(model, batch)["tokens"] for batch in batches_of(loaded, rows, 12)]
    assert int(items) == sum(int(n) for _, n in alone) == sum(len(text) + 1 for text in rows["target"])
    assert float(total) == pytest.approx(sum(float(t) for t, _ in alone), rel=CLOSE)


def test_label_smoothing_is_that_of_torch_and_judging_knows_none(config_of: Any) -> None:
    task, model, tokenizer = made_pairs.load(
        config_of(train={"label_smoothing": 0.2}), Splits(train=rows_of(48))
    )
    model.eval()
    [batch] = batches_of((task, model, tokenizer), rows_of(7), 7)
    with torch.no_grad():
        total, items = task.loss(model, batch)["tokens"]
        logits = made_pairs.logits_of(task, model, batch).flatten(0, 1)
        outputs = task.outputs(model, batch)
    labels = batch["labels"].flatten()
    smooth = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    plain = torch.nn.functional.cross_entropy(logits, labels)
    assert (
        float(total / items) == pytest.approx(float(smooth), rel=CLOSE) and abs(float(smooth - plain)) > 1e-4
    )
    assert float(outputs["nats"].sum() / outputs["tokens"].sum()) == pytest.approx(float(plain), rel=CLOSE)


def test_one_global_batch_gives_one_gradient_however_it_is_split(config_of: Any, tmp_path: Path) -> None:
    splits = Splits(train=rows_of(48))
    runs = {
        size: made_pairs.fit(config_of(tmp_path / str(size), train={"per_device_batch_size": size}), splits)
        for size in (16, 4, 1)
    }
    whole, gradient = runs[16]
    for size in (4, 1):
        trained, other = runs[size]
        assert made_pairs.difference(gradient, other) < CLOSE
        assert made_pairs.difference(dict(whole.model.state_dict()), dict(trained.model.state_dict())) < CLOSE
        for name in ("loss", "grad_norm"):
            mine, theirs = (
                [point[name] for point in run.history if name in point] for run in (whole, trained)
            )
            assert len(mine) == 3 and theirs == pytest.approx(mine, rel=CLOSE) and min(mine) > 1e-3


def test_a_budget_of_tokens_changes_no_gradient_either(bart: str, tmp_path: Path) -> None:
    splits = Splits(train=rows_of(48))
    _, whole = made_pairs.fit(make_config(tmp_path / "a", "marian"), splits)
    budget = {"max_tokens_per_batch": 200, "max_length": CONTEXT}
    _, cut = made_pairs.fit(make_config(tmp_path / "b", "marian", train=budget), splits)
    assert made_pairs.difference(whole, cut) < CLOSE


# --- Lengths


def test_a_target_that_is_too_long_is_refused_with_its_row_and_never_cut(loaded: Any) -> None:
    task, _, tokenizer = loaded
    rows = Dataset.from_dict({"source": ["a", "b", "c"], "target": ["b", "b" * 70, "d" * 80]})
    with pytest.raises(InputError) as caught:
        task.encode(rows, tokenizer, max_length=CONTEXT, training=True)
    [problem] = caught.value.problems
    assert problem.setting == "max_target_length" and "--max_target_length 81" in problem.fix
    assert "at most 64 tokens, found 2 longer ones (the longest 81; first: row 2)" in problem.message


def test_the_limit_of_targets_may_be_another_than_that_of_sources(config_of: Any) -> None:
    task, _, tokenizer = made_pairs.load(config_of(max_target_length=5), Splits(train=rows_of(48)))
    rows = Dataset.from_dict({"source": ["a" * 30], "target": ["bbbb"]})
    assert task.encode(rows, tokenizer, max_length=CONTEXT, training=True).columns["labels"][0].size == 5
    with pytest.raises(InputError, match="at most 5 tokens"):
        task.encode(
            Dataset.from_dict({"source": ["a"], "target": ["bbbbb"]}),
            tokenizer,
            max_length=CONTEXT,
            training=True,
        )


def test_sources_are_cut_at_their_end_and_counted(loaded: Any) -> None:
    task, _, tokenizer = loaded
    rows = Dataset.from_dict({"source": ["abcd" * 3, "ab"], "target": ["b" * 20, "c"]})
    features = task.encode(rows, tokenizer, max_length=30, training=True)
    assert features.facts["truncated_rows"] == 0 and features.lengths.tolist() == [13 + 21, 3 + 2]
    features = task.encode(rows, tokenizer, max_length=30, training=False)
    cut = task.encode(rows.select_columns("source"), tokenizer, max_length=9, training=False)
    assert (cut.facts["truncated_rows"], cut.facts["tokens_lost"]) == (1, 4)
    assert tokenizer.decode(cut.columns["input_ids"][0]) == "abcdabcd</s>" and "labels" not in cut.columns
    assert any("1 of 2 sources are longer than 9 tokens" in line for line in noted())


def test_the_prefix_stands_before_every_source(config_of: Any) -> None:
    task, _, tokenizer = made_pairs.load(config_of(source_prefix="abc"), Splits(train=rows_of(48)))
    rows = Dataset.from_dict({"source": ["d"], "target": ["d"]})
    assert (
        tokenizer.decode(task.encode(rows, tokenizer, max_length=9, training=True).columns["input_ids"][0])
        == "abcd</s>"
    )
    assert task.sources(rows) == ["abcd"]


def test_outputs_may_be_a_quarter_longer_than_the_longest_target_and_the_model_remembers(
    config_of: Any, tmp_path: Path
) -> None:
    rows = Dataset.from_dict({"source": ["abc", "bcd"], "target": ["bb", "c" * 19]})
    task, model, tokenizer = made_pairs.load(config_of(), Splits(train=rows))
    assert model.generation_config.max_new_tokens == 25  # 20 with the end
    assert task.generation(model).max_new_tokens == 25
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_trained(str(tmp_path), auto_model="AutoModelForSeq2SeqLM")
    assert task.generation(again).max_new_tokens == 25
    asked = type(task)(config_of(generation={"max_new_tokens": 7}))
    assert asked.generation(again).max_new_tokens == 7
    again.generation_config.max_new_tokens = None
    assert task.generation(again).max_new_tokens == GenerationSettings.max_new_tokens


def test_outputs_stay_inside_the_positions_of_the_decoder(bart: str) -> None:
    rows = Dataset.from_dict({"source": ["abc"], "target": ["b" * 60]})
    for architecture, most in (
        ("marian", CONTEXT - 1),
        ("bart", CONTEXT - 1),
        ("t5", 77),
    ):  # T5 has no such limit
        config = make_config("unused", architecture, name=bart if architecture == "bart" else None)
        task, model, tokenizer = made_pairs.load(config, Splits(train=rows))
        assert model.generation_config.max_new_tokens == most
        assert hftk.evaluate(task, model, tokenizer, ("test", rows), config.eval) is not None


def test_a_tokenizer_that_ends_no_text_is_given_an_end_for_targets() -> None:
    tokenizer = train_byte_bpe(["abc"], 257)
    assert tokenizer("abc")["input_ids"][-1] != tokenizer.eos_token_id
    assert [ids.tolist()[-1] for ids in encoder_decoder_inputs.target_ids(["abc", ""], tokenizer)] == [
        tokenizer.eos_token_id
    ] * 2
    framed = train_byte_bpe(["abc"], 300, frame="t5")
    assert [ids.tolist() for ids in encoder_decoder_inputs.target_ids(["b"], framed)] == [
        framed("b")["input_ids"]
    ]
    assert encoder_decoder_inputs.target_ids([], framed) == []


# --- Models made on the spot


@pytest.mark.parametrize("architecture", ["t5", "marian"])
def test_a_model_made_on_the_spot_is_whole_for_transformers_alone(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    config = make_config(tmp_path, architecture, model={"tokenizer": "bpe", "vocab_size": 300, "config": {}})
    trained, _ = made_pairs.fit(config, Splits(train=rows_of(48)))
    model, tokenizer = (
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval(),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    inputs = tokenizer(["abcd.", "dcba"], text_target=["bcd", "cb"], return_tensors="pt", padding=True)
    with torch.no_grad():
        mine, theirs = trained.model.eval()(**inputs), model(**inputs)
    assert float(theirs.loss) == float(mine.loss) and torch.equal(theirs.logits, mine.logits)
    sizes = {getattr(model.config, name, len(tokenizer)) for name in ("vocab_size", "decoder_vocab_size")}
    assert sizes == {len(tokenizer)} and model.config.decoder_start_token_id == tokenizer.pad_token_id
    assert model.generation_config.decoder_start_token_id == tokenizer.pad_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("grouped", [True, False])
def test_rows_of_a_step_are_alike_or_drawn_at_random(tmp_path: Path, grouped: bool) -> None:
    rows = Splits(train=rows_of(400))
    trained, _ = made_pairs.fit(
        make_config(
            tmp_path,
            "marian",
            train={"group_by_length": grouped, "global_batch_size": 8, "max_steps": 50, "log_steps": 1},
        ),
        rows,
    )
    tokens = np.diff([0, *(point["tokens"] for point in trained.history)])
    lengths = np.array([len(row["source"]) + len(row["target"]) for row in rows.train])
    spread = lengths.std() / np.sqrt(8) * 8  # of the sum of eight that are drawn
    assert (tokens[:49].std() > 2 * spread) if grouped else (tokens[:49].std() < 1.5 * spread)


def test_sizes_are_known_for_two_architectures_and_others_are_refused() -> None:
    task = made_pairs.task_of(make_config("unused", "t5"))
    for architecture in ("t5", "marian"):
        assert set(model_sizes(architecture, task.auto_model)) == {"tiny", "mini", "small", "base"}
    with pytest.raises(InputError, match=r"not for marina \(did you mean marian\?\)"):
        model_sizes("marina", task.auto_model)


def test_wordpiece_which_ends_no_text_is_refused_before_anything_is_read() -> None:
    config = make_config("unused", "t5", model={"tokenizer": "wordpiece"})
    with pytest.raises(InputError, match="no token that ends a text"):
        check_model(config.model, made_pairs.task_of(config))


def test_settings_that_make_no_sense_are_refused() -> None:
    config = make_config("unused", "t5", max_target_length=0, data={"streaming": True})
    assert {"max_target_length", "data.streaming"} <= {problem.setting for problem in config.problems()}


def test_a_pair_with_an_empty_side_and_a_missing_column_are_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path, "t5", data={"validation_fraction": 0.0, "test_fraction": 0.0})
    task = made_pairs.task_of(config)
    rows = [{"source": f"text {i}", "target": f"other {i}"} for i in range(9)]
    for side, empty in (("source", ""), ("target", " "), ("target", None)):
        with pytest.raises(InputError, match=r"--data\.incomplete drop"):
            hftk.load_splits(config.data, task, [*rows, {**rows[0], side: empty}])
    with pytest.raises(InputError, match="target"):
        hftk.load_splits(config.data, task, [{"source": f"text {i}", "number": i} for i in range(9)])


def test_references_must_be_lists_of_texts(tmp_path: Path) -> None:
    config = make_config(tmp_path, "t5", data={"validation_fraction": 0.0, "test_fraction": 0.0})
    task = made_pairs.task_of(config)
    rows: list[dict[str, Any]] = [
        {"source": f"text {i}", "target": f"t {i}", "references": [f"r {i}", "r"]} for i in range(9)
    ]
    rows[3]["references"] = None
    train = hftk.load_splits(config.data, task, rows).train
    found = {row["source"]: seq2seq.references_of(row) for row in train}
    assert found["text 2"] == ["r 2", "r"] and found["text 3"] == ["t 3"]
    with pytest.raises(
        InputError, match="expected a list of texts in column references, found 'one text' in row 9"
    ):
        hftk.load_splits(config.data, task, [*rows[:8], {**rows[8], "references": "one text"}])


# --- Judging


def judge(loaded: Any, rows: Dataset, batch_size: int = 8, **settings: Any) -> Any:
    task, model, tokenizer = loaded
    config = hftk.EvalConfig(batch_size=batch_size, resamples=0)
    return hftk.evaluate(task, model, tokenizer, ("test", rows), config, **settings)


def test_the_batch_size_changes_no_loss_and_no_output(loaded: Any) -> None:
    rows = rows_of(19, seed=1)
    found = {}
    for size in (1, 3, 8):
        found[size] = judge(loaded, rows, size)
    values = {size: [s.value for s in judged.scores if s.name == "loss"] for size, judged in found.items()}
    assert values[3] == pytest.approx(values[1], rel=CLOSE) and values[8] == pytest.approx(
        values[1], rel=CLOSE
    )
    for judged in found.values():
        assert [line["index"] for line in judged.predictions] == list(range(19))
        assert [line["reference"] for line in judged.predictions] == [[text] for text in rows["target"]]
        assert [line["prediction"] for line in judged.predictions] == [
            line["prediction"] for line in found[1].predictions
        ]
    by_hand = sum(line["nats"] for line in found[1].predictions) / sum(
        line["tokens"] for line in found[1].predictions
    )
    assert values[1][0] == pytest.approx(by_hand, rel=1e-5)


def alone(loaded: Any, text: str, most: int, **settings: Any) -> str:
    """What ``generate`` itself writes for one source."""
    _, model, tokenizer = loaded
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=most, do_sample=False, **{"num_beams": 1, **settings})
    return str(tokenizer.decode(made[0], skip_special_tokens=True))


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 8])
def test_there_is_one_output_for_each_row_in_data_order(loaded: Any, rows_at_a_time: int) -> None:
    task, model, tokenizer = loaded
    rows = rows_of(11, seed=2)
    settings = task.generation(model)
    expected = [alone(loaded, text, settings.max_new_tokens) for text in rows["source"]]
    assert len(set(expected)) > 1, "else the order shows nowhere"
    found = generate.generate(model, tokenizer, task.sources(rows), settings, batch_size=rows_at_a_time)
    assert [g.text for g in found] == expected
    if rows_at_a_time == 8:
        judged = judge(loaded, rows)
        assert (
            [line["prediction"] for line in judged.predictions]
            == expected
            == list(judged.outputs["generated"])
        )


@pytest.mark.parametrize("count", [7, 1])
def test_rows_dealt_to_two_processes_come_back_in_data_order(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    task, model, tokenizer = loaded
    rows = rows_of(count, seed=2)
    expected = [line["prediction"] for line in judge(loaded, rows).predictions]
    parts: dict[int, Any] = {}

    def gather(found: list[Any], own: Any) -> None:
        parts[process] = own
        found[:] = [parts.get(0, []), parts.get(1, [])]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for process in (0, 1):
        monkeypatch.setattr(evaluate, "rank_and_world_size", lambda process=process: (process, 2))
        found = evaluate._generate(task, model, tokenizer, rows, CONTEXT, tmp_path)
    assert found == expected and len(parts[0]) == (count + 1) // 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".generated.jsonl0", ".generated.jsonl1"]


def test_no_special_token_and_no_padding_reaches_a_prediction(loaded: Any) -> None:
    _, _, tokenizer = loaded
    for line in judge(loaded, rows_of(19, seed=3)).predictions:
        assert not any(token in line["prediction"] for token in tokenizer.all_special_tokens), line


def test_generation_reads_as_much_of_a_source_as_the_loss_does(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 has no positions that would end, and what is cut off for the loss must not be read when writing."""
    task, _, tokenizer = loaded
    rows = Dataset.from_dict({"source": ["abcdbcdbd" * 3, "ab"], "target": ["b", "b"]})
    read: list[Any] = []
    original = generate._run
    monkeypatch.setattr(
        generate, "_run", lambda job, batch: (read.extend(job.inputs), original(job, batch))[1]
    )
    judged = judge(loaded, rows, max_length=10)
    features = task.encode(rows, tokenizer, max_length=10, training=False)
    assert read == [ids.tolist() for ids in features.columns["input_ids"]] and len(read[0]) == 10
    assert judged.facts["truncated_rows"] == 1


class Killed(Exception):
    pass


def runs_of_generation(monkeypatch: pytest.MonkeyPatch, killed_after: int | None = None) -> list[list[int]]:
    """Batches that are generated from now on; the process dies after so many."""
    seen: list[list[int]] = []
    original = generate._run

    def run(job: Any, batch: list[int]) -> Any:
        if len(seen) == killed_after:
            raise Killed
        seen.append(batch)
        return original(job, batch)

    monkeypatch.setattr(generate, "_run", run)
    return seen


def test_generation_that_was_interrupted_goes_on_and_leaves_nothing_behind(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(17, seed=4)
    monkeypatch.setattr(generate, "TOKENS_PER_BATCH", 300)
    judge(loaded, rows, output=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        runs_of_generation(patch, killed_after=2)
        judge(loaded, rows, output=tmp_path / "killed")
    kept = [path.name for path in (tmp_path / "killed").iterdir()]
    assert kept == [".generated.jsonl0"], "what was done is there, and no half file of predictions"
    with monkeypatch.context() as patch:
        again = runs_of_generation(patch)
        judge(loaded, rows, output=tmp_path / "killed")
    with monkeypatch.context() as patch:
        every = runs_of_generation(patch)
        judge(loaded, rows, output=tmp_path / "anew")
    assert len(every) > 3 and again == every[2:]
    names = ["whole", "killed", "anew"]
    assert [[path.name for path in (tmp_path / name).iterdir()] for name in names] == [
        ["predictions.jsonl"]
    ] * 3
    assert len({(tmp_path / name / "predictions.jsonl").read_bytes() for name in names}) == 1


def test_outputs_are_kept_until_the_predictions_are_written(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is done early, or a full disk at the very end, costs no generation."""
    rows = rows_of(5, seed=4)

    def fail(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("hftk.evaluation.evaluate.write_atomically", fail)
        judge(loaded, rows, output=tmp_path)
    with monkeypatch.context() as patch:
        again = runs_of_generation(patch)
        judge(loaded, rows, output=tmp_path)
    assert again == [] and [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_outputs_of_other_weights_are_not_taken_over(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, _ = loaded
    rows = rows_of(9, seed=5)
    monkeypatch.setattr(generate, "TOKENS_PER_BATCH", 300)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        runs_of_generation(patch, killed_after=1)
        judge(loaded, rows, output=tmp_path)
    made_pairs.scatter(model, 1.5)
    judge(loaded, rows, output=tmp_path)
    written = [
        json.loads(line)["prediction"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()
    ]
    assert written == [line["prediction"] for line in judge(loaded, rows).predictions]


def test_a_model_made_on_the_spot_is_not_asked_to_write_before_it_is_trained(loaded: Any) -> None:
    task, _, _ = loaded
    names = [score.name for score in judge(loaded, rows_of(4), when="before").scores]
    assert names == (
        ["loss"] if task.config.model.name is None else ["rouge1", "rouge2", "rougeL", "rougeLsum", "loss"]
    )


def test_the_report_gets_examples_facts_and_scores_by_length(loaded: Any) -> None:
    judged = judge(loaded, rows_of(23, seed=6))
    titles = [section["title"] for section in judged.analysis]
    assert titles == [
        "About the outputs",
        "Best outputs",
        "Median outputs",
        "Worst outputs",
        "Score by source length",
    ]
    best, worst = (section["rows"] for section in (judged.analysis[1], judged.analysis[3]))
    assert (
        len(best) == len(worst) == 5
        and best[0]["score"] >= best[-1]["score"] >= worst[-1]["score"] >= worst[0]["score"]
    )
    table = judged.analysis[4]["rows"]
    assert sum(line["rows"] for line in table) == 23 and len(table) == 4
    assert len(judged.samples) == 3 and judged.samples[0]["reference"] == rows_of(23, seed=6)[0]["target"]


def test_sources_of_one_length_make_one_line() -> None:
    table = seq2seq._by_length(np.full(3, 5), np.array([1.0, 2.0, 3.0]))
    assert [(line["rows"], line["score"]) for line in table["rows"]] == [(3, 2.0)]


def test_of_several_references_the_scores_take_all_and_the_loss_the_target(loaded: Any) -> None:
    rows = rows_of(6, seed=7)
    judged = judge(loaded, rows)
    said = [line["prediction"] for line in judged.predictions]
    more = rows.add_column("references", [["zzz", text] for text in said])
    again = judge(loaded, more)
    assert [line["reference"] for line in again.predictions] == [["zzz", text] for text in said]
    value = {score.name: score.value for score in again.scores}
    assert value["loss"] == next(s.value for s in judged.scores if s.name == "loss")
    assert (
        value["rouge1"] >= next(s.value for s in judged.scores if s.name == "rouge1")
        and value["rouge1"] == 100
    )
