"""Runs TritonBags against a driver that compiles for sm_90 and writes down what would be launched.

Prints it as JSON. test_look_up.py runs it in a process of its own, as the driver belongs to the
process.
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from models.embedding.gpu import look_up as triton_bags
from models.embedding.plan.plan import Bucket, Group, params
from models.embedding.plan.spec import Layout, TableSpec

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
LAUNCHES = []


class Launcher:
    """Triton's launcher of one compiled kernel."""

    def __init__(self, _source, metadata):
        self.metadata = metadata

    def __call__(self, x, y, z, _stream, _function, *_arguments):
        LAUNCHES.append(
            {
                "grid": [x, y, z],
                "warps": self.metadata.num_warps,
                "registers": self.metadata.maxnreg,
                "hash": self.metadata.hash,
            }
        )


class Utils:
    """Triton's loader of binaries: nothing is loaded."""

    def load_binary(self, *_):
        return 0, 0, 32, 0, 1024

    def get_device_properties(self, _):
        return defaultdict(lambda: 1 << 16)


class Driver:
    """A CUDA device of compute capability 9.0 that does nothing."""

    utils = Utils()
    launcher_cls = Launcher

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, *_):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def launches(bags, n_items, dtype=torch.int64, **more):
    """What one look-up launches."""
    LAUNCHES.clear()
    offsets = torch.arange(len(bags.layout.specs) * n_items + 1, dtype=dtype)
    bags(torch.zeros(int(offsets[-1]), dtype=dtype), offsets, **more)
    return [*LAUNCHES]


def compiled_before(bags):
    """Kernels that `compiling` makes, what it launches, and kernels after a look-up."""
    kernels = {launch.kernel for launch in bags.launches}

    def n_kernels():
        return sum(len(kernel.device_caches[0][0]) for kernel in kernels)

    before = n_kernels()
    ids = torch.zeros(4 * 5, dtype=torch.int64)
    LAUNCHES.clear()
    for compiling in bags.compiling(ids, torch.arange(4 * 5 + 1)).values():
        compiling()
    made = n_kernels() - before
    launched = len(LAUNCHES)
    launches(bags, 5)
    return [made, launched, n_kernels() - before]


def main():
    driver.set_active(Driver())
    triton_bags._check_weight = lambda *_: None  # the tables are on the CPU here
    specs = [TableSpec(20, 8), TableSpec(20, 32, 1), TableSpec(30, 64), TableSpec(10, 6)]
    layout = Layout.apart(specs)
    groups = (
        Group("bags", params(tile_bags=4, warps=2), (0, 3)),
        Group("gather", params(tile_bags=32, warps=4), (1,)),
        Group("split", params(parts=4, warps=2), (2,)),
    )

    def bags(**settings):
        bucket = Bucket(None, groups, params(**settings))
        return triton_bags.TritonBags(
            layout, bucket, torch.zeros(layout.n_elements), cache=Path(sys.argv[1])
        )

    fused = bags()
    launched = {f"fused {n}": launches(fused, n) for n in (1, 2, 16, 5, 64)}
    for width in (112, 128):
        out = torch.zeros(5, width)[:, : fused.width]
        launched[f"wider {width}"] = launches(fused, 5, out=out)
    launched |= {
        "int32": launches(fused, 5, torch.int32),
        "item-major": launches(fused, 5, item_major=True),
        "grouped": launches(bags(launch="grouped"), 5),
        "by schedule": launches(bags(launch="by_schedule"), 5),
        "by schedule, alike": launches(bags(launch="by_schedule", warps=2), 5),
        "one launch": launches(bags(warps=8, max_registers=40), 5),
        "empty": launches(fused, 0),
        "compiled": compiled_before(bags(max_registers=48)),
        "triton": triton.__version__,
    }
    sys.stdout.write(json.dumps(launched))


if __name__ == "__main__":
    main()
