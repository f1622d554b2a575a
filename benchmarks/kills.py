"""Kill runs at whatever they do, start them again, and compare what they leave with runs that nobody killed,
bit for bit.

    python benchmarks/kills.py [--kills 100] [--seed 0]

Small runs of the GPT-2, BERT, Marian and T5 recipes, on one process and on two, get SIGKILL at a moment that
is drawn by the seed: between the first byte of a checkpoint and its rename, in training, evaluation,
generation and at the end; some of them through ``accelerate launch``. Then one run is killed before each file
operation of one save and half-way through each of its writes, and the disks are tried that a power cut at any
operation of a whole run may leave. Writes results/kills.json; about ten minutes on one core. Exits with 1 if
anything was lost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "faults"), str(ROOT)]

import aimed  # noqa: E402
import launched  # noqa: E402
import power_cuts  # noqa: E402
import save_points  # noqa: E402
from killing import Server  # noqa: E402

from hftk.launch.environment import environment  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=100, help="how many, besides those through accelerate launch"
    )
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    server, folder = Server(), Path(tempfile.mkdtemp(prefix="kills"))
    try:
        found = measure(aimed.Range(server, folder), asked.kills, asked.seed, folder)
    finally:
        server.close()
        shutil.rmtree(server.folder)
        shutil.rmtree(folder)
    result = {
        "command": f"python benchmarks/kills.py --kills {asked.kills} --seed {asked.seed}",
        **found,
        **environment(),
    }
    path = ROOT / "results" / "kills.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {path}")
    sys.exit(any(part["wrong"] for part in found.values()))


def measure(range_: aimed.Range, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def note(name: str, begun: float, **facts: Any) -> None:
        found[name] = {**facts, "seconds": round(time.monotonic() - begun)}
        print(
            json.dumps({name: {key: value for key, value in found[name].items() if key != "each"}}),
            flush=True,
        )

    for name, shots in (
        ("forked", aimed.shoot_all(range_, itertools.islice(aimed.long_list(), kills), seed)),
        ("accelerate_launch", launched.shoot_launched(range_, seed)),
    ):
        begun, outcomes = time.monotonic(), []
        for outcome in shots:
            outcomes.append(outcome)
            print(f"{name} {len(outcomes)}: {outcome}", flush=True)
        note(name, begun, **aimed.summary(outcomes), each=[asdict(outcome) for outcome in outcomes])
    begun = time.monotonic()
    points = save_points.points_of(range_.reference("gpt2", 1).operations)
    note(
        "every_operation_of_a_save",
        begun,
        kills=len(points),
        wrong=save_points.killed_at(range_, "gpt2", points),
    )
    begun = time.monotonic()
    operations = range_.reference("gpt2", 1).operations
    disks, wrong = power_cuts.cut_everywhere(operations, folder)
    drawn = power_cuts.drawn_disks(operations, 40)
    resumed = {f"{n} {lost}": bad for n, lost, tree in drawn if (bad := power_cuts.go_on_from(range_, tree))}
    facts = {"operations": len(operations), "disks": disks, "disks_continued": len(drawn)}
    note("power_cuts_during_a_run", begun, **facts, wrong={**wrong, **resumed})
    return found


if __name__ == "__main__":
    main()
