"""Names that people bring along: arguments of ``TrainingArguments`` and of the classic example scripts, and
what to type here.

Two tables (:data:`OWN_ARGUMENTS`, :data:`RENAMED`) and what is built on them: advice for an unknown name, the
nearest valid name, and the check of ``train.extra``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hftk.config import Problem
from hftk.config.training_arguments import SECRET, argument_types, secrets, wrong_type

_PLAN = "leave it out: hftk plans the batches of an epoch by itself (--train.group_by_length)"
_MEMORY = "leave it out: batches come tokenized from memory, there is nothing to wait for"
_JUDGE = "leave it out: hftk judges by itself, the same for every batch size; see the --eval settings"
_STAGES = "leave it out: a recipe trains and judges; `hftk evaluate DIR` and `hftk predict DIR` do so later"
_LOGIN = "set HF_TOKEN in the environment or run `hf auth login` instead"
_FOLLOWS = "--train.global_batch_size (rows per optimizer step; the accumulation follows from it)"
_CPU = "leave it out: the launcher chooses the devices, `accelerate launch --cpu RECIPE` for the CPU"
_LAUNCHER = "leave it out: `accelerate launch` sets it"
_BATCH = "--train.per_device_batch_size"
_BEST = "--train.restore_best true, with --train.metric_for_best_model loss, accuracy ..."

OWN_ARGUMENTS: Mapping[str, str] = {
    "output_dir": "--output",
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": "--eval.batch_size",
    "auto_find_batch_size": "--train.max_tokens_per_batch (a bound on memory that does not change the steps)",
    "gradient_accumulation_steps": _FOLLOWS,
    "average_tokens_across_devices": (
        "leave it out: losses are exact means over the items of the global batch"
    ),
    "num_train_epochs": "--train.epochs",
    "max_steps": "--train.max_steps",
    "learning_rate": "--train.learning_rate",
    "warmup_steps": "--train.warmup (a share of all steps if below 1, else a number of steps)",
    "weight_decay": "--train.weight_decay",
    "adam_beta1": "--train.adam_beta1",
    "adam_beta2": "--train.adam_beta2",
    "max_grad_norm": "--train.max_grad_norm",
    "label_smoothing_factor": "--train.label_smoothing",
    "bf16": "--train.precision bf16",
    "fp16": "--train.precision fp16",
    "bf16_full_eval": "--train.precision bf16",
    "fp16_full_eval": "--train.precision fp16",
    "activation_checkpointing": "--train.gradient_checkpointing",
    "gradient_checkpointing": "--train.gradient_checkpointing",
    "torch_compile": "--train.torch_compile",
    "logging_strategy": "--train.log_steps",
    "logging_steps": "--train.log_steps",
    "logging_nan_inf_filter": "leave it out: a loss is logged as it is",
    "disable_tqdm": "leave it out: hftk draws its own progress bar",
    "eval_strategy": "--train.eval_steps",
    "eval_steps": "--train.eval_steps",
    "prediction_loss_only": _JUDGE,
    "include_for_metrics": _JUDGE,
    "batch_eval_metrics": _JUDGE,
    "save_strategy": "--train.save_steps",
    "save_steps": "--train.save_steps",
    "save_total_limit": "--train.keep_checkpoints",
    "save_only_model": "leave it out: a checkpoint holds all that --resume needs",
    "enable_jit_checkpoint": "leave it out: a run that is told to stop writes a checkpoint first",
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "ignore_data_skip": "--resume (it goes on with the row after the last one)",
    "restore_callback_states_from_checkpoint": "--resume (early stopping goes on with its count)",
    "resume_from_checkpoint": "--resume auto (or the path of a checkpoint)",
    "full_determinism": "--train.deterministic",
    "seed": "--train.seed",
    "data_seed": "--train.seed (--data.seed is the seed of the split)",
    "use_cpu": _CPU,
    "dataloader_drop_last": _PLAN,
    "dataloader_num_workers": _MEMORY,
    "dataloader_persistent_workers": _MEMORY,
    "dataloader_pin_memory": _MEMORY,
    "dataloader_prefetch_factor": _MEMORY,
    "include_num_input_tokens_seen": (
        "leave it out: the history in record.json counts the tokens of every step"
    ),
    "logging_first_step": "leave it out: the first step is always logged",
    "eval_accumulation_steps": _JUDGE,
    "eval_delay": "--train.eval_steps",
    "eval_do_concat_batches": _JUDGE,
    "eval_on_start": "leave it out: recipes judge the model before training too",
    "eval_use_gather_object": _JUDGE,
    "torch_empty_cache_steps": (
        "leave it out: it only slows training down; for less memory use --train.max_tokens_per_batch"
    ),
    "push_to_hub": "leave it out: push the finished folder with `hf upload REPO DIR --private`",
    "train_sampling_strategy": "--train.group_by_length true or false (random)",
    "length_column_name": _PLAN,
    "remove_unused_columns": "leave it out: the task chooses the columns of a batch",
    "label_names": "leave it out: the task names its labels",
    "do_train": _STAGES,
    "do_eval": _STAGES,
    "do_predict": _STAGES,
    "local_rank": _LAUNCHER,
}
"""Field of ``TrainingArguments`` (transformers 5.23) that hftk sets itself to what to use instead, as it is
typed.

