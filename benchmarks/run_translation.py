"""Time translation beside Hugging Face's run_translation.py: same model, same data, same batch size, same
cores.

    python benchmarks/run_translation.py --script FILE --data DIR [--model DIR] [--trained DIR] [--rounds 3]
    [--timed_rows 4000]

FILE of --script is examples/pytorch/translation/run_translation.py of github.com/huggingface/transformers;
DIR of --data holds train.jsonl, validation.jsonl and test_2016_flickr.jsonl with the columns en and de. The
script runs unchanged in processes of its own at its own defaults; only `evaluate`, which would download its
metric, is replaced by sacreBLEU, and checkpoints are off. Its longest source is the model's positions where
these are fewer than its default.

Training: from --model (default: a new model by --config), one epoch over the first --timed_rows rows, 8 rows
a step, learning rate 5e-5, fp32, the model's own dropout; in turn, round by round. Counted are tokens of
source and target, special tokens included and padding not. One judge, the exact mean over the target tokens
of the validation rows, takes the weights that both have saved. Evaluation, with --trained (the output folder
of a run): loss, generation and scores of the test rows, greedily and with 4 beams, of at most 128 tokens with
the start token; outputs are compared row by row. With --bf16 ours runs in bfloat16 as well, and each output
that differs is listed with its margin. GPUs are hidden. Ours takes rows of similar length in a step. Writes
results/run_translation.json, where the half that is not measured now stays as it was; with --trial it only
prints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from run_classification import THREADS, run_process, time_products

from hftk.launch.environment import environment

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "recipes" / "configs" / "multi30k_en_de.yaml"
SOURCE, TARGET = "en", "de"
SPLITS = {"train": "train", "validation": "validation", "test": "test_2016_flickr"}
BATCH, LEARNING_RATE, MAX_SOURCE, MAX_LENGTH = 8, 5e-5, 1024, 128  # the script's defaults
BEAMS = (1, 4)
COMMON = ["--source_lang", SOURCE, "--target_lang", TARGET, "--save_strategy", "no"]
# evaluate.load needs the network; the script itself is left as it is. What it hands to its metric is kept.
LAUNCHER = """
import importlib.machinery, json, os, runpy, sys, types
from sacrebleu import corpus_bleu
class SacreBleu:
    def compute(self, predictions, references):
        with open(os.environ["PREDICTIONS"], "w", encoding="utf-8") as file:
            json.dump(predictions, file)
        return {"score": corpus_bleu(predictions, [[row[0] for row in references]]).score}
def load(name, **settings):
    assert name == "sacrebleu", name
    return SacreBleu()
