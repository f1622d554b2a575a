"""The only file that knows ``transformers.Trainer`` (and :mod:`hftk.training.callback`, its callback).

What stock Trainer (5.23) does is kept; what is wrong or slow at the joints is replaced: one data-loader item
is one optimizer step, so that the loss of a step is its sum divided by the items of the *global* batch,
whatever the split (Trainer divides by what the model happens to count, and for most classic models by
nothing: https://github.com/huggingface/transformers/issues/34242).
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainingArguments

from hftk.config import RunConfig
from hftk.console import note
from hftk.evaluation.evaluate import generation_scores, run_model
from hftk.features.batches import EpochPlan, StreamPlan
from hftk.features.loader import StepLoader
from hftk.launch import on_main, stop_requested
from hftk.launch.random_state import preserve_rng_state
from hftk.models.precision import autocast, choose_precision
from hftk.task import Features, Outputs, Stream, Task
from hftk.training import checkpoints, optimizers, schedules
from hftk.training.activation_offload import check_device, offloading
from hftk.training.callback import ScheduleCallback
from hftk.training.checkpoint_writer import CheckpointWriter
from hftk.training.divergence import Guard
from hftk.training.divergence import TrainingDiverged as TrainingDiverged
from hftk.training.sharded_trainer import ShardedTrainer
from hftk.training.trackers import Trackers, close_open, take_over

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CURVES = ("loss", "learning_rate", "grad_norm")
"""What the history keeps of Trainer's logs, beside evaluations."""


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """The validation split as it is judged between steps."""

    rows: Any
    features: Features
    max_length: int
    """Context in tokens."""


def make_arguments(
    config: RunConfig, plan: EpochPlan | StreamPlan, learning_rate: float
) -> TrainingArguments:
    """Trainer's arguments; ``train.extra`` comes last. Logging, evaluation and saving are scheduled by
    :class:`hftk.training.callback.ScheduleCallback`."""
    train = config.train
    accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    arguments = TrainingArguments(
        output_dir=str(Path(config.output) / checkpoints.FOLDER),
        max_steps=plan.total_steps,
        per_device_train_batch_size=train.per_device_batch_size,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        # For train.extra.optim and lr_scheduler_type alone, which bring Trainer's own optimizers and
        # schedules.
        learning_rate=learning_rate,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        warmup_steps=train.warmup,
        full_determinism=train.deterministic,
        torch_compile=train.torch_compile,
        activation_checkpointing=train.gradient_checkpointing,
        fp16=train.precision == "fp16",
        use_cpu=not accelerator,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        metric_for_best_model="loss" if train.schedule == "reduce_on_plateau" else None,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        ignore_data_skip=True,
        **train.extra,
    )
    if (
        arguments.n_gpu > 1
    ):  # not under hftk.run, which stops before: Trainer would wrap the model in nn.DataParallel
        if config.model.device_map == "none":
            note(
                f"one of {arguments.n_gpu} GPUs is used: a notebook is one process; for all of them run the"
                " recipe by accelerate launch"
            )
        arguments._n_gpu = 1
    return arguments


