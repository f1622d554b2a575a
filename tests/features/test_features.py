import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset

import hftk
from hftk import console, features
from hftk.config import ModelConfig, override
from hftk.features import cache
from hftk.features.cache_key import make_key
from hftk.models.tokenizers import train_byte_bpe, train_wordpiece
from hftk.tasks.causal_lm import CausalLM, CausalLMConfig
from hftk.tasks.classification import Classification, ClassificationConfig
from hftk.tasks.summarization import Summarization, SummarizationConfig

ROOT = Path(hftk.__file__).parents[1]
TEXTS = ["the cat sat", "on the mat 床前明月光", "and slept", "", "until the end of the day"] * 4
CALL = {"max_length": 8, "training": True}


@pytest.fixture(autouse=True)
def every_set_is_large(monkeypatch):
    monkeypatch.setattr(features, "LEAST_BYTES", 0)
    console.clear_notes()


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_bpe(TEXTS, 280)


def rows_of(texts=TEXTS, **columns):
    return Dataset.from_dict({"text": texts, **columns})


def task_of(folder, **changes):
    return CausalLM(
        override(CausalLMConfig(model=ModelConfig(size="tiny")), {"data": {"cache": str(folder)}, **changes})
    )


class Counting(CausalLM):
    """Not for the cache: it is no task of hftk's own."""

    calls = 0


@pytest.fixture
def calls(monkeypatch):
    """How often rows are encoded."""
    made = []
    plain = CausalLM.encode
    monkeypatch.setattr(CausalLM, "encode", lambda self, *a, **k: made.append(1) or plain(self, *a, **k))
    return made


def equal(one, other):
    assert set(one.columns) == set(other.columns)
    for name in one.columns:
        pairs = list(zip(one.columns[name], other.columns[name], strict=True))
        assert all(type(a) is type(b) and np.array_equal(a, b) for a, b in pairs)
        assert all(getattr(a, "dtype", None) == getattr(b, "dtype", None) for a, b in pairs)
    for name in ("rows", "lengths", "sides"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None and b is None) or (np.array_equal(a, b) and a.dtype == b.dtype)
    facts = [{k: v for k, v in f.facts.items() if k != "cache"} for f in (one, other)]
    assert facts[0] == facts[1]
    return True


# --- read what was written


def test_the_second_run_reads_what_the_first_one_encoded(tmp_path, tokenizer, calls):
    task, rows = task_of(tmp_path), rows_of()
    first = features.encode(task, rows, tokenizer, **CALL)
    again = features.encode(task_of(tmp_path), rows_of(), tokenizer, **CALL)
    assert len(calls) == 1 and (first.facts["cache"], again.facts["cache"]) == ("written", "read")
    plain = task.encode(rows, tokenizer, **CALL)
    assert equal(plain, first) and equal(plain, again)
    assert any("read from the cache" in line for line in console.noted())
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_read_is_mapped_and_may_be_written_to_without_harm(tmp_path, tokenizer, calls):
    task, rows = task_of(tmp_path), rows_of(TEXTS * 20)
    made = features.encode(task, rows, tokenizer, **CALL)
    made.columns["input_ids"][0][:] = 0
    assert equal(task.encode(rows, tokenizer, **CALL), features.encode(task, rows, tokenizer, **CALL))


