"""How long a save keeps the training waiting: hftk's against Trainer's own save of the same files, side by
side.

    python benchmarks/saving.py [--rounds 12] [--runs 3] [--folder DIR]

For a tiny GPT-2 and for one whose weights take up more than 100 MB: in one run, at each save, both ways write
the files of the same moment, in turns first (``blocked``: seconds until the training may go on; Trainer
neither syncs nor hashes nor deletes older checkpoints here). Then whole runs that save every few steps, in
turns with one way and the other (``run``: seconds of training and saving), where what hftk does beside the
training takes its share of the processor. Writes results/saving.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import Trainer

import hftk
from hftk.config import DataConfig, EvalConfig, ModelConfig, TrainConfig
from hftk.launch.environment import environment
from hftk.models.weights import no_progress_bars
from hftk.training import checkpoints, fit
from hftk.training.trainer import ExactTrainer

ROOT = Path(__file__).resolve().parent.parent
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"n_layer": 2, "n_head": 2, "n_embd": 64},
    "large": {"n_layer": 8, "n_head": 8, "n_embd": 512},
}
STEPS_BETWEEN = {"tiny": 20, "large": 5}
"""Optimizer steps between two saves of a whole run."""


class Sides(ExactTrainer):
    """Saves as ``way`` says: hftk, Trainer, or both at each save, one after the other."""

    way = "both"
    seconds_blocked: dict[str, list[float]]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        turn = (
            (self._by_hftk, self._by_trainer)
            if self.state.global_step % 2
            else (self._by_trainer, self._by_hftk)
        )
        ways = (
            turn if self.way == "both" else ((self._by_hftk,) if self.way == "hftk" else (self._by_trainer,))
        )
        for save in ways:
            if self.way == "both":
                os.sync()
            start = time.perf_counter()
            save(model)
            self.seconds_blocked[save.__name__.removeprefix("_by_")].append(time.perf_counter() - start)
            if self.way == "both":
                self.saver.finish()

    def _by_hftk(self, model: Any) -> None:
        super()._save_checkpoint(model, None)

    def _by_trainer(self, model: Any) -> None:
        """Trainer's code alone; the tokenizer among the files, as where it is given to a Trainer."""
        self.tick("train")
        self.saver.staging = self.folder.parent / "of Trainer"
        self.processing_class = self.tokenizer
        with no_progress_bars():
            Trainer._save_checkpoint(self, model, None)
        self.saver.staging = self.processing_class = None
        self.tick("save")
        shutil.rmtree(self.folder.parent / "of Trainer")
        self.tick("evaluate")

    def _save_rng_state(self, output_dir: str) -> None:
        if self.processing_class is None:
            super()._save_rng_state(output_dir)
        else:
            Trainer._save_rng_state(self, output_dir)


def run(
    name: str, way: str, saves: int, steps_between: int, folder: Path
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each save by way, and what is to be known of the run."""
    output = folder / "run"
    config = hftk.CausalLMConfig(
        data=DataConfig(sample="python_docs", max_rows=300),
        model=ModelConfig(size="tiny", vocab_size=4096, config={**MODELS[name], "n_positions": 64}),
        train=TrainConfig(
            max_steps=saves * steps_between,
            save_steps=steps_between,
            per_device_batch_size=4,
            learning_rate=1e-3,
            precision="fp32",
            log_steps=1000,
        ),
        eval=EvalConfig(resamples=0),
        output=str(output),
    )
    blocked: dict[str, list[float]] = {"hftk": [], "trainer": []}
    task = hftk.CausalLM(config)
    splits = hftk.load_splits(config.data, task)
    model, tokenizer = hftk.load_model(config.model, task, splits)
    sides = type("Sides", (Sides,), {"way": way, "seconds_blocked": blocked})
    with mock.patch.object(fit, "ExactTrainer", sides):
        trained = hftk.fit(task, model, tokenizer, splits, config)
    saved = checkpoints.checkpoints(output)
    facts = {
        "seconds": trained.seconds["train"] + trained.seconds["save"],
        "weights_mb": round(sum(p.nbytes for p in model.parameters()) / 1e6, 1),
        "checkpoint_mb": round(sum(f.stat().st_size for f in saved[-1].rglob("*")) / 1e6, 1)
        if saved
        else None,
    }
    shutil.rmtree(output)
    return blocked, facts


def compared(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "hftk": [round(s, 4) for s in ours],
        "trainer": [round(s, 4) for s in theirs],
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
    }


def measure(name: str, rounds: int, runs: int, folder: Path) -> dict[str, Any]:
    # An odd number of steps, so that the two ways take turns at being first; the first two saves only warm
    # up.
    blocked, facts = run(name, "both", rounds + 2, 3, folder)
    whole: dict[str, list[float]] = {"hftk": [], "trainer": []}
    for number in range(runs):
        for way in ("hftk", "trainer") if number % 2 else ("trainer", "hftk"):
            whole[way].append(run(name, way, 4, STEPS_BETWEEN[name], folder)[1]["seconds"])
    return {
        "weights_mb": facts["weights_mb"],
        "checkpoint_mb": facts["checkpoint_mb"],
        "blocked": compared(blocked["hftk"][2:], blocked["trainer"][2:]),
        "run": compared(whole["hftk"], whole["trainer"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12, help="saves that are compared")
    parser.add_argument("--runs", type=int, default=3, help="whole runs of each way")
    parser.add_argument("--folder", type=Path, help="where to save (default: the system's temporary folder)")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for name in MODELS:
            found[name] = measure(name, asked.rounds, asked.runs, Path(folder))
            print(json.dumps({name: found[name]}), flush=True)
    result = {
        "command": "python benchmarks/saving.py",
        "rounds": asked.rounds,
        "runs": asked.runs,
        "models": found,
        **environment(),
    }
    path = ROOT / "results" / "saving.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
