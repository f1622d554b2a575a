"""One model on several GPUs of one process, without a GPU: who decides what, that no two devices are mixed,
and that the hooks change no number.

Two ways stand in for GPUs. torch's fake tensors know the devices cpu:0 and cpu:1 and refuse to mix them as
two GPUs would, but hold no numbers. Real tensors of cpu:0 and cpu:1 are all in main memory and hold numbers,
and everything moves them and hooks them as for GPUs.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate.hooks
import pytest
import torch
from datasets import ClassLabel, Dataset, Value
from datasets import Features as DatasetFeatures

import hftk
from hftk import console
from hftk.config import (
    AdapterConfig,
    EvalConfig,
    InputError,
    ModelConfig,
    QuantizationConfig,
    TrainConfig,
    override,
)
from hftk.generation.generate import generate
from hftk.launch import StopRequested, strategies
from hftk.models import adapters
from hftk.models import device_map as placement
from hftk.models.load import load_model, load_trained
from hftk.models.quantization import halve_embeddings
from hftk.models.weights import spread_adapted
from hftk.planning import simulation
from hftk.planning.shapes import planned_config
from hftk.planning.simulation import BatchShape
from hftk.task import Splits
from hftk.tasks.causal_lm import CausalLM, CausalLMConfig
from hftk.tasks.classification import Classification, ClassificationConfig
from hftk.tasks.summarization import Summarization, SummarizationConfig

KINDS: dict[str, Any] = {
    "gpt2": (CausalLM, CausalLMConfig),
    "llama": (CausalLM, CausalLMConfig),
    "bert": (Classification, ClassificationConfig),
    "t5": (Summarization, SummarizationConfig),
    "marian": (Summarization, SummarizationConfig),
}
TEXTS = [
    f"the {animal} sat on the {place} and saw {number} of them"
    for number, animal in enumerate(("cat", "dog", "cow", "ant", "bee", "owl"))
    for place in ("mat", "log")
]
SPLITS = Splits(
    train=Dataset.from_dict({"text": TEXTS[:8]}), validation=Dataset.from_dict({"text": TEXTS[8:]})
)
SMALL = {"n_layer": 4, "n_embd": 32, "n_head": 2, "n_positions": 64}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WORLD_SIZE", "ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("hftk.launch._Inside.all_gpus", False)
    console.clear_notes()
    yield
    console.clear_notes()


def see_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def task_of(architecture: str, **train: Any) -> Any:
    task, config = KINDS[architecture]
    model = ModelConfig(size="tiny", architecture=architecture, vocab_size=300)
    return task(config(model=model, train=TrainConfig(**train)))


def evenly(model: Any, *, training: bool = True) -> dict[str, str]:
    """The map for two GPUs, each of which would hold the whole."""
    size = sum(p.nbytes for p in model.parameters())
    return placement.device_map(model, "balanced", {0: size, 1: size}, training=training)


def stand_in(places: dict[str, str]) -> dict[str, str]:
    return {name: place.replace("cuda", "cpu") for name, place in places.items()}


set_tensor = accelerate.hooks.set_module_tensor_to_device


def set_on_cpu(module: Any, name: str, device: Any, *arguments: Any, **given: Any) -> None:
    """A weight that is sent to cpu:1 is copied, and no Parameter any more; one sent to a GPU is."""
    set_tensor(module, name, "cpu" if str(device).startswith("cpu") else device, *arguments, **given)


def spread(model: Any, how: str, *, training: bool) -> None:
    if how != "none":
        placement.dispatch(model, stand_in(evenly(model)), main="cpu:0")


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model with a device map is spread over cpu:0 and cpu:1."""
    monkeypatch.setattr(placement, "spread", spread)
    monkeypatch.setattr(accelerate.hooks, "set_module_tensor_to_device", set_on_cpu)


# --- Decisions