@pytest.mark.parametrize(
    ("task", "config", "columns"),
    [
        (
            Classification,
            ClassificationConfig(truncation="tail", class_weights="balanced"),
            {"label": [0, 1, 1, 0, 1] * 4},
        ),
        (Summarization, SummarizationConfig(source_prefix="sum: "), {"source": TEXTS, "target": TEXTS}),
        (CausalLM, CausalLMConfig(packing="concatenate"), {}),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_every_task_reads_back_what_it_encoded(tmp_path, task, config, columns, training):
    wordpiece = train_wordpiece([t for t in TEXTS if t], 200)
    if task is CausalLM:
        wordpiece = train_byte_bpe(TEXTS, 280)
    rows = rows_of(**columns)
    if "label" in columns:
        rows = rows.cast_column("label", ClassLabel(names=["no", "yes"]))
    made = task(override(config, {"data": {"cache": str(tmp_path)}, "model": {"size": "tiny"}}))
    if hasattr(config, "max_target_length"):
        call = {"max_length": 40, "training": training}
    else:
        call = {"max_length": 6, "training": training}
    with console.capture_notes() as said:
        first = features.encode(made, rows, wordpiece, **call)
    console.clear_notes()
    second = features.encode(made, rows, wordpiece, **call)
    assert (
        second.facts["cache"] == "read"
        and equal(made.encode(rows, wordpiece, **call), second)
        and equal(first, second)
    )
    assert set(said) <= set(console.noted())  # what is cut off is said again


def test_small_sets_and_streams_and_foreign_tasks_are_not_kept(tmp_path, tokenizer, monkeypatch):
    class Foreign(CausalLM):
        pass

    Foreign.__module__ = "somebody"
    foreign = Foreign(task_of(tmp_path).config)
    features.encode(foreign, rows_of(), tokenizer, **CALL)
    features.encode(task_of("none"), rows_of(), tokenizer, **CALL)
    monkeypatch.setattr(features, "LEAST_BYTES", 2**23)
    features.encode(task_of(tmp_path), rows_of(), tokenizer, **CALL)
    monkeypatch.setattr(features, "LEAST_BYTES", 0)
    chunk = next(iter(rows_of().to_iterable_dataset().batch(100)))
    features.encode(task_of(tmp_path), chunk, tokenizer, **CALL)
    assert list(tmp_path.iterdir()) == []


# --- nothing stale


def test_another_text_tokenizer_or_setting_has_another_name(tmp_path, tokenizer):
    def key(task=None, rows=None, other=None, **call):
        return make_key(task or task_of(tmp_path), rows or rows_of(), other or tokenizer, **{**CALL, **call})

    base = key()
    assert base == key() == key(rows=rows_of().select(range(len(TEXTS))))
    harmless = {"output": "elsewhere", "resume": "auto", "train": {"learning_rate": 0.5, "epochs": 7}}
    assert key(task_of(tmp_path, **harmless)) == base
    changed = {
        "one letter": key(rows=rows_of(["the bat sat", *TEXTS[1:]])),
        "a unicode look-alike": key(rows=rows_of(["thе cat sat", *TEXTS[1:]])),
        "the order": key(rows=rows_of(TEXTS[::-1])),
        "where one text ends": key(rows=rows_of(["the cat sa", "ton the mat 床前明月光", *TEXTS[2:]])),
        "one row less": key(rows=rows_of(TEXTS[:-1])),
        "none for empty": key(rows=rows_of([None if t == "" else t for t in TEXTS])),
        "another column": key(rows=rows_of(more=TEXTS)),
        "another name": key(rows=rows_of().rename_column("text", "other")),
        "length": key(max_length=9),
        "for judging": key(training=False),
        "packing": key(task_of(tmp_path, packing="concatenate")),
        "stride": key(task_of(tmp_path, eval={"stride": 3})),
        "fewer merges": key(other=train_byte_bpe(TEXTS, 270)),
        "other merges": key(other=train_byte_bpe(TEXTS[:2], 280)),
    }
    added = train_byte_bpe(TEXTS, 280)
    added.add_tokens(["cat"])
    changed["an added token"] = key(other=added)
    lowered = train_byte_bpe(TEXTS, 280)
    lowered.eos_token = "the"
    changed["another end"] = key(other=lowered)
    assert len({base, *changed.values()}) == 1 + len(changed), {
        name for name, k in changed.items() if k == base
    }
    assert None not in changed.values()


def test_labels_and_their_names_have_a_part_in_the_name(tokenizer):
    task = Classification(ClassificationConfig(model=ModelConfig(size="tiny")))
    rows = rows_of(label=[0, 1, 1, 0, 1] * 4)
    named = [rows.cast_column("label", ClassLabel(names=names)) for names in (["no", "yes"], ["yes", "no"])]
    other = rows_of(label=[1, 1, 1, 0, 1] * 4)
    assert len({make_key(task, r, tokenizer, **CALL) for r in (rows, other, *named)}) == 4


def test_a_call_of_the_tokenizer_in_between_does_not_change_the_name(tmp_path):
    made = train_byte_bpe(TEXTS, 280)
    before = make_key(task_of(tmp_path), rows_of(), made, **CALL)
    made(["a b", "c"], truncation=True, max_length=3, padding=True)
    assert make_key(task_of(tmp_path), rows_of(), made, **CALL) == before


def test_another_version_of_a_library_or_of_the_code_has_another_name(tmp_path, tokenizer, monkeypatch):
    from hftk.features import cache_key as key

    names = {make_key(task_of(tmp_path), rows_of(), tokenizer, **CALL)}
    monkeypatch.setattr(key, "_versions", lambda: {"tokenizers": "99"})
    names.add(make_key(task_of(tmp_path), rows_of(), tokenizer, **CALL))
    monkeypatch.setattr(key, "_code", lambda: "edited")
    names.add(make_key(task_of(tmp_path), rows_of(), tokenizer, **CALL))
    assert len(names) == 3


class Recorder:
    """Stands for a config and notes which settings are read."""

    def __init__(self, value, seen, name=""):
        self.__dict__.update(_value=value, _seen=seen, _name=name)

    def __getattr__(self, name):
        value, full = getattr(self._value, name), f"{self._name}.{name}".lstrip(".")
        if hasattr(value, "__dataclass_fields__"):
            return Recorder(value, self._seen, full)
        self._seen.add(full)
        return value


@pytest.mark.parametrize(
    ("task", "config", "columns"),
    [
        (Classification, ClassificationConfig(class_weights="balanced"), {"label": [0, 1, 1, 0, 1] * 4}),
        (Classification, ClassificationConfig(), {"text_pair": TEXTS}),
        (Summarization, SummarizationConfig(), {"source": TEXTS, "target": TEXTS}),
        (CausalLM, CausalLMConfig(packing="concatenate"), {}),
        (CausalLM, CausalLMConfig(packing="documents"), {}),
    ],
)
def test_encoding_goes_by_no_setting_that_the_name_leaves_out(task, config, columns):
    """Two routes: what ``encode`` reads of the config, and what ``encoded_by`` tells of it."""
    texts = [t or "x" for t in TEXTS]
    rows = rows_of(texts, **{name: texts if values is TEXTS else values for name, values in columns.items()})
    if "label" in columns:
        rows = rows.cast_column("label", ClassLabel(names=["no", "yes"]))
    wordpiece = train_byte_bpe(TEXTS, 280) if task is CausalLM else train_wordpiece(texts, 200)
    seen, told = set(), set()
    for training in (True, False):
        made = task(config)
        made.config = Recorder(config, seen)
        made.encode(rows, wordpiece, max_length=40, training=training)
    made = task(config)
    made.config = Recorder(config, told)
    made.encoded_by()
    assert seen <= told, seen - told


# --- faults


@pytest.mark.parametrize("fault", ["cut", "emptied", "flipped", "deleted"])
def test_a_damaged_file_is_noticed_and_encoded_again(tmp_path, tokenizer, fault):
    task, rows = task_of(tmp_path), rows_of()
    plain = task.encode(rows, tokenizer, **CALL)
    features.encode(task, rows, tokenizer, **CALL)
    (file,) = tmp_path.iterdir()
    damage(file, fault)
    made = features.encode(task, rows, tokenizer, **CALL)
    assert made.facts["cache"] == "written" and equal(plain, made)
    assert features.encode(task, rows, tokenizer, **CALL).facts["cache"] == "read"
    assert list(tmp_path.iterdir()) == [file]


def damage(path, fault):
    content = path.read_bytes()
    if fault == "deleted":
        path.unlink()
        return
    at = len(content) // 2
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    path.write_bytes({"cut": content[:-1], "emptied": b"", "flipped": flipped}[fault])


def test_a_disk_that_refuses_costs_nothing_but_the_cache(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    task, rows = task_of(tmp_path / "file"), rows_of()
    assert equal(task.encode(rows, tokenizer, **CALL), features.encode(task, rows, tokenizer, **CALL))
    assert any("cannot be written" in line for line in console.noted())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    task = task_of(tmp_path / "full")
    assert equal(task.encode(rows, tokenizer, **CALL), features.encode(task, rows, tokenizer, **CALL))
    assert list((tmp_path / "full").iterdir()) == []
    assert any("No space left" in line for line in console.noted())


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path, tokenizer):
    task, rows = task_of(tmp_path), rows_of()
    made, errors = [], []
    start = threading.Barrier(4)

    def work():
        try:
            start.wait()
            made.append(features.encode(task, rows, train_byte_bpe(TEXTS, 280), **CALL))
        except BaseException as error:
            errors.append(error)

    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_features as t; t.features.LEAST_BYTES ="
        " 0\nfor _ in range(20):\n    made = t.features.encode(t.task_of(sys.argv[2]), t.rows_of(),"
        " t.train_byte_bpe(t.TEXTS, 280), **t.CALL)\nprint(len(made))"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    others = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0].split()[-1] for process in others]
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    plain = task.encode(rows, tokenizer, **CALL)
    assert not errors and said == [str(len(plain))] * 2 and all(equal(plain, m) for m in made)
    (file,) = tmp_path.iterdir()
    assert cache.read(file) is not None


