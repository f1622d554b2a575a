"""Models that are whole look so, layers are found in every kind of model, and shards on disk execute
nothing."""

import os
import pickle

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hftk.models import sharded
from hftk.models.layers import layer_classes
from hftk.training import sharded_checkpoints
from hftk.training.sharded_trainer import _embeddings_in_root

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
}
BERT = BertConfig(**SMALL, max_position_embeddings=8)
DECODER = BertConfig(**SMALL, max_position_embeddings=8, is_decoder=True, add_cross_attention=True)
T5 = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
BART = BartConfig(
    vocab_size=20,
    d_model=16,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    max_position_embeddings=8,
)
MADE = {
    "bert": (lambda: BertForSequenceClassification(BERT), {"BertLayer"}, False),
    "bert, its head tied": (lambda: BertForMaskedLM(BERT), {"BertLayer"}, True),
    "modernbert": (
        lambda: ModernBertForSequenceClassification(ModernBertConfig(**SMALL, pad_token_id=0)),
        {"ModernBertEncoderLayer"},
        False,
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=8)),
        {"GPT2Block"},
        False,
    ),
    "t5": (lambda: T5ForConditionalGeneration(T5), {"T5Block"}, True),
    "bart": (lambda: BartForConditionalGeneration(BART), {"BartEncoderLayer", "BartDecoderLayer"}, True),
    "two berts": (
        lambda: EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(BERT, DECODER)),
        {"BertLayer"},
        None,
    ),
}
"""Name to model, the classes of its layers, and whether a third module has weights of its embeddings (or the
bias of its head)."""


@pytest.mark.parametrize("kind", MADE)
def test_layers_are_what_fsdp_gathers_one_by_one_and_no_embeddings_are_among_them(kind):
    make, classes, _ = MADE[kind]
    with torch.device("meta"):
        model = make()
    assert classes <= set(layer_classes(model)) and not [n for n in layer_classes(model) if "Embeddings" in n]
    tables = {
        id(module)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == 20
    }
    layers = [module for module in model.modules() if type(module).__name__ in layer_classes(model)]
    assert layers and not [part for layer in layers for part in layer.modules() if id(part) in tables]


@pytest.mark.parametrize("kind", [kind for kind in MADE if MADE[kind][2] is not None])
def test_embeddings_that_three_modules_share_are_left_to_the_root(kind):
    make, _, shared = MADE[kind]
    model = make()
    with _embeddings_in_root(model):
        assert (model.get_input_embeddings() is None) == shared
    assert model.get_input_embeddings() is not None and "get_input_embeddings" not in vars(model)


def test_a_whole_model_is_not_gathered():
    model = MADE["gpt2"][0]()
    assert not sharded.is_sharded(model) and sharded.gather(model) is None
    assert sharded.class_name(model) == "GPT2LMHeadModel" and sharded.compute_dtype(model) == torch.float32
    weight = model.lm_head.weight
    assert (sharded.size(weight), sharded.shape(weight)) == (320, (20, 16))
    with sharded.gathered_for_update(model.lm_head, model):
        pass


def test_a_weight_of_zero_3_is_counted_whole():
    weight = torch.nn.Parameter(torch.empty(0))
    weight.ds_numel, weight.ds_shape = 320, torch.Size((20, 16))
    assert (sharded.size(weight), sharded.shape(weight)) == (320, (20, 16))


def trained(seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.fixture
def saved(tmp_path):
    """A model, its optimizer, and the folder that holds both."""
    model, optimizer = trained(0)
    sharded_checkpoints.save(model, optimizer, tmp_path)
    return model, optimizer, tmp_path


def test_what_is_loaded_has_the_bits_of_what_was_saved(saved):
    model, optimizer, folder = saved
    other, its_optimizer = trained(1)
    sharded_checkpoints.load_model(other, folder)
    sharded_checkpoints.load_optimizer(other, its_optimizer, folder)
    assert all(
        torch.equal(mine, its) for mine, its in zip(model.parameters(), other.parameters(), strict=True)
    )
    states = [
        [s[name] for s in o.state_dict()["state"].values() for name in sorted(s)]
        for o in (optimizer, its_optimizer)
    ]
    assert len(states[0]) == 12 and all(torch.equal(mine, its) for mine, its in zip(*states, strict=True))


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_an_index_that_would_execute_something_is_refused(saved, monkeypatch):
    model, _, folder = saved
    monkeypatch.chdir(folder)
    (folder / "shards" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RuntimeError, match=r"system, which no such file needs"):
        sharded_checkpoints.load_model(model, folder)
    assert not (folder / "evil").exists()


def test_a_value_that_would_execute_something_is_refused(tmp_path, monkeypatch):
    model, optimizer = trained(0)
    optimizer.param_groups[0]["lr"] = Evil()
    monkeypatch.chdir(tmp_path)
    sharded_checkpoints.save(model, optimizer, tmp_path)
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(RuntimeError, match=r"[Ww]eights only"):
        sharded_checkpoints.load_optimizer(model, optimizer, tmp_path)
    assert not (tmp_path / "evil").exists()


def test_a_file_of_deepspeed_that_would_execute_something_is_refused(tmp_path):
    (tmp_path / "global_step3").mkdir()
    torch.save({"a": torch.ones(2), "b": 3}, tmp_path / "global_step3" / "mp_rank_00_model_states.pt")
    sharded_checkpoints.check_deepspeed(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "global_step3" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(RuntimeError, match=r"asks for posix\.system|asks for nt\.system"):
        sharded_checkpoints.check_deepspeed(tmp_path)


def test_a_disk_that_takes_nothing_is_an_error_of_the_disk(saved, monkeypatch):
    model, optimizer, folder = saved

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.FileSystem.create_stream", full)
    with pytest.raises(OSError, match="No space left on device"):
        sharded_checkpoints.save(model, optimizer, folder / "other")
