"""The command ``hftk``, run in this process on a tiny GPT-2 made on the spot."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hftk import __version__
from hftk.cli import main, predict
from hftk.cli.model_folder import load
from hftk.config import GenerationSettings
from hftk.generation import decoding
from hftk.generation.generate import generate
from hftk.models.tokenizers import train_byte_bpe
from hftk.reports.record import RunRecord, load_record, save_record
from hftk.task import Score
from hftk.tasks.table import TASKS

TEXTS = ["The river is wide and slow.", "Größe und Maß: 漢字", "once upon a time there was a river"] * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with random weights, a context of 96 tokens and a byte-level BPE tokenizer."""
    path = tmp_path_factory.mktemp("run")
    tokenizer = train_byte_bpe(TEXTS, 300)
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=96,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def expected(folder: Path, prompts: Sequence[str], **settings: Any) -> list[str]:
    model, tokenizer = load(str(folder))
    return [
        r.text
        for r in generate(model, tokenizer, prompts, GenerationSettings(**{"max_new_tokens": 6, **settings}))
    ]


# --- predict


def test_predictions_come_one_a_line_in_the_order_of_the_prompts(hftk: Any, folder: Path) -> None:
    prompts = ["The", "once upon a time", "Maß 漢"]
    flags = [word for prompt in prompts for word in ("--prompt", prompt)]
    result = hftk("predict", folder, *flags, "--max_new_tokens", 6)
    assert (result.code, result.err) == (0, "")
    assert [list(row) for row in result.rows] == [
        ["index", "prompt", "prediction", "finished", "tokens", "truncated"]
    ] * 3
    assert [(row["index"], row["prompt"]) for row in result.rows] == list(enumerate(prompts))
    assert [row["prediction"] for row in result.rows] == expected(folder, prompts)
    assert "Maß 漢" in result.out
    assert all(row["tokens"] == 6 or row["finished"] for row in result.rows)


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--do_sample"], {"do_sample": True}),
        (["--do_sample", "--seed", "7"], {"do_sample": True, "seed": 7}),
        (["--do_sample", "--temperature", "3"], {"do_sample": True, "temperature": 3.0}),
        (["--do_sample", "--top_k", "2"], {"do_sample": True, "top_k": 2}),
        (["--do_sample", "--top_p", "0.3"], {"do_sample": True, "top_p": 0.3}),
        (["--num_beams", "3"], {"num_beams": 3}),
        (["--batch_size", "1"], {}),
    ],
)
def test_every_flag_of_generation_reaches_it(
    hftk: Any, folder: Path, flags: list[str], settings: dict[str, Any]
) -> None:
    result = hftk("predict", folder, "--prompt", "The river", "--prompt", "a", "--max_new_tokens", 6, *flags)
    assert [row["prediction"] for row in result.rows] == expected(folder, ["The river", "a"], **settings), (
        result.err
    )
    changed = [row["prediction"] for row in result.rows] != expected(folder, ["The river", "a"])
    assert changed == bool(settings)


def test_the_batch_size_reaches_generation(hftk: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    inner = GPT2LMHeadModel.generate

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(kwargs["input_ids"]))
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(GPT2LMHeadModel, "generate", spy)
    monkeypatch.setattr(decoding, "PROVED", frozenset())  # so that `generate` is called
    hftk(
        "predict",
        folder,
        "--prompt",
        "a",
        "--prompt",
        "b",
        "--prompt",
        "c",
        "--max_new_tokens",
        1,
        "--batch_size",
        2,
    )
    assert sum(rows) == 3 and max(rows) == 2


FILES: dict[str, tuple[bytes, list[str], list[str]]] = {
    "lines.txt": ("The\n\nMaß\n".encode(), [], ["The", "", "Maß"]),
    "no_ending": (b"The\r\nriver", [], ["The", "river"]),
    "prompts.jsonl": (b'{"text": "no", "prompt": "The"}\n{"prompt": "a", "text": "no"}\n', [], ["The", "a"]),
    "texts.jsonl": (b'{"other": 1, "text": "The"}\n', [], ["The"]),
    "named.jsonl": (b'{"prompt": "no", "question": "Who"}\n', ["--column", "question"], ["Who"]),
    "table.csv": (b'id,question\n1,"Who, me"\n', ["--column", "question"], ["Who, me"]),
    "chinese.txt": ("漢字\n".encode("gb18030"), ["--encoding", "gb18030"], ["漢字"]),
}


