"""One process, DDP, FSDP2 and DeepSpeed: the same run. Every process has rows of its own; what is learnt is
what one process learns."""

import gc
import importlib.util

import pytest
import small_runs
import strategy_runs
import torch
from strategy_runs import ADAM, CASES, MODELS, STEPS, VARIANTS

pytestmark = pytest.mark.launch
SLOW = pytest.mark.slow
ZERO = ["zero2", "zero3"]


def ran(factory, *names):
    """What the named runs show in this process."""
    gc.freeze()
    found = {name: strategy_runs.run(name, factory.mktemp("run"), {}) for name in names}
    gc.unfreeze()
    return found


def found_by(folder, names, **settings):
    """Strategy to what the named runs show in several processes; ``names`` is by strategy."""
    words = [word for strategy, some in names.items() for word in (strategy, ";".join(some))]
    small_runs.launch_two("in_strategies.py", str(folder), *words, cwd=folder, **settings)
    return {strategy: torch.load(folder / f"{strategy}.pt", weights_only=False) for strategy in names}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return ran(tmp_path_factory, *CASES)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Strategy to what each case shows in two processes."""
    names = {"ddp": [*CASES, "shared out"], "fsdp2": [*MODELS, "interrupted"]}
    return found_by(tmp_path_factory.mktemp("two"), names)


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """What each variant shows in one process and under FSDP2."""
    return ran(tmp_path_factory, *VARIANTS), found_by(
        tmp_path_factory.mktemp("variants"), {"fsdp2": VARIANTS}
    )["fsdp2"]


@pytest.fixture(scope="module")
def zero(tmp_path_factory):
    """ZeRO stage to what it shows in two processes, by the launch config that is shipped."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    found = {}
    for stage in ZERO:
        folder = tmp_path_factory.mktemp(stage)
        settings = folder / "settings.yaml"
        shipped = (small_runs.ROOT / f"recipes/accelerate/{stage}.yaml").read_text()
        settings.write_text(f"{shipped}\nuse_cpu: true\nnum_processes: 2\n")
        found |= found_by(folder, {stage: [*MODELS, "an adapter", "interrupted"]}, settings=settings)
    return found


def assert_same_run(mine, other, tolerance=1e-5):
    """Curves, final weights, scores and facts of two runs."""
    assert [point["step"] for point in mine["history"]] == [point["step"] for point in other["history"]]
    for name in ("loss", "eval_loss", "grad_norm", "learning_rate", "tokens", "epoch"):
        values = [[point[name] for point in run["history"] if name in point] for run in (mine, other)]
        assert values[1] == pytest.approx(values[0], rel=tolerance) and values[0], name
    assert mine["weights"].keys() == other["weights"].keys()
    # The softmax does not see the key's bias: its gradient is zero but for rounding, of which Adam makes
    # whole steps.
    unseen = ("key.bias", "c_attn.bias")
    weights = [{n: w for n, w in run["weights"].items() if not n.endswith(unseen)} for run in (mine, other)]
    assert small_runs.difference(*weights) < tolerance
    assert other["scores"] == pytest.approx(mine["scores"], rel=tolerance)
    assert (mine["facts"], mine["choices"]) == (other["facts"], other["choices"])


def assert_twenty_steps_agree(mine, other):
    assert len(mine["history"]) == STEPS
    assert_same_run(mine, other)
    assert mine["written"] == other["written"] and len(mine["samples"]) == len(other["samples"])
    for sample, same in zip(mine["samples"], other["samples"], strict=True):
        assert same == {
            k: pytest.approx(v, abs=2e-6) if isinstance(v, float) else v for k, v in sample.items()
        }  # rounded to 6 digits


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_of_ddp_are_those_of_one_process(one, two, case):
    assert_twenty_steps_agree(one[case], two["ddp"][case])


@pytest.mark.parametrize("case", MODELS)
def test_twenty_steps_of_fsdp2_are_those_of_one_process(one, two, case):
    assert_twenty_steps_agree(one[case], two["fsdp2"][case])


@SLOW
@pytest.mark.parametrize("stage", ZERO)
@pytest.mark.parametrize("case", MODELS)
def test_twenty_steps_of_deepspeed_are_those_of_one_process(one, zero, case, stage):
    assert_twenty_steps_agree(one[case], zero[stage][case])


@SLOW
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_touches_weights_outside_of_a_forward_pass_reaches_all_shards(variants, variant):
    mine, other = variants
    assert_same_run(mine[variant], other[variant], strategy_runs.TOLERANCES.get(variant, 1e-4))


@SLOW
def test_the_best_weights_are_not_the_last_ones(variants):
    """Else the test above would not see that they are restored."""
    history = variants[0]["the best of three, its temperature fitted"]["history"]
    judged = [point["eval_loss"] for point in history if "eval_loss" in point]
    assert min(judged) < judged[-1]


@SLOW
@pytest.mark.parametrize("strategy", ["fsdp2", *ZERO])
def test_of_an_adapter_nothing_else_is_saved(variants, strategy, request):
    found = variants[1] if strategy == "fsdp2" else request.getfixturevalue("zero")[strategy]
    mine, other = variants[0]["an adapter"], found["an adapter"]
    assert mine["weights"].keys() == other["weights"].keys() and all(
        "lora_" in name for name in mine["weights"]
    )
    assert_same_run(mine, other, 1e-4)


def test_a_sharded_run_that_was_stopped_and_continued_has_the_bits_of_one_that_was_not(two):
    assert_no_trace(two["fsdp2"]["interrupted"])


@SLOW
@pytest.mark.parametrize("stage", ZERO)
def test_a_run_of_deepspeed_that_was_stopped_and_continued_has_the_bits_of_one_that_was_not(zero, stage):
    assert_no_trace(zero[stage]["interrupted"])


def assert_no_trace(found):
    """Of the interruption."""
    straight, continued = found["straight"], found["continued"]
    assert small_runs.same_bits(straight["weights"], continued["weights"])
    assert straight["history"] == continued["history"]


@SLOW
def test_a_sharded_run_goes_on_with_another_number_of_processes(tmp_path):
    straight, splits = strategy_runs._prepared("bert", tmp_path / "straight", ADAM)
    mine = strategy_runs.run_config(straight, splits)
    found_by(tmp_path, {"fsdp2": ["begin bert"]})
    (checkpoint,) = tmp_path.rglob("checkpoint-3")
    assert len(list((checkpoint / "shards").glob("*.distcp"))) == 2 and not list(
        checkpoint.glob("*.safetensors")
    )
    other = found_by(tmp_path, {"fsdp2": ["go on bert"]}, processes=3)["fsdp2"]["go on bert"]
    other["choices"] = [
        note.replace("as at the first start of this run", "(as asked)").replace("fp32, (", "fp32 (")
        for note in other["choices"]
    ]
    assert_same_run(mine, other)


def test_each_process_encodes_its_share_of_a_stream_and_gets_all(two):
    first, second = two["ddp"]["shared out"]
    assert (first["encoded"], second["encoded"]) == ([0, 2, 4, 6], [1, 3, 5])
    assert first["got"] == second["got"] == list(range(7))
    assert second["told"] == "ValueError: not a row"
    assert first["told"] == "RuntimeError: process 1 could not encode its rows: ValueError: not a row"