stand_in = types.ModuleType("evaluate")
stand_in.__spec__ = importlib.machinery.ModuleSpec("evaluate", None)
stand_in.load = load
sys.modules["evaluate"] = stand_in
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# As much as the script does: train and save, or judge; a recipe does both, and baselines and a report as
# well.
TRAIN = """
import json, sys
from pathlib import Path
import hftk
from hftk.config import parse as parsing
config = parsing.parse(hftk.TranslationConfig(), sys.argv[1:])
task = hftk.Translation(config)
hftk.check(config, task)
splits = hftk.load_splits(config.data, task)
model, tokenizer = hftk.load_model(config.model, task, splits, seed=config.train.seed)
trained = hftk.fit(task, model, tokenizer, splits, config)
found = {"seconds": trained.seconds["train"], "tokens": trained.history[-1]["tokens"], "rows": len(splits.train)}
Path(config.output, "found.json").write_text(json.dumps(found))
"""
EVALUATE = """
import json, sys, time
from pathlib import Path
import hftk, torch
from hftk.config import parse as parsing
from hftk.evaluation import evaluate as evaluation
from hftk.data.load import read_rows
from sacrebleu import corpus_bleu
config = parsing.parse(hftk.TranslationConfig(), sys.argv[1:])
task = hftk.Translation(config)
rows, _ = read_rows(config.data.path, config.data, task)
model, tokenizer = hftk.load_trained(config.model.name, auto_model=task.auto_model, dtype=config.model.dtype)
started = time.perf_counter()
length = hftk.models.load.default_length(model.config)
features = task.encode(rows, tokenizer, max_length=length, training=False)
losses = evaluation.run_model(task, model, tokenizer, features, batch_size=config.eval.batch_size)
texts = evaluation._generate(task, model, tokenizer, rows, length, None)
task.eval_loss(losses), corpus_bleu(texts, [list(rows["target"])])
seconds = time.perf_counter() - started
evaluation._last.clear()  # else the losses would not be computed again
started = time.perf_counter()
found = hftk.evaluate(task, model, tokenizer, ("test", rows), config.eval, samples=False)
whole = time.perf_counter() - started
assert texts == list(found.outputs["generated"])
scores = {score.name: score.value for score in found.scores}
made = {"seconds": seconds, "seconds_with_all_scores": whole, "scores": scores, "predictions": texts}
Path(config.output).write_text(json.dumps(made), encoding="utf-8")
"""
Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--model", type=Path, help="where training starts (default: a new model as --config has it)"
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings of the new model")
    parser.add_argument(
        "--trained", type=Path, help="the model whose evaluation is timed (default: that is left out)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--timed_rows", type=int, default=4000, help="first training rows that are trained on; 0: no training"
    )
    parser.add_argument("--test_rows", type=int, help="first test rows that are evaluated (default: all)")
    parser.add_argument("--threads", type=int, help="threads of every process (default: all cores)")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--trial", action="store_true")
    asked = parser.parse_args()
    if asked.timed_rows == 0 and not asked.trained:
        parser.error("nothing to measure: --timed_rows 0 and no --trained")
    folders = [folder for folder in (asked.model, asked.trained) if folder is not None]
    files = [asked.data / f"{name}.jsonl" for name in SPLITS.values()]
    for path in (asked.script, asked.config, *(folder / "config.json" for folder in folders), *files):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    for name in THREADS:
        os.environ.pop(name, None)
        if asked.threads:
            os.environ[name] = str(asked.threads)
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    asked.script = asked.script.resolve()
    path = HERE.parent / "results" / "run_translation.json"
    text = ""
    with tempfile.TemporaryDirectory() as folder:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for result in measure(asked, Path(folder)):
            text = json.dumps(result | kept(earlier, result), indent=1, ensure_ascii=False) + "\n"
            if not asked.trial:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    print(text + "a trial: nothing written" if asked.trial else f"written to {path}")


