"""One process, DDP, FSDP2 and DeepSpeed: the same run. Every process has rows of its own; what is learnt is what one process learns."""

import gc

import pytest
import small_runs
import strategy_runs
import torch

pytestmark = pytest.mark.launch
CASES, VARIANTS = list(strategy_runs.CASES), list(strategy_runs.VARIANTS)


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    """What each case and variant shows in this process."""
    gc.freeze()
    found = {name: strategy_runs.run(name, tmp_path_factory.mktemp("run"), {}) for name in [*CASES, *VARIANTS]}
    gc.unfreeze()
    return found


def found_by(folder, names, **settings):
    """Strategy to what the named runs show in two processes; ``names`` is by strategy."""
    words = [word for strategy, some in names.items() for word in (strategy, ";".join(some))]
    small_runs.launch_two("in_strategies.py", str(folder), *words, cwd=folder, **settings)
    return {strategy: torch.load(folder / f"{strategy}.pt", weights_only=False) for strategy in names}


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """Strategy to what each case and variant shows in two processes."""
    return found_by(tmp_path_factory.mktemp("two"), {"ddp": CASES, "fsdp2": [*CASES, *VARIANTS, "interrupted"]})


def assert_same_run(mine, other, tolerance=1e-5):
    """Curves, final weights, scores, samples and facts of two runs."""
    assert [point["step"] for point in mine["history"]] == [point["step"] for point in other["history"]]
    for name in ("loss", "eval_loss", "grad_norm", "learning_rate", "tokens", "epoch"):
        values = [[point[name] for point in run["history"] if name in point] for run in (mine, other)]
        assert values[1] == pytest.approx(values[0], rel=tolerance) and values[0], name
    assert mine["weights"].keys() == other["weights"].keys()
    # The softmax does not see the key's bias: its gradient is zero but for rounding, of which Adam makes whole steps.
    weights = [{name: w for name, w in run["weights"].items() if "key.bias" not in name} for run in (mine, other)]
    assert small_runs.difference(*weights) < tolerance
    assert other["scores"] == pytest.approx(mine["scores"], rel=tolerance)
    assert (mine["facts"], mine["choices"]) == (other["facts"], other["choices"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_one_process(one, two, strategy, case):
    mine, other = one[case], two[strategy][case]
    assert len(mine["history"]) == strategy_runs.STEPS
    assert_same_run(mine, other)
    assert (mine["samples"], mine["written"]) == (other["samples"], other["written"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_touches_weights_outside_of_a_forward_pass_reaches_all_shards(one, two, variant):
    assert_same_run(one[variant], two["fsdp2"][variant], 1e-4)


def test_the_best_weights_are_not_the_last_ones(one):
    """Else the test above would not see that they are restored."""
    judged = [point["eval_loss"] for point in one["the best of three, its temperature fitted"]["history"] if "eval_loss" in point]
    assert min(judged) < judged[-1]


def test_a_sharded_run_that_was_stopped_and_continued_has_the_bits_of_one_that_was_not(two):
    straight, continued = (two["fsdp2"]["interrupted"][name] for name in ("straight", "continued"))
    assert small_runs.same_bits(straight["weights"], continued["weights"])
    assert straight["history"] == continued["history"]
