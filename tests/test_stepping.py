"""The short ways between two backward passes do what torch's long ones do."""

import gc

import pytest
import torch

from hftk import stepping

SHAPES = [(5, 3), (3,), (4, 4), (1,)]


def weights(seed: int = 0) -> list[torch.nn.Parameter]:
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def groups(given: list[torch.nn.Parameter]) -> list[dict]:
    return [{"params": given[:2], "weight_decay": 0.1}, {"params": given[2:], "weight_decay": 0.0, "lr": 3e-3}]


def optimizers(one: list[torch.nn.Parameter], two: list[torch.nn.Parameter]) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    settings = {"lr": 1e-2, "betas": (0.8, 0.95), "fused": True}
    return stepping.AdamW(groups(one), **settings), torch.optim.AdamW(groups(two), **settings)


def give_gradients(step: int, *sides: list[torch.nn.Parameter], without: tuple[int, ...] = ()) -> None:
    for side in sides:
        torch.manual_seed(100 + step)
        for number, weight in enumerate(side):
            grad = torch.randn_like(weight)
            weight.grad = None if number in without else grad


@pytest.mark.parametrize("missing", [{}, {0: (1,)}, {2: (3,)}, {0: (0, 1), 3: (2, 3)}, {1: (0, 1, 2, 3)}])
def test_adamw_is_torch_adamw_bit_for_bit(missing):
    one, two = weights(), weights()
    ours, theirs = optimizers(one, two)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)) for optimizer in (ours, theirs)]
    for step in range(6):
        give_gradients(step, one, two, without=missing.get(step, ()))
        for optimizer, schedule in zip((ours, theirs), schedules, strict=True):
            optimizer.step()
            schedule.step()
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)), step
    for a, b in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_its_state_is_saved_and_loaded_by_either(tmp_path):
    one, two = weights(), weights()
    ours, theirs = optimizers(one, two)
    for step in range(3):
        give_gradients(step, one, two)
        ours.step(), theirs.step()
    torch.save(ours.state_dict(), tmp_path / "ours.pt")
    three, four = weights(), weights()
    for made, given in ((three, one), (four, one)):
        for new, old in zip(made, given, strict=True):
            new.data.copy_(old.data)
    again, stock = optimizers(three, four)
    again.load_state_dict(torch.load(tmp_path / "ours.pt", weights_only=True))
    stock.load_state_dict(torch.load(tmp_path / "ours.pt", weights_only=True))
    for step in range(3, 6):
        give_gradients(step, one, three, four)
        for optimizer in (ours, again, stock):
            optimizer.step()
    for a, b, c in zip(one, three, four, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert {int(state["step"]) for state in stock.state.values()} == {6}


def test_a_state_that_another_put_in_place_is_the_one_that_counts():
    one, two = weights(), weights()
    ours, theirs = optimizers(one, two)
    for step in range(4):
        give_gradients(step, one, two)
        if step == 2:
            for optimizer in (ours, theirs):
                for state in optimizer.state.values():
                    state["exp_avg"] = state["exp_avg"].clone().mul_(2)
        ours.step(), theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_closure_and_a_new_group():
    one, two = weights(), weights()
    ours, theirs = optimizers(one, two)
    extra = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    for step in range(4):
        give_gradients(step, one, two)
        if step == 2:
            for optimizer, weight in zip((ours, theirs), extra, strict=True):
                optimizer.add_param_group({"params": [weight]})
        for weight in extra:
            weight.grad = torch.full((2,), float(step))
        assert ours.step(lambda: 7) == 7 if step == 1 else ours.step() is None
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip([*one, extra[0]], [*two, extra[1]], strict=True))


@pytest.mark.parametrize("most", [1e-3, 1.0, 1e6])
def test_clipping_is_torch_clipping(most):
    one, two = weights(), weights()
    big = [torch.nn.Parameter(torch.randn(70_000)) for _ in range(2)]
    big[1].data.copy_(big[0].data)
    one, two = [*one, big[0]], [*two, big[1]]
    give_gradients(0, one, two, without=(1,))
    expected = torch.nn.utils.clip_grad_norm_(two, most)
    torch.testing.assert_close(stepping.clip_grad_norm_(one, most), expected)
    for a, b in zip(one, two, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_zero_grad_forgets_all_gradients_and_the_model_gets_its_own_back():
    model = torch.nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    with stepping.short_zero_grad(model, list(model.parameters())):
        model.zero_grad()
        assert all(weight.grad is None for weight in model.parameters())
    assert "zero_grad" not in vars(model)


def test_memory_is_left_out_of_the_garbage_collector_inside_alone():
    with stepping.settled_memory():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
