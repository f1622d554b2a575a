"""Fused layers are the layers of transformers: the same losses and gradients, and nothing else is touched."""

import contextlib
import copy
from typing import Any

import pytest
import torch
from small_models import KINDS, WORDS, batch, loss_and_gradients, make, same

from hftk import fused
from hftk.fused import installing, stacks
from hftk.models import chunked_cross_entropy
from hftk.models.chunked_cross_entropy import summed_nats

pytestmark = pytest.mark.usefixtures("ops")


def fused_count(model: Any) -> int:
    return sum("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_losses_and_gradients_are_those_of_the_own_layers(kind, threads):
    torch.set_num_threads(threads)
    model, given = make(kind), batch()
    own_loss, own = loss_and_gradients(model, given)
    with fused.fused_layers(model):
        assert fused_count(model) == 2  # encoder and decoder
        loss, gradients = loss_and_gradients(model, given)
    assert loss == pytest.approx(own_loss, rel=1e-5)
    same(gradients, own)
    assert fused_count(model) == 0


@pytest.mark.parametrize("width, heads", [(16, 1), (32, 2), (64, 2), (24, 8), (136, 2)])
@pytest.mark.parametrize("lengths", [(1, 1), (1, 16), (16, 1), (16, 16), (17, 33), (70, 3)])
@pytest.mark.parametrize("kind", ["marian", "t5"])
def test_any_width_and_length(kind, width, heads, lengths):
    model, given = make(kind, width=width, heads=heads), batch(2, *(max(n, 4) for n in lengths))
    given = {name: value[:, : lengths[name == "labels"]].contiguous() for name, value in given.items()}
    own_loss, own = loss_and_gradients(model, given)
    with fused.fused_layers(model):
        loss, gradients = loss_and_gradients(model, given)
    assert loss == pytest.approx(own_loss, rel=1e-5)
    same(gradients, own)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu", "gelu_pytorch_tanh"])
def test_activations(activation):
    model, given = make("bart", activation=activation), batch()
    _, own = loss_and_gradients(model, given)
    with fused.fused_layers(model):
        assert fused_count(model) == 2
        same(loss_and_gradients(model, given)[1], own)


@pytest.mark.parametrize("activation", ["gated-relu", "gated-silu", "silu"])
def test_activations_of_t5(activation):
    model, given = make("t5", activation=activation), batch()
    _, own = loss_and_gradients(model, given)
    with fused.fused_layers(model):
        same(loss_and_gradients(model, given)[1], own)


def test_an_activation_without_kernel_keeps_its_layers():
    model = make("bart", activation="tanh")
    with fused.fused_layers(model):
        assert fused_count(model) == 0


@pytest.mark.parametrize("kind", ["marian", "mbart", "t5", "t5_gated"])
def test_gradients_under_dropout_are_the_slopes_of_the_loss(kind):
    """With the generator set back, the same elements are dropped, and the loss is a function of the weights alone."""
    model, given = make(kind, dropout=0.2).double().float(), batch()

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return model(**given, use_cache=False).loss

    with fused.fused_layers(model):
        loss().backward()
        directions = {n: torch.randn_like(p) for n, p in model.named_parameters() if p.grad is not None}
        if "t5" not in kind:
            directions["model.shared.weight"][0] = 0  # that of padding is not trained where it is read
        expected = sum((p.grad * directions[n]).sum().item() for n, p in model.named_parameters() if n in directions)
        ends = []
        for step in (2e-4, -2e-4):
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if name in directions:
                        weight.add_(directions[name], alpha=step)
            ends.append(loss().item())
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if name in directions:
                        weight.sub_(directions[name], alpha=step)
        dropped_elsewhere = model(**given, use_cache=False).loss.item()
    assert (ends[0] - ends[1]) / 4e-4 == pytest.approx(expected, rel=0.03, abs=0.02)
    assert dropped_elsewhere != pytest.approx(loss().item(), rel=1e-6)


def test_a_share_of_the_elements_is_dropped_and_the_rest_scaled_up(ops):
    rows, width, p = 500, 64, 0.3
    zero, one = torch.zeros(width, width), torch.ones(width)
    x = torch.zeros(rows, width)

    def made() -> torch.Tensor:
        return ops.feed_forward(x, zero, None, zero, one, one, one, None, 0, 0.0, True, False, 1e-5, p)  # x + dropout(1)

    found = made()
    assert (found == 0).float().mean().item() == pytest.approx(p, abs=0.01)
    assert found[found != 0].unique().tolist() == [pytest.approx(1 / (1 - p), rel=1e-4)]
    by_place = (found == 0).double().view(-1, 4)  # four elements share one number
    assert torch.corrcoef(by_place.T).fill_diagonal_(0).abs().max() < 0.05
    again = made()
    assert ((found == 0) & (again == 0)).float().mean().item() == pytest.approx(p * p, abs=0.01)
    torch.manual_seed(3)
    first = made()
    torch.manual_seed(3)
    assert torch.equal(first, made())


def test_what_is_not_training_runs_as_ever():
    model, given = make("marian"), batch()
    model.eval()
    with torch.no_grad():
        before = model(**given).logits
        words = model.generate(given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=5, num_beams=2)
    with fused.fused_layers(model), torch.no_grad():
        assert torch.equal(model(**given).logits, before)
        assert torch.equal(model.generate(given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=5, num_beams=2), words)


def test_paused_layers_call_every_module():
    model, given, called = make("t5"), batch(), []
    with fused.fused_layers(model):
        handle = model.decoder.block[0].layer[-1].DenseReluDense.wi.register_forward_hook(lambda *_: called.append(1))
        model(**given)
        assert not called
        with fused.paused():
            model(**given)
        assert called
        handle.remove()


@pytest.mark.parametrize("touch", ["hook", "backward_hook", "half", "adapter", "frozen"])
def test_layers_that_have_more_to_do_are_left_alone(touch):
    model = make("marian")
    layer = model.model.encoder.layers[0]
    expected = 1  # the decoder
    if touch == "hook":
        layer.fc1.register_forward_hook(lambda *_: None)
    elif touch == "backward_hook":
        layer.fc1.register_full_backward_pre_hook(lambda *_: None)
    elif touch == "half":
        layer.fc1.to(torch.bfloat16)
    elif touch == "adapter":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
        expected = 0
    else:
        layer.requires_grad_(False)
        expected = 2
    with fused.fused_layers(model):
        assert fused_count(model) == expected


def test_frozen_weights_get_no_gradient_and_the_rest_their_own():
    model, given = make("mbart"), batch()
    for name, weight in model.named_parameters():
        weight.requires_grad_("encoder.layers.0" not in name and "q_proj" not in name and "fc2" not in name and "layer_norm" not in name)
    _, own = loss_and_gradients(model, given)
    with fused.fused_layers(model):
        found = loss_and_gradients(model, given)[1]
    same(found, own)


def runs_fused(model: Any, given: dict[str, torch.Tensor], **more: Any) -> list[str]:
    """Names of the encoders and decoders that ran blocks."""
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacks, "_padded", lambda ops, packed, rows, own=stacks._padded: ran.append(rows.shape) or own(ops, packed, rows))
        model(**given, **more)
    sides = {given["input_ids"].shape: "encoder", given["labels"].shape: "decoder"}
    return [sides[shape] for shape in ran]


