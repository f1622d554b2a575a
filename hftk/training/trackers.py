"""Experiment trackers (``--train.extra.report_to tensorboard``, wandb, mlflow, trackio, swanlab ...) with the
final scores in them.

transformers' own callbacks do the work. They would close at the end of training, before the test split is
judged: here they are taken out of Trainer in time, given the scores by :func:`track`, and closed then.
"""

from __future__ import annotations

import atexit
import importlib.util
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hftk.config import Problem, TrainConfig
from hftk.launch.environment import private
from hftk.training.protocols import TrackedRun

if TYPE_CHECKING:
    from hftk.task import Score

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "swanlab": ("swanlab",),
    "comet_ml": ("comet_ml",),
    "clearml": ("clearml",),
    "dvclive": ("dvclive",),
    "neptune": ("neptune",),
    "dagshub": ("dagshub", "mlflow"),
    "azure_ml": ("azureml",),
    "flyte": ("flytekit",),
    "codecarbon": ("codecarbon",),
}
"""Name as in ``report_to`` to the packages of which one is enough (dagshub needs both)."""
NOT_CLOSED_LATER = ("CodeCarbonCallback", "FlyteCallback", "KubeflowCallback")
"""Callbacks that measure the training itself: theirs is the end of training."""
_open: list[Trackers] = []


class Trackers:
    """Trackers of one training run, still open."""

    def __init__(self, callbacks: Sequence[Any], call: tuple[Any, Any, Any], model: Any) -> None:
        """``call`` is what every callback is given: arguments, state and control of Trainer."""
        self.callbacks, self.call, self.model = list(callbacks), call, model

    def log(self, values: Mapping[str, float]) -> None:
        """Add ``values`` at the last step; a tracker that fails is named on stderr and harms nothing else."""
        self._each("on_log", logs=dict(values))

    def close(self) -> None:
        """End all of them; a second time does nothing."""
        if self in _open:
            _open.remove(self)
        self._each("on_train_end")
        self.callbacks = []

    def _each(self, event: str, **more: Any) -> None:
        for callback in self.callbacks:
            try:
                getattr(callback, event)(*self.call, model=self.model, **more)
            except (
                Exception
            ) as error:  # a network, a full disk, another version: the run is done and stays so
                name = type(callback).__name__.removesuffix("Callback")
                print(
                    f"hftk: {name} failed: {private(f'{type(error).__name__}: {error}')}",
                    file=sys.stderr,
                    flush=True,
                )


def track(trained: TrackedRun, scores: Sequence[Score]) -> None:
    """Add the scores of a run, its intervals and its baselines to the trackers of ``train.extra.report_to``,
    and close them.

    Names are ``test/bleu``, ``test/bleu_low`` and ``test/bleu_high`` (95 % interval), ``test/before/bleu``,
    ``test/baseline/bigram/perplexity``, and ``train/tokens_per_second``; mlflow keeps ``test_bleu`` ... as it
    does with ``eval_loss``. All processes call this; the main one writes. Without trackers it does nothing.
    """
    if trained.trackers is None or not trained.trackers.callbacks:
        return
    speed = trained.tokens_per_second
    trained.trackers.log({**named(scores), **({"tokens_per_second": speed} if speed else {})})
    trained.trackers.close()


def named(scores: Sequence[Score]) -> dict[str, float]:
    """Name in a tracker to value, of every score that is a number. transformers makes ``test/`` of ``test_``,
    ``eval/`` of ``eval_``."""
    values: dict[str, float] = {}
    for score in scores:
        start = "test_" if score.split == "test" else "eval_final/"
        name = start + (f"{score.when.replace(':', '/')}/" if score.when != "after" else "") + score.name
        name = re.sub(r"[^\w./-]", "_", name.replace("++", "pp"))
        low, high = score.interval or (math.nan, math.nan)
        found = {name: score.value, f"{name}_low": low, f"{name}_high": high}
        values |= {key: float(value) for key, value in found.items() if math.isfinite(value)}
    return values


def take_over(handler: Any, call: tuple[Any, Any, Any], model: Any) -> Trackers:
    """Remove the trackers from Trainer's ``CallbackHandler`` before it ends them; they are closed at the
    latest when Python ends."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    kinds = tuple(kind for kind in INTEGRATION_TO_CALLBACK.values() if kind.__name__ not in NOT_CLOSED_LATER)
    found = [callback for callback in handler.callbacks if isinstance(callback, kinds)]
    handler.callbacks = [callback for callback in handler.callbacks if callback not in found]
    taken = Trackers(found, call, model)
    if found:
        _open.append(taken)
    return taken


@atexit.register
def close_open() -> None:
    """Close what was never given scores: an earlier run in a notebook, or one that was stopped."""
    for trackers in list(_open):
        trackers.close()


def tracker_problems(train: TrainConfig) -> Iterator[Problem]:
    """Trackers in ``train.extra.report_to`` that do not exist or are not installed."""
    asked = train.extra.get("report_to") or []
    for name in [asked] if isinstance(asked, str) else asked:
        if name in ("all", "none") or name == "kubeflow":
            continue
        packages = PACKAGES.get(str(name))
        if packages is None:
            message = f"expected trackers among {', '.join(PACKAGES)}, found {name!r}"
            yield Problem(setting="train.extra.report_to", message=message)
            continue
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing if name == "dagshub" else len(missing) == len(packages):
            message = f"{name} is not installed"
            yield Problem(setting="train.extra.report_to", message=message, fix=f"pip install {missing[0]}")
