"""Time the classification recipe beside Hugging Face's run_classification.py: same model, same data, same
cores.

    python benchmarks/run_classification.py --script FILE --model DIR --data DIR [--seeds 0 1 2] [--timed_rows
    N] [--keep SYSTEM] [--rows N]

FILE of --script is examples/pytorch/text-classification/run_classification.py of
github.com/huggingface/transformers; DIR of
--model holds a BERT encoder with its tokenizer, such as MiniLM; DIR of --data holds train.jsonl,
validation.jsonl and test.jsonl
with the columns text and label. The script runs unchanged in processes of its own, once with its defaults and
once with dynamic padding; only `evaluate`, which would download its metric, is replaced by scikit-learn's
accuracy, and checkpoints are off. Throughput is non-padding tokens (special tokens included) per second of
training; the machine's matrix products are measured before every seed. GPUs are hidden. The script at its
defaults takes half an hour a seed on two cores: with --timed_rows it is timed on the first N training rows
for one epoch, and its accuracy is that with dynamic padding, which makes the same updates (apart from the
draws of dropout). With --keep the runs of a system are taken over from the stored result, if script, data and
seeds are the same, after a change to the recipe for instance. Writes results/run_classification.json; with
--rows (the first N training rows, a trial) it only prints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hftk.launch.environment import environment

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "bert_classification.py"
CONFIG = HERE.parent / "recipes" / "configs" / "sst2_minilm.yaml"
MAX_LENGTH = 128  # the script's default; the recipe's configuration says the same
SPLITS = ("train", "validation", "test")
SCRIPT = {"script_default": [], "script_dynamic": ["--pad_to_max_length", "False"]}
SYSTEMS = (*SCRIPT, "hftk")
SETTINGS = [
    "--do_train",
    "--do_eval",
    "--do_predict",
    "--save_strategy",
    "no",
    "--text_column_names",
    "text",
    "--label_column_name",
    "label",
]
JUDGING = ("--do_eval", "--do_predict")
# Every system gets the whole machine: a number of threads set for other work would be taken over.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# evaluate.load needs the network; the script itself is left as it is.
LAUNCHER = """
import importlib.machinery, runpy, sys, types
from sklearn.metrics import accuracy_score
class Accuracy:
    def compute(self, predictions, references):
        return {"accuracy": float(accuracy_score(references, predictions))}
def load(name, **settings):
    assert name == "accuracy", name
    return Accuracy()
stand_in = types.ModuleType("evaluate")
stand_in.__spec__ = importlib.machinery.ModuleSpec("evaluate", None)
stand_in.load = load
sys.modules["evaluate"] = stand_in
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--timed_rows",
        type=int,
        help="time the script at its defaults on so many rows (default: all, three epochs)",
    )
    parser.add_argument(
        "--keep", choices=SYSTEMS, nargs="+", default=[], help="systems whose stored runs are taken over"
    )
    parser.add_argument("--rows", type=int, help="first training rows, for a trial (default: all)")
    asked = parser.parse_args()
    for path in (
        asked.script,
        asked.model / "config.json",
        *(asked.data / f"{split}.jsonl" for split in SPLITS),
    ):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    for name in THREADS:
        os.environ.pop(name, None)
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    path = HERE.parent / "results" / "run_classification.json"
    kept = stored(path, asked.keep, asked.script, asked.seeds) if asked.keep else {}
    with tempfile.TemporaryDirectory() as folder:
        for result in measure(
            asked.script.resolve(),
            asked.model.resolve(),
            asked.data,
            asked.seeds,
            asked.rows,
            asked.timed_rows,
            Path(folder),
            kept,
        ):
            text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
            if not asked.rows:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    print(text + "a trial: nothing written" if asked.rows else f"written to {path}")


def stored(path: Path, names: list[str], script: Path, seeds: list[int]) -> dict[str, list[dict[str, Any]]]:
    """Runs of ``names`` in an earlier result of the same script and seeds."""
    earlier = json.loads(path.read_text(encoding="utf-8"))
    runs = {name: earlier["systems"][name]["per_seed"] for name in names}
    if earlier["script_sha256"] != hashlib.sha256(script.read_bytes()).hexdigest():
        sys.exit(f"{path} is of another script")
    if any([run["seed"] for run in of] != seeds for of in runs.values()):
        sys.exit(f"{path} has other seeds")
    return runs


