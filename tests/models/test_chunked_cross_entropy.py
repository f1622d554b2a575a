"""The loss in pieces is the loss of whole logits: value and gradient, for every kind of model, or it is not
used."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hftk.models import chunked_cross_entropy
from hftk.models.chunked_cross_entropy import IGNORED, ChunkedCrossEntropy, cross_entropy_sum, token_losses

V = 61
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
}
SIDES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "dropout": 0.0,
}


def make(kind):
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=V,
                n_embd=16,
                n_layer=1,
                n_head=2,
                n_positions=32,
                resid_pdrop=0,
                embd_pdrop=0,
                attn_pdrop=0,
            )
        )
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(vocab_size=V, **SIZES))
    if kind == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(vocab_size=V, head_dim=8, final_logit_softcapping=0.5, **SIZES))
    if kind == "bart":
        model = BartForConditionalGeneration(BartConfig(vocab_size=V, **SIDES))
        model.final_logits_bias += torch.linspace(-1, 1, V)  # 0 in a new model, and not in every trained one
        return model
    if kind == "marian":
        return MarianMTModel(MarianConfig(vocab_size=V, decoder_vocab_size=V, **SIDES))
    tied = kind == "t5"
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=V,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            dropout_rate=0,
            tie_word_embeddings=tied,
            decoder_start_token_id=0,
        )
    )


def batch_for(model, rows=5, positions=9):
    torch.manual_seed(1)
    ids = torch.randint(2, V, (rows, positions))
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        mask = torch.ones_like(ids)
        mask[1, 4:] = 0
        inputs |= {"attention_mask": mask, "decoder_input_ids": torch.randint(2, V, (rows, 7))}
        positions = 7
    labels = torch.randint(2, V, (rows, positions))
    labels[0, 3:] = IGNORED
    labels[2] = IGNORED
    return inputs, labels


def whole(model, inputs, labels, smoothing):
    logits = model(**inputs, use_cache=False).logits
    return cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=smoothing,
    )


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setitem(chunked_cross_entropy.LOGITS_AT_ONCE, "cpu", 4 * V)
    monkeypatch.setattr(chunked_cross_entropy, "FEWEST_POSITIONS", 3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "bart", "marian", "t5", "t5_untied"])
def test_value_and_gradient_are_those_of_whole_logits(kind, smoothing):
    model = make(kind).train()
    inputs, labels = batch_for(model)
    expected = whole(model, inputs, labels, smoothing)
    before = gradients(model, expected)
    found = cross_entropy_sum(model, inputs, labels, label_smoothing=smoothing)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    after = gradients(model, found)
    assert after.keys() == before.keys()
    largest = max(gradient.abs().max() for gradient in before.values())
    for name, gradient in before.items():
        assert torch.allclose(after[name], gradient, rtol=1e-4, atol=1e-6 * largest), name


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bart", "marian", "t5", "t5_untied"])
def test_the_model_is_run_in_pieces_and_left_as_it_was(kind):
    model = make(kind).train()
    inputs, labels = batch_for(model)
    state = torch.get_rng_state()
    cross_entropy_sum(model, inputs, labels)
    assert chunked_cross_entropy._in_pieces[model]
    assert model.training
    assert "forward" not in vars(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model(**inputs).logits.shape[-1] == V


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_a_model_that_caps_its_logits_keeps_them_whole(cap):
    model = make("gemma2")
    model.config.final_logit_softcapping = cap  # no number of a new model comes near 30
    inputs, labels = batch_for(model)
    cross_entropy_sum(model, inputs, labels)
    assert not chunked_cross_entropy._in_pieces[model]


def test_a_head_with_an_adapter_is_left_to_the_model():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make("gpt2"), peft.LoraConfig(target_modules=["c_attn", "lm_head"], r=2))
    inputs, labels = batch_for(model)
    assert cross_entropy_sum(model, inputs, labels).item() == pytest.approx(
        whole(model, inputs, labels, 0.0).item(), rel=1e-5
    )


def test_an_adapter_under_a_frozen_head_gets_its_gradient():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        make("llama"), peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    )
    inputs, labels = batch_for(model)
    before = gradients(model, whole(model, inputs, labels, 0.1))
    after = gradients(model, cross_entropy_sum(model, inputs, labels, label_smoothing=0.1))
    assert after.keys() == before.keys()
    assert all("lora" in name for name in after)
    for name, gradient in before.items():
        assert torch.allclose(after[name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max())


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_virtual_tokens_before_the_text_have_no_loss(kind):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        make(kind), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    inputs, labels = batch_for(model)
    logits = model(**inputs, use_cache=False).logits[:, 3:]
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    assert cross_entropy_sum(model, inputs, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    assert token_losses(model, inputs, labels).sum().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "bart", "t5"])
def test_the_nats_of_each_position_add_up(kind):
    model = make(kind).eval()
    inputs, labels = batch_for(model)
    nats = token_losses(model, inputs, labels)
    logits = model(**inputs).logits
    expected = cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(labels.shape)
    assert torch.allclose(nats, expected, rtol=1e-4, atol=1e-5)
    assert not nats.requires_grad
    assert torch.all(nats[labels == IGNORED] == 0)


def test_those_who_look_at_logits_can_have_them_whole():
    model = make("gpt2")
    inputs, labels = batch_for(model)
    before = token_losses(model, inputs, labels)
    seen = []
    handle = model.register_forward_hook(lambda module, arguments, output: seen.append(output.logits))
    with chunked_cross_entropy.whole_logits(model):
        assert torch.allclose(token_losses(model, inputs, labels), before, atol=1e-5)
    handle.remove()
    assert seen[0].shape == (*labels.shape, V)
    assert chunked_cross_entropy._in_pieces[model]


def test_tensors_without_values_have_a_loss_in_pieces_too():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = make("marian")
        inputs, labels = batch_for(model)
        assert cross_entropy_sum(model, inputs, labels, label_smoothing=0.1).shape == ()
        assert token_losses(model, inputs, labels).shape == labels.shape


def test_a_batch_without_a_single_target_gives_0_and_no_gradient():
    model = make("gpt2").train()
    inputs, labels = batch_for(model)
    cross_entropy_sum(model, inputs, labels)
    loss = cross_entropy_sum(model, inputs, torch.full_like(labels, IGNORED), label_smoothing=0.1)
    assert loss.item() == 0
    assert all(torch.all(g == 0) for g in gradients(model, loss).values())


def test_autocast_is_as_close_to_the_truth_as_whole_logits_are():
    model = make("llama").train()
    inputs, labels = batch_for(model)
    exact = gradients(model, whole(model, inputs, labels, 0.1))
    with torch.autocast("cpu", torch.bfloat16):
        pieces = cross_entropy_sum(model, inputs, labels, label_smoothing=0.1)
    after = gradients(model, pieces)
    for name, gradient in exact.items():
        assert (
            torch.nn.functional.cosine_similarity(after[name].flatten(), gradient.flatten(), dim=0) > 0.99
        ), name


def test_logits_that_no_float_can_exponentiate_keep_their_loss():
    hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[900.0, 0.0], [-900.0, 0.0], [0.0, 5.0]])
    assert ChunkedCrossEntropy.apply(hidden, weight, None, torch.tensor([1]), 0.0).item() == pytest.approx(
        1800
    )
    assert ChunkedCrossEntropy.apply(hidden, weight, None, torch.tensor([0]), 0.0).item() == pytest.approx(0)


def test_a_copy_of_a_model_is_looked_at_anew():
    model = make("gpt2")
    inputs, labels = batch_for(model)
    cross_entropy_sum(model, inputs, labels)
    assert copy.deepcopy(model) not in chunked_cross_entropy._in_pieces
