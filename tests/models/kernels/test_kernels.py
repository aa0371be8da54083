"""The compiled kernels against PyTorch's own operators, at shapes that do not fit their blocks."""

import numpy as np
import pytest
import torch

from models.kernels.dien import add_softmax, recurrence
from models.kernels.din import attention
from tests.models.drawn import normal


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("width", "n_items"), [(8, 3), (12, 1), (32, 4)])
def test_attention_units_are_summed(width, n_items):
    n_units = 7
    rows = normal(n_items, n_units + 3, width)
    of_ad = normal(n_items, n_units)
    first, weight, bias = (normal(n_units, width, seed=seed) for seed in (1, 2, 3))
    behaviours = rows[:, 1:-2]
    out = torch.empty(n_items, width)
    attention(width)(*(t.numpy() for t in (behaviours, of_ad, first, weight, bias, out)))
    hidden = torch.relu((behaviours * first).sum(2) + of_ad)
    expected = torch.relu(hidden[:, :, None] * weight + bias).sum(1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_items", [1, 4, 7])
@pytest.mark.parametrize(("n_in", "width"), [(3, 9), (32, 64), (5, 100)])
def test_the_recurrence_is_that_of_torch_rnn(n_in, width, n_items):
    rnn = torch.nn.RNN(n_in, width)
    x = normal(6, n_items, n_in)
    from_input, from_state, bias_x, bias_h = (p.detach() for p in rnn.parameters())
    expected = rnn(x)[0]
    weights = (
        from_input.T.contiguous().numpy(),
        (bias_x + bias_h).numpy(),
        from_state.T.contiguous().numpy(),
    )
    for n_kept in (6, 1):
        states = torch.empty(n_kept, n_items, width)
        recurrence(width)(x.numpy(), *weights, states.numpy())
        torch.testing.assert_close(states, expected[-n_kept:], rtol=1e-5, atol=2e-6)


def test_tanh_is_right_over_its_whole_range():
    x = torch.linspace(-30, 30, 60_001).view(1, -1, 1)
    states = torch.empty_like(x)
    ones = np.ones((1, 1), np.float32)
    zeros = np.zeros((1, 1), np.float32)
    recurrence(1)(x.numpy(), ones, np.zeros(1, np.float32), zeros, states.numpy())
    assert (states - torch.tanh(x.double())).abs().max() < 3e-7


def test_softmax_is_added():
    states = torch.tanh(normal(5, 37))
    to = normal(5, 37, seed=1)
    expected = to + torch.softmax(states, dim=1)
    add_softmax()(states.numpy(), to.numpy())
    torch.testing.assert_close(to, expected)
