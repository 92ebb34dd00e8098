"""Quantizers against bitsandbytes, `gguf` and llama.cpp's C functions, with equal bytes.

`PYTHONPATH=tests/support python tests/benchmarks/bench_compression.py [--json FILE] [--clock]`
exits with 1 when a floor is missed. Ratios in processor time on one thread; above one, ours is
faster. The floors: 1.0 × the production library written in Python, 0.2 × the function in C. The
product of int8 numbers has none: it is beside the float32 one at one row, where a decoder works.
GPTQ is beside its plain form, and all linear layers of a model of SmolLM2's sizes beside 40 seconds
(30 times one block's), which `theirs` stands for. Halved layers are beside whole ones, and a layer
with 70 % zeros beside one without, which is no faster.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import ggml
import torch
from bitsandbytes import functional as bnb
from gguf import GGMLQuantizationType, quants
from side_by_side import Row, hold, main
from torch import nn

from course_utils.compression import (
    gguf,
    gptq,
    int8,
    k_quants,
    nf4,
    pruning,
    structured_pruning,
)

Compare = Callable[..., Row]
TITLE = "Quantizers against bitsandbytes, gguf and llama.cpp"
SHAPE = (1024, 1024)


def weight() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(SHAPE) * 0.02


def nf4_rows(compare: Compare) -> list[Row]:
    x = weight()
    theirs = partial(bnb.quantize_4bit, x, quant_type="nf4", blocksize=64)
    packed, largest = nf4.quantize_nf4(x)
    data, state = theirs()
    assert torch.equal(packed, data.flatten())
    back = partial(nf4.dequantize_nf4, packed, largest, x.shape)
    return [
        compare("NF4, quantize", partial(nf4.quantize_nf4, x), theirs, floor=1.0),
        compare("NF4, dequantize (theirs in C)", back, partial(bnb.dequantize_4bit, data, state)),
    ]


def block_rows(compare: Compare) -> list[Row]:
    x, rows = weight(), []
    for name in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1"):
        kind = GGMLQuantizationType[name.upper()]
        ours = partial(getattr(gguf, f"quantize_{name}"), x)
        theirs = partial(quants.quantize, x.numpy(), kind)
        assert torch.equal(ours(), torch.from_numpy(theirs()))
        rows.append(compare(f"{name.upper()}, quantize", ours, theirs, floor=1.0))
    return rows


def k_rows(compare: Compare) -> list[Row]:
    x, rows = weight(), []
    for name in ("q4_K", "q5_K", "q6_K"):
        ours = partial(getattr(k_quants, f"quantize_{name.lower()}"), x)
        theirs = partial(ggml.quantize, name, x)
        assert torch.equal(ours(), theirs())
        name = f"{name.upper()}, quantize (theirs in C)"
        rows.append(compare(name, ours, theirs, floor=0.2, repeats=5))
    return rows


def int8_rows(compare: Compare) -> list[Row]:
    x, rows = weight(), []
    codes, largest = int8.quantize_rows(x)
    for n in (1, 64):
        inputs = torch.randn(n, SHAPE[1])
        ours = partial(int8.int8_linear, inputs, codes, largest)
        name = f"int8 product, {n} rows (theirs: float32)"
        rows.append(compare(name, ours, partial(nn.functional.linear, inputs, x), repeats=25))
    return rows


def gptq_rows(compare: Compare) -> list[Row]:
    torch.manual_seed(0)
    x = torch.randn(2000, 1536) @ torch.randn(1536, 1536)
    small, large = x[:, :576].T @ x[:, :576], x.T @ x
    outputs = [(576, small), (192, small), (192, small), (576, small), (1536, small), (1536, small)]
    layers = [(torch.randn(rows, len(h)), h) for rows, h in [*outputs, (576, large)]]
    weight, hessian = layers[0]

    def block() -> None:
        for each in layers:
            gptq.gptq(*each, 4)

    ours = partial(gptq.gptq, weight, hessian, 4, granularity="channel")
    plain = partial(gptq.gptq_plain, weight, hessian, 4)
    exact = weight.double(), hessian.double(), 4  # in float32 an even code may round the other way
    assert torch.allclose(
        gptq.gptq(*exact, granularity="channel").weight, gptq.gptq_plain(*exact), atol=1e-6
    )
    return [
        compare("GPTQ, 576 × 576 (theirs: plain)", ours, plain, floor=1.0, repeats=3),
        compare("GPTQ, a block of SmolLM2 (theirs: 40 s / 30)", block, waste, floor=1.0, repeats=3),
    ]


def waste(seconds: float = 40 / 30) -> None:
    """Use that much processor time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def pruned_rows(compare: Compare) -> list[Row]:
    torch.manual_seed(0)
    x, whole, zeros, half = torch.randn(64, 384), *(nn.Linear(384, 1536) for _ in range(3))
    pruning.apply_masks(zeros, {"": pruning.row_mask(zeros.weight.abs(), 0.7)})
    structured_pruning.keep_rows(half, range(768))
    with torch.no_grad():
        return [
            compare(name, partial(layer, x), partial(whole, x), repeats=25)
            for name, layer in (("70 % zeros (theirs: none)", zeros), ("half the rows", half))
        ]


def measure(compare: Compare) -> list[Row]:
    parts = (nf4_rows, block_rows, k_rows, int8_rows, gptq_rows, pruned_rows)
    return [row for part in parts for row in part(compare)]


def test_floors_are_met() -> None:
    from side_by_side import compare

    hold(TITLE, measure(compare))


if __name__ == "__main__":
    sys.exit(main(TITLE, measure, __doc__))