An entry that begins with ``--`` names a setting; the others say why there is none.
"""

RENAMED: Mapping[str, str] = {
    # TrainingArguments of transformers 4, gone in 5
    "evaluation_strategy": "--train.eval_steps (transformers 5 calls the argument eval_strategy)",
    "lr_scheduler_type": "--train.schedule (transformers' own ones: --train.extra.lr_scheduler_type)",
    "optim": "--train.optimizer (transformers' own ones: --train.extra.optim)",
    "evaluate_during_training": "--train.eval_steps",
    "warmup_ratio": (
        "--train.warmup (a share of all steps if below 1; transformers 5: a fractional warmup_steps)"
    ),
    "no_cuda": f"{_CPU} (transformers 5 calls the argument use_cpu)",
    "overwrite_output_dir": "--overwrite",
    "logging_dir": "leave it out: the curves are in report.html; for TensorBoard set TENSORBOARD_LOGGING_DIR",
    "save_safetensors": "leave it out: weights are always saved as safetensors",
    "include_inputs_for_metrics": f"{_JUDGE} (transformers 5 calls the argument include_for_metrics)",
    "include_tokens_per_second": "leave it out: record.json always holds tokens_per_second",
    "per_gpu_train_batch_size": _BATCH,
    "per_gpu_eval_batch_size": "--eval.batch_size",
    "adafactor": "--train.optimizer adafactor",
    "torchdynamo": "--train.torch_compile",
    "fp16_backend": "--train.precision fp16",
    "half_precision_backend": "--train.precision",
    "fp16_opt_level": "--train.precision fp16",
    "use_mps_device": "leave it out: an Apple GPU is used where there is one",
    "use_ipex": "--train.precision bf16",
    "jit_mode_eval": "--train.torch_compile",
    "push_to_hub_model_id": "--train.extra.hub_model_id",
    "push_to_hub_organization": "--train.extra.hub_model_id ORGANIZATION/NAME",
    "use_legacy_prediction_loop": _JUDGE,
    "past_index": "leave it out: transformers 5 removed it",
    "ray_scope": "leave it out: transformers 5 removed it",
    "mp_parameters": "leave it out: transformers 5 removed it",
    "tpu_num_cores": _LAUNCHER,
    "tpu_metrics_debug": "--train.extra.debug tpu_metrics_debug",
    "xpu_backend": "--train.extra.ddp_backend",
    "sharded_ddp": "give `accelerate launch --config_file FILE` an FSDP config",
    "fsdp_min_num_params": "--train.extra.fsdp_config '{min_num_params: N}'",
    "fsdp_transformer_layer_cls_to_wrap": (
        "--train.extra.fsdp_config '{transformer_layer_cls_to_wrap: [NAME]}'"
    ),
    "dispatch_batches": _PLAN,
    "split_batches": _PLAN,
    # Seq2SeqTrainingArguments and generate()
    "sortish_sampler": _PLAN,
    "predict_with_generate": "leave it out: a task that is judged by generated text generates it",
    "generation_max_length": "--generation.max_new_tokens",
    "generation.max_length": "--generation.max_new_tokens (it counts what follows the prompt)",
    "generation_num_beams": "--generation.num_beams",
    "generation_config": "--generation.max_new_tokens and the other --generation settings",
    "beams": "--generation.num_beams",
    "beam_size": "--generation.num_beams",
    # arguments of the example scripts: model
    "model": "--model.name",
    "model_name": "--model.name",
    "model_name_or_path": "--model.name",
    "pretrained_model_name_or_path": "--model.name",
    "model_id": "--model.name",
    "checkpoint": "--model.name",
    "model_type": "--model.architecture (for a model made on the spot)",
    "config_name": "--model.architecture (with --model.config.NAME VALUE for single fields)",
    "config_overrides": "--model.config.NAME VALUE, one for each field",
    "model_revision": "--model.revision",
    "tokenizer_name": "--model.tokenizer",
    "tokenizer_name_or_path": "--model.tokenizer",
    "torch_dtype": "--model.dtype",
    "model_dtype": "--model.dtype",
    "attn_implementation": "--model.attention",
    "use_flash_attention_2": "--model.attention flash_attention_2",
    "use_flash_attn": "--model.attention flash_attention_2",
    "init": "--model.initialization",
    "dropout_rate": "--model.dropout",
    "load_in_8bit": "--model.quantization.bits 8 (transformers 5 takes a quantization_config instead)",
    "load_in_4bit": "--model.quantization.bits 4 (transformers 5 takes a quantization_config instead)",
    "use_peft": "--model.adapter.method lora",
    "use_lora": "--model.adapter.method lora",
    "lora_r": "--model.adapter.rank",
    "lora_rank": "--model.adapter.rank",
    "lora_target_modules": "--model.adapter.targets",
    "n_layer": "--model.config.n_layer",
    "n_head": "--model.config.n_head",
    "n_embd": "--model.config.n_embd",
    "cache_dir": "set HF_HOME in the environment instead",
    "use_fast_tokenizer": "leave it out: tokenizers are always the fast ones",
    "use_slow_tokenizer": "leave it out: tokenizers are always the fast ones",
    "low_cpu_mem_usage": "leave it out: transformers 5 always loads so",
    "trust_remote_code": "leave it out: code from the Hub is never run",
    "resize_position_embeddings": "--train.max_length (at most the model's context)",
    "ignore_mismatched_sizes": "leave it out: the task sizes its head by the data",
    "token": _LOGIN,
    "use_auth_token": _LOGIN,
    "hub_token": _LOGIN,
    "push_to_hub_token": _LOGIN,
    "api_key": _LOGIN,
    # data
    "data": "--data.path",
    "dataset": "--data.path",
    "dataset_name": "--data.path",
    "dataset_path": "--data.path",
    "data_path": "--data.path",
    "data_dir": "--data.path",
    "data_file": "--data.path",
    "data_files": "--data.path",
    "train_data_file": "--data.train",
    "eval_data_file": "--data.validation",
    "train_file": "--data.train",
    "train_path": "--data.train",
    "train_data": "--data.train",
    "validation_file": "--data.validation",
    "valid_file": "--data.validation",
    "dev_file": "--data.validation",
    "eval_file": "--data.validation",
    "test_file": "--data.test",
    "predict_file": "--data.test",
    "dataset_config": "--data.subset",
    "dataset_config_name": "--data.subset",
    "dataset_streaming": "--data.streaming",
    "task_name": "--data.subset (with --data.path, such as nyu-mll/glue)",
    "max_train_samples": "--data.max_rows",
    "max_samples": "--data.max_rows",
    "max_eval_samples": "--eval.max_rows",
    "max_val_samples": "--eval.max_rows",
    "max_predict_samples": "--eval.max_rows",
    "validation_split_percentage": "--data.validation_fraction (0.05 for 5 %)",
    "val_size": "--data.validation_fraction",
    "test_size": "--data.test_fraction",
    "text_column": "--data.columns.text",
    "text_column_name": "--data.columns.text",
    "text_column_names": "--data.columns.text (and --data.columns.text_pair)",
    "dataset_text_field": "--data.columns.text",
    "sentence1_key": "--data.columns.text",
    "sentence2_key": "--data.columns.text_pair",
    "label_column": "--data.columns.label",
    "label_column_name": "--data.columns.label",
    "summary_column": "--data.columns.target",
    "source_column": "--data.columns.source",
    "target_column": "--data.columns.target",
    "source_lang": "--data.columns.source",
    "target_lang": "--data.columns.target",
    "line_by_line": "--data.documents line",
    "keep_linebreaks": "leave it out: line breaks within a document are kept",
    "shuffle_train_dataset": "leave it out: the training rows are always shuffled, by --train.seed",
    "shuffle_seed": "--train.seed",
    "overwrite_cache": "leave it out: nothing stale is reused",
    "preprocessing_num_workers": "leave it out: fast tokenizers use all cores by themselves",
    "dataset_num_proc": "leave it out: fast tokenizers use all cores by themselves",
    # training
    "block_size": "--train.max_length",
    "max_seq_length": "--train.max_length",
    "max_seq_len": "--train.max_length",
    "seq_length": "--train.max_length",
    "context_length": "--train.max_length",
    "cutoff_len": "--train.max_length",
    "max_source_length": "--train.max_length",
    "max_target_length": "--train.max_length (for generated text --generation.max_new_tokens)",
    "val_max_target_length": "--generation.max_new_tokens",
    "pad_to_max_length": "leave it out: a batch is padded to its longest row, or not at all",
    "ignore_pad_token_for_loss": "leave it out: padding is never part of a loss",
    "batch_size": f"{_BATCH} (judging: --eval.batch_size)",
    "train_batch_size": _BATCH,
    "micro_batch_size": _BATCH,
    "eval_batch_size": "--eval.batch_size",
    "grad_accum": _FOLLOWS,
    "grad_accum_steps": _FOLLOWS,
    "accumulation_steps": _FOLLOWS,
    "num_epochs": "--train.epochs",
    "n_epochs": "--train.epochs",
    "max_train_steps": "--train.max_steps",
    "num_train_steps": "--train.max_steps",
    "max_iters": "--train.max_steps",
    "lr": "--train.learning_rate",
    "min_lr": "--train.min_learning_rate",
    "scheduler": "--train.schedule",
    "lr_scheduler": "--train.schedule",
    "num_warmup_steps": "--train.warmup",
    "warmup_iters": "--train.warmup",
    "warmup_proportion": "--train.warmup",
    "wd": "--train.weight_decay",
    "beta1": "--train.adam_beta1",
    "beta2": "--train.adam_beta2",
    "grad_clip": "--train.max_grad_norm",
    "gradient_clipping": "--train.max_grad_norm",
    "clip_grad_norm": "--train.max_grad_norm",
    "mixed_precision": "--train.precision",
    "eval_interval": "--train.eval_steps",
    "log_interval": "--train.log_steps",
    "checkpointing_steps": "--train.save_steps",
    "checkpoint_interval": "--train.save_steps",
    "early_stopping_patience": "--train.early_stopping",
    "patience": "--train.early_stopping",
    "compile": "--train.torch_compile",
    "with_tracking": "--train.extra.report_to NAME",
    "out": "--output",
    "out_dir": "--output",
    "output_path": "--output",
    "save_dir": "--output",
    "force": "--overwrite",
    "resume_from": "--resume auto (or the path of a checkpoint)",
    "device": _CPU,
    "cpu": _CPU,
    "num_processes": "give it to `accelerate launch`, before the recipe's name",
    "config_file": "--config FILE.yaml (the one of `accelerate launch` stands before the recipe's name)",
}
"""Name of a setting elsewhere (``TrainingArguments`` of transformers 4, its example scripts, other trainers)
to what to type here."""

_OPEN = ("data.columns", "model.config", "train.extra")
_FLAG = re.compile(r"--([a-z][a-z0-9_.]*[a-z0-9_])")


def targets(text: str) -> list[str]:
    """The dotted names of the settings that an advice mentions, in order."""
    return _FLAG.findall(text)


def advise(name: str, known: Collection[str] | None = None) -> str:
    """What to type instead of an argument of transformers or of an example script; "" if ``name`` is none of
    those.

    ``known`` holds the dotted names of the recipe's settings: one that it lacks is not recommended.
    """
    last = name.rpartition(".")[2]
    text = RENAMED.get(name) or RENAMED.get(last) or OWN_ARGUMENTS.get(last)
    if text is None or not text.startswith("--"):
        return text or ""
    target = targets(text)[0]
    if (
        known is None
        or target in known
        or any(target.startswith(f"{name}.") and name in known for name in _OPEN)
    ):
        return f"use {text}"
    return f"its counterpart is --{target}, which this recipe does not have"


def nearest(name: str, known: Collection[str]) -> list[str]:
    """The dotted names that ``name`` is most likely meant to be, at most four; empty if nothing comes near.

    The same last part wins (``learning_rate`` for ``train.learning_rate``), then likeness of the whole, then
    of the last part.
    """
    last = name.rpartition(".")[2]
    ends = {candidate: candidate.rpartition(".")[2] for candidate in known}
    if same := [candidate for candidate, end in ends.items() if last == end]:
        return difflib.get_close_matches(name, same, n=4, cutoff=0)
    likely = {end for end in ends.values() if difflib.SequenceMatcher(None, last, end).ratio() > 0.65}
    if whole := difflib.get_close_matches(
        name, [c for c, end in ends.items() if end in likely], n=1, cutoff=0.8
    ):
        return whole
    close = difflib.get_close_matches(last, likely, n=2, cutoff=0.75)
    return [candidate for end in close for candidate in known if ends[candidate] == end][:4]


def did_you_mean(names: Sequence[str], before: str = "--") -> str:
    """A question that offers ``names``; "" for none."""
    shown = [before + name for name in names]
    return f"did you mean {' or '.join(filter(None, [', '.join(shown[:-1]), shown[-1]]))}?" if shown else ""


def correct(name: str, known: Collection[str]) -> str:
    """What to type instead of the unknown setting ``name``, by the tables and by likeness; "" if nothing
    comes near."""
    name = name.replace("-", "_")
    if name not in known and (advice := advise(name, known)):
        return advice
    last = name.rpartition(".")[2]
    names = nearest(name, known)
    if (
        last not in {n.rpartition(".")[2] for n in names}
        and "train.extra" in known
        and last in argument_types()
    ):
        names = [f"train.extra.{last}"]
    return did_you_mean(names)


def extra_problems(extra: Mapping[str, Any], known: Collection[str] | None = None) -> Iterator[Problem]:
    """What is wrong with ``train.extra``: secrets, fields that hftk sets itself, unknown fields, values of
    the wrong type.

    ``known`` holds the dotted names of the recipe's settings. Nothing is read if ``extra`` is empty.
    """
    for name in secrets(extra):
        yield Problem(
            setting=f"train.extra.{name}",
            message="a secret has no place in a config, which is printed and saved",
            fix=_LOGIN,
        )
    for name, value in extra.items():
        setting = f"train.extra.{name}"
        if SECRET.search(name):
            continue
        if name in OWN_ARGUMENTS:
            yield Problem(setting=setting, message="hftk sets this field itself", fix=advise(name, known))
        elif name not in argument_types():
            fields = {*argument_types(), *RENAMED, *OWN_ARGUMENTS}
            close = difflib.get_close_matches(name.replace("-", "_"), fields, n=1, cutoff=0.75)
            fix = advise(name, known) or did_you_mean(
                [f"train.extra.{n}" for n in close if n in argument_types()]
            )
            if close and not advise(name, known) and advise(close[0], known):
                fix = advise(close[0], known)
            yield Problem(
                setting=setting, message="transformers.TrainingArguments has no such field", fix=fix
            )
        elif problem := wrong_type(value, argument_types()[name]):
            yield Problem(setting=setting, message=problem)