@pytest.mark.parametrize(
    ("gpus", "training", "needed"),
    [
        (0, True, False),
        (0, False, False),
        (1, True, False),
        (1, False, True),
        (2, True, True),
        (2, False, True),
    ],
)
def test_there_is_something_to_spread_over(
    gpus: int, training: bool, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One GPU holds all that is trained; what is judged alone may overflow from it into main memory."""
    see_gpus(monkeypatch, gpus)
    assert placement.is_needed("auto", training=training) is needed
    assert not placement.is_needed("none", training=training)
    assert placement.arguments("sequential", training=training) == (
        {"device_map": "sequential"} if needed else {}
    )
    assert bool(console.noted()) is not needed


def test_a_run_on_the_cpu_uses_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 2)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert placement.gpus() == 0 and not placement.is_needed("auto", training=True)


def test_without_gpus_the_model_is_on_the_cpu_as_ever() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    model, _ = load_model(
        ModelConfig(size="tiny", tokenizer="characters", config=SMALL, device_map="auto"),
        CausalLM(CausalLMConfig()),
        SPLITS,
    )
    assert not hasattr(model, "hf_device_map") and model.device.type == "cpu"
    assert console.noted()[-1] == "model.device_map auto: there is no GPU, so that all weights are on the CPU"


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CausalLMConfig(model=ModelConfig(size="tiny", device_map="balanced"))
    assert strategies.find_problems(config) == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    (problem,) = strategies.find_problems(config)
    assert (
        problem.setting == "model.device_map"
        and "2 processes" in problem.message
        and "fsdp2.yaml" in problem.fix
    )
    with pytest.raises(InputError, match="expected one process"):
        placement.is_needed("auto", training=True)


def test_a_strategy_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert (
        "with FSDP2" in str(strategies.device_map_problem("auto", 1))
        and strategies.device_map_problem("none", 1) is None
    )


def test_a_compiled_model_is_refused() -> None:
    config = CausalLMConfig(
        model=ModelConfig(size="tiny", device_map="auto"), train=TrainConfig(torch_compile=True)
    )
    assert [p.setting for p in config.problems()] == ["train.torch_compile"]


def test_one_process_may_have_all_gpus_where_a_map_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """launched() else says that each GPU wants a process."""
    from hftk.launch import _Inside

    see_gpus(monkeypatch, 2)
    assert not _Inside.all_gpus
    placement.is_needed("auto", training=True)
    assert _Inside.all_gpus


def test_quantized_weights_are_placed_by_from_pretrained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """bitsandbytes quantizes a weight on the GPU that keeps it."""
    pytest.importorskip("bitsandbytes")
    import transformers

    from hftk.models.weights import load_weights

    model, _ = load_model(
        ModelConfig(size="tiny", tokenizer="characters", config=SMALL), CausalLM(CausalLMConfig()), SPLITS
    )
    model.save_pretrained(tmp_path)
    asked: list[dict[str, Any]] = []

    def from_pretrained(name: str, **given: Any) -> Any:
        asked.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    for gpus, device_map in ((2, "auto"), (2, "none"), (0, "auto")):
        see_gpus(monkeypatch, gpus)
        config = ModelConfig(
            name=str(tmp_path), device_map=device_map, quantization=QuantizationConfig(bits=8)
        )  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            load_weights(config, "AutoModelForCausalLM", model.config)
        with pytest.raises(KeyboardInterrupt):  # those that are not quantized come by way of main memory
            load_weights(
                replace(config, quantization=QuantizationConfig()), "AutoModelForCausalLM", model.config
            )
    assert [given.get("device_map") for given in asked] == ["auto", None, None, None, None, None]


# --- The map


def on_meta(architecture: str) -> Any:
    task = task_of(architecture)
    with torch.device("meta"):
        model = simulation._build(task.config, task, planned_config(task.config.model, task))
    model.tie_weights()
    return model


@pytest.mark.parametrize("architecture", KINDS)
def test_both_gpus_get_layers_and_no_layer_is_cut(architecture: str) -> None:
    model = on_meta(architecture)
    found = evenly(model)
    assert set(found.values()) == {"cuda:0", "cuda:1"}
    cut = [name for name in found if any(part.isdigit() for part in name.split(".")[:-1])]
    assert cut == []  # the name of a whole layer ends with its number


def test_sequential_fills_one_gpu_after_the_other() -> None:
    model = on_meta("gpt2")
    size = sum(p.nbytes for p in model.parameters())
    assert set(placement.device_map(model, "sequential", {0: 2 * size, 1: size}, training=True).values()) == {
        "cuda:0"
    }


def test_weights_that_do_not_fit_are_trained_nowhere_and_judged_from_main_memory() -> None:
    model = on_meta("gpt2")
    size = sum(p.nbytes for p in model.parameters())
    some = {0: size // 3, 1: size // 3}
    for how in ("auto", "balanced", "sequential"):
        with pytest.raises(
            InputError, match="the rest would be in main memory, where it cannot be trained"
        ) as error:
            placement.device_map(model, how, some, training=True)
        assert (
            error.value.problems[0].setting == "model.device_map"
            and "hftk plan" in error.value.problems[0].fix
        )
        assert "cpu" in placement.device_map(model, how, some, training=False).values()


def test_quantized_weights_that_overflow_are_said_in_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (10**9, 2 * 10**9))
    own = "Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM"
    with (
        pytest.raises(InputError, match=r"found more for the 1\.80 GB that weights may take on 2 GPUs"),
        placement.told({"device_map": "auto"}),
    ):
        raise ValueError(own)
    with pytest.raises(ValueError, match="another"), placement.told({"device_map": "auto"}):
        raise ValueError("another")


# --- Devices are never mixed


def place_fake(module: Any, name: str, device: Any, **_: Any) -> None:
    """accelerate's own makes a Parameter in a way that fake tensors do not allow."""
    *path, last = name.split(".")
    module = module.get_submodule(".".join(path))
    if last in module._parameters:
        old = module._parameters[last]
        module._parameters[last] = torch.nn.Parameter(
            old.detach().to(device), requires_grad=old.requires_grad
        )
    else:
        module._buffers[last] = module._buffers[last].to(device)


def move_fake(module: Any, device: Any = None, dtype: Any = None) -> Any:
    """``torch.nn.Module.to``, which would change the memory of a Parameter."""
    device, dtype = (None, device) if isinstance(device, torch.dtype) else (device, dtype)
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is not None:
                part._parameters[name] = torch.nn.Parameter(
                    old.detach().to(device=device, dtype=dtype), requires_grad=old.requires_grad
                )
    return module


@contextmanager
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, tensors have no memory, and a device that may be cpu:0 or cpu:1. No model outlives it: torch
    (2.13) may crash where the garbage collector finds fake tensors and their mode in one cycle, and hooks are
    cycles. For that these tests are slow ones too: they may take a whole process of tests with them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with monkeypatch.context() as patches, FakeTensorMode(allow_non_fake_inputs=True) as mode:
        mode.cache_enabled = False  # it once crashed on an entry of the other device
        patches.setattr(accelerate.hooks, "set_module_tensor_to_device", place_fake)
        patches.setattr(torch.nn.Module, "to", move_fake)
        yield
        gc.collect()


def make_fake(task: Any, *, spread_at: str) -> Any:
    """A model on both devices, its adapter added before (prediction) or after (training)."""
    from transformers.initialization import no_init_weights

    made = planned_config(task.config.model, task)
    with no_init_weights():
        model = simulation._build(task.config, task, made)
    model.tie_weights()
    if spread_at == "loading":
        placement.dispatch(model, stand_in(evenly(model)), main="cpu:0")
    adapter = task.config.model.adapter
    if adapter.method != "none":
        model = adapters.add(adapter, model, task.auto_model, "base", None, new=[], new_tokens=range(0))
    if spread_at == "end":
        spread_adapted(model, "auto")
    assert {str(p.device) for p in model.parameters()} == {"cpu:0", "cpu:1"}
    assert placement.is_spread(model) and str(placement.device_of(model)) == "cpu:0"
    return model


def batch_of(task: Any, model: Any, *, training: bool) -> dict[str, torch.Tensor]:
    batch = simulation.example_batch(
        task, model, BatchShape(rows=3, length=24, target_length=10), training=training
    )
    return {name: value.to("cpu:0") for name, value in batch.items()}


def check_outputs(task: Any, model: Any) -> None:
    with torch.no_grad():
        task.outputs(model, batch_of(task, model, training=False))


def check_gradients(task: Any, model: Any, *, checkpointing: bool = False) -> None:
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    losses = [total.float() for total, _ in task.loss(model, batch_of(task, model, training=True)).values()]
    assert [str(loss.device) for loss in losses] == ["cpu:0"]
    losses[0].backward()  # type: ignore[no-untyped-call]
    trained = [p for p in model.parameters() if p.grad is not None]
    assert trained and all(p.grad.device == p.device for p in trained)
    check_outputs(task, model)
    model.zero_grad()


@pytest.mark.slow  # see fakes
def test_fake_tensors_of_two_devices_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        fakes(monkeypatch),
        pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"),
    ):
        torch.zeros(2, device="cpu:0") + torch.zeros(2, device="cpu:1")