def test_files_that_no_run_has_read_for_a_month_are_removed(tmp_path, tokenizer):
    lengths = (4, 5)
    for length in lengths:
        features.encode(task_of(tmp_path), rows_of(), tokenizer, max_length=length, training=True)
    old, young = (
        tmp_path
        / f"{make_key(task_of(tmp_path), rows_of(), tokenizer, max_length=n, training=True)}.safetensors"
        for n in lengths
    )
    (tmp_path / ".partial-killed").mkdir()
    for path in (old, tmp_path / ".partial-killed"):
        os.utime(path, (0, 0))
    features.encode(task_of(tmp_path), rows_of(), tokenizer, max_length=6, training=True)
    assert young.exists() and not old.exists() and len(list(tmp_path.iterdir())) == 2


def test_facts_that_no_file_can_hold_are_not_kept(tmp_path, tokenizer):
    made = task_of(tmp_path).encode(rows_of(), tokenizer, **CALL)
    odd = replace(features.compact(made), facts={"tuple": (1, 2)})
    assert not cache.write(tmp_path / "x", odd, []) and list(tmp_path.iterdir()) == []


# --- several processes


@pytest.mark.launch
def test_two_processes_encode_once_and_wait_for_longer_than_the_time_out(tmp_path):
    """``ddp_timeout`` is 8 s, and the main process takes 11 s over the first set."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(Path(__file__).with_name("in_two_processes.py")),
        "--output",
        str(tmp_path / "out"),
        "--data.cache",
        str(tmp_path / "cache"),
        "--train.extra.ddp_timeout",
        "8",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert all(process["equal"] for process in found)
    assert [process["encoded"] for process in found] == [["slow", "small", "large"], []]
    assert [process["cache"] for process in found] == [[None, None, "written", "read"]] * 2
