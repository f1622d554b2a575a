"""Records: what is kept comes back, what is private is not kept, and a file is there whole or not at all."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hftk import console
from hftk.config import InputError, RunConfig, TrainConfig
from hftk.launch import environment
from hftk.launch.environment import private, redact, redact_command
from hftk.launch.output_folder import write_status
from hftk.reports.record import RunRecord, load_record, plain, record, save_record
from hftk.task import Score, Splits


@dataclass(frozen=True, kw_only=True)
class CausalLMConfig(RunConfig):
    prompts: list[str] = field(default_factory=list)


def score(
    value: float = 61.3, when: str = "after", interval: tuple[float, float] | None = (58.9, 63.8)
) -> Score:
    return Score(
        name="perplexity",
        value=value,
        higher_is_better=False,
        n=312,
        interval=interval,
        split="test",
        when=when,
    )


def evaluation(when: str, text: str) -> Any:
    sample = {"prompt": "明月几时有", "text": text, "reference": "把酒问青天"}
    sections = [
        {"title": "Confusion matrix", "kind": "matrix", "values": np.array([[2, 1]]), "share": math.nan}
    ]
    return SimpleNamespace(
        scores=[score(when=when)],
        samples=[sample],
        seconds=2.0,
        split="test",
        analysis=sections,
        facts={"tokens": 7} if when == "after" else {},
    )


def trained() -> Any:
    return SimpleNamespace(
        history=[{"step": 1, "loss": 4.5, "eval_loss": None}],
        seconds={"train": 10.0, "evaluate": 1.0, "save": 0.5},
        tokens_per_second=1000.0,
        peak_memory_bytes=5,
        model_facts={"parameters": 7},
        choices=["bf16: faster here"],
        data_facts={"tokens": 99},
        analysis=[{"title": "Suspicious labels", "kind": "examples", "rows": []}],
    )


def made(**changes: Any) -> RunRecord:
    config = changes.pop("config", CausalLMConfig(prompts=["中文"]))
    splits = Splits(train=None, facts={"rows": {"train": 3}})  # type: ignore[arg-type]
    return record(
        config,
        splits,
        trained(),
        evaluation("before", "的的"),
        evaluation("after", "把酒问青天"),
        [score(85.2, "baseline:bigram")],
        **changes,
    )


# --- Joining


def test_a_record_joins_what_the_stages_returned() -> None:
    result = made()
    assert (result.task, result.status, result.processes) == ("causal_lm", "done", 1)
    assert [s.when for s in result.scores] == ["before", "after", "baseline:bigram"]
    assert result.main_score is result.scores[1]
    assert result.data == {"rows": {"train": 3}, "training": {"tokens": 99}, "judged": {"tokens": 7}}
    assert result.samples == [
        {"prompt": "明月几时有", "text": "把酒问青天", "reference": "把酒问青天", "text_before": "的的"}
    ]
    assert result.config["prompts"] == ["中文"] and result.model == {"parameters": 7}


def test_analysis_is_that_after_training_then_that_of_training_as_plain_values() -> None:
    assert made().analysis == [
        {"title": "Confusion matrix", "kind": "matrix", "values": [[2, 1]], "share": None},
        {"title": "Suspicious labels", "kind": "examples", "rows": []},
    ]
    assert made().to_dict()["analysis"] == made().analysis
    stages = (SimpleNamespace(scores=[], samples=[], seconds=0.0), SimpleNamespace(history=[]))
    assert record(CausalLMConfig(), None, stages[1], None, stages[0]).analysis == []  # type: ignore[arg-type]


def test_the_first_score_after_training_is_the_main_one() -> None:
    names = (("loss", "before"), ("accuracy", "after"), ("loss", "after"), ("accuracy", "baseline:majority"))
    scores = [
        Score(name=n, value=0.5, when=w, higher_is_better=n != "loss", n=3, split="test") for n, w in names
    ]
    assert RunRecord(hftk="1", task="classification", scores=scores).main_score is scores[1]


def test_a_record_holds_every_promised_name() -> None:
    promised = {
        "hftk",
        "task",
        "config",
        "command",
        "data",
        "history",
        "scores",
        "samples",
        "seconds",
        "tokens_per_second",
        "peak_memory_bytes",
        "processes",
        "hardware",
        "versions",
        "git",
    }
    assert promised <= made().to_dict().keys()
    assert {"load", "train", "evaluate", "save", "total"} == made().seconds.keys()


def test_seconds_of_the_evaluations_outside_training_are_added() -> None:
    assert made().seconds == {"load": 0.0, "train": 10.0, "evaluate": 5.0, "save": 0.5, "total": 15.5}
    start = datetime.now(UTC) - timedelta(seconds=60)
    timed = made(started=start)
    assert timed.seconds["total"] == pytest.approx(60, abs=2) and timed.started == start.isoformat(
        timespec="seconds"
    )


def test_the_start_comes_from_the_status_of_this_process_only(tmp_path: Path) -> None:
    start = datetime.now(UTC) - timedelta(seconds=90)
    status = {"state": "running", "exit_code": None, "pid": os.getpid(), "started": start.isoformat()}
    write_status(tmp_path, status)
    assert made(config=CausalLMConfig(output=str(tmp_path))).seconds["total"] == pytest.approx(90, abs=2)
    write_status(tmp_path, {**status, "pid": os.getpid() + 1})
    assert made(config=CausalLMConfig(output=str(tmp_path))).seconds["total"] == 15.5


def test_every_stage_may_be_missing() -> None:
    result = record(CausalLMConfig(), None, None, None, None)
    assert (result.scores, result.history, result.samples, result.main_score) == ([], [], [], None)
    judged = record(CausalLMConfig(), None, None, None, evaluation("after", "x"))
    assert len(judged.scores) == 1 and judged.seconds["evaluate"] == 2.0


def test_choices_noted_anywhere_are_kept_once() -> None:
    console.clear_notes()
    console.note("bf16: faster here")
    console.note(f"weights of {Path.home()}/models")
    try:
        assert made().choices == ["bf16: faster here", "weights of ~/models"]
    finally:
        console.clear_notes()


def test_the_next_run_of_a_notebook_does_not_tell_the_choices_of_the_last_one() -> None:
    console.clear_notes()
    console.note("of the first run")
    assert record(CausalLMConfig(), None, None, None, None).choices == ["of the first run"]
    console.note("of the second run")
    try:
        assert record(CausalLMConfig(), None, None, None, None).choices == ["of the second run"]
    finally:
        console.clear_notes()


# --- The file


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    result = made()
    path = save_record(result, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "record.json"
    assert load_record(path) == load_record(path.parent) == result
    assert "明月几时有" in path.read_text(encoding="utf-8")


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    result = RunRecord(
        hftk="1",
        task="x",
        history=[
            {"step": np.int64(3), "loss": math.nan, "eval_loss": np.float32(0.5), "grad_norm": math.inf}
        ],
        scores=[score(math.inf, interval=(1.0, math.inf))],
    )
    text = save_record(result, tmp_path).read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    loaded = load_record(tmp_path)
    assert loaded.history == [{"step": 3, "loss": None, "eval_loss": 0.5, "grad_norm": None}]
    assert math.isnan(loaded.scores[0].value) and loaded.scores[0].interval is None


def test_plain_values_stay_and_others_become_text() -> None:
    values = {
        "a": (1, 2.5, True, None),
        3: np.arange(2),
        "path": Path("a/b"),
        "set": {"y", "x"},
        "type": np.dtype("int8"),
    }
    assert plain(values) == {
        "a": [1, 2.5, True, None],
        "3": [0, 1],
        "path": "a/b",
        "set": ["x", "y"],
        "type": "int8",
    }


def test_half_a_surrogate_pair_does_not_stop_the_record_from_being_written(tmp_path: Path) -> None:
    save_record(RunRecord(hftk="1", task="x", samples=[{"text": "ok \ud83d"}]), tmp_path)
    assert load_record(tmp_path).samples == [{"text": "ok \ufffd"}]


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failure_in_the_middle_leaves_the_old_file_and_no_other(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = RunRecord(hftk="1", task="old")
    save_record(old, tmp_path)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        save_record(RunRecord(hftk="1", task="new"), tmp_path)
    assert load_record(tmp_path) == old and [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_record_that_cannot_be_written_does_not_touch_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_record(RunRecord(hftk="1", task="old"), tmp_path)
    monkeypatch.setattr("hftk.reports.record.plain", lambda value: value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_record(RunRecord(hftk="1", task="new", tokens_per_second=math.nan), tmp_path)
    assert load_record(tmp_path).task == "old"


def test_older_and_newer_records_load(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(
        '{"hftk": "0.0.1", "task": "x", "future": [1], "data": null}', encoding="utf-8"
    )
    loaded = load_record(tmp_path)
    assert (
        loaded.scores == []
        and loaded.data == {}
        and loaded.analysis == []
        and loaded.extra == {"future": [1]}
    )
    save_record(loaded, tmp_path)
    assert json.loads((tmp_path / "record.json").read_text())["future"] == [1]


def test_scores_of_older_and_newer_records_load() -> None:
    scores = [{"name": "f1", "value": 3.0, "future": 1}, {"name": "ppl", "interval": [1, None]}]
    old, new = RunRecord.from_dict({"hftk": "1", "task": "x", "scores": scores}).scores
    assert old.value == 3.0 and math.isnan(new.value) and new.interval is None


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_record(path)
    return str(caught.value)


def test_a_folder_that_is_not_there_is_named_with_the_likely_one(tmp_path: Path) -> None:
    (tmp_path / "gpt2_clm").mkdir()
    assert f"did you mean {tmp_path / 'gpt2_clm'}?" in message(tmp_path / "gpt2_cml")


def test_a_folder_of_runs_names_them(tmp_path: Path) -> None:
    save_record(RunRecord(hftk="1", task="x"), tmp_path / "one")
    assert str(tmp_path / "one") in message(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"hftk": "1",\n "task": }', "line 2, column 10"),
        (b"[1, 2]", "found a list"),
        (b'{"a": 1}', "under 'hftk'"),
        (b"", "line 1, column 1"),
        (b'{"hftk": "1", "task": "x", "scores": "good"}', "expected a list under 'scores'"),
        (b'{"hftk": "1", "task": "x", "scores": [3]}', "expected a score"),
        (b"\xff\xfe{}", "expected UTF-8"),
    ],
)
def test_a_file_that_is_no_record_says_where_and_why(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(content)
    assert said in message(tmp_path) and "record.json" in message(tmp_path)


# --- Privacy


def test_secrets_in_a_command_are_redacted_and_the_rest_can_be_pasted() -> None:
    words = [
        "hftk",
        "push",
        "--hub_token",
        "abc",
        "--api-key=def",
        "HF_TOKEN=ghi",
        "--wandb.apikey",
        "jkl",
        "a b.txt",
        "中.txt",
    ]
    shown = redact_command([*words, "--train.max_tokens_per_batch", "4096", "--generation.max_new_tokens=8"])
    assert not any(secret in shown for secret in ("abc", "def", "ghi", "jkl"))
    assert shown.count("<redacted>") == 4
    assert shown.endswith(
        '"a b.txt" "中.txt" --train.max_tokens_per_batch 4096 --generation.max_new_tokens=8'
    )


def test_what_looks_like_a_token_is_redacted_wherever_it_stands() -> None:
    token = "hf_" + "A1b2" * 8
    assert private(f"x {token} https://me:pw@host/a") == "x <redacted> https://<redacted>@host/a"
    config = {
        "train": {"extra": {"hub_token": "short", "max_tokens": 5}},
        "list": [token],
        "tokenizer": "bpe",
    }
    assert redact(config) == {
        "train": {"extra": {"hub_token": "<redacted>", "max_tokens": 5}},
        "list": ["<redacted>"],
        "tokenizer": "bpe",
    }


def test_the_home_folder_is_a_tilde_that_the_shell_still_expands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "ada"
    monkeypatch.setattr(Path, "home", lambda: home)
    assert private(f"{home}/x {home}2/x") == f"~/x {home}2/x"
    assert (
        redact_command(["p", f"{home}/my texts/", f"--data.path={home}/t"])
        == 'p ~/"my texts/" --data.path=~/t'
    )


def test_paths_below_the_working_directory_become_relative(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path.cwd()
    assert (
        redact_command([str(here / "recipes" / "a.py"), f"--output={here}/out"])
        == "recipes/a.py --output=out"
    )
    assert private(f"read {here}/a.txt of {here} and {here}2") == f"read a.txt of . and {here}2"


def test_nothing_in_a_record_names_the_machine_or_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "ada")
    config = CausalLMConfig(
        output=str(tmp_path / "ada" / "out"), train=TrainConfig(extra={"hub_token": "s3cret"})
    )
    text = json.dumps(plain(made(config=config, command=f"python {tmp_path}/ada/run.py").to_dict()))
    assert "/ada" not in text and "s3cret" not in text and "~/out" in text and "~/run.py" in text
    import platform

    assert len(platform.node()) < 6 or platform.node() not in text


# --- The machine


def test_the_environment_says_what_a_second_person_needs() -> None:
    found = environment.environment()
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["cpu"] and found["hardware"]["os"]
    assert found["hardware"]["ram_bytes"] > 2**28
    assert {"hftk", "python", "transformers"} <= found["versions"].keys()


def test_the_number_of_threads_is_kept_where_torch_is_loaded_and_torch_is_not_loaded_for_it() -> None:
    code = (
        "import sys, hftk.reports.record as r; e = r.environment(); assert 'threads' not in e['hardware'],"
        " e;assert not {'torch', 'transformers', 'jinja2'} & set(sys.modules);import types; t ="
        " types.ModuleType('torch'); t.get_num_threads = lambda: 7; off ="
        " types.SimpleNamespace(is_available=bool);t.cuda = off; t.backends = types.SimpleNamespace(mps=off);"
        " sys.modules['torch'] = t;assert r.environment()['hardware']['threads'] == 7"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_git_tells_commit_and_dirt_and_is_none_outside_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.environment()["git"] is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    found = environment.environment()["git"]
    assert len(found["commit"]) == 40 and found["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert environment.environment()["git"]["dirty"] is True


def test_a_machine_without_git_and_psutil_still_gets_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "psutil", None)
    found = environment.environment()
    assert found["git"] is None and found["hardware"]["ram_bytes"] is None


def test_the_command_is_what_was_typed_also_under_accelerate(tmp_path: Path) -> None:
    """The stand-in launcher starts a child as ``accelerate launch`` does: the child sees only its own
    words."""
    child = tmp_path / "recipe.py"
    child.write_text(
        "from hftk.launch.environment import command_line\nprint(command_line())", encoding="utf-8"
    )
    launcher = tmp_path / "accelerate"
    launcher.write_text(
        "import subprocess, sys\nat = next(i for i, w in enumerate(sys.argv) if w.endswith('.py'))\n"
        "subprocess.run([sys.executable, *sys.argv[at:]], check=True)",
        encoding="utf-8",
    )
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def shown(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=variables, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert shown(str(child), "--train.epochs", "3") == "python recipe.py --train.epochs 3"
    typed = ["launch", "--num_processes", "2", "recipe.py", "--hub_token", "x"]
    assert (
        shown(str(launcher), *typed)
        == 'accelerate launch --num_processes 2 recipe.py --hub_token "<redacted>"'
    )
