"""Models by name and by size: what the settings say is what is made, and what cannot be made is said before
any data is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from hftk import console
from hftk.config import EvalConfig, InputError, ModelConfig, TrainConfig
from hftk.models.load import (
    check_model,
    context_length,
    default_length,
    is_pretrained,
    load_model,
    load_trained,
    model_config,
)
from hftk.models.sizes import model_sizes
from hftk.models.tokenizers import train_byte_bpe, train_characters
from hftk.task import Splits
from hftk.tasks.causal_lm import CausalLM, CausalLMConfig
from hftk.training.checks import check

TASK = CausalLM(CausalLMConfig())
TEXTS = ["the cat sat on the mat", "the dog sat on the log", "床前明月光"]
SPLITS = Splits(train=Dataset.from_dict({"text": TEXTS}))
SMALL = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 16}
GPT2 = ModelConfig(size="tiny", tokenizer="characters", config=SMALL)
LLAMA = ModelConfig(
    size="tiny",
    architecture="llama",
    tokenizer="characters",
    config={
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 16,
    },
)


@pytest.fixture(autouse=True)
def _no_earlier_choices() -> Iterator[None]:
    console.clear_notes()
    yield
    console.clear_notes()


def made(config: ModelConfig, /, **changes: Any) -> tuple[Any, Any]:
    return load_model(replace(config, **changes), TASK, SPLITS)


def problems(config: ModelConfig, **arguments: Any) -> list[str]:
    with pytest.raises(InputError) as error:
        check_model(config, TASK, **arguments)
    return [str(p) for p in error.value.problems]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it."""
    folder = tmp_path_factory.mktemp("saved")
    model, tokenizer = made(GPT2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- Sizes and fields


@pytest.mark.parametrize(
    ("size", "millions"), [("small", 124), ("medium", 355), ("large", 774), ("xl", 1558)]
)
def test_sizes_of_gpt2_are_those_that_were_published(size: str, millions: int) -> None:
    from transformers import AutoModelForCausalLM

    config = model_config(ModelConfig(size=size), TASK)
    assert (config.n_positions, config.vocab_size, config.resid_pdrop) == (1024, 50257, 0.0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_every_size_can_be_made(architecture: str) -> None:
    contexts = [
        default_length(check_model(ModelConfig(size=s, architecture=architecture), TASK))
        for s in model_sizes(architecture, TASK.auto_model)
    ]
    assert contexts == sorted(contexts) and contexts[0] >= 128 and contexts[-1] == 1024


def test_fields_of_the_models_own_config_are_laid_over_the_size_also_by_their_general_names() -> None:
    for fields in ({"n_layer": 3, "n_embd": 48}, {"num_hidden_layers": 3, "hidden_size": 48}):
        config = model_config(ModelConfig(size="tiny", config=fields), TASK)
        assert (config.n_layer, config.n_embd, config.n_head) == (3, 48, 4)


def test_fields_that_follow_from_others_follow_from_the_new_ones() -> None:
    config = model_config(LLAMA, TASK)
    assert (config.head_dim, config.num_key_value_heads) == (16, 2)
    model, _ = made(LLAMA)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (32, 32)


def test_the_context_is_found_under_each_name_for_it() -> None:
    assert context_length(model_config(GPT2, TASK)) == context_length(model_config(LLAMA, TASK)) == 16
    assert default_length(model_config(ModelConfig(size="xl", architecture="llama"), TASK)) == 1024


# --- What cannot be made


def test_an_unknown_size_is_named_with_the_nearest_one() -> None:
    (problem,) = problems(ModelConfig(size="smal"))
    assert (
        problem.startswith("--model.size: expected one of tiny, mini, small")
        and "did you mean small?" in problem
    )
    assert "found nothing" in problems(ModelConfig())[0]


def test_an_unknown_architecture_is_named_with_the_nearest_one() -> None:
    assert "(did you mean gpt2?)" in problems(ModelConfig(size="tiny", architecture="gpt-2"))[0]
    assert "did you mean" not in problems(ModelConfig(size="tiny", architecture="bloom"))[0]


def test_all_unknown_fields_and_wrong_types_are_named_at_once() -> None:
    found = problems(ModelConfig(size="tiny", config={"n_layers": 2, "n_head": "four", "nonsense": 1}))
    assert len(found) == 3
    assert found[0] == "--model.config.n_layers: the config of gpt2 has no such field; did you mean n_layer?"
    assert found[1].startswith("--model.config.n_head: ") and "expected int, got str" in found[1]
    assert found[2] == "--model.config.nonsense: the config of gpt2 has no such field"


@pytest.mark.parametrize("fields", [{"n_head": 5}, {"n_embd": 0}, {"activation_function": "gellu"}])
def test_numbers_that_do_not_fit_together_are_found_before_any_data_is_read(fields: dict[str, Any]) -> None:
    (problem,) = problems(ModelConfig(size="tiny", config=fields))
    assert problem.startswith("--model.config: a gpt2 cannot be made of these settings: ")


def test_an_attention_that_is_not_installed_is_found_before_any_data_is_read(saved: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("it may be installed")
    for config in (
        replace(GPT2, attention="flash_attention_2"),
        ModelConfig(name=str(saved), attention="flash_attention_2"),
    ):
        assert problems(config)[0].startswith("--model.attention: ")


def test_a_block_longer_than_the_context_is_refused_with_what_to_type(saved: Path) -> None:
    assert (
        "--train.max_length 16, or a longer context: --model.config.n_positions 64"
        in problems(GPT2, max_length=64)[0]
    )
    assert "--model.config.max_position_embeddings 64" in problems(LLAMA, max_length=64)[0]
    (problem,) = problems(ModelConfig(name=str(saved)), max_length=17)
    assert f"expected at most 16, the context of the model (--model.name {saved}), found 17" in problem
    assert problem.endswith("use --train.max_length 16")
    check_model(GPT2, TASK, 16)


@pytest.mark.parametrize(("kind", "least"), [("bpe", 257), ("characters", 3)])
def test_a_vocabulary_too_small_for_its_tokenizer_is_refused(kind: str, least: int) -> None:
    (problem,) = problems(ModelConfig(size="tiny", tokenizer=kind, vocab_size=least - 1))
    assert (
        f"--model.vocab_size: expected at least {least} for --model.tokenizer {kind}, found {least - 1}"
        == problem
    )
    check_model(ModelConfig(size="tiny", tokenizer=kind, vocab_size=least), TASK)


def test_several_problems_are_told_at_once() -> None:
    found = problems(
        ModelConfig(size="tiny", tokenizer="characters", vocab_size=2, config={"n_head": 3}), max_length=10**6
    )
    assert [p.split(":")[0] for p in found] == ["--train.max_length", "--model.vocab_size", "--model.config"]


# --- Dropout and initialization


def test_dropout_is_set_on_all_dropouts_and_by_default_there_is_none() -> None:
    config = model_config(replace(GPT2, dropout=0.3), TASK)
    assert {config.resid_pdrop, config.embd_pdrop, config.attn_pdrop, config.summary_first_dropout} == {0.3}
    assert model_config(replace(LLAMA, dropout=0.3), TASK).attention_dropout == 0.3
    model, _ = made(GPT2, dropout=0.3)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    model, _ = made(GPT2)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_dropout_is_refused_for_models_without(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(InputError, match=r"--model.dropout: mamba has no dropout"):
        model_config(ModelConfig(name=str(tmp_path), dropout=0.1), TASK)


def matrices(model: Any) -> dict[str, tuple[torch.Tensor, int, int]]:
    """Name to (weight, inputs, outputs) of every product; torch's Linear holds (outputs, inputs), GPT-2's
    Conv1D the reverse."""
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__ == "Conv1D":
            found[name] = (module.weight.detach(), *module.weight.shape)
        elif isinstance(module, torch.nn.Linear) and name != "lm_head":
            found[name] = (module.weight.detach(), module.in_features, module.out_features)
    return found


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["conv1d", "linear"])
@pytest.mark.parametrize("scheme", ["xavier", "he"])
def test_xavier_and_he_have_their_variance_and_leave_embeddings_biases_and_norms(
    config: ModelConfig, scheme: Any
) -> None:
    wide = {"n_embd": 64} if config is GPT2 else {"hidden_size": 64, "intermediate_size": 160}
    changed = replace(config, config={**config.config, **wide})
    model, _ = made(changed, initialization=scheme)
    plain, _ = made(changed)
    assert len(matrices(model)) == (8 if config is GPT2 else 14)
    for name, (weight, inputs, outputs) in matrices(model).items():
        expected = (2 / (inputs + outputs)) ** 0.5 if scheme == "xavier" else (2 / inputs) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.05), name
        if scheme == "xavier":
            assert weight.abs().max() <= (6 / (inputs + outputs)) ** 0.5
    initialized = {id(w): n for n, (w, _, _) in matrices(model).items()}
    assert initialized
    theirs = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") not in matrices(model):
            assert torch.equal(parameter, theirs[name]), name


# --- Seeds


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    first, second, other = (load_model(GPT2, TASK, SPLITS, seed=s)[0].state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_the_global_random_state_is_neither_used_nor_changed(saved: Path) -> None:
    grown = ModelConfig(name=str(saved))
    for config in (GPT2, grown):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        first = load_model(config, TASK, SPLITS)[0].state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(8)
        second = load_model(config, TASK, SPLITS)[0].state_dict()
        assert all(torch.equal(first[n], second[n]) for n in first)


# --- Tokenizer and vocabulary


def test_a_tokenizer_is_trained_on_the_training_split_and_fits_the_model() -> None:
    model, tokenizer = made(GPT2)
    assert set(tokenizer.get_vocab()) == {*"".join(TEXTS), "<|endoftext|>", "<|unknown|>"}
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    assert model.config.eos_token_id == tokenizer.eos_token_id == model.generation_config.eos_token_id == 0
    assert tokenizer.model_max_length == 16
    assert console.noted() == [
        f"tokenizer: characters, trained on the training split, {len(tokenizer)} entries"
    ]
    assert len(made(GPT2, tokenizer=None, vocab_size=270)[1]) == 270


def test_more_rows_than_the_tokenizer_needs_may_be_asked_for() -> None:
    model, tokenizer = made(GPT2, config={**SMALL, "vocab_size": 64})
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 64 > len(tokenizer)


def test_a_model_made_on_the_spot_can_take_the_tokenizer_of_a_folder_that_holds_nothing_else(
    tmp_path: Path,
) -> None:
    trained = train_characters(["other words"], 100)
    trained.pad_token = None
    trained.save_pretrained(tmp_path)
    config = replace(GPT2, tokenizer=str(tmp_path))
    check_model(config, TASK)
    model, tokenizer = load_model(config, TASK, SPLITS)
    assert tokenizer.get_vocab() == trained.get_vocab() and model.config.vocab_size == len(trained)
    assert tokenizer.pad_token == tokenizer.eos_token


def test_a_tokenizer_that_is_not_there_is_found_before_any_data_is_read(offline: None) -> None:
    (problem,) = problems(replace(GPT2, tokenizer="character"))
    assert (
        problem.startswith("--model.tokenizer: there is no folder character")
        and "did you mean characters?" in problem
    )


def test_embeddings_grow_with_a_tokenizer_that_has_more_entries(saved: Path, tmp_path: Path) -> None:
    model, tokenizer = load_trained(str(saved))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|b|>"]})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    grown, _ = load_model(ModelConfig(name=str(tmp_path)), TASK, SPLITS)
    old = model.get_input_embeddings().weight
    new = grown.get_input_embeddings().weight
    assert new.shape[0] == old.shape[0] + 2 == grown.config.vocab_size == grown.lm_head.out_features
    assert torch.equal(new[: old.shape[0]], old)
    assert console.noted() == [
        f"embeddings grown to {new.shape[0]} rows: the tokenizer has more entries than the model"
    ]
    again, _ = load_model(ModelConfig(name=str(tmp_path)), TASK, SPLITS)
    assert torch.equal(again.get_input_embeddings().weight, new)


# --- By name


def test_what_was_saved_is_what_is_loaded(saved: Path) -> None:
    config = ModelConfig(name=str(saved))
    assert is_pretrained(config) and not is_pretrained(GPT2)
    model, tokenizer = load_model(config, TASK, SPLITS)
    original, its_tokenizer = made(GPT2)
    assert tokenizer.get_vocab() == its_tokenizer.get_vocab()
    expected = original.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    for_use, _ = load_trained(str(saved))
    assert not for_use.training and torch.equal(for_use.lm_head.weight, original.lm_head.weight)


def test_gelu_new_is_computed_by_one_kernel_and_is_the_same_function(saved: Path, tmp_path: Path) -> None:
    model, tokenizer = load_trained(str(saved))
    model.config.activation_function = "gelu_new"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = torch.tensor([[3, 4, 5, 6]])
    slow, _ = load_trained(str(tmp_path))
    fast, _ = load_model(ModelConfig(name=str(tmp_path)), TASK, SPLITS)
    assert fast.config.activation_function == "gelu_pytorch_tanh" and "gelu_new" in console.noted()[0]
    assert torch.allclose(slow(ids).logits, fast.eval()(ids).logits, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_weights_are_held_in_float32_unless_told_otherwise_whatever_the_file_has(
    saved: Path, tmp_path: Path, dtype: Any, expected: torch.dtype
) -> None:
    model, tokenizer = load_trained(str(saved))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for config in (ModelConfig(name=str(tmp_path), dtype=dtype), replace(GPT2, dtype=dtype)):
        assert load_model(config, TASK, SPLITS)[0].dtype == expected
    assert load_trained(str(tmp_path), dtype=dtype)[0].dtype == expected


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    "name", ["nobody/no-such-model-here", "out/no_such_folder", "/no/such/folder", "./missing"]
)
def test_a_missing_folder_or_a_hub_id_without_network_says_what_to_do(offline: None, name: str) -> None:
    (problem,) = problems(ModelConfig(name=name))
    assert problem.startswith(
        f"--model.name: there is no folder {name}, and as a Hub id it cannot be loaded: "
    )
    assert "HF_HUB_OFFLINE" in problem and "--model.size tiny" in problem and "Traceback" not in problem


def test_a_folder_without_a_model_says_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (problem,) = problems(ModelConfig(name=str(tmp_path)))
    assert (
        "expected a folder with config.json, weights and tokenizer" in problem and "has notes.txt" in problem
    )
    (tmp_path / "notes.txt").unlink()
    assert "has nothing" in problems(ModelConfig(name=str(tmp_path)))[0]


def test_a_folder_without_weights_is_found_before_any_data_is_read(saved: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    (problem,) = problems(ModelConfig(name=str(tmp_path)))
    assert "expected weights" in problem and "found config.json, tokenizer.json" in problem


def copy_of(saved: Path, folder: Path) -> Path:
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("harm", ["config", "type", "weights", "shape", "tokenizer"])
def test_damaged_files_are_an_input_error_and_no_traceback(saved: Path, tmp_path: Path, harm: str) -> None:
    folder = copy_of(saved, tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    if harm == "config":
        (folder / "config.json").write_text("{")
    elif harm == "type":
        (folder / "config.json").write_text('{"model_type": "nonsense"}')
    elif harm == "weights":
        (folder / "model.safetensors").write_bytes(b"not weights")
    elif harm == "shape":
        (folder / "config.json").write_text(json.dumps({**fields, "n_embd": 64}))
    else:
        (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError) as error:
        load_model(ModelConfig(name=str(folder)), TASK, SPLITS)
    assert str(error.value).startswith(f"--model.name: {folder} cannot be loaded: ")


# --- Everything at once


def test_check_gives_the_context_in_which_rows_are_judged() -> None:
    assert check(CausalLMConfig(model=GPT2), TASK) == 16


def test_check_reports_every_problem_at_once() -> None:
    config = CausalLMConfig(
        model=replace(GPT2, config={**SMALL, "n_layers": 1}),
        train=TrainConfig(warmup=-1, precision="fp16"),
        eval=EvalConfig(stride=0),
    )
    with pytest.raises(InputError) as error:
        check(config, TASK)
    found = [p.setting for p in error.value.problems]
    expected = ["train.warmup", "eval.stride", "model.config.n_layers"]
    assert found == (expected if torch.cuda.is_available() else [*expected, "train.precision"])


def test_check_holds_lengths_against_the_context() -> None:
    config = CausalLMConfig(
        model=GPT2, eval=EvalConfig(stride=17), train=TrainConfig(max_tokens_per_batch=15)
    )
    with pytest.raises(InputError) as error:
        check(config, TASK)
    assert [p.setting for p in error.value.problems] == ["eval.stride", "train.max_tokens_per_batch"]
    check(
        replace(
            config, eval=EvalConfig(stride=16), train=TrainConfig(max_tokens_per_batch=15, max_length=15)
        ),
        TASK,
    )


def test_check_finds_an_optimizer_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CausalLMConfig(model=GPT2, train=TrainConfig(optimizer="lion"))
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest)
    )
    with pytest.raises(InputError, match="lion comes from bitsandbytes"):
        check(config, TASK)


def test_the_byte_level_tokenizer_is_the_default() -> None:
    assert train_byte_bpe(TEXTS, 300).get_vocab() == made(GPT2, tokenizer=None, vocab_size=300)[1].get_vocab()
