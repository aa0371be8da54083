"""Tables, weights and ids for triton_suite.py, with the sums that they must give."""

import ctypes
import mmap
import os
from dataclasses import dataclass

import numpy as np
import torch

from models.embedding.plan.spec import Layout

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


@dataclass
class LookUpCase:
    """Tables, weights with NaN between them, and ids table after table."""

    layout: Layout
    weight_E: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    n_items: int

    def expected(self) -> torch.Tensor:
        """Sums by a float64 index_add_, table after table."""
        columns = self.layout.columns
        out = torch.zeros(self.n_items, int(columns[-1]), dtype=torch.float64)
        offsets = self.offsets.cpu().long()
        values = self.values.cpu().long()
        for table, spec in enumerate(self.layout.specs):
            first = int(self.layout.elements_T[table])
            table_E = self.weight_E[first : first + spec.rows * spec.dim].cpu().double()
            rows = table_E.view(spec.rows, spec.dim)
            ends = offsets[table * self.n_items : (table + 1) * self.n_items + 1]
            bags = torch.repeat_interleave(torch.arange(self.n_items), torch.diff(ends))
            ids = values[int(ends[0]) : int(ends[-1])] - int(self.layout.first_ids_T[table])
            out[:, int(columns[table]) : int(columns[table + 1])].index_add_(0, bags, rows[ids])
        return out.float()

    def item_major(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same bags, item after item."""
        lengths_TB = torch.diff(self.offsets).view(-1, self.n_items)
        bags = self.values[int(self.offsets[0]) :].split(lengths_TB.reshape(-1).tolist())
        n_tables = len(lengths_TB)
        order = [bags[t * self.n_items + b] for b in range(self.n_items) for t in range(n_tables)]
        offsets = torch.cat((self.offsets.new_zeros(1), lengths_TB.T.reshape(-1).cumsum(0)))
        return torch.cat(order), offsets.to(self.offsets.dtype)


def make_case(
    specs,
    n_items,
    *,
    seed=0,
    most=6,
    lengths=None,
    dtype=torch.float32,
    index=torch.int64,
    layout=None,
):
    rng = np.random.default_rng(seed)
    layout = layout or Layout.apart(specs)
    weight = torch.full((layout.n_elements,), torch.nan)
    first_ids = layout.first_ids_T
    ids = []
    counts = []
    for table, spec in enumerate(specs):
        first = int(layout.elements_T[table])
        n = spec.rows * spec.dim
        weight[first : first + n] = torch.from_numpy(rng.integers(-8, 9, n).astype(np.float32))
        drawn = rng.integers(0, most + 1, n_items) if spec.bag_ids is None else spec.bag_ids
        asked = drawn if lengths is None or lengths[table] is None else lengths[table]
        counts.append(np.broadcast_to(asked, n_items))
        drawn = rng.integers(0, spec.rows, counts[-1].sum())
        drawn[:2] = (0, spec.rows - 1)[: len(drawn)]  # the ends of the table are always read
        ids.append(first_ids[table] + drawn)
    offsets = np.concatenate(([0], np.cumsum(np.concatenate(counts))))
    tensors = (torch.from_numpy(np.concatenate(ids)).to(index), torch.from_numpy(offsets).to(index))
    return LookUpCase(layout, *map(guarded, (weight.to(dtype), *tensors)), n_items)


def guarded(tensor):
    """A copy that ends where memory ends: in the interpreter, who reads beyond it dies."""
    if not INTERPRETED or not tensor.numel():
        return tensor.to(DEVICE)
    end = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, end + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    page = ctypes.c_void_p(address + end), ctypes.c_size_t(mmap.PAGESIZE)
    assert ctypes.CDLL(None).mprotect(*page, 0) == 0
    first = end - tensor.nbytes
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=first)
    return copy.copy_(tensor)