def measure(asked: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """The result so far, after every round."""
    rows = prepare(asked.data, asked.timed_rows, asked.test_rows, folder)
    start = asked.model.resolve() if asked.model else None
    if start is None and rows["train"]:
        start = make_model(asked.config, folder)
    trained = without_lengths(asked.trained.resolve(), folder / "trained") if asked.trained else None
    result: dict[str, Any] = {
        "command": "python benchmarks/run_translation.py " + flags(asked),
        "what": (
            "run_translation.py of Hugging Face at its defaults beside hftk with the same model, rows, batch"
            " size (8), learning rate (5e-5, linear to 0) and precision (fp32), one after the other on the"
            " same cores"
        ),
        "counted": (
            "tokens of source and target per second, special tokens included, padding not; training: the"
            " script's train_runtime and hftk's training time, and whole processes; evaluation: the script's"
            " predict_runtime, and hftk's time for the same: losses, outputs and BLEU;"
            " seconds_with_all_scores is hftk.evaluate, with chrF++, TER and the report's analysis besides"
        ),
        "script_sha256": hashlib.sha256(asked.script.read_bytes()).hexdigest(),
        "rows": {split: len(some) for split, some in rows.items()},
        "threads": asked.threads or "all",
        "peak_gflop_per_second": [],
        **environment(),
    }
    training: dict[str, list[Run]] = {"script": [], "hftk": []}
    evaluation: dict[str, list[Run]] = {}
    tokens = count_tokens(start, rows["train"]) if start and rows["train"] else 0
    width = shape(start or trained)[0]
    for number in range(asked.rounds):
        result["peak_gflop_per_second"].append(time_products(width))
        print(f"round {number}: {result['peak_gflop_per_second'][-1]}", flush=True)
        if start and rows["train"]:
            for name, run in in_turn({"script": script_training, "hftk": own_training}, number):
                training[name].append(run(asked.script, start, number, tokens, folder))
                judged = training[name][-1]["validation_loss"] = judge(folder / name, rows["validation"])
                shutil.rmtree(folder / name)
                print(
                    f"round {number}: {name} {training[name][-1]['tokens_per_second']:,.0f} tokens/s,"
                    f" validation loss {judged:.4f}",
                    flush=True,
                )
            result["training"] = {
                "tokens": tokens,
                **parameters(start),
                "validation_loss_at_start": judge(start, rows["validation"]),
                **beside(training, "tokens_per_second"),
                "systems": training,
            }
        if trained:
            for beams in BEAMS:
                for name, run in in_turn(evaluations(asked, trained, beams, folder), number):
                    evaluation.setdefault(name, []).append(run())
                    print(f"round {number}: {name} {evaluation[name][-1]['seconds']:.1f} s", flush=True)
            result["evaluation"] = compare_outputs(evaluation, rows["test"], trained)
        yield result


def kept(earlier: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The half that is not measured now, as the earlier result has it, with what it was measured by."""
    found: dict[str, Any] = {}
    for half in ("training", "evaluation"):
        if half not in result and half in earlier:
            origin = earlier.get(f"{half}_of") or {
                name: earlier[name] for name in ("command", "git", "versions", "peak_gflop_per_second")
            }
            found |= {half: earlier[half], f"{half}_of": origin}
    return found


def flags(asked: argparse.Namespace) -> str:
    """The command line again, without the paths of this machine."""
    folders = "".join(f" --{name} DIR" for name in ("model", "trained") if getattr(asked, name))
    numbers = "".join(
        f" --{name} {getattr(asked, name)}"
        for name in ("rounds", "timed_rows", "test_rows", "threads")
        if getattr(asked, name) is not None
    )
    return f"--script FILE --data DIR{folders}{numbers}" + (" --bf16" if asked.bf16 else "")


def in_turn(systems: dict[str, Any], number: int) -> list[tuple[str, Any]]:
    """Another one begins each round."""
    names = list(systems)
    names = names[number % len(names) :] + names[: number % len(names)]
    return [(name, systems[name]) for name in names]


# --- Data and models


def prepare(data: Path, timed: int, test: int | None, folder: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of each split, written for the script (``translation`` in JSON lines named .json) and for hftk
    (.jsonl)."""
    rows = {}
    for split, name in SPLITS.items():
        lines = [
            line for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line.strip()
        ]
        lines = lines[: {"train": timed, "test": test}.get(split)]
        rows[split] = [{key: json.loads(line)[key] for key in (SOURCE, TARGET)} for line in lines]
        for ending, wrap in ((".json", lambda row: {"translation": row}), (".jsonl", lambda row: row)):
            text = "".join(json.dumps(wrap(row), ensure_ascii=False) + "\n" for row in rows[split])
            (folder / f"{split}{ending}").write_text(text, encoding="utf-8")
    return rows


def make_model(config: Path, folder: Path) -> Path:
    """A new model and its tokenizer by the settings of ``config``, trained on nothing but the texts for the
    tokenizer."""
    import hftk
    from hftk.config import parse as parsing
    from hftk.training.trained import save_trained

    made = parsing.parse(hftk.TranslationConfig(), ["--config", str(config)])
    task = hftk.Translation(made)
    splits = hftk.load_splits(made.data, task)
    model, tokenizer = hftk.load_model(made.model, task, splits, seed=made.train.seed)
    (folder / "start").mkdir()
    save_trained(model, tokenizer, folder / "start")
    return without_lengths(folder / "start", folder / "new")


def without_lengths(model: Path, copy: Path) -> Path:
    """A copy whose generation settings do not say how long an output may be: they would win over the script's
    128 tokens."""
    shutil.copytree(model, copy, ignore=shutil.ignore_patterns("checkpoints*", "*.html", "*.jsonl", "*.tmp"))
    path = copy / "generation_config.json"
    if path.exists():
        settings = {
            k: v
            for k, v in json.loads(path.read_text(encoding="utf-8")).items()
            if k not in ("max_new_tokens", "max_length")
        }
        path.write_text(json.dumps(settings), encoding="utf-8")
    return copy


def shape(model: Path | None) -> tuple[int, int | None]:
    """(width, positions) of the model."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model))
    return config.hidden_size, getattr(config, "max_position_embeddings", None)


def parameters(model: Path) -> dict[str, int]:
    """Parameters in all, and without embeddings."""
    loaded = load(model)[0]
    embeddings = {id(m.weight) for m in loaded.modules() if type(m).__name__.endswith("Embedding")}
    sizes = [(p.numel(), id(p) in embeddings) for p in loaded.parameters()]
    return {
        "parameters": sum(n for n, _ in sizes),
        "without_embeddings": sum(n for n, embedded in sizes if not embedded),
    }


def load(model: Path) -> tuple[Any, Any]:
    import hftk

    loaded: tuple[Any, Any] = hftk.load_trained(
        str(model), auto_model="AutoModelForSeq2SeqLM", dtype="float32"
    )
    return loaded


def count_tokens(model: Path, rows: list[dict[str, str]]) -> int:
    """Tokens of sources and targets, special tokens included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    sources = tokenizer([row[SOURCE] for row in rows])["input_ids"]
    targets = tokenizer(text_target=[row[TARGET] for row in rows])["input_ids"]
    return sum(map(len, sources)) + sum(map(len, targets))


def judge(model: Path, rows: list[dict[str, str]]) -> float:
    """Nats per target token of the validation rows, the exact mean over the tokens, in fp32 without
    dropout."""
    from datasets import Dataset

    import hftk
    from hftk.evaluation.evaluate import run_model

    task = hftk.Translation(hftk.TranslationConfig())
    loaded, tokenizer = load(model)
    pairs = Dataset.from_dict(
        {"source": [row[SOURCE] for row in rows], "target": [row[TARGET] for row in rows]}
    )
    features = task.encode(pairs, tokenizer, max_length=shape(model)[1] or MAX_SOURCE, training=False)
    return round(task.eval_loss(run_model(task, loaded, tokenizer, features, batch_size=32)), 5)


# --- The two systems


def script_training(script: Path, model: Path, seed: int, tokens: int, folder: Path) -> Run:
    files = [
        "--train_file",
        str(folder / "train.json"),
        "--do_train",
        "--num_train_epochs",
        "1",
        "--seed",
        str(seed),
    ]
    started = run_script(
        [str(script), *files, *COMMON, *longest_source(model)], model, folder / "script", folder
    )
    seconds = json.loads((folder / "script" / "train_results.json").read_text(encoding="utf-8"))[
        "train_runtime"
    ]
    return speeds(tokens, seconds, started)


def own_training(script: Path, model: Path, seed: int, tokens: int, folder: Path) -> Run:
    settings = {
        "data.train": folder / "train.jsonl",
        "data.deduplicate": "false",
        "data.unicode": "none",
        **columns(),
        "model.name": model,
        "train.epochs": 1,
        "train.per_device_batch_size": BATCH,
        "train.global_batch_size": BATCH,
        "train.learning_rate": LEARNING_RATE,
        "train.precision": "fp32",
        "train.save_steps": 0,
        "train.seed": seed,
        "output": folder / "hftk",
    }
    whole = run_own(TRAIN, settings, folder)
    found = json.loads((folder / "hftk" / "found.json").read_text(encoding="utf-8"))
    if found["tokens"] != tokens:
        sys.exit(
            f"expected hftk to train on {tokens} tokens, found {found['tokens']} in {found['rows']} rows"
        )
    return speeds(tokens, found["seconds"], whole)


def speeds(tokens: int, seconds: float, whole: float) -> Run:
    """Real tokens per second of training and of the whole process."""
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_of_training": round(seconds, 2),
        "tokens_per_second_of_whole_process": round(tokens / whole, 1),
        "seconds_of_whole_process": round(whole, 2),
    }


def evaluations(
    asked: argparse.Namespace, model: Path, beams: int, folder: Path
) -> dict[str, Callable[[], Run]]:
    """Name to a function that evaluates the test rows."""
    kind = "greedy" if beams == 1 else f"beam_{beams}"
    found = {
        f"script_{kind}": lambda: script_evaluation(asked.script, model, beams, folder),
        f"hftk_{kind}": lambda: own_evaluation(model, beams, "float32", folder),
    }
    if asked.bf16:
        found[f"hftk_{kind}_bf16"] = lambda: own_evaluation(model, beams, "bfloat16", folder)
    return found


def script_evaluation(script: Path, model: Path, beams: int, folder: Path) -> Run:
    files = ["--validation_file", str(folder / "validation.json"), "--test_file", str(folder / "test.json")]
    words = [
        str(script),
        *files,
        "--do_predict",
        "--predict_with_generate",
        "--num_beams",
        str(beams),
        *COMMON,
    ]
    whole = run_script([*words, *longest_source(model)], model, folder / "script", folder)
    seconds = json.loads((folder / "script" / "predict_results.json").read_text(encoding="utf-8"))
    predictions = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder / "script")
    return {
        "seconds": round(seconds["predict_runtime"], 3),
        "seconds_of_whole_process": round(whole, 2),
        "bleu": seconds["predict_bleu"],
        "predictions": predictions,
    }


