"""Dropout with fewer random numbers is dropout: its share, its scale, its independence, its repeatability."""

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hftk.dropout import drop, fast_dropout

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_rest_scaled_up(p):
    torch.manual_seed(0)
    found = drop(torch.ones(1_000_003), p)
    assert (found == 0).float().mean().item() == pytest.approx(p, abs=0.003)
    assert found.mean().item() == pytest.approx(1, abs=0.01)
    assert found[found != 0].unique().tolist() == [pytest.approx(1 / (1 - p), rel=1e-4)]


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (drop(torch.ones(400_000), 0.3) == 0).double().view(-1, 4)
    assert (
        torch.corrcoef(dropped.T).fill_diagonal_(0).abs().max() < 0.01
    )  # four elements share one 64-bit number
    assert torch.corrcoef(torch.stack([dropped[1:, 0], dropped[:-1, 3]]))[0, 1].abs() < 0.01


def test_the_gradient_goes_through_the_kept_elements_alone():
    values = torch.ones(1000, requires_grad=True)
    found = drop(values, 0.25)
    found.sum().backward()
    assert torch.equal(values.grad, found.detach())


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5), (0, 4)])
def test_any_shape(shape):
    assert drop(torch.ones(shape), 0.5).shape == shape


def test_nothing_is_dropped_when_judging_or_without_dropout():
    values = torch.ones(5)
    assert drop(values, 0.5, training=False) is values
    assert drop(values, 0.0) is values


def test_almost_everything_can_be_dropped():
    assert torch.isfinite(drop(torch.ones(10_000), 1 - 1e-9)).all()


def test_modules_use_it_inside_and_torch_own_outside():
    own, layer, values = functional.dropout, torch.nn.Dropout(0.5), torch.ones(64)
    with fast_dropout(CPU):
        torch.manual_seed(1)
        inside = layer(values)
    torch.manual_seed(1)
    assert torch.equal(inside, drop(values, 0.5))
    assert functional.dropout is own
    with fast_dropout(torch.device("meta")):
        assert functional.dropout is own


def test_p_of_1_is_torch_own():
    with fast_dropout(CPU):
        assert torch.equal(functional.dropout(torch.ones(4), 1.0), torch.zeros(4))


def test_it_comes_back_after_an_error():
    own = functional.dropout
    with pytest.raises(RuntimeError), fast_dropout(CPU):
        raise RuntimeError
    assert functional.dropout is own


def test_recomputed_activations_drop_the_same_elements():
    values = torch.ones(256, requires_grad=True)
    with fast_dropout(CPU):
        found = checkpoint(lambda v: functional.dropout(v, 0.5) * v, values, use_reentrant=False)
        found.sum().backward()
    assert torch.allclose(values.grad, 2 * found.detach())
