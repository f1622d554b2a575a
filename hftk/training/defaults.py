"""Learning rate and length of a training where the user leaves them unset: they follow from the case."""

from __future__ import annotations

import math

from hftk.config import ModelConfig

BASE_PARAMETERS, BASE_LEARNING_RATE = 110e6, 5e-5
"""BERT base and the upper end of the range that Devlin et al. 2019 (arXiv:1810.04805, appendix A.3) recommend
for it."""
SIZE_EXPONENT = 0.75
"""Small models learn best at higher rates: 1.6e-4 for the 22 million parameters of MiniLM."""
LOWEST_RATE, HIGHEST_RATE = 1e-5, 5e-4
NEW_MODEL_RATE = 1e-3
"""For a model made on the spot."""
ADAPTER_RATES = {"ia3": 3e-3, "prompt_tuning": 3e-2}
"""Those of Liu et al. 2022 for IA3, and of PEFT's examples for prompt tuning."""
LORA_RATE = 5e-4
"""Ten times that of full fine-tuning, as Schulman et al. 2025 ("LoRA without regret") found to be best over
many models."""
FEWEST_EPOCHS, MOST_EPOCHS = 3, 20
"""Few rows need many passes: Mosbach et al. 2021 (arXiv:2006.04884) fine-tune BERT on small sets for 20
epochs."""
FEWEST_STEPS = 1000
"""Optimizer steps that a training has at least, as long as that takes no more than :data:`MOST_EPOCHS`."""


def learning_rate(model: ModelConfig, parameters: int) -> tuple[float, str]:
    """The peak learning rate for a model of ``parameters`` weights, and the reason for it."""
    method = model.adapter.method
    if method != "none":
        return ADAPTER_RATES.get(method, LORA_RATE), f"for an adapter ({method})"
    if model.name is None:
        return NEW_MODEL_RATE, "for a model made on the spot"
    rate = BASE_LEARNING_RATE * (BASE_PARAMETERS / max(1, parameters)) ** SIZE_EXPONENT
    rate = min(HIGHEST_RATE, max(LOWEST_RATE, rate))
    digits = 1 - math.floor(math.log10(rate))
    return round(rate, digits), f"for pre-trained weights of {parameters / 1e6:.3g} million parameters"


def epochs(steps_per_epoch: int) -> tuple[float, str]:
    """Passes over a training split of ``steps_per_epoch`` optimizer steps, and the reason for them."""
    passes = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(FEWEST_STEPS / max(1, steps_per_epoch))))
    steps = f"{steps_per_epoch:,} step{'s' if steps_per_epoch > 1 else ''} each"
    why = "neither train.epochs nor train.max_steps is set"
    if passes > FEWEST_EPOCHS:
        why += f", and few rows need more passes ({passes * steps_per_epoch:,} steps in all)"
    return float(passes), f"of {steps}: {why}"