@pytest.mark.slow  # see fakes
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("architecture", KINDS)
def test_no_operation_mixes_devices(
    architecture: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, gradients and outputs of a model on two devices, which fake tensors refuse to mix."""
    task = task_of(architecture, label_smoothing=smoothing)
    with fakes(monkeypatch):
        check_gradients(task, make_fake(task, spread_at="loading"))


@pytest.mark.slow  # see fakes
@pytest.mark.filterwarnings(
    "ignore:Accessing the data pointer of FakeTensor", "ignore:fan_in_fan_out", "ignore:Position ids"
)
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "prompt_tuning"])
@pytest.mark.parametrize("architecture", ["gpt2", "bert", "t5"])
def test_no_adapter_mixes_devices(architecture: str, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training with gradient checkpointing, and below an adapter that was loaded before its model was
    spread."""
    monkeypatch.setattr(placement, "spread", spread)
    task = task_of(architecture)
    task.config = replace(task.config, model=replace(task.config.model, adapter=AdapterConfig(method=method)))
    with fakes(monkeypatch):
        check_gradients(task, make_fake(task, spread_at="loading"), checkpointing=True)
        check_outputs(task, make_fake(task, spread_at="end").eval())


# --- The same numbers


def config_of(folder: Path, device_map: str, **changes: Any) -> Any:
    config = hftk.CausalLMConfig(
        model=ModelConfig(size="tiny", tokenizer="characters", config=SMALL, device_map=device_map),  # type: ignore[arg-type]
        train=TrainConfig(
            max_steps=6,
            per_device_batch_size=2,
            global_batch_size=4,
            learning_rate=1e-2,
            precision="fp32",
            log_steps=1,
            save_steps=2,
            eval_steps=2,
            restore_best=True,
            l1_penalty=1e-4,
            max_length=32,
        ),
        eval=EvalConfig(resamples=0, batch_size=4),
        output=str(folder),
    )
    return override(config, changes)


def trained(config: Any) -> tuple[Any, Any, Any]:
    task = hftk.CausalLM(config)
    model, tokenizer = hftk.load_model(config.model, task, SPLITS)
    return hftk.fit(task, model, tokenizer, SPLITS, config), task, tokenizer


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def curve(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in point.items() if name != "seconds"} for point in history]