@pytest.mark.parametrize("name", FILES)
def test_prompts_come_from_files(
    hftk: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("hftk.data.formats.CHUNK", 1)
    content, flags, prompts = FILES[name]
    (tmp_path / name).write_bytes(content)
    result = hftk("predict", folder, "--file", tmp_path / name, "--max_new_tokens", 2, *flags)
    assert [row["prompt"] for row in result.rows] == prompts, result.err


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b"The\nriver", ["The", "river"]),
        (b"\xef\xbb\xbfThe\r\n\r\na\r\n", ["The", "", "a"]),
        ("a\u2028b\n".encode(), ["a\u2028b"]),
    ],
)
def test_prompts_come_from_stdin(
    hftk: Any, folder: Path, stdin: Any, content: bytes, prompts: list[str]
) -> None:
    stdin(content)
    assert [row["prompt"] for row in hftk("predict", folder, "--max_new_tokens", 2).rows] == prompts


def test_predictions_go_to_a_file_and_an_interruption_loses_nothing(
    hftk: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("The\na b c d\nonce upon a time there\nriver\n")
    command = [
        "predict",
        folder,
        "--file",
        tmp_path / "prompts.txt",
        "--batch_size",
        1,
        "--max_new_tokens",
        6,
    ]
    lines = hftk(*command).out
    calls, inner = [], GPT2LMHeadModel.generate

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(GPT2LMHeadModel, "generate", interrupted)
    monkeypatch.setattr(decoding, "PROVED", frozenset())  # so that `generate` is called
    out = tmp_path / "out.jsonl"
    stopped = hftk(*command, "--output", out)
    assert (stopped.code, stopped.out, out.exists()) == (3, "", False)
    assert stopped.err == "hftk: stopped on request; the same command goes on from there\n"
    done = hftk(*command, "--output", out)
    assert (done.code, done.out, len(calls)) == (0, "", 3 + 2)
    assert out.read_text(encoding="utf-8") == lines
    assert done.err == f"hftk: 4 predictions in {out}\n"


def test_the_default_length_leaves_room_in_a_short_context_and_says_so(hftk: Any, folder: Path) -> None:
    result = hftk("predict", folder, "--prompt", "The")
    assert result.err == "hftk: --max_new_tokens 48: half of the model's context of 96 tokens\n"
    assert result.rows[0]["finished"] or result.rows[0]["tokens"] == 48


def test_prompts_that_had_to_be_cut_are_counted(hftk: Any, folder: Path) -> None:
    result = hftk("predict", folder, "--prompt", "b" * 200, "--prompt", "a", "--max_new_tokens", 2)
    assert [row["truncated"] for row in result.rows] == [True, False]
    assert "1 of 2 prompts were longer than the context leaves room for" in result.err


def test_a_bar_goes_to_a_terminal_on_stderr_alone(
    hftk: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    result = hftk("predict", folder, "--prompt", "The", "--max_new_tokens", 2)
    assert "1/1" in result.err and len(result.rows) == 1


def test_lines_are_utf8_whatever_the_terminal_speaks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["predict", str(folder), "--prompt", "漢", "--max_new_tokens", "1"]) == 0
    assert json.loads(raw.getvalue().decode("utf-8"))["prompt"] == "漢"


@pytest.mark.parametrize(
    "words", [["predict", "RUN", "--prompt", "a", "--max_new_tokens", "1"], ["--version"]]
)
def test_a_reader_that_has_had_enough_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main([str(folder) if word == "RUN" else word for word in words]) == 0
        pipe.flush()  # as Python does when it exits
    assert capsys.readouterr().err == ""


def test_results_are_handed_on_in_order_as_soon_as_they_can_be() -> None:
    came: list[int] = []

    def results() -> Iterator[Any]:
        for index in (2, 0, 1, 3):
            came.append(index)
            yield SimpleNamespace(index=index)

    ordered = predict._in_order(results())
    assert next(ordered).index == 0 and came == [2, 0]
    assert [r.index for r in ordered] == [1, 2, 3]


# --- Wrong input

WRONG: dict[str, tuple[list[str], list[str]]] = {
    "no such folder": (
        ["predict", "TMP/none/run", "--prompt", "a"],
        ["nothing at TMP/none/run", "--output folder of a run"],
    ),
    "a misspelt folder": (["predict", "TMP/ful", "--prompt", "a"], ["did you mean TMP/full?"]),
    "no weights": (
        ["predict", "TMP/full", "--prompt", "a"],
        ["config.json and weights in TMP/full, found notes.txt"],
    ),
    "no weights yet": (
        ["predict", "TMP/stopped", "--prompt", "a"],
        ["found checkpoints, config.json", "hftk predict TMP/stopped/checkpoints/checkpoint-8"],
    ),
    "weights alone": (
        ["predict", "TMP/weights", "--prompt", "a"],
        ["config.json and weights", "found model.safetensors"],
    ),
    "an empty folder": (
        ["predict", "TMP/empty", "--prompt", "a"],
        ["found nothing", "name the --output of a run"],
    ),
    "a file for the folder": (
        ["predict", "TMP/full/notes.txt", "--prompt", "a"],
        ["found the file", "hftk predict TMP/full"],
    ),
    "an unknown Hub id": (
        ["predict", "no-such/model", "--prompt", "a"],
        ["no-such/model", "check the spelling and the network"],
    ),
    "a broken model": (["predict", "TMP/broken", "--prompt", "a"], ["TMP/broken", "cannot be loaded"]),
    "no prompts at a terminal": (
        ["predict", "RUN"],
        ["expected prompts, found none", 'hftk predict RUN --prompt "Once'],
    ),
    "a column without a file": (
        ["predict", "RUN", "--prompt", "a", "--column", "x"],
        ["--column: is for --file"],
    ),
    "a missing file": (
        ["predict", "RUN", "--file", "TMP/promts.txt"],
        ["--file: ", "did you mean prompts.txt?"],
    ),
    "an empty file": (["predict", "RUN", "--file", "TMP/empty.txt"], ["--file: ", "empty"]),
    "a wrong column": (
        ["predict", "RUN", "--file", "TMP/rows.jsonl", "--column", "question"],
        ["expected a column question in TMP/rows.jsonl, found id, body", "--column NAME"],
    ),
    "no usual column": (["predict", "RUN", "--file", "TMP/rows.jsonl"], ["expected a column prompt or text"]),
    "numbers for prompts": (
        ["predict", "RUN", "--file", "TMP/rows.jsonl", "--column", "id"],
        ["found 2 in row 1"],
    ),
    "broken JSON": (["predict", "RUN", "--file", "TMP/broken.jsonl"], ["TMP/broken.jsonl", "line 2"]),
    "another encoding": (["predict", "RUN", "--file", "TMP/latin.txt"], ["TMP/latin.txt", "--encoding"]),
    "prompts twice": (
        ["predict", "RUN", "--prompt", "a", "--file", "TMP/prompts.txt"],
        ["not allowed with argument"],
    ),
    "not UTF-8": (["predict", "RUN", "--prompt", "a\udcff"], ["found other bytes in prompt 1"]),
    "an output in no folder": (
        ["predict", "RUN", "--prompt", "a", "--output", "TMP/x/out.jsonl"],
        ["TMP/x does not exist"],
    ),
    "an output that is a folder": (
        ["predict", "RUN", "--prompt", "a", "--output", "TMP/full"],
        ["found the folder TMP/full"],
    ),
    "an output that is the input": (
        ["predict", "RUN", "--file", "TMP/prompts.txt", "--output", "TMP/prompts.txt"],
        ["is an input of this command"],
    ),
    "temperature without sampling": (
        ["predict", "RUN", "--prompt", "a", "--temperature", "2"],
        ["--do_sample: ", "add --do_sample\n"],
    ),
    "sampling with beams": (
        ["predict", "RUN", "--prompt", "a", "--do_sample", "--num_beams", "2"],
        ["--num_beams: expected 1", "leave out one of --num_beams and --do_sample"],
    ),
    "top_p above 1": (
        ["predict", "RUN", "--prompt", "a", "--do_sample", "--top_p", "2"],
        ["--top_p: expected 0 < top_p"],
    ),
    "no rows in a batch": (
        ["predict", "RUN", "--prompt", "a", "--batch_size", "0"],
        ["--batch_size: expected at least 1"],
    ),
    "a word for a number": (["predict", "RUN", "--prompt", "a", "--top_k", "x"], ["invalid int value: 'x'"]),
    "more tokens than the context": (
        ["predict", "RUN", "--prompt", "a", "--max_new_tokens", "96"],
        ["--max_new_tokens: expected less than 96", "use --max_new_tokens 48"],
    ),
    "a misspelt flag": (
        ["predict", "RUN", "--prompt", "a", "--temprature", "2"],
        ["--temprature", "did you mean --temperature?"],
    ),
    "an abbreviated flag": (
        ["predict", "RUN", "--prom", "a"],
        ["does not take --prom", "did you mean --prompt?"],
    ),
    "no folder at all": (["predict"], ["required: DIR", "hftk predict --help"]),
    "an unknown command": (
        ["predcit", "RUN"],
        ["expected one of the commands predict, evaluate, compare, export", "did you mean hftk predict?"],
    ),
    "no weights to judge": (
        ["evaluate", "TMP/full", "--data", "TMP/prompts.txt"],
        ["hftk: 1 problem", "found notes.txt"],
    ),
    "scores in no folder": (
        ["evaluate", "RUN", "--data", "TMP/prompts.txt", "--output", "TMP/x/y"],
        ["TMP/x does not exist"],
    ),
    "no data": (["evaluate", "RUN"], ["--data: expected the rows to judge", "add --data FILE"]),
    "missing data": (
        ["evaluate", "RUN", "--data", "TMP/rowz.jsonl"],
        ["--data: ", "did you mean rows.jsonl?"],
    ),
    "data without the column": (
        ["evaluate", "RUN", "--data", "TMP/rows.jsonl", "--data.columns.text", "bdy"],
        ["--data.columns.text: expected a column", "did you mean body?"],
    ),
    "data of several splits": (
        ["evaluate", "RUN", "--data", "TMP/splits"],
        ["files of test, train", "--data TMP/splits/test.txt"],
    ),
    "a misspelt setting": (
        ["evaluate", "RUN", "--data", "TMP/rows.jsonl", "--eval.resample", "5"],
        ["--eval.resample: there is no such setting", "--eval.resamples"],
    ),
    "a batch of no rows": (
        ["evaluate", "RUN", "--data", "TMP/rows.jsonl", "--batch_size", "0"],
        ["expected at least 1"],
    ),
    "windows of no tokens": (
        ["evaluate", "RUN", "--data", "TMP/rows.jsonl", "--max_length", "0"],
        ["--max_length: expected"],
    ),
    "windows beyond the context": (
        ["evaluate", "RUN", "--data", "TMP/prompts.txt", "--max_length", "200"],
        ["--max_length: expected at most 96", "found 200"],
    ),
    "a run of an unknown task": (
        ["evaluate", "TMP/other", "--data", "TMP/rows.jsonl"],
        ["causal_lm", "found one of folding"],
    ),
    "no record": (["report", "TMP/full"], ["expected record.json in TMP/full"]),
    "a broken record": (["report", "TMP/torn"], ["TMP/torn/record.json", "mistake in line 1"]),
}


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """Folders and files with all kinds of mistakes."""
    root = tmp_path_factory.mktemp("wrong")
    for name in (
        "full",
        "empty",
        "stopped/checkpoints/checkpoint-8",
        "broken",
        "other",
        "torn",
        "splits",
        "weights",
    ):
        (root / name).mkdir(parents=True)
    files = {
        "full/notes.txt": "x",
        "stopped/config.json": "{}",
        "stopped/checkpoints/checkpoint-8/config.json": "{}",
        "broken/config.json": "{",
        "broken/model.safetensors": "x",
        "weights/model.safetensors": "x",
        "torn/record.json": "{]",
        "prompts.txt": "a\nb\n",
        "empty.txt": "",
        "rows.jsonl": '{"id": 2, "body": "x"}\n',
        "broken.jsonl": '{"prompt": "a"}\n{"prompt"\n',
        "splits/train.txt": "a",
        "splits/test.txt": "b",
    }
    for name, content in files.items():
        (root / name).write_text(content)
    (root / "latin.txt").write_bytes("Größe und Maß".encode("latin-1"))
    save_record(RunRecord(hftk="9", task="folding"), root / "other")
    return root


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_says_what_to_type_next(
    hftk: Any, folder: Path, tmp: Path, stdin: Any, case: str
) -> None:
    stdin(None)
    words, messages = WRONG[case]

    def placed(text: str) -> str:
        return text.replace("TMP", str(tmp)).replace("RUN", str(folder))

    result = hftk(*map(placed, words))
    assert (result.code, result.out) == (2, ""), result.err
    assert (
        result.err.startswith("hftk: ") and "Traceback" not in result.err and "--model.name" not in result.err
    )
    for message in messages:
        assert placed(message) in result.err, result.err


def test_a_path_below_a_folder_that_exists_is_no_hub_id(
    hftk: Any, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp)
    result = hftk("predict", "stopped/run", "--prompt", "a")
    assert result.code == 2 and "found nothing at stopped/run" in result.err


def test_what_loading_says_is_kept_off_stdout(
    hftk: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging

    from hftk.models import load as model

    def chatty(*args: Any, **kwargs: Any) -> Any:
        print("a choice")
        return loaded(*args, **kwargs)

    loaded = model.load_trained
    monkeypatch.setattr(model, "load_trained", chatty)
    result = hftk("predict", folder, "--prompt", "a", "--max_new_tokens", 1)
    assert len(result.rows) == 1 and result.err == "a choice\n"
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "found nothing"), (b"a\n\xff\n", "other bytes in line 2 of stdin")]
)
def test_wrong_stdin_is_named(hftk: Any, folder: Path, stdin: Any, content: bytes, message: str) -> None:
    stdin(content)
    result = hftk("predict", folder)
    assert result.code == 2 and message in result.err


