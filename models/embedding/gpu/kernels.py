"""The GPU's schedules as Triton functions.

A generated kernel (codegen.py) calls one of them a program, with what its arguments are called:
values of the kernel in small letters, numbers of a branch in capitals.

A tile is BB bags x BL ids of each at a time x BD columns. Ids and rows stay in one layout through
the loop (no exchange between threads until its end), and row starts are written as multiples of
powers of two, so that rows are read 16 bytes a thread where the width allows. Needs Triton;
imported only by what launches kernels.
"""

# BB bags of a tile, BL ids of a bag read at once, BD columns of a tile, D width of a row, K parts
# of a bag, L ids of every bag

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN201, ANN202 (Triton types arguments itself)

import triton
import triton.language as tl

LINE = tl.constexpr(16)  # = spec.LINE_ELEMENTS: tables begin at whole lines


@triton.jit
def _tile(tile, D: tl.constexpr, BB: tl.constexpr, BD: tl.constexpr):
    """Which bags and which columns a tile has."""
    n_blocks = tl.cdiv(D, BD)
    return tile // n_blocks * BB + tl.arange(0, BB), tile % n_blocks * BD + tl.arange(0, BD)


@triton.jit
def _inside(bag_BB, n_bags, lane_BD, D: tl.constexpr, BD: tl.constexpr):
    """Which elements of a tile there are; (BB, 1) where all columns are."""
    mask = (bag_BB < n_bags)[:, None]
    if D % BD != 0:
        mask = mask & (lane_BD < D)[None, :]
    return mask


@triton.jit
def _sum_rows(
    values,
    weight,
    line,
    begin_BB,
    length_BB,
    lane_BD,
    longest,
    D: tl.constexpr,
    BB: tl.constexpr,
    BL: tl.constexpr,
    BD: tl.constexpr,
):
    """Float32 (BB, BD): of each bag the rows of ids begin .. begin + length - 1.

    They are added in an order that the tile fixes.
    """
    total = tl.zeros((BB, BL, BD), tl.float32)
    for done in range(0, longest, BL):
        place_BL = done + tl.arange(0, BL)
        is_id = place_BL[None, :] < length_BB[:, None]
        at = values + (begin_BB[:, None] + place_BL[None, :])
        row = tl.load(at, mask=is_id, other=0).to(tl.int64)
        element = line * LINE + row * D
        mask = is_id[:, :, None]
        if D % BD != 0:
            mask = mask & (lane_BD < D)[None, None, :]
        at = weight + (element[:, :, None] + lane_BD[None, None, :])
        total += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    return tl.sum(total, axis=1)


