"""Trackers: the scores of a run are in them under stable names, nothing secret is, and a tracker that fails
harms nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hftk.config import TrainConfig
from hftk.task import Score
from hftk.training import trackers
from hftk.training.trackers import Trackers, named, take_over, track, tracker_problems

SECRET = "hf_" + "s" * 32


def score(
    name: str, value: float, when: str = "after", split: str = "test", interval: Any = (0.0, 1.0)
) -> Score:
    return Score(
        name=name, value=value, higher_is_better=True, n=9, when=when, split=split, interval=interval
    )


class FakeCallback:
    """What Trainer's callbacks have in common."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.events = fails, []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.events.append(("log", state.global_step, logs))
        if self.fails:
            raise OSError(f"no space left, token {SECRET}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("end", state.global_step, None))


def trained(*callbacks: FakeCallback, speed: float | None = None) -> Any:
    opened = Trackers(callbacks, (None, SimpleNamespace(global_step=7), None), None)
    return SimpleNamespace(trackers=opened, tokens_per_second=speed)


def test_names_say_split_time_and_system_and_intervals_have_two_ends() -> None:
    scores = [
        score("bleu", 21.5, interval=(20.0, 23.0)),
        score("chrf++", 44.0, "before", interval=None),
        score("accuracy", 0.5, "baseline:tf-idf (word)"),
        score("rougeL", 0.3, split="validation", interval=None),
        score("perplexity", math.inf, interval=(1.0, math.nan)),
    ]
    assert named(scores) == {
        "test_bleu": 21.5,
        "test_bleu_low": 20.0,
        "test_bleu_high": 23.0,
        "test_before/chrfpp": 44.0,
        "test_baseline/tf-idf__word_/accuracy": 0.5,
        "test_baseline/tf-idf__word_/accuracy_low": 0.0,
        "test_baseline/tf-idf__word_/accuracy_high": 1.0,
        "eval_final/rougeL": 0.3,
        "test_perplexity_low": 1.0,
    }
    from transformers.integrations.integration_utils import rewrite_logs

    assert {"test/bleu", "test/before/chrfpp", "eval/final/rougeL"} <= set(rewrite_logs(named(scores)))


def test_scores_are_added_at_the_last_step_and_then_the_tracker_is_closed_once() -> None:
    callback = FakeCallback()
    done = trained(callback, speed=123.0)
    track(done, [score("f1", 0.5, interval=None)])
    track(done, [score("f1", 0.6)])
    assert callback.events == [("log", 7, {"test_f1": 0.5, "tokens_per_second": 123.0}), ("end", 7, None)]
    track(SimpleNamespace(trackers=None), [])


def test_a_tracker_that_fails_is_named_without_its_secret_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken, good = FakeCallback(fails=True), FakeCallback()
    track(trained(broken, good), [score("f1", 0.5)])
    told = capsys.readouterr().err
    assert "Fake failed: OSError: no space left" in told and SECRET not in told
    assert [event for event, *_ in good.events] == ["log", "end"]


def test_what_measures_the_training_itself_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    meter_class = type("CodeCarbonCallback", (), {})
    monkeypatch.setattr(
        integration_utils, "INTEGRATION_TO_CALLBACK", {"codecarbon": meter_class, "wandb": FakeCallback}
    )
    meter, tracker, other = meter_class(), FakeCallback(), object()
    handler = SimpleNamespace(callbacks=[other, meter, tracker])
    taken = take_over(handler, (None, SimpleNamespace(global_step=1), None), None)
    assert handler.callbacks == [other, meter] and taken.callbacks == [tracker]
    trackers.close_open()
    assert tracker.events == [("end", 1, None)], "a run without scores is closed all the same"


def problems(report_to: Any) -> list[Any]:
    return list(tracker_problems(TrainConfig(extra={"report_to": report_to})))


def test_a_tracker_that_is_not_installed_is_told_with_the_line_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        trackers.importlib.util,
        "find_spec",
        lambda name: object() if name in ("tensorboardX", "mlflow") else None,
    )
    assert (
        problems("tensorboard")
        == problems("none")
        == problems("all")
        == problems([])
        == problems("mlflow")
        == []
    )
    found = problems(["wandb", "trackio", "swanlab"])
    assert [p.fix for p in found] == ["pip install wandb", "pip install trackio", "pip install swanlab"]
    assert [p.fix for p in problems("dagshub")] == ["pip install dagshub"]
    assert "expected trackers among tensorboard, wandb" in problems("tensorbord")[0].message


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag to (step, value) of what TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.rglob("events.out.tfevents.*"):
        reader = EventAccumulator(str(file))
        reader.Reload()
        found |= {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    return found


def test_a_real_run_is_in_tensorboard_with_its_scores_and_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    import importlib.util

    from hftk.config import override

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    texts = tmp_path / "texts.txt"
    texts.write_text(
        "\n\n".join(f"The river number {n} is wide and slow." for n in range(60)), encoding="utf-8"
    )
    spec = importlib.util.spec_from_file_location(
        "a_recipe", Path(__file__).parents[2] / "recipes/gpt2_clm.py"
    )
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = override(
        recipe.CONFIG,
        {
            "data": {"sample": None, "path": str(texts)},
            "output": str(tmp_path / "out"),
            "eval": {"resamples": 20},
            "model": {"vocab_size": 300, "config": {"n_layer": 1, "n_embd": 16, "n_head": 2}},
            "train": {
                "epochs": None,
                "max_steps": 4,
                "precision": "fp32",
                "extra": {"report_to": "tensorboard"},
            },
        },
    )
    record = recipe.main(config)
    found = events(tmp_path / "out")
    main = record.main_score
    assert main is not None and main.interval is not None
    assert found[f"test/{main.name}"] == [(4, pytest.approx(main.value, rel=1e-6))]
    ends = [found[f"test/{main.name}_{end}"][0][1] for end in ("low", "high")]
    assert ends == [pytest.approx(end, rel=1e-6) for end in main.interval]
    assert {
        f"test/before/{main.name}",
        f"test/baseline/bigram/{main.name}",
        "train/loss",
        "eval/loss",
        "train/tokens_per_second",
    } <= set(found)
    assert "train/train_samples_per_second" not in found, "it counts steps for rows"
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert SECRET.encode() not in everything
    assert not trackers._open


@pytest.mark.parametrize("name", ["mlflow", "trackio", "wandb"])
def test_others_keep_the_scores_on_this_machine_where_they_are_installed(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    code = Path(__file__).with_name("in_tracker.py")
    secrets = {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET.replace("hf_", "a" * 8)}
    local = {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"file:{tmp_path}/runs",
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    environment = {**os.environ, **secrets, **local, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(code), name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    kept = json.loads(done.stdout.splitlines()[-1])
    sign = "_" if name == "mlflow" else "/"
    assert (kept[f"test{sign}chrfpp"], kept[f"test{sign}chrfpp_low"], kept[f"test{sign}before/bleu"]) == (
        44.0,
        43.0,
        5.0,
    )
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not [secret for secret in secrets.values() if secret.encode() in everything + done.stdout.encode()]