def test_long_sequences_and_autocast_run_as_they_are(monkeypatch):
    model, given = make("marian"), batch()
    _, own = loss_and_gradients(model, given)
    with fused.fused_layers(model):
        assert runs_fused(model, given) == ["encoder", "decoder"]
        with torch.autocast("cpu", torch.bfloat16):
            assert not runs_fused(model, given)
        monkeypatch.setattr(stacks, "MOST_SCORES", 11 * 18 - 1)
        assert runs_fused(model, given) == ["encoder"]
        monkeypatch.setattr(stacks, "MOST_SCORES", 5)
        assert not runs_fused(model, given)
        assert torch.equal(loss_and_gradients(model, given)[1]["model.shared.weight"], own["model.shared.weight"])


@pytest.mark.parametrize("asked", ["output_attentions", "output_hidden_states", "use_cache"])
def test_what_wants_more_than_the_last_states_gets_it(asked):
    model, given = make("t5"), batch()
    with fused.fused_layers(model):
        assert "decoder" not in runs_fused(model, given, **{asked: True})
    if asked == "output_hidden_states":
        model.config.output_hidden_states = model.encoder.config.output_hidden_states = model.decoder.config.output_hidden_states = True
        with fused.fused_layers(model):
            assert not runs_fused(model, given)


