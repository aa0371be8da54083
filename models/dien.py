"""Deep interest evolution network: recurrent layers over the behaviours.

Zhou et al. 2019, 1809.03672.
"""

# B items, S behaviours (steps), D embedding width, H hidden width

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from models.standalone import main

    sys.exit(main(sys.argv[1:], "dien"))

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infra.settings.config import ModelConfig
from models.base import RecModel
from models.batch import Batch
from models.kernels.dien import add_softmax, recurrence
from models.layers import FC, Concat, Layer, Softmax, Stack, draw_normal, mlp, parameter

_CACHED_ITEMS = 64  # packed, the steps go in parts whose states stay in the core's own cache


class PlainRNN(Layer):
    """h_s = tanh(W_h h_{s-1} + b_h + W_x x_s + b_x), h_0 = 0."""

    operator = "RecurrentNetwork"

    def __init__(self, blob: str, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.from_input = FC(f"{blob}.i2h", n_in, n_hidden)
        self.from_hidden = FC(f"{blob}.gates_t", n_hidden, n_hidden)
        self._recur: Callable[..., None] | None = None

    @property
    def is_packed(self) -> bool:
        """Whether the steps go through the compiled kernel."""
        return self._recur is not None

    def pack(self, dtype: torch.dtype) -> None:
        """Take the steps through the compiled kernel (float32) from now on."""
        del dtype
        self._recur = recurrence(len(self.from_input.bias_O))
        self._weights = (
            self.from_input.weight_OI.T.contiguous().numpy(),
            (self.from_input.bias_O + self.from_hidden.bias_O).numpy(),
            self.from_hidden.weight_OI.T.contiguous().numpy(),
        )

    def forward(self, x_SBI: Tensor, *, only_last: bool = False) -> Tensor:
        """All hidden states, (S, B, H), or the last one, (B, H)."""
        n_steps, n_items, _ = x_SBI.shape
        if self._recur is not None:
            n_hidden = len(self._weights[1])
            states_SBH = x_SBI.new_empty(1 if only_last else n_steps, n_items, n_hidden)
            self._recur(x_SBI.contiguous().numpy(), *self._weights, states_SBH.numpy())
            return states_SBH[-1] if only_last else states_SBH
        from_input_SBH = self.from_input(x_SBI)
        bias_H = self.from_hidden.bias_O
        weight_HH = self.from_hidden.weight_OI.T
        hidden_BH = torch.tanh(from_input_SBH[0] + bias_H)
        states = [hidden_BH]
        for step_BH in from_input_SBH[1:]:
            hidden_BH = torch.addmm(bias_H, hidden_BH, weight_HH).add_(step_BH).tanh_()
            states.append(hidden_BH)
        return hidden_BH if only_last else torch.stack(states)


class ReleasedEvolution(Layer):
    """Two plain recurrent layers.

    Between them an FC and a softmax are computed and dropped, as in the released net: they change
    no output and cost time.
    """

    def __init__(self, width: int, n_hidden: int) -> None:
        super().__init__()
        self.rnn_0 = PlainRNN("rnn_0", width, n_hidden)
        self.rnn_1 = PlainRNN("rnn_1", n_hidden, n_hidden)
        self.blob_0 = Stack(FC("DIEN_blob_0", n_hidden, n_hidden))
        self.softmax = Softmax()

    def forward(self, behaviours_BSD: Tensor, _ad_BD: Tensor) -> Tensor:
        """(B, H): the last state of the second layer; the release does not use the ad."""
        n_items, n_steps, width = behaviours_BSD.shape
        # As released: (B, S * D) read as (S, B, D), so for B > 1 the samples mix.
        x_SBD = behaviours_BSD.reshape(n_steps, n_items, width)
        if n_items > _CACHED_ITEMS and self.rnn_0.is_packed:
            parts = torch.split(x_SBD, _CACHED_ITEMS, dim=1)
            return torch.cat([self._steps(part_SBD) for part_SBD in parts])
        return self._steps(x_SBD)

    def _steps(self, x_SBD: Tensor) -> Tensor:
        states_SBH = self.rnn_0(x_SBD)
        states_RH = states_SBH.flatten(0, 1)
        dropped_RH = self.blob_0(states_RH)
        if self.rnn_0.is_packed:
            add_softmax()(states_RH.numpy(), dropped_RH.numpy())
        else:
            dropped_RH += self.softmax(states_RH)
        return self.rnn_1(states_SBH, only_last=True)


class GatedCell(Layer):
    """A GRU cell; with `attention` its update gate is scaled by the step's score (AUGRU).

    Sec. 4.3 of the paper.
    """

    operator = "RecurrentNetwork"

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.weight_x_3HI = parameter(3 * n_hidden, n_in)  # update, reset, new
        self.weight_h_3HH = parameter(3 * n_hidden, n_hidden)
        self.bias_3H = parameter(3 * n_hidden)

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights."""
        n_hidden = self.weight_h_3HH.shape[1]
        n_in = self.weight_x_3HI.shape[1]
        draw_normal(self.weight_x_3HI, rng, 2 / (n_in + n_hidden))
        draw_normal(self.weight_h_3HH, rng, 1 / n_hidden)
        draw_normal(self.bias_3H, rng, 1 / n_hidden)

    def forward(self, x_SBI: Tensor, attention_SB1: Tensor | None = None) -> Tensor:
        """All hidden states, (S, B, H)."""
        n_hidden = self.weight_h_3HH.shape[1]
        n_gates = 2 * n_hidden
        from_input_SB3H = F.linear(x_SBI, self.weight_x_3HI, self.bias_3H)
        hidden_BH = x_SBI.new_zeros(x_SBI.shape[1], n_hidden)
        gates_H2H = self.weight_h_3HH[:n_gates].T
        new_HH = self.weight_h_3HH[n_gates:].T
        states = []
        for step, x_B3H in enumerate(from_input_SB3H):
            gates_B2H = torch.sigmoid(x_B3H[:, :n_gates] + hidden_BH @ gates_H2H)
            update_BH, reset_BH = gates_B2H.chunk(2, dim=1)
            new_BH = torch.tanh(x_B3H[:, n_gates:] + reset_BH * (hidden_BH @ new_HH))
            if attention_SB1 is not None:
                update_BH = attention_SB1[step] * update_BH
            hidden_BH = hidden_BH + update_BH * (new_BH - hidden_BH)
            states.append(hidden_BH)
        return torch.stack(states)


class PublishedEvolution(Layer):
    """The paper's: a GRU extracts interests, attention compares them with the ad.

    An AUGRU evolves them.
    """

    def __init__(self, width: int, n_hidden: int) -> None:
        super().__init__()
        self.extractor = GatedCell(width, n_hidden)
        self.evolution = GatedCell(n_hidden, n_hidden)
        self.compare = FC("attention", width, n_hidden)
        self.softmax = Softmax()

    def forward(self, behaviours_BSD: Tensor, ad_BD: Tensor) -> Tensor:
        """(B, H): the last state of the AUGRU."""
        interests_SBH = self.extractor(behaviours_BSD.transpose(0, 1))
        scores_BS = torch.einsum("sbh,bh->bs", interests_SBH, self.compare(ad_BD))
        attention_SB1 = self.softmax(scores_BS).T.unsqueeze(2)
        return self.evolution(interests_SBH, attention_SB1)[-1]


class DIEN(RecModel):
    """Tables [profile, behaviours, ad, context]; no dense input is read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.arch_sparse_feature_size
        n_hidden = config.hidden_size
        kind = PublishedEvolution if self.published else ReleasedEvolution
        self.concat = Concat()
        self.evolve: Layer = kind(width, n_hidden)
        widths = (n_hidden + 3 * width, *config.top_widths)
        last = Softmax() if self.published else None
        self.top = mlp("top", widths, last, dice=self.published)

    def forward(self, batch: Batch) -> Tensor:
        """(B, last width of arch_mlp_top)."""
        if self.tables.one_by_one is not None:
            profile_BD, *behaviours, ad_BD, context_BD = self.tables.pooled(batch)
            behaviours_BSD = self.concat(*behaviours).view(batch.n_items, len(behaviours), -1)
        else:
            profile_BD, behaviours_BSD, ad_BD, context_BD = self.behaviour_rows(batch)
        interest_BH = self.evolve(behaviours_BSD, ad_BD)
        return self.top(self.concat(interest_BH, profile_BD, ad_BD, context_BD))
