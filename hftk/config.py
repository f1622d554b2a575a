"""Every setting of hftk: frozen dataclasses, one line of meaning and unit under each field.

The line under a field is its documentation, its ``--help`` and its meaning in ``config.yaml``; there is no second place.
Nothing here imports torch, so that ``--help`` and configuration errors appear at once. :mod:`hftk.parsing` reads flags and
YAML into these classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from hftk.adaptation import AdapterConfig as AdapterConfig
from hftk.adaptation import QuantizationConfig as QuantizationConfig
from hftk.adaptation import starts_from_weights
from hftk.problems import DiskError as DiskError
from hftk.problems import InputError as InputError
from hftk.problems import PlainError as PlainError
from hftk.problems import Problem as Problem
from hftk.problems import ServiceError as ServiceError
from hftk.publication import PublishConfig as PublishConfig

Schedule = Literal[
    "linear", "cosine", "constant", "polynomial", "exponential", "step", "inverse_sqrt", "warmup_stable_decay",
    "reduce_on_plateau",
]  # fmt: skip
Optimizer = Literal["adamw", "adam", "sgd", "rmsprop", "adafactor", "lion", "adamw_8bit", "paged_adamw_8bit"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the rows come from, what their columns are called, and how they are split."""

    path: str | None = None
    """A file, folder, glob or Hub id. A folder or glob whose file names say train, validation or test is split accordingly; anything else is split by the fractions below."""
    train: str | None = None
    """File, folder or glob with the training rows; instead of --data.path."""
    validation: str | None = None
    """File, folder or glob with the validation rows (early stopping and choices are made on them)."""
    test: str | None = None
    """File, folder or glob with the test rows (judged once, at the end)."""
    sample: str | None = None
    """Name of a sample data set made from what is installed, with no download: python_docs, python_modules, docstring_summaries, cldr_en_de, cldr_en_zh."""
    columns: dict[str, str] = field(default_factory=dict)
    """Role to column name, such as --data.columns.text body. Roles that are not named are looked up under their usual names."""
    subset: str | None = None
    """Subset (configuration name) of a Hub data set."""
    format: Literal["auto", "txt", "jsonl", "json", "csv", "tsv", "parquet"] = "auto"
    """File format; auto goes by the file's ending, also below .gz, .bz2, .xz and .zst."""
    encoding: str = "utf-8"
    """Text encoding of the files, such as utf-8 (with or without BOM), gb18030, latin-1."""
    documents: Literal["auto", "file", "paragraph", "line"] = "auto"
    """What one document of a .txt file is: the file, a paragraph (blank lines between), or a line. auto: the file where the splits are given as files or there are at least 20 files, else a paragraph."""
    streaming: bool = False
    """Read the training rows as a stream, for sets larger than memory; needs --train.max_steps."""
    validation_fraction: float | None = None
    """Share of the rows for validation, from 0 to 0.5, chosen by a hash of the text. Default: 0.05 where --data.path gives one unsplit source, else 0."""
    test_fraction: float | None = None
    """Share of the rows for test, from 0 to 0.5, chosen by a hash of the text. Default: as for validation_fraction."""
    seed: int = 0
    """Seed of the split by fractions."""
    max_rows: int | None = None
    """Take at most this many rows of each split (the first ones), for a quick try."""
    unicode: Literal["none", "NFC", "NFKC"] = "NFC"
    """Unicode normalization of every text; altered rows are counted."""
    incomplete: Literal["auto", "drop", "error"] = "auto"
    """What becomes of rows without a text or a label: drop (counted), or error: stop and say which they are. auto: drop in language modelling, error where each row has a label."""
    cache: str = "auto"
    """Folder where the tokens of large sets (from 8 MB of rows on) are kept, for all processes and for later runs on the same rows. auto: hftk/features in HF_HOME; none: nowhere."""
    deduplicate: bool = True
    """Drop rows of the training split that repeat an earlier one. Training rows that stand in validation or test are always dropped."""

    def problems(self) -> Iterator[Problem]:
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 0.5:
                yield Problem(setting=f"data.{name}", message=f"expected a share from 0 to 0.5, found {value}")
        if self.max_rows is not None and self.max_rows < 1:
            yield Problem(setting="data.max_rows", message=f"expected at least 1, found {self.max_rows}")
        if self.streaming and self.incomplete == "error":
            yield Problem(setting="data.incomplete", message="a stream is read while it trains: it cannot be looked through before", fix="use --data.incomplete drop")  # fmt: skip
        for split in ("validation", "test"):
            if getattr(self, split) is not None and getattr(self, f"{split}_fraction"):
                yield Problem(
                    setting=f"data.{split}_fraction",
                    message=f"the {split} rows are given twice: by --data.{split} and by a fraction",
                    fix=f"leave out one of --data.{split} and --data.{split}_fraction",
                )
        if (self.validation or self.test) and not self.train:
            yield Problem(
                setting="data.train",
                message="--data.validation or --data.test is given without the training rows",
                fix="add --data.train FILE (or use --data.path alone for one source)",
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which weights and tokenizer: a name of existing ones, or a size made on the spot."""

    name: str | None = None
    """Hub id or local folder of a pre-trained model and its tokenizer."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    size: str | None = None
    """Make an untrained model on the spot: tiny, mini, small, medium, large ... (an unknown name lists those of the task)."""
    architecture: str | None = None
    """Model type of a model made on the spot, as transformers names it, such as gpt2 or llama. Default: the recipe's."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's own config laid over it, such as --model.config.n_layer 4."""
    tokenizer: str | None = None
    """For a model made on the spot: bpe (byte-level BPE), wordpiece or characters, trained on the training split; or the Hub id or folder of an existing tokenizer. Default: wordpiece for encoders such as BERT, else bpe."""
    vocab_size: int = 4096
    """Entries in a tokenizer trained on the spot, special tokens included (fewer if the data have fewer)."""
    initialization: Literal["default", "xavier", "he"] = "default"
    """Initial weights of the matrices of a model made on the spot: the model's own scheme, Xavier (Glorot) uniform, or He (Kaiming) normal."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type in which weights are held; auto: float32, with --train.precision deciding the type of the arithmetic."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention implementation; auto: the model's best supported one."""
    device_map: Literal["none", "auto", "balanced", "sequential"] = "none"
    """One process, several GPUs: how the layers of a model too large for one GPU are spread over them. auto and balanced: evenly; sequential: one GPU after the other is filled. none: the whole model on one device. Without several GPUs, training is as without it."""
    dropout: float | None = None
    """Dropout probability set on all of the model's dropouts. Default: the model's own (0 for a GPT-2 or Llama made on the spot)."""
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    frozen: list[str] = field(default_factory=list)
    """Weights that are not trained: embeddings, a number of lower layers such as 6 (with the embeddings), or names and parts of names such as encoder.layer.0."""

    def problems(self) -> Iterator[Problem]:
        yield from self.quantization.problems()
        yield from self.adapter.problems()
        yield from self._contradictions()
        if self.name is not None:
            for setting in ("architecture", "tokenizer"):
                if getattr(self, setting) is not None:
                    yield Problem(
                        setting=f"model.{setting}",
                        message=f"is for a model made on the spot, but --model.name {self.name} is a pre-trained one",
                        fix=f"leave out --model.{setting}, or use --model.size instead of --model.name",
                    )
            if self.initialization != "default":
                yield Problem(
                    setting="model.initialization",
                    message="is for a model made on the spot; pre-trained weights are not initialized again",
                    fix="leave it out, or use --model.size instead of --model.name",
                )
        if self.vocab_size < 2:
            yield Problem(setting="model.vocab_size", message=f"expected at least 2, found {self.vocab_size}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            yield Problem(setting="model.dropout", message=f"expected 0 <= dropout < 1, found {self.dropout}")

    def _contradictions(self) -> Iterator[Problem]:
        """Quantization, adapter and frozen weights beside each other."""
        bits, method = self.quantization.bits, self.adapter.method
        if bits is not None and method == "none":
            message = f"weights in {bits} bits cannot be trained themselves: a step is far smaller than the distance between two values"
            yield Problem(setting="model.quantization.bits", message=message, fix="add --model.adapter.method lora, or leave out --model.quantization.bits")
        if bits is not None and starts_from_weights(self.adapter):
            setting = "method" if method == "pissa" else "initialization"
            message = f"pissa and olora take a part out of the frozen weights, which {bits} bits cannot give up"
            yield Problem(setting=f"model.adapter.{setting}", message=message, fix="use --model.adapter.method lora, or leave out --model.quantization.bits")
        if bits is None and self.adapter.initialization == "loftq":
            message = "loftq starts from what quantization rounds away, and --model.quantization.bits is not set"
            yield Problem(setting="model.adapter.initialization", message=message, fix="add --model.quantization.bits 4, or leave it out")
        if self.frozen and method != "none":
            message = f"the adapter {method} freezes all weights of the model already"
            yield Problem(setting="model.frozen", message=message, fix="leave out --model.frozen; --model.adapter.targets says which layers get an adapter")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The knobs of training that people turn; ``extra`` reaches every other field of ``TrainingArguments``."""

    epochs: float | None = None
    """Passes over the training split (fractions allowed)."""
    max_steps: int | None = None
    """Optimizer steps; instead of --train.epochs."""
    per_device_batch_size: int = 32
    """Most rows per device in one forward pass (micro-batch)."""
    max_tokens_per_batch: int | None = None
    """Most tokens, padding included, per device in one forward pass; micro-batches shrink to fit."""
    global_batch_size: int | None = None
    """Rows per optimizer step over all devices and accumulation, which follows from it. Default: per_device_batch_size x processes."""
    global_batch_tokens: int | None = None
    """Tokens per optimizer step over all devices and accumulation; instead of --train.global_batch_size."""
    group_by_length: bool = True
    """Rows of similar length share an optimizer step, which leaves little padding. false: rows are drawn at random, which can learn a little more from them, and costs padding."""
    max_length: int | None = None
    """Most tokens per training row (the block size in language modelling). Default: the model's context, at most 1024."""
    learning_rate: float | None = None
    """Peak learning rate. Default: 5e-5 for pre-trained weights, 1e-3 for a model made on the spot; adapters: 5e-4 (LoRA), 3e-3 (ia3), 3e-2 (prompt_tuning)."""
    min_learning_rate: float = 0.0
    """Where the schedule ends, as a learning rate; it never goes below."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up. step: divided by 10 at 1/3 and 2/3 of the steps; exponential: to 1 % at the end; warmup_stable_decay: constant, then linear over the last 20 %; reduce_on_plateau: halved when eval_loss stalls for 2 evaluations."""
    warmup: float = 0.0
    """Linear warm-up: a share of all steps if below 1, else a number of steps."""
    optimizer: Optimizer = "adamw"
    """Optimizer, in the implementation of torch (lion and those of 8 bits: bitsandbytes). State for each trained weight, in bytes: adamw and adam 8, lion and sgd 4, adamw_8bit 2, adafactor nearly none; that of paged_adamw_8bit moves to main memory when a GPU is full."""
    layer_decay: float = 1.0
    """The learning rate of each layer is this times that of the layer above it, down to the embeddings; 1: the same for all, 0.9 is usual."""
    weight_decay: float = 0.0
    """Weight decay of the matrices; biases and norms are never decayed. adamw (8 bits too), adafactor and lion: decoupled; the others: an L2 penalty."""
    adam_beta1: float = 0.9
    """Decay of the first moment of adamw, adam and lion; momentum of sgd and rmsprop."""
    adam_beta2: float = 0.999
    """Decay of the second moment of adamw and adam (and of lion's momentum)."""
    l1_penalty: float = 0.0
    """Factor of the sum of absolute weights (of the decayed matrices) added to the loss of every optimizer step."""
    label_smoothing: float = 0.0
    """Share of the target probability spread evenly over all classes, 0 <= value < 1; evaluation never smooths."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to at most this norm; 0: no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of training. auto: bf16 autocast where the hardware is faster with it (measured on a CPU), else fp32."""
    eval_steps: float | None = None
    """Optimizer steps between evaluations on the validation split; a share of all steps if below 1. Default: once per epoch."""
    save_steps: float | None = None
    """Optimizer steps between checkpoints; a share of all steps if below 1. Default: as eval_steps; 0: only at the end."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep (the best one is kept besides)."""
    log_steps: int | None = None
    """Optimizer steps between points of the loss curve. Default: about 200 points per run."""
    early_stopping: int = 0
    """Stop after this many evaluations without a better one (by metric_for_best_model); the best weights are restored. 0: off."""
    restore_best: bool = False
    """At the end take the weights of the best evaluation, by metric_for_best_model (always so with early_stopping)."""
    metric_for_best_model: str = "loss"
    """What the best evaluation on the validation split goes by: loss, or a score of the task such as accuracy, f1_macro, bleu or rougeL."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    activation_offload: bool = False
    """On a GPU: keep what the backward pass needs in main memory, for which it costs time; best with gradient_checkpointing, which leaves little to move."""
    torch_compile: bool = False
    """Compile the model with torch.compile (slow first steps)."""
    seed: int = 0
    """Seed of initialization, data order and dropout."""
    deterministic: bool = False
    """Allow only deterministic algorithms, also on GPUs (slower)."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What a step is to do whose loss or gradient is nan or infinite. stop: end the run with a diagnosis and the last checkpoint; skip: leave the weights as they are and go on, which the record counts (ten such steps in a row end the run)."""
    peer_timeout: float = 30.0
    """Several processes: seconds after which one that answers no more, as its machine or the network is down, is given up and the others end."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Any other field of transformers.TrainingArguments by its name, such as --train.extra.neftune_noise_alpha 5."""

    def problems(self) -> Iterator[Problem]:
        positive = ("epochs", "max_steps", "per_device_batch_size", "max_tokens_per_batch", "global_batch_size",
                    "global_batch_tokens", "max_length", "learning_rate", "log_steps", "keep_checkpoints", "eval_steps", "peer_timeout")  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                yield Problem(setting=f"train.{name}", message=f"expected more than 0, found {value}")
        for name in ("min_learning_rate", "warmup", "weight_decay", "l1_penalty", "max_grad_norm", "early_stopping", "save_steps"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                yield Problem(setting=f"train.{name}", message=f"expected 0 or more, found {value}")
        for name in ("label_smoothing", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield Problem(setting=f"train.{name}", message=f"expected 0 <= value < 1, found {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            yield Problem(setting="train.layer_decay", message=f"expected 0 < layer_decay <= 1, found {self.layer_decay}")
        if not 0 <= self.seed < 2**32:
            yield Problem(setting="train.seed", message=f"expected 0 <= seed < 2^32, found {self.seed}")
        if self.learning_rate is not None and self.min_learning_rate > self.learning_rate:
            yield Problem(
                setting="train.min_learning_rate",
                message=f"{self.min_learning_rate} is above the peak --train.learning_rate {self.learning_rate}",
            )
        if self.schedule == "reduce_on_plateau" and self.warmup:
            yield Problem(setting="train.warmup", message="reduce_on_plateau has no warm-up", fix="use --train.warmup 0")


MOST_RESAMPLES = 1_000_000
"""More change no digit of an interval that is shown."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How a split is judged."""

    batch_size: int = 32
    """Rows per device in one forward pass; it does not change any score."""
    max_rows: int | None = None
    """Judge at most this many rows of the split (the first ones). Default: all."""
    generate_rows: int = 100
    """Summarization, translation: rows of the validation split (the first ones) for which text is generated at each evaluation during training, greedily, so that train.metric_for_best_model can be bleu or rougeL. 0: none."""
    stride: int | None = None
    """Language models: tokens between the starts of overlapping windows over documents longer than the context. Default: the context's length, windows do not overlap."""
    resamples: int = 1000
    """Bootstrap resamples behind every 95 % interval; 0: no intervals."""
    seed: int = 0
    """Seed of the bootstrap."""

    def problems(self) -> Iterator[Problem]:
        for name in ("batch_size", "max_rows", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield Problem(setting=f"eval.{name}", message=f"expected at least 1, found {value}")
        if self.resamples > MOST_RESAMPLES:
            message = f"expected at most {MOST_RESAMPLES:,}, found {self.resamples:,}"
            yield Problem(setting="eval.resamples", message=message, fix="use --eval.resamples 10000")
        for name in ("resamples", "generate_rows"):
            if getattr(self, name) < 0:
                yield Problem(setting=f"eval.{name}", message=f"expected 0 or more, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How text is generated; the names are those of transformers' ``GenerationConfig``."""

    max_new_tokens: int = 64
    """Most tokens to generate. 0: as many as the training targets need, with a margin (summarization, translation)."""
    do_sample: bool = False
    """Draw tokens at random instead of taking the most likely one."""
    temperature: float = 1.0
    """Divides the logits before sampling: below 1 safer, above 1 wilder."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the most likely tokens that together have this probability."""
    num_beams: int = 1
    """Beams of beam search; 1: none."""
    length_penalty: float = 1.0
    """Beam search scores a text by its log-probability divided by its tokens to this power: above 1 longer texts, below 1 shorter ones."""
    early_stopping: bool | Literal["never"] = False
    """When beam search is over. true: as soon as there are num_beams finished texts; false: when no better one is likely; never: when no better one is possible."""
    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens occurs twice in a text (in a language model's, prompt included); 0: any may."""
    repetition_penalty: float = 1.0
    """Divides the logit of a token that the text (in a language model's, prompt included) already has: above 1 fewer repetitions."""
    seed: int = 0
    """Seed of sampling."""

    def problems(self) -> Iterator[Problem]:
        for name, least in (("max_new_tokens", 0), ("num_beams", 1)):
            if getattr(self, name) < least:
                yield Problem(setting=f"generation.{name}", message=f"expected at least {least}, found {getattr(self, name)}")
        if not self.temperature > 0:
            yield Problem(
                setting="generation.temperature",
                message=f"expected more than 0, found {self.temperature}",
                fix="for the most likely token use --generation.do_sample false",
            )
        if not 0 < self.top_p <= 1:
            yield Problem(setting="generation.top_p", message=f"expected 0 < top_p <= 1, found {self.top_p}")
        if self.top_k < 0:
            yield Problem(setting="generation.top_k", message=f"expected 0 or more, found {self.top_k}")
        if not self.do_sample and (self.temperature != 1.0 or self.top_k or self.top_p != 1.0):
            yield Problem(
                setting="generation.do_sample",
                message="temperature, top_k and top_p act only when sampling",
                fix="add --generation.do_sample true",
            )
        if self.no_repeat_ngram_size < 0:
            yield Problem(setting="generation.no_repeat_ngram_size", message=f"expected 0 or more, found {self.no_repeat_ngram_size}")
        if not self.repetition_penalty > 0:
            yield Problem(setting="generation.repetition_penalty", message=f"expected more than 0, found {self.repetition_penalty}", fix="for no penalty use 1.0")  # fmt: skip
        if self.num_beams == 1 and (self.length_penalty != 1.0 or self.early_stopping is not False):
            yield Problem(
                setting="generation.num_beams",
                message="length_penalty and early_stopping act only in beam search, found num_beams 1",
                fix="add --generation.num_beams 4",
            )
        if self.do_sample and self.num_beams > 1:
            yield Problem(
                setting="generation.num_beams",
                message=f"expected 1 with do_sample (beams look for the likeliest text), found {self.num_beams}",
                fix="leave out one of --generation.num_beams and --generation.do_sample",
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every recipe has; a task's own config adds its fields."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    publish: PublishConfig = field(default_factory=PublishConfig)
    output: str = "out"
    """Folder for weights, tokenizer, config.yaml, record.json and report.html."""
    resume: str = "never"
    """auto: continue from the newest checkpoint in --output if there is one; never: start anew; or the path of a checkpoint."""
    overwrite: bool = False
    """Replace what an earlier run left in --output."""

    def problems(self) -> Iterator[Problem]:
        """Every contradiction inside the settings that can be seen without touching a file."""
        for f in fields(self):
            value = getattr(self, f.name)
            if is_dataclass(value) and hasattr(value, "problems"):
                yield from value.problems()
        for group in ALTERNATIVES:
            given = [name for name in group if setting(self, name) is not None]
            if len(given) > 1:
                yield Problem(
                    setting=given[-1],
                    message=f"cannot be combined with --{given[0]}",
                    fix=f"leave out one of {' and '.join('--' + name for name in given)}",
                )
        if self.resume != "never" and self.overwrite:
            yield Problem(
                setting="overwrite",
                message=f"--overwrite throws away what --resume {self.resume} wants to continue",
                fix="leave out one of --overwrite and --resume",
            )
        if self.model.device_map != "none" and self.train.torch_compile:
            yield Problem(
                setting="train.torch_compile",
                message=f"torch.compile does not see through what moves a batch from GPU to GPU (--model.device_map {self.model.device_map})",
                fix="leave out one of --train.torch_compile and --model.device_map",
            )
        if self.data.streaming and self.train.max_steps is None:
            yield Problem(
                setting="train.max_steps",
                message="a stream has no known length, so --data.streaming needs a number of steps",
                fix="replace --train.epochs by --train.max_steps N",
            )


ALTERNATIVES: tuple[tuple[str, ...], ...] = (
    ("data.path", "data.train", "data.sample"),
    ("model.name", "model.size"),
    ("train.epochs", "train.max_steps"),
    ("train.global_batch_size", "train.global_batch_tokens"),
)
"""Settings of which one at most is set. One that is given on a higher level (flags over YAML over the recipe) unsets the others."""


def setting(config: Any, name: str) -> Any:
    """The value at a dotted name, such as ``train.learning_rate``; KeyError or AttributeError where there is none."""
    for part in name.split("."):
        config = config[part] if isinstance(config, Mapping) else getattr(config, part)
    return config


def override(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of ``config`` with the nested ``values`` laid over it; dictionaries are merged key by key."""
    changed = {}
    for name, value in values.items():
        old = getattr(config, name)
        if is_dataclass(old) and isinstance(value, Mapping):
            value = override(old, value)
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            value = {**old, **value}
        changed[name] = value
    return replace(config, **changed)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested plain dictionaries, for YAML and JSON."""
    return asdict(config)