ADAPTED = {"model": {"adapter": {"method": "lora", "rank": 2}}}


@pytest.mark.parametrize(
    "changes",
    [{}, ADAPTED, {"train": {"gradient_checkpointing": True}}],
    ids=["whole", "lora", "checkpointing"],
)
def test_training_judging_and_saving_give_the_same_bits(
    changes: Any, tmp_path: Path, two_devices: None
) -> None:
    """Best weights are restored, files have the same names of weights, and what is saved loads without a
    map."""
    one, task, tokenizer = trained(config_of(tmp_path / "one", "none", **changes))
    two, _, _ = trained(config_of(tmp_path / "two", "balanced", **changes))
    assert placement.is_spread(two.model) and not placement.is_spread(one.model)
    assert curve(one.history) == curve(two.history) and len(one.history) >= 6
    assert same(weights(one.model), weights(two.model))
    judged = [
        hftk.evaluate(task, run.model, tokenizer, SPLITS.held_out, task.config.eval) for run in (one, two)
    ]
    assert judged[0].scores == judged[1].scores  # type: ignore[union-attr]
    again = load_trained(str(tmp_path / "two"))[0]
    assert same(weights(again), weights(one.model))


def test_a_stopped_run_goes_on(tmp_path: Path, two_devices: None, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, _, _ = trained(config_of(tmp_path / "straight", "auto"))
    config = config_of(tmp_path / "stopped", "auto")
    steps: list[int] = []
    with monkeypatch.context() as patches, pytest.raises(StopRequested):
        patches.setattr("hftk.training.trainer.stop_requested", lambda: len(steps) == 3 or steps.append(0))
        trained(config)
    resumed, _, _ = trained(replace(config, resume="auto"))
    assert placement.is_spread(resumed.model)
    assert same(weights(straight.model), weights(resumed.model)) and curve(straight.history) == curve(
        resumed.history
    )


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt_tuning"])
def test_an_adapter_is_where_its_layer_is(method: Any, two_devices: None, tmp_path: Path) -> None:
    config = config_of(tmp_path, "auto", model={"adapter": AdapterConfig(method=method)})
    task = hftk.CausalLM(config)
    model, _ = hftk.load_model(config.model, task, SPLITS)
    other, _ = hftk.load_model(replace(config.model, device_map="none"), task, SPLITS)
    rows = {"input_ids": torch.arange(12).view(2, 6)}
    assert torch.equal(model(**rows).logits, other(**rows).logits)
    assert placement.is_spread(model) and str(placement.device_of(model)) == "cpu:0"


LETTERS = DatasetFeatures({"text": Value("string"), "label": ClassLabel(names=["cat", "other"])})
LABELED = Splits(
    **{
        split: Dataset.from_dict(
            {"text": texts, "label": [int("cat" not in text) for text in texts]}, features=LETTERS
        )
        for split, texts in {"train": TEXTS[:8], "validation": TEXTS[8:]}.items()
    }
)


@pytest.mark.parametrize("method", ["none", "lora"])
def test_a_classifier_and_its_copied_head_learn_the_same(
    method: Any, tmp_path: Path, two_devices: None
) -> None:
    """PEFT copies the head with its hooks, which must not lead back to the one that is not trained."""
    shape = {
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    found = []
    for device_map in ("none", "auto"):
        config = hftk.ClassificationConfig(
            model=ModelConfig(
                size="tiny",
                tokenizer="characters",
                config=shape,
                device_map=device_map,
                adapter=AdapterConfig(method=method),  # type: ignore[arg-type]
            ),
            train=TrainConfig(
                max_steps=4, per_device_batch_size=4, learning_rate=1e-2, precision="fp32", log_steps=1
            ),
            eval=EvalConfig(resamples=0),
            suspicious_labels=0,
            output=str(tmp_path / device_map),
        )
        task = hftk.Classification(config)
        model, tokenizer = hftk.load_model(config.model, task, LABELED)
        assert placement.is_spread(model) is (device_map == "auto")
        run = hftk.fit(task, model, tokenizer, LABELED, config)
        scores = hftk.evaluate(task, run.model, tokenizer, LABELED.held_out, config.eval)
        found.append((run, {score.name: score.value for score in scores.scores}))  # type: ignore[union-attr]
    # Up to rounding: with the copies between devices, autograd adds up some gradients in another order.
    (one, scores_one), (two, scores_two) = found
    assert scores_two == pytest.approx(scores_one, rel=1e-4)
    assert [p["loss"] for p in two.history] == pytest.approx([p["loss"] for p in one.history], rel=1e-5)
    assert [p["grad_norm"] for p in two.history] == pytest.approx(
        [p["grad_norm"] for p in one.history], rel=1e-4
    )
    one, two = weights(one.model), weights(two.model)
    assert one.keys() == two.keys() and all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_the_forward_pass_is_whole_after_training_in_fp16(two_devices: None) -> None:
    """What accelerate does around a training in fp16, which a CPU does not have."""
    from accelerate.utils import extract_model_from_parallel
    from accelerate.utils.operations import convert_outputs_to_fp32

    model, _ = load_model(
        ModelConfig(size="tiny", tokenizer="characters", config=SMALL, device_map="auto"),
        CausalLM(CausalLMConfig()),
        SPLITS,
    )
    rows = torch.arange(12).view(2, 6)
    before = model(rows).logits
    forward = model.__dict__["_original_forward"] = model.forward
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(forward))
    unwrapped = extract_model_from_parallel(model, keep_fp32_wrapper=False)
    with pytest.raises(AttributeError):
        unwrapped(rows)  # once this works, mend() has nothing to mend
    placement.mend(unwrapped)
    assert torch.equal(unwrapped(rows).logits, before)
    placement.mend(unwrapped)
    assert torch.equal(unwrapped(rows).logits, before)


SETTINGS = hftk.GenerationSettings(max_new_tokens=6)


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 3}], ids=["greedy", "beams", "sampled"]
)
@pytest.mark.parametrize("judged", ["spread", "offloaded"])
def test_text_and_scores_of_a_judged_model_are_the_same(
    judged: str, settings: Any, two_devices: None, tmp_path: Path
) -> None:
    """Offloaded: the weights of the upper layers are in main memory, and on the device only while their layer
    computes."""
    config = config_of(tmp_path, "none")
    task = hftk.CausalLM(config)
    model, tokenizer = hftk.load_model(config.model, task, SPLITS)
    settings = replace(SETTINGS, **settings)
    texts = [g.text for g in generate(model, tokenizer, TEXTS[:3], settings)]
    scores = hftk.evaluate(task, model, tokenizer, SPLITS.held_out, config.eval, samples=False).scores  # type: ignore[union-attr]
    model, _ = hftk.load_model(config.model, task, SPLITS)
    places = stand_in(evenly(model))
    if judged == "offloaded":
        places = {name: "cpu" if place == "cpu:1" else place for name, place in places.items()}
    placement.dispatch(model, places, main="cpu:0")
    assert (
        placement.is_offloaded(model) is any(p.is_meta for p in model.parameters()) is (judged == "offloaded")
    )
    assert [g.text for g in generate(model, tokenizer, TEXTS[:3], settings)] == texts
    found = hftk.evaluate(task, model, tokenizer, SPLITS.held_out, config.eval, samples=False)
    assert found.scores[0].value == pytest.approx(scores[0].value, rel=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["none", "lora", "prompt_tuning"])
