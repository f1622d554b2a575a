"""How long each notebook takes, one after another, from the start of its kernel to its end.

    python benchmarks/notebooks.py [--threads 2]

Runs the English notebooks (the Chinese ones have the same code) in a temporary folder, with no network.
Writes results/notebooks.json: seconds by the clock, seconds of processor time, and the load of the machine
before each, which tells whether the clock can be believed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from hftk.launch.environment import environment

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="OMP_NUM_THREADS of each kernel")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            found[path.stem] = run(path, folder, asked.threads)
        print(json.dumps({path.stem: found[path.stem]}), flush=True)
    result = {
        "command": f"python benchmarks/notebooks.py --threads {asked.threads}",
        "threads": asked.threads,
        "notebooks": found,
        **environment(),
    }
    target = ROOT / "results" / "notebooks.json"
    target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {target}")


def run(path: Path, folder: str, threads: int) -> dict[str, float]:
    """Execute one notebook; an error in a cell ends the measurement."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    settings = {
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": folder,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    load, before, started = os.getloadavg()[0], _processor_seconds(), time.perf_counter()
    client.execute(env={**os.environ, **settings})
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(_processor_seconds() - before, 1),
        "load_before": round(load, 2),
    }


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