class ExactTrainer(ShardedTrainer):
    """Trainer whose data loader gives one optimizer step at a time and whose loss is exact for every split of
    it."""

    def __init__(
        self,
        task: Task,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        arguments: TrainingArguments,
        config: RunConfig,
        loader: StepLoader,
        validation: ValidationSet | None,
        run: dict[str, Any],
        state: dict[str, Any],
    ) -> None:
        """``run`` is :func:`hftk.training.resume.fingerprint`, ``state`` what
        :data:`hftk.training.checkpoint_writer.STATE` of the checkpoint holds that the run continues from."""
        use_cache = getattr(model.config, "use_cache", None)
        # No processing_class: with one, Trainer writes the tokenizer's ids into the model's config
        # (align_special_tokens).
        self._schedule = ScheduleCallback(self)
        super().__init__(model=model, args=arguments, callbacks=[self._schedule])
        if use_cache is not None:
            model.config.use_cache = use_cache  # Trainer turns it off, and off it would be saved
        self.remove_callback(PrinterCallback)
        self.plain, self.tokenizer = model, tokenizer
        self.folder = Path(config.output) / checkpoints.FOLDER
        self.task, self.config, self.loader, self.validation, self.run = task, config, loader, validation, run
        self.learning_rate = arguments.learning_rate
        self.metric = f"eval_{config.train.metric_for_best_model.removeprefix('eval_')}"
        """What the best evaluation goes by, as the history calls it."""
        self.higher_is_better = bool(state.get("higher_is_better", False))
        train = config.train
        by_default = train.epochs is None and train.max_steps is None
        """The length of the run was chosen for the user, and may be too much for these rows."""
        self.restore_best = validation is not None and bool(
            train.restore_best or train.early_stopping or by_default
        )
        self.history: list[dict[str, Any]] = state.get("history", [])
        self.seconds: dict[str, float] = state.get("seconds", {"train": 0.0, "evaluate": 0.0, "save": 0.0})
        self.precision = "fp32"
        self.unlogged: tuple[float, int] | None = state.get("unlogged")
        """Sum of the losses since the last logged step, and that step, at the checkpoint that the run
        continues from."""
        self.stopped = False
        self.guard = Guard(self, state.get("skipped", []))
        self.trackers: Trackers | None = None
        self.stream: Stream | None = None
        self.on_checkpoint: Callable[[Path], None] | None = None
        self.stop_asked = False
        self.saving_failed = False
        """Whether the last checkpoint could not be sealed: the end of this step will say so."""
        self._clock = time.perf_counter()
        self.saver = CheckpointWriter(self)
        loader.tokens = state.get("tokens", 0)

    @property
    def tokens(self) -> int:
        """Non-padding tokens trained on so far, over all processes."""
        return self.loader.tokens

    # --- Data, optimizer, schedule

    def begin(self, step: int) -> None:
        """Make ready for the steps after ``step``; Trainer has loaded its own state."""
        self.saver.begin()
        self.loader.start = step
        if self.unlogged is not None:
            self._tr_loss += self.unlogged[0]
            self._globalstep_last_logged = self.unlogged[1]
        self._clock = time.perf_counter()

    def get_train_dataloader(self) -> Any:
        return self.loader

    def num_examples(self, dataloader: Any) -> int:
        return len(dataloader)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if "optim" in self.config.train.extra:
            return super().create_optimizer(model)
        if self.optimizer is None:
            self.optimizer = optimizers.make_optimizer(
                model or self.plain, self.config.train, self.learning_rate
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if "lr_scheduler_type" in self.config.train.extra:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = schedules.make_scheduler(
                optimizer or self.create_optimizer(),
                self.config.train,
                self.learning_rate,
                num_training_steps,
            )
        return self.lr_scheduler

    def choose_precision(self, config: RunConfig, frozen: str | None) -> None:
        """Fix the arithmetic of the run; a continued run keeps what its first start chose."""
        check_device(config.train.activation_offload, self.args.device)
        if frozen is not None:
            self.precision = frozen
            note(f"train.precision: {frozen}, as at the first start of this run")
            return

        tokens, start = self.loader.tokens, self.loader.start
        with preserve_rng_state():
            first = next(iter(self.loader))[0]  # of a stream, all processes read together

            def forward_backward() -> None:
                batch = {name: value for name, value in first.items() if name != "filler"}
                loss = self._loss(self.model, self._prepare_inputs(batch), None)
                loss.backward()
                self.plain.zero_grad()

            chosen = on_main(choose_precision, config.train.precision, self.args.device, forward_backward)
        self.loader.tokens, self.loader.start = tokens, start
        self.precision = chosen[0]
        note(f"train.precision: {chosen[0]} ({chosen[1]})")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        close_open()  # of an earlier run in this process
        try:
            result = super().train(*args, **kwargs)
            self.saver.finish()
        except BaseException:
            self.saver.settle()
            raise
        finally:
            self._schedule.close()
        self.tick("save")
        return result

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer ends its callbacks here; those of trackers stay open for the scores of the test split.

        What it logs first is kept from them too: its samples per second count our steps for rows.
        """
        self.trackers = take_over(self.callback_handler, (self.args, self.state, self.control), self.plain)
        return super()._finalize_training(*args, **kwargs)

    # --- The exact loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Term of the loss to its number of items in the *global* batch: all micro-batches of all
        processes."""
        totals: dict[str, float] = {}
        for step in batch_samples:
            for batch in step:
                for term, items in self.task.items(batch).items():
                    totals[term] = totals.get(term, 0.0) + (0.0 if batch.get("filler") else float(items))
        if self.args.world_size > 1:
            # One reduction for all terms, and for the reasons to stop, on which the processes must agree.
            asked = [float(stop_requested()), float(self.saver.failed)]
            values = torch.tensor([*totals.values(), *asked], dtype=torch.float64, device=device)
            torch.distributed.all_reduce(values)
            *sums, stop, failed = values.tolist()
            totals = dict(zip(totals, sums, strict=True))
            self.stop_asked, self.saving_failed = stop > 0, failed > 0
        else:
            self.stop_asked, self.saving_failed = stop_requested(), self.saver.failed
        return totals

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One optimizer step's gradient: forward and backward over this process's micro-batches."""
        if not self.plain.training:
            model.train()
        return self.guard.watch(functools.partial(self._forward_backward, model, inputs, num_items_in_batch))

    def _forward_backward(self, model: Any, inputs: Any, totals: Any) -> list[torch.Tensor]:
        """The losses of this process's micro-batches."""
        losses = []
        for number, batch in enumerate(inputs):
            last = number == len(inputs) - 1
            penalized = last and self.config.train.l1_penalty > 0
            self.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else self._no_sync(model):
                loss = self._loss(model, self._prepare_inputs(batch), totals)
                if penalized and not self.is_fsdp_enabled:
                    weights = optimizers.decayed(self.plain.named_parameters())
                    loss = (
                        loss
                        + self.config.train.l1_penalty
                        * torch.stack([w.abs().sum().to(loss.device) for w in weights]).sum()
                    )
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            if penalized and self.is_fsdp_enabled:
                losses.append(
                    self.add_l1(
                        optimizers.decayed(self.plain.named_parameters()), self.config.train.l1_penalty
                    )
                )
        return losses

    def _clip_grad_norm(self, model: Any) -> Any:
        self.guard.remember()
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            self.guard.remember()
        return self.guard.before_update(super()._get_grad_norm(model, grad_norm=grad_norm))

    def leave_out_of_curve(self) -> None:
        """The step being done has no loss: the mean at the next point of the curve is over the others."""
        self._globalstep_last_logged += 1

    def _no_sync(self, model: Any) -> AbstractContextManager[Any]:
        return self.accelerator.no_sync(model)

    def _loss(self, model: Any, batch: dict[str, Any], totals: dict[str, float] | None) -> torch.Tensor:
        """Share of this micro-batch in the step's loss, times the number of processes, since DDP averages
        gradients."""
        filler = batch.pop("filler", False)
        with (
            offloading(self.config.train.activation_offload, self.plain),
            autocast(self.precision, self.args.device),
        ):
            terms = self.task.loss(model, batch)
        if totals is None:
            totals = {term: float(items) for term, (_, items) in terms.items()}
        share = 0.0 if filler else float(self.args.world_size)
        loss: torch.Tensor = sum(
            total.float() * (share / (totals[term] or 1.0)) for term, (total, _) in terms.items()
        )  # type: ignore[assignment]
        return loss.to(self.args.device)

    # --- Judging, logging, saving

    @preserve_rng_state()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """``eval_loss``: the mean over the items of the validation split, as
        :func:`hftk.evaluation.evaluate.evaluate` has it."""
        self.tick("train")
        assert self.validation is not None
        features, rows = self.validation.features, self.validation.rows
        outputs = run_model(
            self.task, self.model, self.tokenizer, features, batch_size=self.config.eval.batch_size
        )
        metrics = {"eval_loss": self.task.eval_loss(outputs)}
        if "logits" in self.task.judged_by:
            scores = self.task.scores(
                Outputs(
                    arrays=outputs,
                    features=features,
                    rows=rows,
                    tokenizer=self.tokenizer,
                    model_config=self.plain.config,
                )
            )
        else:
            scores = generation_scores(
                self.task,
                self.plain,
                self.tokenizer,
                rows,
                features,
                outputs,
                count=self.config.eval.generate_rows,
                max_length=self.validation.max_length,
            )
        if scores:
            metrics = {f"eval_{score.name}": score.value for score in scores} | metrics
            self.higher_is_better = any(
                self.metric == f"eval_{s.name}" and s.higher_is_better for s in scores
            )
        self.tick("evaluate")
        if not math.isfinite(metrics["eval_loss"]):
            raise self.guard.diverged(
                f"eval_loss is {metrics['eval_loss']} after step {self.state.global_step}"
            )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_save |= self.restore_best and self.best_step() == self.state.global_step
        if self.out_of_patience():
            note(
                f"stopped early at step {self.state.global_step}: {self.config.train.early_stopping}"
                f" evaluations without a better {self.metric}"
            )
            self.control.should_training_stop = self.control.should_save = True
        return metrics

    def best_step(self) -> int | None:
        """The step of the best evaluation so far, by ``metric_for_best_model`` (the first of equals).

        Of equal scores of generated text the one with the lower ``eval_loss``: BLEU is 0 in the first
        evaluations of many a new model.
        """
        judged = [
            e for e in self.history if e.get(self.metric) is not None and e[self.metric] == e[self.metric]
        ]
        sign, by_text = -1 if self.higher_is_better else 1, "generation" in self.task.judged_by
        return (
            min(judged, key=lambda e: (sign * e[self.metric], by_text and e["eval_loss"]))["step"]
            if judged
            else None
        )

    def out_of_patience(self) -> bool:
        """Whether the last ``early_stopping`` evaluations brought no better one."""
        patience, best = self.config.train.early_stopping, self.best_step()
        return best is not None and 0 < patience <= sum(
            "eval_loss" in e and e["step"] > best for e in self.history
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.out_of_patience():  # a continued run may have stopped early before
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        control = self.control
        if control.should_log or control.should_evaluate or control.should_save or self.guard.due():
            self.guard.check(grad_norm)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    @preserve_rng_state()  # trackers may import much at the first point
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self.guard.check_curve(logs["loss"])
        super().log(logs, start_time)
        if "loss" in logs or "eval_loss" in logs:
            if not self.history or self.history[-1]["step"] != self.state.global_step:
                self.tick("train")
                seconds = sum(self.seconds.values())
                self.history.append(
                    {
                        "step": self.state.global_step,
                        "epoch": self.loader.epoch,
                        "tokens": self.tokens,
                        "seconds": round(seconds, 3),
                    }
                )
            self.history[-1].update({k: v for k, v in logs.items() if k in CURVES or k.startswith("eval_")})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.tick("train")
        self.saver.save()
        self.tick("save")

    def write_files(self) -> None:
        """Trainer's own files of a checkpoint, into the saver's staging folder."""
        best, self.state.best_global_step = self.state.best_global_step, None  # ours is best_step()
        try:
            super()._save_checkpoint(self.plain, None)
        finally:
            self.state.best_global_step = best

    def gather_losses(self) -> None:
        """Sum up over the processes what was not logged yet, for :meth:`run_state`."""
        self.unlogged = (self.accelerator.gather(self._tr_loss).mean().item(), self._globalstep_last_logged)

    def run_state(self) -> dict[str, Any]:
        """What :data:`hftk.training.checkpoint_writer.STATE` keeps, as it is now."""
        return {
            "history": [dict(point) for point in self.history],
            "unlogged": self.unlogged,
            "tokens": self.tokens,
            "seconds": dict(self.seconds),
            "precision": self.precision,
            "run": self.run,
            "higher_is_better": self.higher_is_better,
            "skipped": list(self.guard.skipped),
            **self._stream_state(),
        }

    def _stream_state(self) -> dict[str, Any]:
        position = getattr(self.loader.plan, "position", None)
        if position is None or self.stream is None:
            return {}
        return {"stream": position, "stream_keys": self.stream.keys(position["begin"])}

    def state_bytes(self) -> int:
        """About how many bytes a checkpoint takes up: weights and the optimizer's state, as this process
        holds them."""
        states = self.optimizer.state.values() if self.optimizer is not None else ()
        tensors = [
            *self.plain.parameters(),
            *(t for state in states for t in state.values() if isinstance(t, torch.Tensor)),
        ]
        return sum(tensor.nbytes for tensor in tensors)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.saver.staging or self.args.output_dir)

    def load_weights(self, step: int) -> None:
        """Take the weights of the checkpoint of ``step``; RuntimeError if it is not whole (Trainer would only
        warn)."""
        folder = self.folder / f"checkpoint-{step}"
        problem = on_main(checkpoints.damage, folder)
        if problem:
            raise RuntimeError(f"the best weights, in {folder}, cannot be restored: {problem}")
        self.state.best_model_checkpoint = str(folder)
        self._load_best_model()

    def random_states(self) -> list[tuple[str, bytes]]:
        """Name and content of Trainer's file of this process's random state."""
        with tempfile.TemporaryDirectory() as folder:
            super()._save_rng_state(folder)
            return [(path.name, path.read_bytes()) for path in Path(folder).iterdir()]

    def _save_rng_state(self, output_dir: str) -> None:
        """Every process has a random state of its own; the main one writes them all."""
        if self.args.should_save:
            self.saver.write_random_states(output_dir)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Weights that a checkpoint lacks are an error. Trainer warns, and of tied weights too, which are
        saved once."""
        tied = getattr(self.plain, "all_tied_weights_keys", None) or {}
        left_out = {*tied, *tied.values(), *(getattr(self.plain, "_keys_to_ignore_on_save", None) or ())}
        wrong = [
            *(name for name in load_result.missing_keys if name not in left_out),
            *load_result.unexpected_keys,
        ]
        if wrong:
            raise RuntimeError(
                f"the weights of the checkpoint are not those of the model; they differ in {', '.join(wrong)}"
            )

    def tick(self, stage: str) -> None:
        """Book the time since the last tick on ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._clock
        self._clock = now

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # Trainer counts padding too; tokens and seconds are in the history

    def store_flos(self) -> None:
        """Nothing was counted. Trainer would sum it up over the processes in the middle of a save, of which
        one may have failed."""