def test_a_copy_of_the_model_is_a_model_of_its_own():
    model, given = make("marian"), batch()
    with fused.fused_layers(model):
        copied = copy.deepcopy(model)
        with torch.no_grad():
            for weight in copied.parameters():
                weight.mul_(3)
        loss = copied(**given).loss.item()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    assert loss == pytest.approx(model(**given).loss.item(), rel=1e-6)


def test_a_class_of_the_same_name_keeps_its_forward():
    model = make("t5")
    own = type("T5LayerFF", (type(model.encoder.block[0].layer[-1]),), {"forward": lambda self, x: x})
    model.encoder.block[0].layer[-1].__class__ = own
    with fused.fused_layers(model):
        assert "forward" not in vars(model.encoder) and "forward" in vars(model.decoder)


def masks(kind: str, mask: torch.Tensor) -> torch.Tensor:
    if kind == "on the left":
        return mask.flip(1)
    if kind == "with a hole":
        mask[0, 2] = 0
    elif kind == "an empty row":
        mask[1] = 0
    return mask


@pytest.mark.parametrize("kind", ["on the left", "with a hole", "an empty row"])
@pytest.mark.parametrize("architecture", ["marian", "t5"])
def test_other_padding_runs_as_it_is(kind, architecture):
    model, given = make(architecture), batch()
    given["attention_mask"] = masks(kind, given["attention_mask"])
    own_loss, own = loss_and_gradients(model, given)
    with fused.fused_layers(model):
        assert not runs_fused(model, given)
        loss, gradients = loss_and_gradients(model, given)
    assert loss == own_loss
    same(gradients, own)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given_masks", ["none", "both", "encoder's outputs"])
def test_ways_to_say_what_is_padding(kind, given_masks):
    model, given = make(kind), batch()
    if given_masks == "none":
        del given["attention_mask"]
    elif given_masks == "both":
        given["decoder_attention_mask"] = (given["labels"] != -100).long()
    else:
        with torch.no_grad():
            ids = given.pop("input_ids")
            given["encoder_outputs"] = model.get_encoder()(input_ids=ids, attention_mask=given["attention_mask"])
    own_loss, own = loss_and_gradients(model, given)
    with fused.fused_layers(model):
        loss, gradients = loss_and_gradients(model, given)
    assert loss == pytest.approx(own_loss, rel=1e-5)
    same(gradients, own)


@pytest.mark.parametrize("kind", ["marian", "t5", "m2m_100"])
def test_outputs_that_are_not_looked_at_are_left_out(monkeypatch, kind):
    """Behind the last label of a row nothing is computed; labels that are missing in front or between change nothing."""
    model, given = make(kind), batch(4)
    labels = given.pop("labels")
    labels[2], labels[3, :4], labels[0, 5], labels[:, 16:] = -100, -100, -100, -100
    given["decoder_input_ids"] = labels.clamp_min(3)
    found, sizes = {}, []
    looked_at = fused.looked_at
    monkeypatch.setattr(fused, "looked_at", lambda *a: sizes.append(len((made := looked_at(*a)).states)) or made)
    for name in ("own", "fused"):
        model.zero_grad()
        with fused.fused_layers(model) if name == "fused" else contextlib.nullcontext(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(stacks, "_padded", lambda ops, packed, rows, own=stacks._padded: sizes.append(len(packed)) or own(ops, packed, rows))
            loss = summed_nats(model, given, labels)
            loss.backward()
        found[name] = loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert sizes == [4 * 18, int(given["attention_mask"].sum()), 47, 4 * 18 if kind == "t5" else 47]  # the loss last; T5 scales what its decoder gives
    assert found["fused"][0] == pytest.approx(found["own"][0], rel=1e-5)
    same(found["fused"][1], found["own"][1])


@pytest.mark.parametrize("kind", ["marian", "t5"])
def test_a_mask_of_the_decoder_hides_no_outputs(kind):
    model, given = make(kind), batch()
    given["decoder_attention_mask"] = torch.ones_like(given["labels"])
    given["decoder_attention_mask"][:, 15:] = 0
    own_loss, own = loss_and_gradients(model, given)
    with fused.fused_layers(model):
        loss, gradients = loss_and_gradients(model, given)
    assert loss == pytest.approx(own_loss, rel=1e-6)
    same(gradients, own)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float32])