def test_all_mistakes_are_reported_at_once_and_before_anything_is_loaded(
    hftk: Any, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "load", lambda *args: pytest.fail("loaded"))
    words = ["--file", tmp / "none.txt", "--top_k", "3", "--batch_size", "0", "--output", tmp / "x/y"]
    result = hftk("predict", tmp / "full", *words)
    assert result.code == 2 and result.err.startswith("hftk: 5 problems in the input\n")


def test_an_unwritable_output_is_found_before_anything_is_loaded(
    hftk: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *args: False)  # a test that runs as root may write anywhere
    result = hftk("predict", folder, "--prompt", "a", "--output", tmp_path / "out.jsonl")
    assert result.code == 2 and "cannot be written" in result.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt, 3, "stopped on request"), (ZeroDivisionError, 1, "Traceback")],
)
def test_other_ends_have_their_exit_codes(
    hftk: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    code: int,
    message: str,
) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(predict, "load", fail)
    result = hftk("predict", folder, "--prompt", "a")
    assert result.code == code and message in result.err


# --- Help


@pytest.mark.parametrize("words", [[], ["predict"], ["evaluate"], ["report"]])
def test_help_shows_every_command_with_examples(hftk: Any, words: list[str]) -> None:
    result = hftk(*words, "--help")
    assert (result.code, result.err) == (0, "")
    wanted = {"predict": "--temperature", "evaluate": "--data.columns", "report": "DIR"}
    assert all(
        name in result.out for name in ([wanted[words[0]], f"  hftk {words[0]} out/"] if words else wanted)
    )