def own_evaluation(model: Path, beams: int, dtype: str, folder: Path) -> Run:
    settings = {
        "data.path": folder / "test.jsonl",
        "data.unicode": "none",
        **columns(),
        "model.name": model,
        "model.dtype": dtype,
        "generation.max_new_tokens": MAX_LENGTH - 1,
        "generation.num_beams": beams,
        "eval.resamples": 0,
        "source_language": SOURCE,
        "target_language": TARGET,
        "output": folder / "own.json",
    }
    whole = run_own(EVALUATE, settings, folder)
    found = json.loads((folder / "own.json").read_text(encoding="utf-8"))
    return {
        "seconds": round(found["seconds"], 3),
        "seconds_of_whole_process": round(whole, 2),
        "seconds_with_all_scores": round(found["seconds_with_all_scores"], 3),
        "bleu": round(found["scores"]["bleu"], 4),
        "predictions": found["predictions"],
    }


def columns() -> dict[str, str]:
    return {"data.columns.source": SOURCE, "data.columns.target": TARGET}


def longest_source(model: Path) -> list[str]:
    """The script refuses more than the model's positions, and its default is more than many models have."""
    positions = shape(model)[1]
    return ["--max_source_length", str(positions)] if positions is not None and positions < MAX_SOURCE else []


