"""The BERT recipe: its whole output for labels of every kind, and label trouble through the real command."""

import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import hftk
from hftk.cli import main as command
from hftk.config import InputError, override
from hftk.config import parse as parsing

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes/bert_classification.py"
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}

pytestmark = pytest.mark.usefixtures("tiny_runs")


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("bert_classification", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORDS = {
    "sport": "ball goal team match score",
    "food": "bread soup salt oven taste",
    "weather": "rain cloud wind storm sun",
}


def made_up_rows(kind, count=120):
    """Texts with words of one topic or two; a row's label says which, or how much of it is sport."""
    rng = random.Random(0)
    rows = []
    for number in range(count):
        topics = rng.sample(list(WORDS), 2)
        shares = [4, rng.randint(0, 3)] if kind != "several" else [3, 3 * (number % 2)]
        words = [
            rng.choice(WORDS[topic].split())
            for topic, n in zip(topics, shares, strict=True)
            for _ in range(n)
        ]
        row = {"text": f"{' '.join(words)} {rng.choice('abcdefghij')}{number}"}
        if kind == "pairs":
            other = topics[number % 2]
            row |= {"text_pair": f"{rng.choice(WORDS[other].split())} {number}", "label": number % 2 == 0}
        elif kind == "several":
            row["label"] = topics if number % 2 else topics[:1]
        elif kind == "numbers":
            row["label"] = (
                round(sum(word in WORDS["sport"].split() for word in words) / len(words), 3) + 0.001
            )
        else:
            row["label"] = topics[0]
        rows.append(row)
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


KINDS = ("one", "several", "numbers", "pairs")


def small(config, source, output, **changes):
    config = override(
        config,
        {
            "data": {"sample": None, "path": str(source), "validation_fraction": 0.2, "test_fraction": 0.2},
            "model": {"config": SHAPE, "vocab_size": 200},
            "train": {
                "epochs": 6,
                "precision": "fp32",
                "learning_rate": 2e-2,
                "max_length": 14,
                "per_device_batch_size": 16,
                "global_batch_size": 16,
            },
            "eval": {"resamples": 50, "batch_size": 7},
            "output": str(output),
        },
    )
    return override(config, changes)


# --- The whole recipe


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    """Kind to (folder, record, rows) of one run each, through the very function that the shell calls."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        rows = made_up_rows(kind)
        source = write(folder / "rows.jsonl", rows)
        metric = {"numbers": "pearson", "several": "f1_macro"}.get(kind, "accuracy")
        config = small(recipe.CONFIG, source, folder / "out", train={"metric_for_best_model": metric})
        hftk.run(recipe.main, config, [])
        found[kind] = (
            folder / "out",
            json.loads((folder / "out/record.json").read_text(encoding="utf-8")),
            rows,
        )
    return found


def lines_of(folder):
    return [
        json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def judged_rows(recipe, folder):
    """The test split as the run had it, with labels as they are written."""
    config = parsing.load_config(recipe.CONFIG, folder / "config.yaml")
    return hftk.load_splits(config.data, recipe.TASK(config)).test


@pytest.mark.parametrize("kind", KINDS)
def test_all_files_are_there(done, kind):
    folder, _, _ = done[kind]
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
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


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_one_prediction_for_each_row_in_order(recipe, done, kind):
    folder, record, written = done[kind]
    lines, rows = lines_of(folder), judged_rows(recipe, folder)
    assert [line["index"] for line in lines] == list(range(len(rows))) and len(rows) == record["data"][
        "rows"
    ]["test"] > 10
    label_of = {(row["text"], row.get("text_pair")): row["label"] for row in written}
    for line, row in zip(lines, rows, strict=True):
        label = label_of[row["text"], row.get("text_pair")]
        expected = {"several": sorted(label) if kind == "several" else None, "pairs": str(label).lower()}.get(
            kind, label
        )
        assert line["reference"] == (pytest.approx(expected) if kind == "numbers" else expected)
        if kind != "numbers":
            assert set(line["probabilities"]) == set(WORDS if kind != "pairs" else ("true", "false"))
    assert all(
        row["text"] == text
        for row, text in zip(
            rows, [w["text"] for w in written if w["text"] in set(rows["text"])], strict=True
        )
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_holds_scores_of_all_systems_and_what_the_task_found(done, kind):
    _, record, _ = done[kind]
    assert record["task"] == "classification" and record["processes"] == 1
    assert {score["when"] for score in record["scores"]} == {
        "before",
        "after",
        "baseline:majority",
        "baseline:tfidf",
    }
    names = {
        when: [s["name"] for s in record["scores"] if s["when"] == when]
        for when in ("before", "after", "baseline:tfidf")
    }
    assert names["before"] == names["after"]
    main = {"one": "accuracy", "pairs": "accuracy", "several": "f1_micro", "numbers": "pearson"}[kind]
    assert names["after"][0] == main and main in names["baseline:tfidf"]
    assert all(
        score["split"] == "test" and score["n"] == record["data"]["rows"]["test"]
        for score in record["scores"]
    )
    titles = [section["title"] for section in record["analysis"]]
    expected = {
        "one": [
            "Confusion matrix",
            "By class",
            "Calibration",
            "Most confident mistakes",
            "Suspicious labels",
        ],
        "several": [
            "By class",
            "Calibration",
            "Most confident mistakes",
            "Chosen on the validation split",
            "Suspicious labels",
        ],
        "numbers": ["Predicted against true", "Largest errors"],
    }
    assert titles == ["Against the baselines", *expected["one" if kind == "pairs" else kind]]
    tests = {(line["when"], line["score"]): line for line in record["analysis"][0]["rows"]}
    tfidf = {s["name"]: s["value"] for s in record["scores"] if s["when"] == "baseline:tfidf"}
    after = {s["name"]: s["value"] for s in record["scores"] if s["when"] == "after"}
    test = tests["baseline:tfidf", main]
    assert (test["model"], test["value"]) == pytest.approx((after[main], tfidf[main]))
    cut = record["data"]["judged"]
    assert cut["max_length"] == 14 and {"truncated_rows", "tokens_lost", "tokens", "longest"} <= set(cut)
    assert record["data"]["training"]["max_length"] == 14 and "cleaned" in record["data"]
    assert record["data"]["labels"]["problem_type"] and any(
        "problem_type" in line for line in record["choices"]
    )
    evaluated = [point for point in record["history"] if "eval_loss" in point]
    metric = record["config"]["train"]["metric_for_best_model"]
    assert len(evaluated) == 6 and all(f"eval_{metric}" in point for point in evaluated)


def test_it_learns(done):
    value = {(s["name"], s["when"]): s["value"] for s in done["one"][1]["scores"]}
    assert value["accuracy", "after"] > max(
        value["accuracy", "before"], value["accuracy", "baseline:majority"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_shows_what_was_found(done, kind):
    folder, record, _ = done[kind]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(section["title"] in page for section in record["analysis"])


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_alone_loads_it_and_gives_the_same_answers(recipe, done, kind):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, _, _ = done[kind]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = judged_rows(recipe, folder)
    whole = [i for i, row in enumerate(rows) if len(tokenizer(*texts_of(row))["input_ids"]) <= 14]
    assert len(whole) > 5
    for i in whole:
        line = lines_of(folder)[i]
        with torch.no_grad():
            logits = model(**tokenizer(*texts_of(rows[i]), return_tensors="pt")).logits[0]
        if kind == "numbers":
            assert line["prediction"] == pytest.approx(float(logits[0]), rel=1e-4)
            continue
        probabilities = logits.sigmoid() if kind == "several" else logits.softmax(-1)
        assert list(line["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)
        names = list(model.config.id2label.values())
        assert names == list(line["probabilities"]) == sorted(names)
        if kind == "several":
            chosen = probabilities >= torch.tensor(model.config.thresholds)
            assert line["prediction"] == [name for name, yes in zip(names, chosen, strict=True) if yes]
        else:
            assert line["prediction"] == names[int(logits.argmax())]


def texts_of(row):
    return [row[role] for role in ("text", "text_pair") if role in row]


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_is_continued_without_training(recipe, done, kind):
    folder, record, _ = done[kind]
    weights, lines = (folder / "model.safetensors").read_bytes(), (folder / "predictions.jsonl").read_bytes()
    hftk.run(recipe.main, recipe.CONFIG, ["--config", str(folder / "config.yaml"), "--resume", "auto"])
    assert (folder / "model.safetensors").read_bytes() == weights
    assert (folder / "predictions.jsonl").read_bytes() == lines
    assert json.loads((folder / "record.json").read_text(encoding="utf-8"))["history"] == record["history"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_evaluate_finds_the_scores_of_the_run(recipe, done, kind, capsys, tmp_path):
    folder, record, written = done[kind]
    judged = set(judged_rows(recipe, folder)["text"])
    held_out = write(tmp_path / "held_out.jsonl", [row for row in written if row["text"] in judged])
    capsys.readouterr()
    assert command(["evaluate", str(folder), "--data", str(held_out), "--json"]) == 0
    found = {score["name"]: score for score in json.loads(capsys.readouterr().out)}
    for score in record["scores"]:
        if score["when"] == "after":
            assert found[score["name"]]["value"] == pytest.approx(score["value"], rel=1e-5)
            assert found[score["name"]]["interval"] == pytest.approx(score["interval"], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_predict_says_what_the_run_said(recipe, done, kind, capsys, tmp_path):
    folder, _, _ = done[kind]
    rows = judged_rows(recipe, folder)
    texts = write(
        tmp_path / "texts.jsonl", [{role: row[role] for role in row if role != "label"} for row in rows]
    )
    capsys.readouterr()
    assert command(["predict", str(folder), "--file", str(texts)]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, mine in zip(said, lines_of(folder), strict=True):
        assert line["index"] == mine["index"]
        if kind == "numbers":
            assert line["prediction"] == pytest.approx(mine["prediction"], rel=1e-4)
        else:
            assert line["prediction"] == mine["prediction"]
            assert line["probabilities"] == pytest.approx(mine["probabilities"], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_compared_with_itself_is_no_different(done, kind, capsys):
    folder, record, _ = done[kind]
    capsys.readouterr()
    assert command(["compare", str(folder), str(folder), "--json", "--resamples", "100"]) == 0
    found = json.loads(capsys.readouterr().out)
    after = {score["name"]: score["value"] for score in record["scores"] if score["when"] == "after"}
    for comparison in found["comparisons"]:
        assert comparison["difference"] == 0 and comparison["a"] == pytest.approx(
            after[comparison["name"]], rel=1e-6
        )


# --- From a model that is there already


def test_a_pretrained_model_takes_the_defaults_for_pretrained_ones(recipe, done):
    folder, _, _ = done["one"]
    made = recipe.CONFIG
    assert made.train.learning_rate and made.train.epochs and made.model.size
    named = parsing.parse(made, ["--model.name", str(folder)])
    assert (named.train.learning_rate, named.train.epochs, named.model.size) == (None, None, None)
    assert named.train.warmup == made.train.warmup and named.train.restore_best
    given = parsing.parse(
        made, ["--train.learning_rate", "3e-5", "--train.epochs", "2", "--model.name", str(folder)]
    )
    assert (given.train.learning_rate, given.train.epochs) == (3e-5, 2)


def test_a_file_of_settings_keeps_its_learning_rate_beside_a_model_named_by_a_flag(recipe, tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("train:\n  learning_rate: 3.0e-5\ndata:\n  validation_fraction: 0.25\n")
    flags = ["--config", str(settings), "--model.name", "some/model", "--data.path", "rows.csv"]
    config = parsing.parse(recipe.CONFIG, flags)
    assert (config.train.learning_rate, config.train.epochs) == (3e-5, None)
    assert (config.data.validation_fraction, config.data.test_fraction) == (0.25, None)
    # A file that names the size too speaks of the model made on the spot.
    settings.write_text("model:\n  size: mini\ntrain:\n  learning_rate: 1.0e-3\n")
    assert parsing.parse(recipe.CONFIG, flags).train.learning_rate is None


@pytest.mark.parametrize("kind", ["one", "several"])
def test_training_goes_on_from_a_run_with_the_same_labels(recipe, done, kind, tmp_path):
    folder, _, rows = done[kind]
    config = parsing.parse(
        recipe.CONFIG,
        [
            "--model.name",
            str(folder),
            "--data.path",
            str(write(tmp_path / "rows.jsonl", rows)),
            "--train.max_steps",
            "1",
            "--output",
            str(tmp_path / "out"),
            "--eval.resamples",
            "0",
        ],
    )
    record = recipe.main(config)
    assert any("learning_rate: 0.0005, for pre-trained weights" in line for line in record.choices)


def test_thresholds_of_an_earlier_run_are_not_taken_over(recipe, done, tmp_path):
    """They were tuned for other labels."""
    folder, _, rows = done["several"]
    renamed = [
        {**row, "label": ["x", *row["label"]] if i % 3 else row["label"]} for i, row in enumerate(rows)
    ]
    fewer = [{**row, "label": [label for label in row["label"] if label != "food"]} for row in renamed]
    source = write(tmp_path / "rows.jsonl", fewer)  # three labels as before, but other ones
    config = parsing.parse(
        recipe.CONFIG,
        [
            "--model.name",
            str(folder),
            "--data.path",
            str(source),
            "--train.max_steps",
            "1",
            "--output",
            str(tmp_path / "out"),
            "--no-tune_thresholds",
        ],
    )
    recipe.main(config)
    line = lines_of(tmp_path / "out")[0]
    assert line["prediction"] == [name for name, p in line["probabilities"].items() if p >= 0.5]
    assert not json.loads((tmp_path / "out/config.json").read_text()).get("thresholds")


# --- Wrong input


def test_a_measure_that_does_not_exist_is_refused_before_data_are_read(recipe, tmp_path):
    flags = ["--train.metric_for_best_model", "nonsense", "--data.path", str(tmp_path / "not there")]
    with pytest.raises(
        InputError, match="expected loss or a score of classification, found nonsense"
    ) as error:
        recipe.main(parsing.parse(recipe.CONFIG, flags))
    assert [problem.setting for problem in error.value.problems] == ["train.metric_for_best_model"]
    assert "accuracy" in error.value.problems[0].fix


def test_a_measure_of_another_kind_of_labels_is_refused(recipe, tmp_path):
    source = write(tmp_path / "rows.jsonl", made_up_rows("one"))
    config = small(recipe.CONFIG, source, tmp_path / "out", train={"metric_for_best_model": "pearson"})
    with pytest.raises(InputError, match="pearson is no score of single_label_classification"):
        recipe.main(config)


def trouble(kind):
    """Rows of train and test with one kind of label trouble."""
    train = made_up_rows("one", 60)
    test = [{**row, "text": f"{row['text']} more"} for row in train[:20]]
    if kind == "a label only in test":
        test[4]["label"] = "politics"
    elif kind == "a number among texts":
        train[7]["label"] = 3.5
    elif kind == "an empty text":
        train[2]["text"], train[9]["text"] = "  ", ""
    elif kind == "a label that is missing":
        train[5]["label"], test[6]["label"] = None, None
    elif kind == "an identifier":
        train = [{**row, "label": f"id-{i}"} for i, row in enumerate(train)]
        test = [{**row, "label": f"id-{i}"} for i, row in enumerate(test)]
    elif kind == "not a number":
        train = [{**row, "label": "NaN" if i == 3 else i / 7} for i, row in enumerate(train)]
        test = [{**row, "label": i / 7} for i, row in enumerate(test)]
    elif kind == "one class":
        train, test = ([{**row, "label": "sport"} for row in rows] for rows in (train, test))
    elif kind == "a list among texts":
        train[11]["label"] = ["sport", "food"]
    elif kind == "text for a number":
        train = [{**row, "label": i / 7} for i, row in enumerate(train)]
        test = [{**row, "label": i / 7 if i else "high"} for i, row in enumerate(test)]
    return train, test


TROUBLE = {
    "a label only in test": ["found others in test: politics in 1 row (row 5 of", "food, sport, weather"],
    "a number among texts": ["text in 79 rows", "number", "in 1 row (3.5 in row 8 of"],
    "an empty text": ["found 2 empty in column text (first: row 3 of", "row 10 of", "--data.incomplete drop"],
    "a label that is missing": ["found 1 missing in column label (first: row 6 of", "row 7 of"],
    "an identifier": ["found 40 in 40 training rows", "identifier", "--data.columns.label NAME"],
    "not a number": ["--data.columns.label", "row 4 of"],
    "one class": ["at least 2 classes", "found one (sport)"],
    "a list among texts": ["list of text in 1 row (['sport', 'food'] in row 12 of"],
    "text for a number": ["text in 1 row ('high' in row 1 of"],
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_label_trouble_gives_one_clear_screen(recipe, kind, tmp_path, capsys):
    train, test = trouble(kind)
    files = [
        str(write(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("train", train), ("test", test))
    ]
    config = small(
        recipe.CONFIG,
        None,
        tmp_path / "out",
        data={"path": None, "train": files[0], "test": files[1], "test_fraction": None},
    )
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        hftk.run(recipe.main, config, [])
    said = capsys.readouterr().err
    assert ending.value.code == 2 and "Traceback" not in said and len(said.splitlines()) < 24, said
    assert all(part in said for part in TROUBLE[kind]), said
    left = {path.name for path in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    assert left <= {"config.yaml", "status.json"}
    assert json.loads((tmp_path / "out/status.json").read_text())["exit_code"] == 2


@pytest.mark.launch
def test_the_command_itself_ends_with_2_and_one_screen(tmp_path):
    train, test = trouble("a label only in test")
    files = [
        str(write(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("train", train), ("test", test))
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    flags = ["--data.train", files[0], "--data.test", files[1], "--output", "out"]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and "Traceback" not in run.stderr and "politics in 1 row" in run.stderr
    assert len(run.stderr.splitlines()) < 24
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"config.yaml", "status.json"}


@pytest.mark.launch
def test_the_help_is_quick_and_shows_meanings():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds = []
    for _ in range(2):  # the first may read files from the disk
        started = time.perf_counter()
        run = subprocess.run(
            [sys.executable, str(SCRIPT), "--help"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.5
    for part in (
        "--problem_type",
        "--class_weights",
        "--train.metric_for_best_model",
        "What a row's label is",
        "as in scikit-learn",
    ):
        assert part in " ".join(run.stdout.split()), part
