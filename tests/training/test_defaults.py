"""What is chosen where learning rate and length of a training are left unset."""

import pytest

from hftk.config import AdapterConfig, ModelConfig
from hftk.training import defaults


@pytest.mark.parametrize(
    ("millions", "rate"), [(4, 5e-4), (22, 1.7e-4), (110, 5e-5), (340, 2.1e-5), (7000, 1e-5)]
)
def test_smaller_models_learn_at_higher_rates(millions: int, rate: float) -> None:
    found, reason = defaults.learning_rate(ModelConfig(name="m"), millions * 10**6)
    assert found == pytest.approx(rate)
    assert f"{millions} million" in reason or millions == 7000


def test_a_new_model_and_adapters_have_rates_of_their_own() -> None:
    assert defaults.learning_rate(ModelConfig(size="tiny"), 10**9)[0] == 1e-3
    rates = {
        m: defaults.learning_rate(ModelConfig(name="m", adapter=AdapterConfig(method=m)), 10**8)[0]
        for m in ("lora", "dora", "ia3")
    }
    assert rates == {"lora": 5e-4, "dora": 5e-4, "ia3": 3e-3}


@pytest.mark.parametrize(
    ("steps", "passes"), [(1, 20), (40, 20), (60, 17), (235, 5), (333, 4), (334, 3), (100_000, 3)]
)
def test_few_rows_get_more_passes(steps: int, passes: int) -> None:
    found, reason = defaults.epochs(steps)
    assert found == passes and "neither train.epochs nor train.max_steps is set" in reason
