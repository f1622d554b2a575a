"""``hftk predict`` and ``hftk evaluate`` for classifiers, on a tiny BERT with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from hftk.models.tokenizers import train_byte_bpe, train_wordpiece
from hftk.reports.record import RunRecord, load_record, save_record

TEXTS = [
    "the river is wide",
    "a slow river",
    "漢字 and a boat",
    "once upon a time there was a very wide river",
]
PAIRS = ["a boat", "the river", "once", "wide and slow"]
NAMES = ("bad", "good", "so so")


def save_model(path: Path, kind: str = "single_label_classification", names: Sequence[str] = NAMES) -> Path:
    tokenizer = train_wordpiece(TEXTS * 3, 120)
    torch.manual_seed(3)  # one whose answers to the texts differ
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=1.0,
        problem_type=kind,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        pad_token_id=tokenizer.pad_token_id,
    )
    BertForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on single texts."""
    path = save_model(tmp_path_factory.mktemp("single"))
    save_record(
        RunRecord(hftk="0.1", task="classification", data={"columns": {"text": "text", "label": "label"}}),
        path,
    )
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pairs of texts."""
    path = save_model(tmp_path_factory.mktemp("pairs"))
    columns = {"text": "sentence1", "text_pair": "sentence2", "label": "label"}
    save_record(RunRecord(hftk="0.1", task="classification", data={"columns": columns}), path)
    return path


def expected(folder: Path, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[list[float]]:
    """Probabilities by transformers alone, one text at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    found = []
    for i, text in enumerate(texts):
        inputs = tokenizer(text, pairs[i] if pairs else None, return_tensors="pt")
        with torch.no_grad():
            found.append(model.eval()(**inputs).logits[0].softmax(-1).tolist())
    return found


def assert_right(rows: list[dict[str, Any]], wanted: list[list[float]]) -> None:
    assert [row["index"] for row in rows] == list(range(len(wanted)))
    for row, probabilities in zip(rows, wanted, strict=True):
        assert list(row["probabilities"]) == list(NAMES)
        assert list(row["probabilities"].values()) == pytest.approx(probabilities, abs=1e-5)
        assert row["probability"] == max(row["probabilities"].values())
        assert row["prediction"] == NAMES[probabilities.index(max(probabilities))]


# --- predict


def test_each_text_gets_a_label_and_probabilities_in_order(hftk: Any, single: Path) -> None:
    result = hftk("predict", single, *(word for text in TEXTS for word in ("--prompt", text)))
    assert (result.code, result.err) == (0, "")
    assert [list(row) for row in result.rows] == [
        ["index", "text", "prediction", "probability", "probabilities"]
    ] * 4
    assert [row["text"] for row in result.rows] == TEXTS and "漢字" in result.out
    assert_right(result.rows, expected(single, TEXTS))
    assert len({row["prediction"] for row in result.rows}) > 1, "else the order shows nowhere"