def test_other_types_of_numbers(dtype):
    model, given = make("marian"), batch()
    labels = given.pop("labels")
    given["decoder_input_ids"] = labels.clamp_min(3)
    own = summed_nats(model, given, labels).item()
    given["attention_mask"] = given["attention_mask"].to(dtype)
    if dtype == torch.int32:
        given = {name: value.int() for name, value in given.items()}
    with fused.fused_layers(model):
        assert summed_nats(model, given, labels).item() == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("label", [-5, WORDS])
def test_a_label_that_is_none_is_an_error_at_the_end_too(label):
    model, given = make("marian"), batch()
    labels = given.pop("labels")
    given["decoder_input_ids"] = labels.clamp_min(3)
    labels[1, -1] = label
    with fused.fused_layers(model), pytest.raises(IndexError):
        summed_nats(model, given, labels)


def test_a_forward_that_someone_has_put_there_stays():
    model, called = make("marian"), []
    encoder = model.model.encoder
    encoder.forward = lambda *a, **k: called.append(1) or type(encoder).forward(encoder, *a, **k)
    with fused.fused_layers(model):
        with fused.fused_layers(model):
            model(**batch())
        assert "forward" in vars(model.model.decoder)
    assert called and "forward" in vars(encoder) and "forward" not in vars(model.model.decoder)


def test_no_label_at_all():
    model, given = make("marian"), batch()
    labels = torch.full_like(given.pop("labels"), -100)
    given["decoder_input_ids"] = labels.clamp_min(3)
    with fused.fused_layers(model):
        loss = summed_nats(model, given, labels)
        loss.backward()
    assert loss.item() == 0 and not model.model.shared.weight.grad.any()


