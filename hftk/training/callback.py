"""The schedule of a training: when to log, evaluate, save and stop; and the progress bar."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from hftk.console import progress_bar, write_beside
from hftk.training.protocols import RunningTrainer


class ScheduleCallback(TrainerCallback):
    """Decides after each optimizer step whether to log, evaluate, save or stop, and draws the progress
    bar."""

    def __init__(self, trainer: RunningTrainer) -> None:
        self.trainer = trainer
        self.bar: Any = None
        self.epoch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, train = self.trainer, self.trainer.config.train
        trainer.begin(state.global_step)
        total = state.max_steps
        per_epoch = trainer.loader.plan.steps_per_epoch or max(1, total // 10)
        self.eval_every = _interval(train.eval_steps, total)
        self.save_every = _interval(train.save_steps, total)
        self.log_every = train.log_steps or max(1, total // 200)
        self.by_epoch = self.eval_every is None and trainer.loader.plan.steps_per_epoch is not None
        if self.eval_every is None and not self.by_epoch:
            self.eval_every = per_epoch
        self.epoch = int(state.epoch or 0)
        self.bar = progress_bar(
            total=total,
            initial=state.global_step,
            desc="training",
            unit="step",
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, step = self.trainer, state.global_step
        state.epoch = trainer.loader.epoch
        last = step >= state.max_steps
        control.should_log = step % self.log_every == 0 or step == 1 or last
        if self.by_epoch:
            due, self.epoch = int(state.epoch) > self.epoch, int(state.epoch)
        else:
            due = bool(self.eval_every) and step % (self.eval_every or 1) == 0
        control.should_evaluate = trainer.validation is not None and (due or last)
        saves = due if self.save_every is None else bool(self.save_every) and step % self.save_every == 0
        control.should_save = saves or last
        if trainer.stop_asked and not last:
            trainer.stopped = True
            control.should_save = control.should_training_stop = True
        control.should_save |= trainer.saving_failed  # which raises what went wrong
        control.should_training_stop |= last
        self.bar.update(1)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if self.bar is None or not logs:
            return
        shown = {k: f"{logs[k]:.4g}" for k in ("loss", "eval_loss", "learning_rate") if k in logs}
        if "eval_loss" in logs:
            judged = dict.fromkeys(("eval_loss", self.trainer.metric))
            said = ", ".join(f"{name} {logs[name]:.4f}" for name in judged if name in logs)
            write_beside(self.bar, f"step {state.global_step}: {said}")
        self.bar.set_postfix(shown, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.tick("train")

    def close(self) -> None:
        """Leave the progress bar as it stands, so that what is printed next has a line of its own."""
        if self.bar is not None:
            self.bar.close()


def _interval(steps: float | None, total: int) -> int | None:
    """A number of steps, or a share of the run, as steps; 0 stays 0, None stays None."""
    if steps is None or steps == 0:
        return None if steps is None else 0
    return max(1, round(steps * total)) if steps < 1 else int(steps)