def measure(
    script: Path,
    model: Path,
    data: Path,
    seeds: list[int],
    limit: int | None,
    timed: int | None,
    folder: Path,
    kept: dict[str, list[dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """The result so far, after every seed: it is hours to the last one."""
    rows = prepare(data, limit, folder)
    texts = [row["text"] for row in rows["train"]]
    tokens = count_tokens(model, texts)
    weights, hidden = encoder(model)
    peaks: list[dict[str, float]] = []
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for seed in seeds:
        peaks.append(time_products(hidden))
        print(f"seed {seed}: " + ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in peaks[-1].items()), flush=True)
        for name in SYSTEMS:
            if name in kept:
                runs[name].append(kept[name][len(runs[name])])
                continue
            if name == "hftk":
                run = run_recipe(model, seed, folder)
            elif name == "script_default" and timed:
                words = [
                    str(script),
                    *SCRIPT[name],
                    "--max_train_samples",
                    str(timed),
                    "--num_train_epochs",
                    "1",
                ]
                run = run_script(words, model, seed, None, count_tokens(model, texts[:timed]), folder)
            else:
                run = run_script([str(script), *SCRIPT[name]], model, seed, rows["test"], tokens, folder)
            runs[name].append({"seed": seed, **run})
            judged = f"test accuracy {run['test_accuracy']:.4f}, " if "test_accuracy" in run else ""
            print(
                f"seed {seed}: {name} {run['tokens_per_second']:,.0f} tokens/s,"
                f" {judged}{run['minutes_of_training']:.2f} min of training",
                flush=True,
            )
        flags = (
            (f" --timed_rows {timed}" if timed else "")
            + (f" --keep {' '.join(kept)}" if kept else "")
            + (f" --rows {limit}" if limit else "")
        )
        yield describe(script, flags, rows, tokens, weights, peaks, runs)


def describe(
    script: Path,
    flags: str,
    rows: dict[str, list[dict[str, Any]]],
    tokens: int,
    weights: int,
    peaks: list[dict[str, float]],
    runs: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    peak = {key: max(p[key] for p in peaks) for key in peaks[0]}
    systems = {name: summary(runs[name], weights, peak) for name in SYSTEMS}
    return {
        "command": (
            "python benchmarks/run_classification.py --script FILE --model DIR --data DIR --seeds "
            + " ".join(str(run["seed"]) for run in runs["hftk"])
            + flags
        ),
        "what": (
            "run_classification.py of Hugging Face at its defaults (8 rows a step, all padded to 128 tokens,"
            " learning rate 5e-5, linear, 3 epochs), the same with dynamic padding, and"
            " recipes/bert_classification.py with configs/sst2_minilm.yaml (32 rows of similar length a step;"
            " the rest is in that file); all cores of one machine, one after the other"
        ),
        "counted": (
            "non-padding tokens, special tokens included, per second of training; the script's train_runtime,"
            " checkpoints off; hftk's training time without evaluation and saving, which the script does"
            " after training"
        ),
        "script_sha256": hashlib.sha256(script.read_bytes()).hexdigest(),
        "rows": {split: len(values) for split, values in rows.items()},
        "tokens_of_an_epoch": tokens,
        "padding_of_script_default": round(1 - tokens / (len(rows["train"]) * MAX_LENGTH), 4),
        "throughput_ratio": {f"hftk_to_{name}": ratio(runs, systems, name) for name in SCRIPT},
        "accuracy_difference": {
            f"hftk_minus_{name}": round(systems["hftk"]["test_accuracy"] - systems[name]["test_accuracy"], 4)
            for name in SCRIPT
            if "test_accuracy" in systems[name]
        },
        "systems": systems,
        "peak": {
            "gflop_per_second": peak,
            "per_seed": peaks,
            "encoder_parameters": weights,
            "flop_per_token": 6 * weights,
        },
        **environment(),
    }


def prepare(data: Path, limit: int | None, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split, written for the script (JSON lines named .json) and for the recipe (.jsonl)
    alike."""
    rows = {}
    for name in ("json", "jsonl"):
        (folder / name).mkdir()
    for split in SPLITS:
        lines = [
            line for line in (data / f"{split}.jsonl").read_text(encoding="utf-8").split("\n") if line.strip()
        ]
        lines = lines[:limit] if split == "train" else lines
        for name in ("json", "jsonl"):
            (folder / name / f"{split}.{name}").write_text("\n".join(lines) + "\n", encoding="utf-8")
        rows[split] = [json.loads(line) for line in lines]
    return rows


def count_tokens(model: Path, texts: list[str]) -> int:
    """Non-padding tokens of ``texts``, cut as the script cuts them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    rows = tokenizer(texts, truncation=True, max_length=min(MAX_LENGTH, tokenizer.model_max_length))
    return sum(sum(mask) for mask in rows["attention_mask"])


def encoder(model: Path) -> tuple[int, int]:
    """``(parameters without embeddings and pooler, hidden size)``; no weights are loaded."""
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(str(model))
    with torch.device("meta"):
        named = AutoModel.from_config(config).named_parameters()
    return (
        sum(p.numel() for name, p in named if not name.startswith(("embeddings.", "pooler."))),
        config.hidden_size,
    )


def time_products(hidden: int) -> dict[str, float]:
    """GFLOP/s of the best of 20 matrix products each, on all threads: a large one, and the model's widest on
    1024 tokens."""
    import torch

    from hftk.models.precision import CPU_FLAGS

    capabilities = torch.cpu.get_capabilities()
    dtypes = {"fp32": torch.float32}
    if any(capabilities.get(flag) for flag in CPU_FLAGS):
        dtypes["bf16"] = torch.bfloat16
    shapes = {"2048x2048x2048": (2048, 2048, 2048), f"1024x{hidden}x{4 * hidden}": (1024, hidden, 4 * hidden)}
    found = {}
    for precision, dtype in dtypes.items():
        for shape, (m, k, n) in shapes.items():
            a, b, out = (
                torch.randn(m, k).to(dtype),
                torch.randn(k, n).to(dtype),
                torch.empty(m, n, dtype=dtype),
            )
            seconds = []
            for _ in range(20):
                started = time.perf_counter()
                torch.matmul(a, b, out=out)
                seconds.append(time.perf_counter() - started)
            found[f"{precision}_{shape}"] = round(2 * m * k * n / min(seconds) / 1e9, 1)
    return found


def run_script(
    words: list[str], model: Path, seed: int, test: list[dict[str, Any]] | None, tokens: int, folder: Path
) -> dict[str, Any]:
    """Train, and judge the ``test`` rows where there are some. ``tokens`` are those of one epoch."""
    output = folder / "script"
    splits = SPLITS if test else SPLITS[:2]
    files = [word for split in splits for word in (f"--{split}_file", str(folder / "json" / f"{split}.json"))]
    command = [
        sys.executable,
        "-c",
        LAUNCHER,
        *words,
        *(SETTINGS if test else [s for s in SETTINGS if s not in JUDGING]),
        *files,
        "--model_name_or_path",
        str(model),
        "--seed",
        str(seed),
        "--output_dir",
        str(output),
    ]
    minutes = run_process("run_classification.py", command, folder)
    training = json.loads((output / "train_results.json").read_text(encoding="utf-8"))
    judged = {}
    if test:
        lines = (output / "predict_results.txt").read_text(encoding="utf-8").splitlines()[1:]
        right = [line.partition("\t")[2] == str(row["label"]) for line, row in zip(lines, test, strict=True)]
        judged = {"test_accuracy": round(sum(right) / len(right), 4)}
    shutil.rmtree(output)
    return {
        "tokens_per_second": round(tokens * training["epoch"] / training["train_runtime"], 1),
        **judged,
        "minutes_of_training": round(training["train_runtime"] / 60, 3),
        "minutes_of_whole_process": minutes,
        "epochs": training["epoch"],
        "rows": {"train": training["train_samples"], "test": len(test or ())},
    }


def run_recipe(model: Path, seed: int, folder: Path) -> dict[str, Any]:
    output = folder / "hftk"
    command = [
        sys.executable,
        str(RECIPE),
        "--config",
        str(CONFIG),
        "--model.name",
        str(model),
        "--data.path",
        str(folder / "jsonl"),
        "--train.seed",
        str(seed),
        "--output",
        str(output),
    ]
    minutes = run_process("hftk", command, folder)
    record = json.loads((output / "record.json").read_text(encoding="utf-8"))
    score = next(
        s for s in record["scores"] if (s["name"], s["split"], s["when"]) == ("accuracy", "test", "after")
    )
    shutil.rmtree(output)
    return {
        "tokens_per_second": round(record["tokens_per_second"], 1),
        "test_accuracy": round(score["value"], 4),
        "interval": [round(bound, 4) for bound in score["interval"]],
        "minutes_of_training": round(record["seconds"]["train"] / 60, 3),
        "minutes_of_whole_process": minutes,
        "epochs": record["config"]["train"]["epochs"],
        "rows": {"train": record["data"]["rows"]["train"], "test": score["n"]},
        "precision": next(
            (c for c in record["choices"] if c.startswith("train.precision")), "train.precision: as asked"
        ),
    }


def run_process(name: str, command: list[str], folder: Path) -> float:
    """Minutes of the whole process. Prepared data are not shared: each run has a cache of its own."""
    cache = folder / "cache"
    started = time.perf_counter()
    environ = {**os.environ, "HF_DATASETS_CACHE": str(cache)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environ)
    minutes = (time.perf_counter() - started) / 60
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    shutil.rmtree(cache, ignore_errors=True)
    return round(minutes, 3)


def summary(runs: list[dict[str, Any]], weights: int, peak: dict[str, float]) -> dict[str, Any]:
    """Means over the seeds; the share of each measured product's speed, at 6 FLOPs per encoder weight and
    real token."""
    keys = [
        key
        for key in ("tokens_per_second", "test_accuracy", "minutes_of_training", "minutes_of_whole_process")
        if key in runs[0]
    ]
    means = {key: statistics.mean(run[key] for run in runs) for key in keys}
    gflops = 6 * weights * means["tokens_per_second"] / 1e9
    return {
        **{key: round(value, 4) for key, value in means.items()},
        "useful_gflop_per_second": round(gflops, 1),
        "share_of_peak": {name: round(gflops / value, 4) for name, value in peak.items()},
        "per_seed": runs,
    }


def ratio(
    runs: dict[str, list[dict[str, Any]]], systems: dict[str, dict[str, Any]], name: str
) -> dict[str, Any]:
    pairs = zip(runs["hftk"], runs[name], strict=True)
    return {
        "of_means": round(systems["hftk"]["tokens_per_second"] / systems[name]["tokens_per_second"], 3),
        "per_seed": [round(a["tokens_per_second"] / b["tokens_per_second"], 3) for a, b in pairs],
    }


if __name__ == "__main__":
    main()
