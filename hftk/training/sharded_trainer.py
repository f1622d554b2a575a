"""What FSDP2 and DeepSpeed need of a Trainer: weights that are spread over processes are saved, resumed and
cut differently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer

from hftk.config import InputError, Problem
from hftk.launch import on_main
from hftk.launch.launcher import strategy_in_environment
from hftk.models import adapters, sharded
from hftk.models.layers import layer_classes
from hftk.training import sharded_checkpoints

SCHEDULER = "scheduler.pt"


class ShardedTrainer(Trainer):
    """Trainer whose checkpoints of sharded weights are read by any number of processes and execute
    nothing."""

    optimizer: Any
    lr_scheduler: Any
    plain: Any
    """The model as it was before it was wrapped."""

    precision: str
    """fp32, bf16 or fp16: the arithmetic of the run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raises InputError where accelerate has made another strategy of what it was asked for."""
        super().__init__(*args, **kwargs)
        asked = strategy_in_environment()
        runs = "fsdp" if self.is_fsdp_enabled else "deepspeed" if self.is_deepspeed_enabled else ""
        if asked != runs:
            message = (
                f"expected {asked or 'no sharding'}, as asked of accelerate launch, and {runs or 'plain DDP'}"
                " would run"
            )
            raise InputError(
                Problem(
                    setting="", message=message, fix="hftk env, launched in the same way, says what there is"
                )
            )

    @property
    def is_zero3(self) -> bool:
        return bool(self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3)

    def _prepare_for_training(
        self, max_steps: Any, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        asked = (max_steps, train_dataloader, resume_from_checkpoint)
        if self.is_deepspeed_enabled and resume_from_checkpoint is not None:
            on_main(sharded_checkpoints.check_deepspeed, Path(resume_from_checkpoint))
        if self.is_deepspeed_enabled and self.precision == "bf16":
            # Else DeepSpeed (0.19) ends an autocast that it knows nothing of, and computes in fp32. What is
            # named is gathered, and its gradients summed, in 16 bits: ZeRO-3 needs it, else autocast keeps a
            # copy of every weight until the backward pass.
            section: dict[str, Any] = {"enabled": True, "dtype": "bfloat16"}
            if not self.is_zero3:
                section["lower_precision_safe_modules"] = []
            self.accelerator.state.deepspeed_plugin.deepspeed_config["torch_autocast"] = section
        if not self.is_fsdp_enabled:
            return super()._prepare_for_training(*asked)
        plugin = self.accelerator.state.fsdp_plugin
        if self.precision == "bf16":
            # autocast alone would gather in float32 and keep its own 16-bit copy of every weight until the
            # backward pass.
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            plugin.mixed_precision_policy = policy
        if plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = layer_classes(self.plain)
        with _embeddings_in_root(self.plain):
            return super()._prepare_for_training(*asked)

    def add_l1(self, weights: list[Any], factor: float) -> torch.Tensor:
        """Add the gradient of ``factor`` times the sum of absolute weights to that of FSDP2's shards; the
        penalty itself.

        Outside of a forward pass a shard is part of no graph: autograd would not bring the gradient to where
        FSDP2 keeps it.
        """
        scaler = getattr(self.accelerator, "scaler", None)
        scale = factor * (scaler.get_scale() if scaler is not None else 1.0)
        with torch.no_grad():
            for weight in weights:
                weight.grad = (
                    weight.sign() * scale
                    if weight.grad is None
                    else weight.grad.add_(weight.sign(), alpha=scale)
                )
            total: Any = torch.stack([weight.abs().sum() for weight in weights]).sum()
            whole: torch.Tensor = total.full_tensor() if hasattr(total, "full_tensor") else total
            return factor * whole

    def _saves_whole(self) -> bool:
        """Whether a checkpoint is to hold the weights in one piece too, as the launch config says; an adapter
        is small."""
        if adapters.is_adapter(self.plain):
            return True
        if self.is_zero3:
            engine: Any = self.model_wrapped  # DeepSpeed's
            return bool(engine.zero_gather_16bit_weights_on_model_save())
        return "FULL_STATE_DICT" in str(self.accelerator.state.fsdp_plugin.state_dict_type)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights in one piece (safetensors) where they are asked for, else the config alone: the shards are
        beside it."""
        if not (self.is_fsdp_enabled or self.is_zero3):
            return super().save_model(output_dir, _internal_call)
        folder = output_dir or self.args.output_dir
        if self._saves_whole():
            weights = sharded.gather(self.plain, trained=adapters.is_adapter(self.plain))
            on_main(self.plain.save_pretrained, folder, state_dict=weights)
        else:
            on_main(self.plain.config.save_pretrained, folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        sharded_checkpoints.save(self.model, self.optimizer.optimizer, Path(output_dir))
        on_main(torch.save, self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        sharded_checkpoints.load_model(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        sharded_checkpoints.load_optimizer(self.model, self.optimizer.optimizer, Path(checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            on_main(sharded_checkpoints.check_deepspeed, Path(str(self.state.best_model_checkpoint)))
        if not self.is_fsdp_enabled:
            return super()._load_best_model()
        sharded_checkpoints.load_model(self.model, Path(str(self.state.best_model_checkpoint)))


@contextmanager
def _embeddings_in_root(model: Any) -> Iterator[None]:
    """Inside, the model does not tell where its embeddings are, if more than two modules share their weights,
    as in T5 and BART.

    accelerate (1.15) makes parts of FSDP2 of the input and the output embeddings, and torch (2.13) refuses
    them where a third module outside of them has the same weights. Left alone, all of them belong to the
    root, which is whole from the start to the end.
    """
    tables = [
        table for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None
    ]
    weights = {id(weight) for table in tables for weight in table.parameters()}
    others = [m for m in model.modules() if not any(m is table for table in tables)]
    if not any(id(weight) in weights for module in others for weight in module.parameters(recurse=False)):
        yield
        return
    names = ("get_input_embeddings", "get_output_embeddings")
    for name in names:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)
