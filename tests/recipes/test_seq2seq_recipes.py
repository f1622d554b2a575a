"""The T5 and the Marian recipe: their whole output on made-up pairs, and the commands on what they leave."""

import importlib.util
import json
import random
from pathlib import Path

import pytest

import hftk
from hftk.cli import main as command
from hftk.config import InputError, override
from hftk.config import parse as parsing

ROOT = Path(__file__).parents[2]
RECIPES = {"translation": "marian_translation", "summarization": "t5_summarization"}
SHAPES = {
    "translation": {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "d_model": 32,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
    },
    "summarization": {
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
    },
}
BASELINES = {"translation": {"copy"}, "summarization": {"lead_1", "lead_3", "longest_sentence"}}
SCORES = {
    "translation": ["bleu", "chrf++", "ter"],
    "summarization": ["rouge1", "rouge2", "rougeL", "rougeLsum"],
}
WORDS = {
    "cat": "Katze",
    "dog": "Hund",
    "house": "Haus",
    "tree": "Baum",
    "red": "rot",
    "small": "klein",
    "and": "und",
    "the": "die",
}

pytestmark = pytest.mark.usefixtures("tiny_runs")


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"recipes/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_up_rows(task, count=100):
    """Word for word translations; documents whose summary is their second sentence."""
    rng = random.Random(0)
    rows = []
    for number in range(count):
        words = [rng.choice(list(WORDS)) for _ in range(rng.randint(3, 6))]
        if task == "translation":
            rows.append(
                {
                    "en": f"{' '.join(words)} {number}",
                    "de": f"{' '.join(WORDS[word] for word in words)} {number}",
                }
            )
        else:
            rows.append(
                {
                    "document": f"Number {number}. A {words[0]} and a {words[1]}. No more.",
                    "summary": f"A {words[0]} and a {words[1]}.",
                }
            )
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def small(recipe, task, source, output, **changes):
    config = override(
        recipe.CONFIG,
        {
            "data": {"sample": None, "path": str(source), "validation_fraction": 0.1, "test_fraction": 0.15},
            "model": {"config": SHAPES[task], "vocab_size": 300},
            "train": {
                "epochs": 3,
                "precision": "fp32",
                "learning_rate": 1e-2,
                "per_device_batch_size": 16,
                "global_batch_size": 16,
            },
            "eval": {"resamples": 50, "batch_size": 7},
            "output": str(output),
        },
    )
    return override(config, changes)


@pytest.fixture(scope="module", params=RECIPES)
def done(request, tmp_path_factory):
    """Task, recipe, folder, record and rows of one run, through the very function that the shell calls."""
    task = request.param
    folder, rows, recipe = tmp_path_factory.mktemp(task), made_up_rows(task), load(RECIPES[task])
    config = small(recipe, task, write(folder / "rows.jsonl", rows), folder / "out")
    hftk.run(recipe.main, config, [])
    return (
        task,
        recipe,
        folder / "out",
        json.loads((folder / "out/record.json").read_text(encoding="utf-8")),
        rows,
    )


def lines_of(folder):
    return [
        json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def judged_rows(recipe, folder):
    config = parsing.load_config(recipe.CONFIG, folder / "config.yaml")
    return hftk.load_splits(config.data, recipe.TASK(config)).test


def test_all_files_are_there_and_none_is_left_over(done):
    _, _, folder, _, _ = done
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "config.yaml",
        "record.json",
        "predictions.jsonl",
        "report.html",
        "status.json",
        "checkpoints",
    }
    assert json.loads((folder / "status.json").read_text())["state"] == "done"


def test_there_is_one_prediction_for_each_row_in_order(done):
    _, recipe, folder, record, _ = done
    lines, rows = lines_of(folder), judged_rows(recipe, folder)
    assert [line["index"] for line in lines] == list(range(len(rows))) and len(rows) == record["data"][
        "rows"
    ]["test"] > 10
    assert [line["reference"] for line in lines] == [[text] for text in rows["target"]]
    assert all(
        isinstance(line["prediction"], str) and not any(t in line["prediction"] for t in ("<pad>", "</s>"))
        for line in lines
    )