def test_dropped_layers():
    model, given = make("bart"), batch()
    losses = []
    for rate in (0.0, 1.0):
        model.model.encoder.layerdrop = model.model.decoder.layerdrop = rate
        own_loss, _ = loss_and_gradients(model, given)
        with fused.fused_layers(model):
            losses.append(loss_and_gradients(model, given)[0])
        assert losses[-1] == pytest.approx(own_loss, rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_the_operators_check_what_they_are_given(ops):
    x, norm, w, b = torch.zeros(6, 8), torch.ones(8), torch.zeros(8, 8), torch.zeros(8)

    def attention(starts: list[int], memory: torch.Tensor | None = None, memory_starts: list[int] | None = None, bias: torch.Tensor | None = None) -> Any:
        places = None if memory_starts is None else torch.tensor(memory_starts)
        return ops.attention(x, torch.tensor(starts), memory, places, bias, w, w, w, w, b, b, b, b, norm, norm, 2, 1.0, False, 0.0, False, False, 1e-5, 0.0)

    assert attention([0, 2, 6], bias=torch.zeros(2, 4, 4)).shape == x.shape
    for wrong in ([0, 7], [1, 6], [0, 6, 4, 6], [6], [0, 5]):
        with pytest.raises(RuntimeError, match="expected starts of rows"):
            attention(wrong)
    with pytest.raises(RuntimeError, match="expected starts of rows"):
        attention([0, 2, 6], x, [0, 6])
    with pytest.raises(RuntimeError, match="at least one key in row 1"):
        attention([0, 2, 6], x, [0, 6, 6])
    for bias in (torch.zeros(2, 3, 4), torch.zeros(1, 4, 4), torch.zeros(2, 4, 4).transpose(1, 2)[..., ::1]):
        with pytest.raises(RuntimeError, match="expected a bias"):
            attention([0, 2, 6], bias=bias)


def test_two_micro_batches_add_their_gradients():
    model, first, second = make("t5"), batch(), batch(2, 7, 9)
    _, one = loss_and_gradients(model, first)
    _, two = loss_and_gradients(model, second)
    with fused.fused_layers(model):
        model.zero_grad()
        for given in (first, second):
            model(**given).loss.backward()
        same({n: p.grad for n, p in model.named_parameters()}, {n: one[n] + two[n] for n in one})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_over_the_vocabulary(smoothing):
    model, given = make("marian"), batch()
    with torch.no_grad():
        model.final_logits_bias.normal_()
    labels = given.pop("labels")
    given["decoder_input_ids"] = labels.clamp_min(0)
    found = {}
    for name in ("own", "fused"):
        model.zero_grad()
        if name == "fused":
            with fused.fused_layers(model):
                loss = summed_nats(model, given, labels, label_smoothing=smoothing)
        else:
            loss = summed_nats(model, given, labels, label_smoothing=smoothing)
        loss.backward()
        found[name] = loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert found["fused"][0] == pytest.approx(found["own"][0], rel=1e-5)
    same(found["fused"][1], found["own"][1])


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("words", [1, 15, 16, WORDS, 1001])
def test_nats_are_cross_entropy(ops, words, scale):
    logits = (torch.randn(7, words) * scale).requires_grad_()
    bias, targets = torch.randn(words), torch.randint(0, words, (7,))
    expected = torch.nn.functional.cross_entropy(logits + bias, targets, reduction="none")
    expected.sum().backward()
    own = logits.detach().clone()
    nats = ops.nats_(own, bias, targets, -1.0)
    torch.testing.assert_close(nats, expected.detach(), rtol=1e-5, atol=max(1e-5, 2e-7 * scale))
    torch.testing.assert_close(own, logits.grad, rtol=1e-4, atol=1e-6)


def test_a_label_outside_of_the_vocabulary_is_an_error(ops):
    for label in (-1, 20):
        with pytest.raises(IndexError, match="outside of the vocabulary of 20"):
            ops.nats_(torch.zeros(2, 20), None, torch.tensor([3, label]), -1.0)
    with pytest.raises(RuntimeError, match="contiguous"):
        ops.nats_(torch.zeros(2, 20), None, torch.arange(4)[::2], -1.0)


def test_nats_of_logits_that_are_no_numbers(ops):
    for bad in (float("nan"), float("inf")):
        logits = torch.zeros(1, 20)
        logits[0, 3] = bad
        assert not torch.isfinite(ops.nats_(logits, None, torch.tensor([5]), -1.0)).all()


def test_the_operators_are_active_inside_alone():
    model = make("t5")
    with fused.fused_layers(model):
        assert installing.active() is not None
    assert installing.active() is None
    with pytest.raises(RuntimeError), fused.fused_layers(model):
        raise RuntimeError
    assert installing.active() is None and fused_count(model) == 0


@pytest.mark.parametrize("kind", ["marian", "t5", "mbart"])
@pytest.mark.parametrize("other", ["another forward pass", "a long target", "a penalty", "a gradient from before", "small pieces", "nothing else"])
def test_the_gradient_of_tied_embeddings_is_put_together_in_one_place(monkeypatch, kind, other):
    """Whatever else the weight gets a gradient from, in the same backward pass or before."""
    model, given = make(kind), batch(3, 11, 180 if other == "a long target" else 18)  # for which the decoder runs as it is
    labels = given.pop("labels")
    given["decoder_input_ids"] = labels.clamp_min(0)
    if other == "small pieces":
        monkeypatch.setattr(chunked_cross_entropy, "FEWEST_POSITIONS", 7)
        monkeypatch.setitem(chunked_cross_entropy.LOGITS_AT_ONCE, "cpu", 1)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss = summed_nats(model, given, labels) / 7
        if other == "a gradient from before":
            loss.backward()
            loss = summed_nats(model, given, labels)
        elif other == "another forward pass":
            loss = 2 * loss + summed_nats(model, {name: value.flip(0) for name, value in given.items()}, labels.flip(0))
        elif other == "a penalty":
            loss = loss + 0.1 * sum(weight.abs().sum() for weight in model.parameters())
        loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    own = gradients()
    with fused.fused_layers(model):
        same(gradients(), own)


def test_the_loss_has_one_backward_pass():
    model, given = make("marian"), batch()
    labels = given.pop("labels")
    given["decoder_input_ids"] = labels.clamp_min(0)
    with fused.fused_layers(model):
        loss = summed_nats(model, given, labels)
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_step_holds_nothing_of_the_one_before():
    model, given = make("marian"), batch()
    labels = given.pop("labels")
    given["decoder_input_ids"] = labels.clamp_min(0)
    with fused.fused_layers(model):
        summed_nats(model, given, labels).backward()
        step = installing._State.step
        assert [step.labels, step.projection, step.tied, step.encoded, step.decoded] == [None] * 5
        with pytest.raises(IndexError, match="outside of the vocabulary"):
            summed_nats(model, given | {"decoder_input_ids": labels.clamp_min(WORDS + 1)}, labels)
        assert [step.labels, step.projection, step.tied, step.encoded, step.decoded] == [None] * 5