def test_no_command_shows_the_help_and_is_wrong_input(hftk: Any) -> None:
    result = hftk()
    assert (result.code, result.out) == (2, "") and "COMMAND" in result.err


def test_the_version_is_shown(hftk: Any) -> None:
    assert hftk("--version").out == f"hftk {__version__}\n"


def test_help_needs_no_torch_and_the_module_runs() -> None:
    code = "import runpy, sys; sys.argv = ['hftk', 'predict', '--help']\n"
    code += "try: runpy.run_module('hftk', run_name='__main__')\n"
    code += (
        "finally: print(*(m for m in ('torch', 'transformers', 'datasets', 'pandas', 'numpy') if m in"
        " sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "\n") and "--num_beams" in done.stdout


# --- evaluate and report

ROWS = [{"body": "The river is wide and slow and wide. " * n, "text": "no"} for n in (1, 2, 9)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def scores(hftk: Any, *words: Any) -> dict[str, dict[str, Any]]:
    result = hftk("evaluate", *words, "--data.columns.text", "body", "--eval.resamples", 20, "--json")
    assert result.code == 0, result.err
    return {score["name"]: score for score in json.loads(result.out)}


def test_evaluation_gives_the_scores_of_the_model_on_the_column(hftk: Any, folder: Path, rows: Path) -> None:
    found = scores(hftk, folder, "--data", rows)
    model, tokenizer = load(str(folder))
    nats, tokens = 0.0, 0
    for row in ROWS:
        ids = tokenizer(row["body"])["input_ids"]
        for start in range(0, len(ids), 96):
            targets = torch.tensor(ids[start : start + 96])
            inputs = torch.tensor([[tokenizer.eos_token_id, *ids][start : start + len(targets)]])
            logits = model(inputs).logits[0].double()
            nats += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            tokens += len(targets)
    assert found["perplexity"]["value"] == pytest.approx(torch.tensor(nats / tokens).exp().item(), rel=1e-5)
    assert found["perplexity"]["split"] == "held_out.jsonl" and found["perplexity"]["interval"]


def test_scores_do_not_depend_on_the_batch_size_but_on_windows(hftk: Any, folder: Path, rows: Path) -> None:
    whole = scores(hftk, folder, "--data", rows)["perplexity"]["value"]
    assert scores(hftk, folder, "--data", rows, "--batch_size", 1)["perplexity"]["value"] == pytest.approx(
        whole, rel=1e-6
    )
    stride = scores(hftk, folder, "--data", rows, "--stride", 24)["perplexity"]
    short = scores(hftk, folder, "--data", rows, "--max_length", 24)["perplexity"]
    assert len({round(v, 4) for v in (whole, stride["value"], short["value"])}) == 3
    assert "24" in stride["signature"] and "24" in short["signature"]


def test_scores_are_shown_as_a_table_and_kept_as_a_record(
    hftk: Any, folder: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.json"
    result = hftk(
        "evaluate", "--data.columns.text=body", folder, "--data", rows, "--eval.max_rows", 2, "--output", out
    )
    head, *lines = result.out.splitlines()
    [first] = [line for line in lines if line.startswith("loss ")]
    assert head.split() == ["score", "value", "95", "%", "interval", "unit", "n"]
    assert first.split()[2].startswith("[") and first.split()[-1] == "2"
    record = load_record(out)
    assert record.task == "causal_lm" and [s.split for s in record.scores] == ["held_out.jsonl"] * len(
        record.scores
    )
    assert record.data["columns"] == {"text": "body"} and record.config["model"]["name"] == str(folder)
    assert f"scores in {out}" in result.err


def test_evaluation_settings_of_the_run_are_the_defaults(
    hftk: Any, folder: Path, rows: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for file in folder.iterdir():
        (run / file.name).write_bytes(file.read_bytes())
    save_record(RunRecord(hftk="0.1", task="causal_lm"), run)
    (run / "config.yaml").write_text(
        "data:\n  sample: python_docs\n  max_rows: 1\nmodel:\n  size: tiny\neval:\n  stride: 24\nresume:"
        " auto\n"
    )
    assert scores(hftk, run, "--data", rows) == scores(hftk, folder, "--data", rows, "--stride", 24)
    assert scores(hftk, run, "--data", rows, "--stride", 96) == scores(hftk, folder, "--data", rows)


def test_every_task_that_is_named_exists() -> None:
    from importlib import import_module

    for name, (module, task, config) in TASKS.items():
        assert getattr(import_module(module), task)(getattr(import_module(module), config)()).name == name


def test_the_report_is_made_anew_from_the_record(hftk: Any, tmp_path: Path) -> None:
    score = Score(name="perplexity", value=12.25, higher_is_better=False, n=3, split="test")
    path = save_record(RunRecord(hftk="0.1", task="causal_lm", scores=[score]), tmp_path)
    before = path.read_bytes()
    for given in (tmp_path, path):
        (tmp_path / "report.html").unlink(missing_ok=True)
        result = hftk("report", given)
        assert (result.code, result.out) == (0, f"{tmp_path / 'report.html'}\n")
        assert "12.25" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert path.read_bytes() == before