def test_the_record_holds_scores_before_after_and_of_all_baselines(done):
    task, _, _, record, _ = done
    assert record["task"] == task and record["processes"] == 1
    names = {}
    for score in record["scores"]:
        names.setdefault(score["when"], []).append(score["name"])
        assert (
            score["split"] == "test"
            and score["n"] == record["data"]["rows"]["test"]
            and score["interval"]
            and score["signature"]
        )
    assert names == {
        "before": ["loss"],
        "after": [*SCORES[task], "loss"],
        **{f"baseline:{name}": SCORES[task] for name in BASELINES[task]},
    }
    value = {(s["when"], s["name"]): s["value"] for s in record["scores"]}
    assert (
        value["after", "loss"] < value["before", "loss"]
        and len([p for p in record["history"] if "eval_loss" in p]) == 3
    )
    assert any("outputs have at most" in line for line in record["choices"])
    assert {"truncated_rows", "tokens_lost"} <= set(record["data"]["judged"]) & set(
        record["data"]["training"]
    )


def test_the_report_shows_examples_and_facts(done):
    _, _, folder, record, _ = done
    page = (folder / "report.html").read_text(encoding="utf-8")
    titles = [section["title"] for section in record["analysis"]]
    assert titles == [
        "About the outputs",
        "Best outputs",
        "Median outputs",
        "Worst outputs",
        "Score by source length",
    ]
    assert all(title in page for title in titles)


