"""A toy recipe: does what --model.name says, in milliseconds and without torch."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from hftk.config import InputError, ModelConfig, Problem, RunConfig
from hftk.launch import graceful, launched, on_main, run, stop_requested

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored

CONFIG = RunConfig(output="out", model=ModelConfig(name="succeed"))


def main(config):
    ACTS[config.model.name](Path(config.output))


def succeed(output):
    (output / "model.safetensors").write_text("weights")


def wrong_input(output):
    raise InputError(
        Problem(setting="data.path", message="expected a file, found none", fix="name one"), "and this"
    )


def fail(output):
    raise ValueError("boom with hf_abcdefghijklmnopqrstuvwxyz")


def leave_early(output):
    sys.exit("enough")


def wait(output):
    (output / "predictions.jsonl").write_text("waiting")
    time.sleep(20)


def wait_long(output):
    (output / "predictions.jsonl").write_text("waiting")
    time.sleep(300)


def train(output):
    with graceful():
        (output / "predictions.jsonl").write_text("waiting")
        for _ in range(2000):
            time.sleep(0.01)
            if stop_requested():
                (output / "model.safetensors").write_text("saved")
                break
    raise AssertionError("leaving graceful() after a request does not end the run")


def ignore(output):
    with graceful():
        (output / "predictions.jsonl").write_text("waiting")
        time.sleep(20)
        time.sleep(20)  # a signal whose handler returns does not end a sleep, but be sure


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def raise_unpicklable():
    raise Unpicklable(1, 2)


def work_together(output):
    """Every process notes what on_main gave it; ends with wrong input found by the main process."""
    launch = launched()
    seen = {
        "processes": launch.processes,
        "device": launch.device,
        "backend": launch.backend,
        "asked": launch.asked_processes,
    }
    seen["strategy"], seen["cpu"] = launch.strategy, os.environ.get("ACCELERATE_USE_CPU")
    seen["result"] = on_main(lambda: f"made by {os.getpid()}")
    seen["nested"] = on_main(lambda: on_main(lambda: 7))
    for name, function in (
        ("unpicklable result", lambda: lambda: 1),
        ("unpicklable error", raise_unpicklable),
    ):
        try:
            on_main(function)
        except Exception as error:
            seen[name] = f"{type(error).__name__}: {error}"
    (output / f"rank{launch.rank}.json").write_text(json.dumps(seen))
    on_main(wrong_input, output)


ACTS = {
    f.__name__: f
    for f in (succeed, wrong_input, fail, leave_early, wait, wait_long, train, ignore, work_together)
}

if __name__ == "__main__":
    run(main, CONFIG)
