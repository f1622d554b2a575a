"""``hftk compare``: whether the difference between two runs on the same rows is real."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hftk.reports.record import RunRecord, save_record
from hftk.task import Score


def save_run(
    path: Path,
    lines: Sequence[dict[str, Any]],
    *,
    task: str = "classification",
    fingerprint: str = "f",
    **config: Any,
) -> Path:
    path.mkdir(parents=True)
    score = Score(name="accuracy", value=0.5, higher_is_better=True, n=len(lines), split="test")
    record = RunRecord(
        hftk="0.1",
        task=task,
        data={"fingerprint": {"train": "t", "test": fingerprint}},
        scores=[score],
        config=config,
    )
    save_record(record, path)
    text = "".join(
        json.dumps({"index": i, **line}, ensure_ascii=False) + "\n" for i, line in enumerate(lines)
    )
    (path / "predictions.jsonl").write_text(text, encoding="utf-8")
    return path


def said(predictions: Sequence[Any], references: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"prediction": p, "reference": r} for p, r in zip(predictions, references, strict=True)]


TRUE = ["a", "b"] * 20


def with_wrong(count: int, start: int = 0) -> list[str]:
    """The right answers but for ``count`` rows from ``start`` on."""
    return [
        ("b" if label == "a" else "a") if start <= i < start + count else label
        for i, label in enumerate(TRUE)
    ]


def test_a_real_difference_is_called_real(hftk: Any, tmp_path: Path) -> None:
    good, bad = (
        save_run(tmp_path / "good", said(with_wrong(2), TRUE)),
        save_run(tmp_path / "bad", said(with_wrong(12), TRUE)),
    )
    result = hftk("compare", good, bad, "--resamples", 500)
    assert (result.code, result.err) == (0, "hftk: 40 rows of the test split\n")
    accuracy, *_, mcnemar = result.out.splitlines()
    assert "accuracy" in accuracy and "0.95" in accuracy and "0.7" in accuracy
    # 10 rows that the first alone has right, none the other way round: p = 2 / 2^10.
    assert (
        mcnemar
        == f"McNemar: {good} alone has 10 rows right, {bad} alone 0, p = 0.00195: the difference is real."
    )


def test_a_small_difference_may_be_chance(hftk: Any, tmp_path: Path) -> None:
    a, b = (
        save_run(tmp_path / "a", said(with_wrong(5), TRUE)),
        save_run(tmp_path / "b", said(with_wrong(6, 20), TRUE)),
    )
    result = hftk("compare", a, b, "--resamples", 500)
    assert "alone has 6 rows right" in result.out and "p = 1: the difference may be chance" in result.out
    assert result.out.count("real") == 0 or "may be chance" in result.out.splitlines()[0]


def test_json_holds_numbers_and_words(hftk: Any, tmp_path: Path) -> None:
    good, bad = (
        save_run(tmp_path / "good", said(with_wrong(2), TRUE)),
        save_run(tmp_path / "bad", said(with_wrong(12), TRUE)),
    )
    found = json.loads(hftk("compare", good, bad, "--json", "--resamples", 500).out)
    first = found["comparisons"][0]
    assert found["rows"] == 40 and first["name"] == "accuracy"
    assert (first["a"], first["b"], first["difference"]) == (0.95, 0.7, pytest.approx(0.25))
    low, high = first["interval"]
    assert 0 < low < 0.25 < high and len(found["words"]) == len(found["comparisons"]) + 1
    turned = json.loads(hftk("compare", bad, good, "--json", "--resamples", 500).out)["comparisons"][0]
    assert turned["difference"] == pytest.approx(-0.25) and turned["interval"] == pytest.approx([-high, -low])


def test_several_labels_and_numbers_are_compared_by_their_scores(hftk: Any, tmp_path: Path) -> None:
    lists = [["a"], [], ["a", "b"], ["c"]] * 5
    a = save_run(tmp_path / "a", said(lists, lists))
    b = save_run(tmp_path / "b", said([[]] * 20, lists))
    found = {
        c["name"]: c
        for c in json.loads(hftk("compare", a, b, "--json", "--resamples", 50).out)["comparisons"]
    }
    assert (found["subset_accuracy"]["a"], found["subset_accuracy"]["b"]) == (1.0, 0.25)
    numbers = [i / 7 for i in range(20)]
    c = save_run(tmp_path / "c", said(numbers, numbers))
    d = save_run(tmp_path / "d", said([number + (-1) ** i for i, number in enumerate(numbers)], numbers))
    found = {
        c["name"]: c
        for c in json.loads(hftk("compare", c, d, "--json", "--resamples", 50).out)["comparisons"]
    }
    assert (found["mse"]["a"], found["mse"]["b"]) == (0.0, pytest.approx(1.0)) and found["mse"][
        "higher_is_better"
    ] is False


def test_language_models_are_compared_by_bits_per_byte(hftk: Any, tmp_path: Path) -> None:
    def lines(factor: float, tokens: int) -> list[dict[str, Any]]:
        return [{"nats": factor * (10 + i % 3), "tokens": tokens, "bytes": 20} for i in range(30)]

    a, b, c = (
        save_run(tmp_path / name, lines(factor, tokens), task="causal_lm")
        for name, factor, tokens in (("a", 1.0, 10), ("b", 1.5, 10), ("c", 1.5, 5))
    )
    found = {
        x["name"]: x
        for x in json.loads(hftk("compare", a, b, "--json", "--resamples", 50).out)["comparisons"]
    }
    assert found["bits_per_byte"]["a"] == pytest.approx(11 / 20 / math.log(2))
    assert found["bits_per_byte"]["b"] == pytest.approx(1.5 * 11 / 20 / math.log(2))
    assert found["perplexity"]["a"] == pytest.approx(math.exp(1.1))
    other = json.loads(hftk("compare", a, c, "--json", "--resamples", 50).out)["comparisons"]
    assert [x["name"] for x in other] == ["bits_per_byte"], "perplexities over other tokens do not compare"
    assert "real" in hftk("compare", a, b, "--resamples", 200).out


def test_labels_may_hold_any_character(hftk: Any, tmp_path: Path) -> None:
    odd = ["a\u2028b", "c\x85d"] * 20
    run = save_run(tmp_path / "run", said(odd, odd))
    assert hftk("compare", run, run, "--resamples", 10).code == 0


def test_judged_on_fewer_rows_the_prints_of_all_do_not_matter(hftk: Any, tmp_path: Path) -> None:
    a, b = (save_run(tmp_path / n, said(TRUE, TRUE), fingerprint=n, eval={"max_rows": 40}) for n in "ab")
    assert hftk("compare", a, b, "--resamples", 10).code == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    save_run(root / "run", said(TRUE, TRUE))
    save_run(root / "shorter", said(TRUE[:30], TRUE[:30]))
    save_run(root / "other texts", said(TRUE, TRUE), fingerprint="g")
    save_run(root / "other labels", said(TRUE, ["c", *TRUE[1:]]))
    save_run(root / "language model", said(TRUE, TRUE), task="causal_lm")
    save_run(root / "folding", said(TRUE, TRUE), task="folding")
    save_run(root / "torn", said(TRUE, TRUE))
    (root / "torn/predictions.jsonl").write_text('{"index": 0}\n{"index"')
    save_run(root / "no predictions", said(TRUE, TRUE))
    (root / "no predictions/predictions.jsonl").unlink()
    return root


WRONG: dict[str, list[str]] = {
    "shorter": ["found 40 and 30", "judge both on the same file"],
    "other texts": ["found other texts in the test split of"],
    "other labels": ["expected the same references, found 'a' and 'c' in row 0"],
    "language model": ["expected two runs of one task, found classification and causal_lm"],
    "folding": [
        "expected a run of causal_lm or classification or summarization or translation, found one of folding"
    ],
    "torn": ["expected JSON in line 2 of"],
    "no predictions": ["expected predictions.jsonl in"],
    "runn": ["nothing at", "did you mean"],
}


@pytest.mark.parametrize("name", WRONG)
def test_runs_that_do_not_compare_are_refused(hftk: Any, runs: Path, name: str) -> None:
    result = hftk("compare", runs / "run", runs / name)
    assert (result.code, result.out) == (2, "") and "Traceback" not in result.err
    assert all(message in result.err for message in WRONG[name]), result.err


def test_wrong_numbers_and_two_wrong_folders_are_named_together(hftk: Any, runs: Path) -> None:
    assert "--resamples: expected 1 to" in hftk("compare", runs / "run", runs / "run", "--resamples", 0).err
    result = hftk("compare", runs / "torn", runs / "no predictions")
    assert result.err.startswith("hftk: 2 problems in the input\n")


def test_the_help_imports_nothing_heavy(hftk: Any) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from hftk.cli import main; main(['--help']); heavy = {'torch', 'transformers', 'datasets',"
        " 'scipy', 'sklearn'} & set(sys.modules); print(heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    assert all(name in done.stdout for name in ("predict", "evaluate", "compare", "report"))
    shown = hftk("compare", "--help")
    assert (
        shown.code == 0
        and "DIR_A" in shown.out
        and "McNemar" in shown.out
        and "  hftk compare out/" in shown.out
    )


@pytest.mark.parametrize(
    "line", ("[1]", "3", '{"index": 0}', '{"index": 0, "reference": 1, "prediction": {}}', "\udcff")
)
@pytest.mark.parametrize("command", ("compare", "report"))
def test_predictions_that_are_none_end_in_a_sentence(
    hftk: Any, tmp_path: Path, line: str, command: str
) -> None:
    for name in ("a", "b"):
        save_record(RunRecord(hftk="1", task="classification"), tmp_path / name)
        (tmp_path / name / "predictions.jsonl").write_bytes(line.encode(errors="surrogateescape") + b"\n")
    result = hftk(command, tmp_path / "a", tmp_path / "b")
    assert result.code == 2 and "predictions.jsonl" in result.err and "Traceback" not in result.err


@pytest.mark.parametrize("command", ("compare", "report"))
def test_resamples_without_end_are_refused(hftk: Any, command: str) -> None:
    result = hftk(command, "a", "b", "--resamples", 10**9)
    assert result.code == 2 and "--resamples: expected 1 to 1,000,000" in result.err