FILES: dict[str, tuple[str, list[str]]] = {
    "lines.txt": ("\n".join(TEXTS) + "\n", []),
    "no_ending": ("\n".join(TEXTS), []),
    "rows.jsonl": ("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(TEXTS)), []),
    "rows.csv": (
        "id,title,body\n" + "".join(f"{i},x{i},{t}\n" for i, t in enumerate(TEXTS)),
        ["--column", "body"],
    ),
    "beside.jsonl": ("".join(json.dumps({"text": t, "sentence2": "another"}) + "\n" for t in TEXTS), []),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [1, 3])
def test_texts_come_from_files(hftk: Any, single: Path, tmp_path: Path, name: str, size: int) -> None:
    content, flags = FILES[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    result = hftk("predict", single, "--file", tmp_path / name, "--batch_size", size, *flags)
    assert_right(result.rows, expected(single, TEXTS))
    assert all(
        set(row) == {"index", "text", "prediction", "probability", "probabilities"} for row in result.rows
    )


def test_texts_come_from_stdin_and_blank_lines_are_texts_too(hftk: Any, single: Path, stdin: Any) -> None:
    stdin("\n".join([TEXTS[0], "", TEXTS[1]]).encode())
    assert_right(hftk("predict", single).rows, expected(single, [TEXTS[0], "", TEXTS[1]]))


def test_more_texts_than_are_read_at_a_time(hftk: Any, single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hftk.cli.predict_labels.CHUNK", 3)
    assert_right(
        hftk("predict", single, *(w for t in TEXTS for w in ("--prompt", t))).rows, expected(single, TEXTS)
    )


def test_predictions_go_to_a_file_whole_or_not_at_all(
    hftk: Any, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hftk.cli.predict_labels.CHUNK", 2)
    command = ["predict", single, *(w for t in TEXTS for w in ("--prompt", t))]
    lines, out = hftk(*command).out, tmp_path / "out.jsonl"
    calls, inner = [], BertForSequenceClassification.forward

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", interrupted)
    stopped = hftk(*command, "--output", out)
    assert (stopped.code, list(tmp_path.iterdir())) == (3, [])
    done = hftk(*command, "--output", out)
    assert (done.code, done.out, done.err) == (0, "", f"hftk: 4 predictions in {out}\n")
    assert out.read_text(encoding="utf-8") == lines and list(tmp_path.iterdir()) == [out]


def test_long_texts_are_cut_and_counted(hftk: Any, single: Path) -> None:
    result = hftk("predict", single, "--prompt", "river " * 50, "--prompt", "a boat")
    assert len(result.rows) == 2 and "1 of 2 rows are longer than 24 tokens" in result.err


def test_pairs_come_from_flags_and_columns(hftk: Any, pairs: Path, tmp_path: Path) -> None:
    wanted = expected(pairs, TEXTS, PAIRS)
    flags = [w for t, p in zip(TEXTS, PAIRS, strict=True) for w in ("--prompt", t, "--text_pair", p)]
    result = hftk("predict", pairs, *flags)
    assert_right(result.rows, wanted)
    assert [row["text_pair"] for row in result.rows] == PAIRS
    usual, other = tmp_path / "usual.jsonl", tmp_path / "other.csv"
    usual.write_text(
        "".join(
            json.dumps({"sentence1": t, "sentence2": p}) + "\n" for t, p in zip(TEXTS, PAIRS, strict=True)
        )
    )
    other.write_text(
        "one,two\n" + "".join(f"{t},{p}\n" for t, p in zip(TEXTS, PAIRS, strict=True)), encoding="utf-8"
    )
    assert_right(hftk("predict", pairs, "--file", usual).rows, wanted)
    assert_right(
        hftk("predict", pairs, "--file", other, "--column", "one", "--pair_column", "two").rows, wanted
    )


def test_a_folder_without_a_record_takes_single_texts_and_pairs(
    hftk: Any, single: Path, tmp_path: Path
) -> None:
    """A checkpoint, or a model that something else has made."""
    folder = tmp_path / "checkpoint-8"
    shutil.copytree(single, folder, ignore=shutil.ignore_patterns("record.json"))
    assert_right(hftk("predict", folder, "--prompt", TEXTS[0]).rows, expected(folder, TEXTS[:1]))
    found = hftk("predict", folder, "--prompt", TEXTS[0], "--text_pair", PAIRS[0]).rows
    assert_right(found, expected(folder, TEXTS[:1], PAIRS[:1]))


def test_several_labels_go_by_the_thresholds_of_the_model(hftk: Any, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "several", "multi_label_classification")
    config = json.loads((folder / "config.json").read_text())
    for thresholds in ([0.0, 0.0, 1.0], [1.0, 0.0, 1.0]):
        (folder / "config.json").write_text(json.dumps({**config, "thresholds": thresholds}))
        [row] = hftk("predict", folder, "--prompt", TEXTS[0]).rows
        assert row["prediction"] == [
            name for name, least in zip(NAMES, thresholds, strict=True) if least == 0
        ]


def test_regression_gives_a_number(hftk: Any, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "numbers", "regression", ["LABEL_0"])
    [row] = hftk("predict", folder, "--prompt", TEXTS[0]).rows
    assert set(row) == {"index", "text", "prediction"} and isinstance(row["prediction"], float)


def test_a_decoder_with_a_head_takes_texts_of_no_tokens(hftk: Any, tmp_path: Path) -> None:
    """GPT-2 adds no special tokens: an empty text has nothing that could be classified but padding."""
    tokenizer = train_byte_bpe(TEXTS, 280)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=0.5,
        pad_token_id=tokenizer.eos_token_id,
        id2label=dict(enumerate(NAMES)),
        label2id={n: i for i, n in enumerate(NAMES)},
    )
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    result = hftk("predict", tmp_path, "--prompt", "", "--prompt", TEXTS[0], "--batch_size", 1)
    assert result.code == 0, result.err
    assert [row["text"] for row in result.rows] == ["", TEXTS[0]]
    assert_right([{**result.rows[1], "index": 0}], expected(tmp_path, TEXTS[:1]))


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "a pair for single texts": (
        ["predict", "SINGLE", "--prompt", "a", "--text_pair", "b"],
        ["--text_pair: expected single texts"],
    ),
    "a pair column for single texts": (
        ["predict", "SINGLE", "--file", "TMP/pairs.jsonl", "--pair_column", "sentence2"],
        ["--pair_column: expected single texts"],
    ),
    "single texts for pairs": (
        ["predict", "PAIRS", "--prompt", "a"],
        ["--text_pair: expected pairs", "add --text_pair TEXT"],
    ),
    "a column too few for pairs": (
        ["predict", "PAIRS", "--file", "TMP/rows.jsonl"],
        ["expected pairs", "--pair_column NAME"],
    ),
    "a pair too few": (
        ["predict", "PAIRS", "--prompt", "a", "--prompt", "b", "--text_pair", "c"],
        ["one for each of the 2 texts, found 1"],
    ),
    "second texts beside a table": (
        ["predict", "PAIRS", "--file", "TMP/pairs.jsonl", "--text_pair", "a"],
        ["--text_pair: is for --prompt"],
    ),
    "a column of a prompt": (
        ["predict", "SINGLE", "--prompt", "a", "--column", "x"],
        ["--column: is for a --file"],
    ),
    "a pair column of lines": (
        ["predict", "PAIRS", "--file", "TMP/lines.txt", "--pair_column", "x"],
        ["--pair_column: is for a --file"],
    ),
    "a flag of generation": (
        ["predict", "SINGLE", "--prompt", "a", "--num_beams", "2", "--do_sample"],
        ["--num_beams: is for generating", "--do_sample: is for generating"],
    ),
    "a seed of zero": (
        ["predict", "SINGLE", "--prompt", "a", "--seed", "0"],
        ["--seed: is for generating text"],
    ),
    "a missing column": (
        ["predict", "SINGLE", "--file", "TMP/rows.jsonl", "--column", "txt"],
        ["--column: expected a column", "did you mean text?"],
    ),
    "no usual column": (
        ["predict", "SINGLE", "--file", "TMP/odd.jsonl"],
        ["--column: TMP/odd.jsonl has no column for text", "name it: --column NAME"],
    ),
    "numbers for texts": (
        ["predict", "SINGLE", "--file", "TMP/rows.jsonl", "--column", "id"],
        ["--column: expected text in column id, found int"],
    ),
    "an empty text in a table": (
        ["predict", "SINGLE", "--file", "TMP/empty.jsonl"],
        ["--column: expected text in every row, found 1 empty", "correct them"],
    ),
    "no texts": (["predict", "SINGLE"], ["expected prompts, found none"]),
    "no rows in a batch": (
        ["predict", "SINGLE", "--prompt", "a", "--batch_size", "0"],
        ["--batch_size: expected at least 1"],
    ),
    "no data": (["evaluate", "SINGLE"], ["--data: expected the rows to judge"]),
    "an unknown label": (
        ["evaluate", "SINGLE", "--data", "TMP/unknown.jsonl"],
        [
            "found others in",
            "god in 1 row (row 2 of TMP/unknown.jsonl)",
            "did you mean good?",
            "the known labels are bad, good, so so",
        ],
    ),
    "no labels": (
        ["evaluate", "SINGLE", "--data", "TMP/rows.jsonl"],
        ["has no column for label", "--data.columns.label NAME"],
    ),
    "lists of labels": (
        ["evaluate", "SINGLE", "--data", "TMP/lists.jsonl"],
        ["expected one label per row, found lists"],
    ),
    "single texts to judge pairs": (
        ["evaluate", "PAIRS", "--data", "TMP/labelled.jsonl"],
        ["--data: expected pairs of texts", "--data.columns.text_pair NAME"],
    ),
    "windows beyond the context": (
        ["evaluate", "SINGLE", "--data", "TMP/labelled.jsonl", "--max_length", "30"],
        ["at most 24"],
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    tables: dict[str, list[dict[str, Any]]] = {
        "rows": [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}],
        "odd": [{"id": 1, "one": "a", "two": "b"}],
        "pairs": [{"sentence1": "a", "sentence2": "b"}],
        "empty": [{"text": "a"}, {"text": " "}],
        "labelled": [{"text": "a", "label": "good"}, {"text": "b", "label": "bad"}],
        "unknown": [{"text": "a", "label": "good"}, {"text": "b", "label": "god"}],
        "lists": [{"text": "a", "label": ["good"]}],
    }
    for name, rows in tables.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "lines.txt").write_text("a\nb\n")
    return root


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_says_what_to_type_next(
    hftk: Any, single: Path, pairs: Path, files: Path, stdin: Callable[[bytes | None], None], case: str
) -> None:
    stdin(None)
    words, messages = WRONG[case]

    def placed(text: str) -> str:
        return text.replace("TMP", str(files)).replace("SINGLE", str(single)).replace("PAIRS", str(pairs))

    result = hftk(*map(placed, words))
    assert (result.code, result.out) == (2, ""), result.err
    assert "hftk: " in result.err and "Traceback" not in result.err
    assert words[0] == "evaluate" or "--data." not in result.err, result.err
    for message in messages:
        assert placed(message) in result.err, result.err


def test_all_mistakes_are_reported_at_once(hftk: Any, single: Path, files: Path) -> None:
    result = hftk(
        "predict",
        single,
        "--file",
        files / "none.csv",
        "--top_k",
        3,
        "--batch_size",
        0,
        "--output",
        files / "x/y",
    )
    assert result.code == 2 and result.err.startswith("hftk: 4 problems in the input\n"), result.err


# --- evaluate


def labelled(path: Path, labels: Sequence[Any], **more: Sequence[Any]) -> Path:
    columns = {"text": TEXTS, "label": labels, **more}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_labels_are_mapped_by_the_config_of_the_model(hftk: Any, single: Path, tmp_path: Path) -> None:
    """Even where the rows have fewer labels than the model, or have them in another order."""
    said = [
        row["prediction"]
        for row in hftk("predict", single, *(w for t in TEXTS for w in ("--prompt", t))).rows
    ]
    other = [next(name for name in reversed(NAMES) if name != label) for label in said]
    data = labelled(tmp_path / "rows.jsonl", [said[0], other[1], said[2], said[3]])
    result = hftk("evaluate", single, "--data", data, "--json", "--eval.resamples", 20, "--batch_size", 3)
    assert result.code == 0, result.err
    scores = {score["name"]: score for score in json.loads(result.out)}
    assert scores["accuracy"]["value"] == 0.75 and scores["accuracy"]["n"] == 4
    assert scores["accuracy"]["split"] == "rows.jsonl"


def test_labels_without_names_stand_for_their_numbers(hftk: Any, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", names=["LABEL_0", "LABEL_1", "LABEL_2"])
    said = [
        row["prediction"]
        for row in hftk("predict", folder, *(w for t in TEXTS for w in ("--prompt", t))).rows
    ]
    assert set(said) <= {"LABEL_0", "LABEL_1", "LABEL_2"}
    data = labelled(tmp_path / "rows.jsonl", [int(label.removeprefix("LABEL_")) for label in said])
    assert json.loads(hftk("evaluate", folder, "--data", data, "--json").out)[0]["value"] == 1.0


def test_columns_of_pairs_are_no_pairs_for_a_model_of_single_texts(
    hftk: Any, single: Path, tmp_path: Path
) -> None:
    plain = labelled(tmp_path / "plain.jsonl", ["good"] * 4)
    beside = labelled(tmp_path / "beside.jsonl", ["good"] * 4, sentence2=PAIRS)
    values = [
        [score["value"] for score in json.loads(hftk("evaluate", single, "--data", data, "--json").out)]
        for data in (plain, beside)
    ]
    assert values[0] == values[1]


def test_scores_are_kept_as_a_record_with_what_was_found(hftk: Any, single: Path, tmp_path: Path) -> None:
    data, out = labelled(tmp_path / "rows.jsonl", ["good", "bad", "good", "bad"]), tmp_path / "scores.json"
    result = hftk("evaluate", single, "--data", data, "--output", out)
    assert result.code == 0 and result.out.startswith("score "), result.err
    record = load_record(out)
    assert record.task == "classification" and record.scores[0].name == "accuracy"
    assert "Confusion matrix" in [section["title"] for section in record.analysis]
    assert record.data["judged"]["truncated_rows"] == 0 and record.data["labels"]["classes"] == 3
