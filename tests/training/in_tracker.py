"""One made-up run in a real tracker that keeps it on this machine; prints what it has kept as JSON. In a
process of its own: trackers are global and read the environment when they are imported."""

import glob
import json
import os
import sqlite3
import sys
from types import SimpleNamespace

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hftk.task import Score
from hftk.training.trackers import Trackers, track

SCORES = [
    Score(name="chrf++", value=44.0, interval=(43.0, 45.0), higher_is_better=True, n=9, split="test"),
    Score(name="bleu", value=5.0, higher_is_better=True, n=9, split="test", when="before"),
]


def main(name: str) -> None:
    callback = INTEGRATION_TO_CALLBACK[name]()
    state = SimpleNamespace(
        is_world_process_zero=True, global_step=3, trial_name=None, is_hyper_param_search=False
    )
    call = (TrainingArguments(output_dir="out", use_cpu=True, report_to=[]), state, None)
    model = SimpleNamespace(config=None) if name == "mlflow" else torch.nn.Linear(1, 1)
    callback.on_train_begin(*call, model=model)
    callback.on_log(*call, logs={"loss": 1.0}, model=model)
    run = callback._ml_flow.active_run().info.run_id if name == "mlflow" else None
    track(SimpleNamespace(trackers=Trackers([callback], call, model), tokens_per_second=12.0), SCORES)
    print(json.dumps(kept(name, callback, run)))


def kept(name: str, callback: object, run: str | None) -> dict[str, float]:
    if name == "mlflow":
        callback._ml_flow.flush_async_logging()
        found = callback._ml_flow.get_run(run)
        assert found.info.status == "FINISHED"
        return found.data.metrics
    if name == "wandb":
        values = {
            key: value
            for key, value in dict(callback._wandb.run.summary).items()
            if isinstance(value, (int, float))
        }
        callback._wandb.finish()
        return values
    (file,) = glob.glob(os.path.join(os.environ["TRACKIO_DIR"], "**/*.db"), recursive=True)
    lines = sqlite3.connect(file).execute("select metrics from metrics").fetchall()
    return {key: value for (line,) in lines for key, value in json.loads(line).items()}


if __name__ == "__main__":
    main(sys.argv[1])