def test_transformers_alone_loads_it_and_writes_the_same(done):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    _, recipe, folder, record, _ = done
    model, tokenizer = (
        AutoModelForSeq2SeqLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    assert any(
        f"at most {model.generation_config.max_new_tokens} tokens" in line for line in record["choices"]
    )
    rows = judged_rows(recipe, folder)
    for line, row in list(zip(lines_of(folder), rows, strict=True))[:5]:
        made = model.generate(**tokenizer(row["source"], return_tensors="pt"))
        assert tokenizer.decode(made[0], skip_special_tokens=True).strip() == line["prediction"]


def test_a_finished_run_is_continued_without_training(done):
    _, recipe, folder, record, _ = done
    weights, lines = (folder / "model.safetensors").read_bytes(), (folder / "predictions.jsonl").read_bytes()
    hftk.run(recipe.main, recipe.CONFIG, ["--config", str(folder / "config.yaml"), "--resume", "auto"])
    assert (folder / "model.safetensors").read_bytes() == weights
    assert (folder / "predictions.jsonl").read_bytes() == lines
    assert json.loads((folder / "record.json").read_text(encoding="utf-8"))["history"] == record["history"]


def test_the_command_evaluate_finds_the_scores_of_the_run(done, capsys, tmp_path):
    _, recipe, folder, record, _ = done
    held_out = write(tmp_path / "held_out.jsonl", [dict(row) for row in judged_rows(recipe, folder)])
    capsys.readouterr()
    assert command(["evaluate", str(folder), "--data", str(held_out), "--json"]) == 0
    found = {score["name"]: score for score in json.loads(capsys.readouterr().out)}
    after = [score for score in record["scores"] if score["when"] == "after"]
    assert len(found) == len(after)
    for score in after:
        assert found[score["name"]]["value"] == pytest.approx(score["value"], rel=1e-5)
        assert found[score["name"]]["interval"] == pytest.approx(score["interval"], rel=1e-5)


def test_the_command_predict_says_what_the_run_said(done, capsys, tmp_path):
    _, recipe, folder, _, _ = done
    rows = judged_rows(recipe, folder)
    texts = write(tmp_path / "texts.jsonl", [{"text": row["source"]} for row in rows])
    expected = [line["prediction"] for line in lines_of(folder)]
    capsys.readouterr()
    for words in ([], ["--max_new_tokens", "0"], ["--batch_size", "3"]):
        assert command(["predict", str(folder), "--file", str(texts), *words]) == 0
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["prediction"] for line in said] == expected and [
            line["prompt"] for line in said
        ] == rows["source"][:]
    assert command(["predict", str(folder), "--prompt", "the cat", "--max_new_tokens", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] <= 1


def test_the_command_predict_puts_the_prefix_of_the_run_before_each_text(done, capsys, tmp_path):
    task, recipe, _, _, rows = done
    config = small(
        recipe,
        task,
        write(tmp_path / "rows.jsonl", rows),
        tmp_path / "out",
        source_prefix="make: ",
        train={"epochs": None, "max_steps": 30},
        eval={"resamples": 0},
    )
    hftk.run(recipe.main, config, [])
    texts = write(
        tmp_path / "texts.jsonl", [{"text": row["source"]} for row in judged_rows(recipe, tmp_path / "out")]
    )
    capsys.readouterr()
    assert command(["predict", str(tmp_path / "out"), "--file", str(texts)]) == 0
    said = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    assert said == [line["prediction"] for line in lines_of(tmp_path / "out")]


def test_a_model_of_no_run_is_known_as_an_encoder_decoder(done, capsys, tmp_path):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    _, recipe, folder, _, _ = done
    AutoModelForSeq2SeqLM.from_pretrained(folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    capsys.readouterr()
    row, line = judged_rows(recipe, folder)[0], lines_of(folder)[0]
    assert command(["predict", str(tmp_path), "--prompt", row["source"]]) == 0
    assert json.loads(capsys.readouterr().out)["prediction"] == line["prediction"]


def test_a_run_compared_with_itself_is_no_different(done, capsys):
    task, _, folder, record, _ = done
    capsys.readouterr()
    assert command(["compare", str(folder), str(folder), "--json", "--resamples", "50"]) == 0
    found = json.loads(capsys.readouterr().out)["comparisons"]
    after = {score["name"]: score["value"] for score in record["scores"] if score["when"] == "after"}
    assert [comparison["name"] for comparison in found] == SCORES[task]
    for comparison in found:
        assert comparison["difference"] == 0 and comparison["a"] == pytest.approx(
            after[comparison["name"]], rel=1e-6, abs=1e-9
        )


def test_two_runs_are_compared_on_their_texts(done, capsys, tmp_path):
    import shutil

    _, _, folder, _, _ = done
    better = tmp_path / "better"
    shutil.copytree(folder, better, ignore=shutil.ignore_patterns("checkpoints", "*.safetensors"))
    write(
        better / "predictions.jsonl",
        [{**line, "prediction": line["reference"][0]} for line in lines_of(folder)],
    )
    capsys.readouterr()
    assert command(["compare", str(better), str(folder), "--json", "--resamples", "200"]) == 0
    for comparison in json.loads(capsys.readouterr().out)["comparisons"]:
        assert (
            comparison["a"] == pytest.approx(0 if comparison["name"] == "ter" else 100)
            and comparison["p_value"] < 0.05
        )


def test_training_goes_on_from_a_run_and_judges_it_before(done, tmp_path):
    _, recipe, folder, record, rows = done
    config = parsing.parse(
        recipe.CONFIG,
        [
            "--model.name",
            str(folder),
            "--data.path",
            str(write(tmp_path / "rows.jsonl", rows)),
            "--data.test_fraction",
            "0.15",
            "--data.validation_fraction",
            "0.1",
            "--train.max_steps",
            "1",
            "--train.max_length",
            "48",
            "--output",
            str(tmp_path / "out"),
            "--eval.resamples",
            "0",
        ],
    )
    made = recipe.main(config)
    before = {s.name: s.value for s in made.scores if s.when == "before"}
    after = {s["name"]: s["value"] for s in record["scores"] if s["when"] == "after"}
    assert before == pytest.approx(after, rel=1e-5)


def test_a_target_longer_than_the_limit_stops_the_run_before_it_trains(done, tmp_path):
    task, recipe, _, _, rows = done
    role = {"translation": "de", "summarization": "summary"}[task]
    rows = [{**row, role: "Haus " * 80} if i % 9 == 0 else row for i, row in enumerate(rows)]
    config = small(recipe, task, write(tmp_path / "rows.jsonl", rows), tmp_path / "out", max_target_length=40)
    with pytest.raises(InputError, match="--max_target_length"):
        recipe.main(config)
    assert not (tmp_path / "out/model.safetensors").exists()