def run_script(words: list[str], model: Path, output: Path, folder: Path) -> float:
    """Seconds of the whole process."""
    os.environ["PREDICTIONS"] = str(folder / "predictions.json")
    return timed(
        "run_translation.py",
        ["-c", LAUNCHER, *words, "--model_name_or_path", str(model), "--output_dir", str(output)],
        folder,
    )


def run_own(program: str, settings: dict[str, Any], folder: Path) -> float:
    """Seconds of the whole process."""
    return timed(
        "hftk",
        ["-c", program, *(word for name, value in settings.items() for word in (f"--{name}", str(value)))],
        folder,
    )


def timed(name: str, words: list[str], folder: Path) -> float:
    started = time.perf_counter()
    run_process(name, [sys.executable, *words], folder)
    return time.perf_counter() - started


# --- What is said of the runs


def beside(runs: dict[str, list[Run]], key: str) -> dict[str, Any]:
    """Means of both, and how many times the script's speed ours is, in training alone and in whole
    processes."""
    made: dict[str, Any] = {}
    for name in (key, f"{key}_of_whole_process"):
        means = {system: statistics.mean(run[name] for run in some) for system, some in runs.items() if some}
        made[name] = {system: round(value, 1) for system, value in means.items()}
        pairs = zip(runs["hftk"], runs["script"], strict=True)
        made[f"{name}_ratio"] = {
            "of_means": round(means["hftk"] / means["script"], 3),
            "per_round": [round(a[name] / b[name], 3) for a, b in pairs],
        }
    losses = {
        system: statistics.mean(run["validation_loss"] for run in some) for system, some in runs.items()
    }
    return {**made, "validation_loss": {system: round(loss, 5) for system, loss in losses.items()}}