def test_a_saved_model_is_placed_for_prediction(method: Any, tmp_path: Path, two_devices: None) -> None:
    run, _, tokenizer = trained(
        config_of(
            tmp_path / "run", "none", packing="concatenate", model={"adapter": AdapterConfig(method=method)}
        )
    )
    model, _ = load_trained(str(tmp_path / "run"), device_map="auto")
    assert placement.is_spread(model)
    one, two = ([g.text for g in generate(m, tokenizer, TEXTS[:3], SETTINGS)] for m in (run.model, model))
    assert one == two


def test_embeddings_below_a_quantized_model_are_halved_under_the_hooks(two_devices: None) -> None:
    """The hooks keep the method of the layer's class of before."""
    model, _ = load_model(
        ModelConfig(size="tiny", tokenizer="characters", config=SMALL), CausalLM(CausalLMConfig()), SPLITS
    )
    other, _ = load_model(
        ModelConfig(size="tiny", tokenizer="characters", config=SMALL), CausalLM(CausalLMConfig()), SPLITS
    )
    placement.dispatch(model, stand_in(evenly(model)), main="cpu:0")
    halve_embeddings(model)
    halve_embeddings(other)
    rows = torch.arange(12).view(2, 6)
    logits = model(rows).logits
    assert logits.dtype == torch.float32 and torch.equal(logits, other(rows).logits)