@triton.jit
def _store(
    pooled,
    out,
    counts,
    bag_BB,
    n_bags,
    lane_BD,
    column,
    width,
    D: tl.constexpr,
    BD: tl.constexpr,
    AO: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Write the tile to its columns; `column` and `width` are multiples of AO."""
    mask = _inside(bag_BB, n_bags, lane_BD, D, BD)
    first = bag_BB.to(tl.int64)[:, None] * (width // AO * AO) + column // AO * AO
    tl.store(out + (first + lane_BD[None, :]), pooled, mask=mask)
    if COUNT:
        # not broadcast: Triton 3.6's interpreter would add to its first element
        whole = mask & (lane_BD < D)[None, :]
        tl.atomic_add(counts + (first + lane_BD[None, :]), 1, mask=whole)


@triton.jit
def _begin(offsets, first_bag, step, bag_BB, n_bags, L: tl.constexpr, ITEM_MAJOR: tl.constexpr):
    """Where bags of exactly L ids begin; where bags follow each other, one offset tells all."""
    if ITEM_MAJOR:
        is_bag = bag_BB < n_bags
        return tl.load(offsets + (first_bag + bag_BB * step), mask=is_bag, other=0).to(tl.int64)
    return tl.load(offsets + first_bag).to(tl.int64) + bag_BB.to(tl.int64) * L


@triton.jit
def _span(offsets, first_bag, step, bag_BB, n_bags):
    """Where bags of any length begin, and their lengths."""
    is_bag = bag_BB < n_bags
    begin = tl.load(offsets + (first_bag + bag_BB * step), mask=is_bag, other=0).to(tl.int64)
    end = tl.load(offsets + (first_bag + bag_BB * step + 1), mask=is_bag, other=0).to(tl.int64)
    return begin, (end - begin).to(tl.int32)


@triton.jit
def gather(
    values,
    offsets,
    weight,
    out,
    counts,
    first_bag,
    step,
    line,
    column,
    n_bags,
    width,
    tile,
    D: tl.constexpr,
    BB: tl.constexpr,
    BD: tl.constexpr,
    AO: tl.constexpr,
    COUNT: tl.constexpr,
    ITEM_MAJOR: tl.constexpr,
):
    """Bags of exactly one id: rows are copied."""
    bag, lane = _tile(tile, D, BB, BD)
    begin = _begin(offsets, first_bag, step, bag, n_bags, 1, ITEM_MAJOR)
    row = tl.load(values + begin, mask=bag < n_bags, other=0).to(tl.int64)
    element = line * LINE + row * D
    mask = _inside(bag, n_bags, lane, D, BD)
    rows = tl.load(weight + (element[:, None] + lane[None, :]), mask=mask, other=0.0).to(tl.float32)
    _store(rows, out, counts, bag, n_bags, lane, column, width, D, BD, AO, COUNT)


@triton.jit
def fixed_length(
    values,
    offsets,
    weight,
    out,
    counts,
    first_bag,
    step,
    line,
    column,
    n_bags,
    width,
    tile,
    D: tl.constexpr,
    L: tl.constexpr,
    BB: tl.constexpr,
    BL: tl.constexpr,
    BD: tl.constexpr,
    AO: tl.constexpr,
    COUNT: tl.constexpr,
    ITEM_MAJOR: tl.constexpr,
):
    """Bags of exactly L ids: the loop's length is known to the compiler."""
    bag, lane = _tile(tile, D, BB, BD)
    begin = _begin(offsets, first_bag, step, bag, n_bags, L, ITEM_MAJOR)
    length = tl.where(bag < n_bags, L, 0)
    pooled = _sum_rows(values, weight, line, begin, length, lane, L, D, BB, BL, BD)
    _store(pooled, out, counts, bag, n_bags, lane, column, width, D, BD, AO, COUNT)


@triton.jit
def bags(
    values,
    offsets,
    weight,
    out,
    counts,
    first_bag,
    step,
    line,
    column,
    n_bags,
    width,
    tile,
    D: tl.constexpr,
    BB: tl.constexpr,
    BL: tl.constexpr,
    BD: tl.constexpr,
    AO: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Bags of any length; the tile loops as often as its longest needs."""
    bag, lane = _tile(tile, D, BB, BD)
    begin, length = _span(offsets, first_bag, step, bag, n_bags)
    longest = tl.max(length, axis=0)
    pooled = _sum_rows(values, weight, line, begin, length, lane, longest, D, BB, BL, BD)
    _store(pooled, out, counts, bag, n_bags, lane, column, width, D, BD, AO, COUNT)


@triton.jit
def split(
    values,
    offsets,
    weight,
    scratch,
    first_bag,
    step,
    line,
    base,
    n_bags,
    tile,
    D: tl.constexpr,
    K: tl.constexpr,
    BB: tl.constexpr,
    BL: tl.constexpr,
    BD: tl.constexpr,
):
    """Long bags in K equal parts, each a program's.

    Sums of parts go to `scratch` (bag, part, column), see `combine`. The number of programs depends
    on the number of bags alone, and nothing is added atomically: no synchronisation with the host,
    and the same bits every time.
    """
    n_blocks = tl.cdiv(D, BD)
    part = tile // n_blocks % K
    bag = tile // (n_blocks * K) * BB + tl.arange(0, BB)
    lane = tile % n_blocks * BD + tl.arange(0, BD)
    begin, whole = _span(offsets, first_bag, step, bag, n_bags)
    share = tl.cdiv(whole, K)
    skipped = part * share
    length = tl.minimum(whole - skipped, share)  # not above 0 for parts beyond the end
    longest = tl.max(length, axis=0)
    begin = begin + skipped
    pooled = _sum_rows(values, weight, line, begin, length, lane, longest, D, BB, BL, BD)
    mask = _inside(bag, n_bags, lane, D, BD)
    first = base // 4 * 4 * n_bags + (bag.to(tl.int64) * K + part) * D
    tl.store(scratch + (first[:, None] + lane[None, :]), pooled, mask=mask)


@triton.jit
def combine(
    out,
    scratch,
    counts,
    column,
    base,
    n_bags,
    width,
    tile,
    D: tl.constexpr,
    K: tl.constexpr,
    BB: tl.constexpr,
    BD: tl.constexpr,
    AO: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Sum the K parts of every bag, in order."""
    bag, lane = _tile(tile, D, BB, BD)
    mask = _inside(bag, n_bags, lane, D, BD)
    first = base // 4 * 4 * n_bags + bag.to(tl.int64) * (K * D)
    total = tl.zeros((BB, BD), tl.float32)
    for part in range(K):
        at = scratch + (first[:, None] + (part * D + lane)[None, :])
        total += tl.load(at, mask=mask, other=0.0)
    _store(total, out, counts, bag, n_bags, lane, column, width, D, BD, AO, COUNT)
