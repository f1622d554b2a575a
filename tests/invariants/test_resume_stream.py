"""A run over a stream that was stopped goes on with the next rows, without reading the earlier ones, to the
same weights."""

import json

import pytest
import small_runs

import hftk
from hftk.config import DataConfig, InputError, override
from hftk.data import formats, sources
from hftk.features import batches
from hftk.launch import StopRequested
from hftk.training import checkpoints, fit

STEPS = 20
TEXTS = small_runs.many_to_a_block(300)
TEXTS = [*TEXTS[:150], *TEXTS[:20], *TEXTS[150:], *TEXTS[:20]]
"""Some texts come twice."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(formats, "CHUNK", 50)
    monkeypatch.setattr(sources, "CHUNK", 50)
    monkeypatch.setattr(fit, "STREAM_ROWS", 20)
    monkeypatch.setattr(batches, "STREAM_STEPS", 2)


@pytest.fixture
def files(tmp_path):
    """Four files of texts."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(4):
        lines = [json.dumps({"text": text}) + "\n" for text in TEXTS[number * 85 : number * 85 + 85]]
        (folder / f"part-{number}.jsonl").write_text("".join(lines))
    return folder


def config_of(files, output, **train):
    config = small_runs.make_config(
        output,
        dropout=0.1,
        train={
            "max_steps": STEPS,
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "save_steps": 1,
            "keep_checkpoints": 99,
            **train,
        },
    )
    data = DataConfig(path=str(files), streaming=True, validation_fraction=0.05, test_fraction=0.05)
    return override(config, {"data": data, "eval": {"max_rows": 5}})


def go(config):
    task = hftk.CausalLM(config)
    splits = hftk.load_splits(config.data, task)
    return small_runs.fit(config, splits), splits


def assert_same(one, other):
    assert small_runs.same_bits(one[0].weights, other[0].weights)
    assert small_runs.timeless(one[0].history) == small_runs.timeless(other[0].history)
    facts = [{**splits.facts, "stream": None} for _, splits in (one, other)]
    assert facts[0] == facts[1], "what was counted on the way"


def test_stopped_at_any_step_and_continued_is_as_never_stopped(files, tmp_path, capsys):
    straight = go(config_of(files, tmp_path / "straight"))
    assert straight[0].history[-1]["epoch"] == 1.0, "the second time around"
    assert straight[1].facts["duplicates"]["train"]["found"]
    for step in (1, 9, 17):
        config = config_of(files, tmp_path / f"stopped {step}", save_steps=0)
        with small_runs.stopping_at(step), pytest.raises(StopRequested):
            go(config)
        assert_same(go(override(config, {"resume": "auto"})), straight)


def test_files_before_are_not_read_again(files, tmp_path, monkeypatch):
    straight = go(config_of(files, tmp_path / "run", max_steps=7))
    steps = [
        json.loads((c / "hftk.json").read_text())["stream"] for c in checkpoints.checkpoints(tmp_path / "run")
    ]
    assert [position["epoch"] for position in steps] == [0] * 7 and steps[-1]["begin"]["begin"][0] >= 1
    config = config_of(files, tmp_path / "stopped", max_steps=7)
    with small_runs.stopping_at(6), pytest.raises(StopRequested):
        go(config)
    opened, read_file = [], sources.read_file

    def read(file, **how):
        opened.append((file.path.name, how["cursor"].chunks))
        return read_file(file, **how)

    task = hftk.CausalLM(config)
    splits = hftk.load_splits(config.data, task)
    monkeypatch.setattr(sources, "read_file", read)
    run = small_runs.fit(override(config, {"resume": "auto"}), splits)
    assert small_runs.same_bits(run.weights, straight[0].weights)
    number, _, (chunks, *_) = steps[5]["begin"]["begin"]
    last = max(
        i for i, place in enumerate(opened) if place == ("part-0.jsonl", 0)
    )  # what the data are is seen from their first rows
    assert opened[last + 1] == (f"part-{number}.jsonl", chunks) and number + chunks > 0


def test_a_file_that_vanishes_ends_the_run_clearly_and_it_goes_on_when_it_is_back(files, tmp_path, capsys):
    straight = go(config_of(files, tmp_path / "straight"))

    def take_away(trainer):
        (files / "part-3.jsonl").rename(tmp_path / "away")

    config = config_of(files, tmp_path / "out")
    with small_runs.stopping_at(2, take_away), pytest.raises(SystemExit) as ending:
        hftk.run(lambda config: go(config), config, [])
    status = json.loads((tmp_path / "out/status.json").read_text())
    assert ending.value.code == status["exit_code"] != 0 and "part-3.jsonl" in status["message"], status
    assert checkpoints.checkpoints(tmp_path / "out")
    (tmp_path / "away").rename(files / "part-3.jsonl")
    again = []
    hftk.run(lambda config: again.append(go(config)), config, ["--resume", "auto"])
    assert_same(again[0], straight)


def test_data_that_are_gone_before_a_run_goes_on_are_named(files, tmp_path):
    config = config_of(files, tmp_path / "out")
    with small_runs.stopping_at(2), pytest.raises(StopRequested):
        go(config)
    files.rename(tmp_path / "away")
    with pytest.raises(InputError, match="texts"):
        go(override(config, {"resume": "auto"}))
    (tmp_path / "away").rename(files)
    assert_same(go(override(config, {"resume": "auto"})), go(config_of(files, tmp_path / "straight")))
