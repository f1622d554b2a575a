"""Choose the default of --packing by measurement: whole documents against one long stream, equal in all else.

    python benchmarks/packing.py [--data DIR] [--epochs 3] [--seeds 0 1]

Trains a small GPT-2 on documents that are much longer than a block (python_docs, the recipe's sample), and,
where DIR holds the shared data sets, on documents that are much shorter (Song ci poems, Shakespeare's
speeches). Both ways see every token once per epoch; the held-out documents are judged the same way, each by
itself. Writes results/packing.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hftk.launch.environment import environment

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "recipes" / "configs"
WAYS = ("documents", "concatenate")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with lm_songci_zh and lm_tinyshakespeare_en")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    asked = parser.parse_args()
    sets: dict[str, list[str]] = {"python_docs": []}
    if asked.data:
        for config, folder in (("songci_zh", "lm_songci_zh"), ("shakespeare_bpe", "lm_tinyshakespeare_en")):
            sets[config] = [
                "--config",
                str(CONFIGS / f"{config}.yaml"),
                "--data.path",
                str((asked.data / folder).resolve()),
            ]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in sets.items():
            runs = {
                way: [run(flags, way, seed, asked.epochs, Path(folder)) for seed in asked.seeds]
                for way in WAYS
            }
            found[name] = {way: {key: [r[key] for r in runs[way]] for key in runs[way][0]} for way in WAYS}
            pairs = zip(runs["documents"], runs["concatenate"], strict=True)
            found[name]["perplexity_ratio_documents_to_concatenate"] = round(
                statistics.mean(a["perplexity"] / b["perplexity"] for a, b in pairs), 4
            )
            print(json.dumps({name: found[name]}), flush=True)
    result = {
        "command": "python benchmarks/packing.py --data DIR",
        "epochs": asked.epochs,
        "seeds": asked.seeds,
        "sets": found,
        **environment(),
    }
    path = ROOT / "results" / "packing.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {path}")


def run(flags: list[str], way: str, seed: int, epochs: float, folder: Path) -> dict[str, float]:
    command = [
        sys.executable,
        str(ROOT / "recipes" / "gpt2_clm.py"),
        *flags,
        "--packing",
        way,
        "--train.seed",
        str(seed),
        "--train.epochs",
        str(epochs),
        "--eval.resamples",
        "0",
        "--output",
        str(folder / "run"),
        "--overwrite",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    record = json.loads((folder / "run" / "record.json").read_text(encoding="utf-8"))
    perplexity = next(
        s["value"] for s in record["scores"] if s["name"] == "perplexity" and s["when"] == "after"
    )
    training = record["data"]["training"]
    return {
        "perplexity": round(perplexity, 3),
        "padding": round(training["padding"], 4),
        "steps": record["history"][-1]["step"],
        "tokens_per_second": round(record["tokens_per_second"]),
    }


if __name__ == "__main__":
    main()