# --- Commands


def test_commands_place_a_model_as_the_run_did(
    tmp_path: Path, two_devices: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hftk.cli import main

    asked: list[str] = []

    def keep(model: Any, how: str, *, training: bool) -> None:
        assert not training
        asked.append(how)
        spread(model, how, training=training)

    trained(config_of(tmp_path, "none"))
    monkeypatch.setattr(placement, "spread", keep)
    capsys.readouterr()
    printed = []
    for flags in ([], ["--device_map", "sequential"]):
        assert main(["predict", str(tmp_path), "--prompt", "the cat", "--max_new_tokens", "4", *flags]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    (tmp_path / "config.yaml").write_text("model: {device_map: balanced}\n", encoding="utf-8")
    assert main(["predict", str(tmp_path), "--prompt", "the cat", "--max_new_tokens", "4"]) == 0
    printed.append(json.loads(capsys.readouterr().out))
    assert asked == ["none", "sequential", "balanced"] and printed[0] == printed[1] == printed[2]


def test_quantized_weights_that_one_device_took_whole_are_not_placed_again() -> None:
    model = torch.nn.Linear(2, 2)
    model.device = torch.device("cpu")  # type: ignore[assignment]
    placement.placed(model)
    assert placement.places(model) == {"cpu"} and not placement.is_spread(model)