def compare_outputs(runs: dict[str, list[Run]], rows: list[dict[str, str]], model: Path) -> dict[str, Any]:
    """Seconds, ratios to the script, and each output that is not the script's with its margin (see
    :func:`margins`)."""
    made: dict[str, Any] = {"rows": len(rows), "systems": {}}
    for name, some in runs.items():
        seconds = [run["seconds"] for run in some]
        times = ("seconds", "seconds_with_all_scores", "seconds_of_whole_process")
        shown = {key: [run[key] for run in some] for key in times if key in some[0]}
        made["systems"][name] = {
            "mean_seconds": round(statistics.mean(seconds), 3),
            "bleu": some[-1]["bleu"],
            **shown,
        }
        kind = name.removeprefix("script_").removeprefix("hftk_").removesuffix("_bf16")
        script = runs[f"script_{kind}"]
        if name.startswith("hftk"):
            differing = [
                {"row": i, "source": rows[i][SOURCE], "script": theirs, "hftk": ours}
                for i, (theirs, ours) in enumerate(
                    zip(script[-1]["predictions"], some[-1]["predictions"], strict=True)
                )
                if theirs != ours
            ]
            means = (statistics.mean(run["seconds"] for run in script), statistics.mean(seconds))
            made["systems"][name] |= {
                "times_as_fast": round(means[0] / means[1], 3),
                "times_as_fast_per_round": [
                    round(a["seconds"] / b, 3) for a, b in zip(script, seconds, strict=True)
                ],
                "identical_rows": len(rows) - len(differing),
                "differing": margins(differing, model),
            }
    return made


def margins(differing: list[dict[str, Any]], model: Path) -> list[dict[str, Any]]:
    """How close the two outputs are to the model in fp32: the logit of the script's token minus that of ours
    where they part (behind the common beginning; for beams that need not decide), and the difference of their
    log-probabilities per token."""
    if not differing:
        return []
    import torch

    loaded, tokenizer = load(model)
    start = loaded.generation_config.decoder_start_token_id
    start = loaded.config.decoder_start_token_id if start is None else start
    found = []
    for row in differing:
        source = tokenizer(row["source"], return_tensors="pt", truncation=True, max_length=shape(model)[1])
        scores, logits, ids = [], [], []
        for text in (row["script"], row["hftk"]):
            target = tokenizer(text_target=text, return_tensors="pt")["input_ids"]  # (1, tokens)
            inputs = torch.cat([torch.tensor([[start]]), target[:, :-1]], 1)
            with torch.inference_mode():
                made = loaded(
                    **{k: source[k] for k in ("input_ids", "attention_mask")}, decoder_input_ids=inputs
                ).logits[0]
            ids.append(target[0].tolist())
            logits.append(made)
            scores.append(made.log_softmax(-1).gather(1, target[0][:, None]).sum().item() / len(target[0]))
        at = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), None)
        margin = (
            None if at is None else round((logits[0][at, ids[0][at]] - logits[0][at, ids[1][at]]).item(), 5)
        )
        found.append(
            {
                **row,
                "token": at,
                "logit_margin": margin,
                "log_probability_per_token": round(scores[0] - scores[1], 5),
            }
        )
    return found


if __name__ == "__main__":
    main()
