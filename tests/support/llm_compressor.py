"""What llm-compressor makes of the weights of `calibration_inputs`: written once, kept in JSON.

llm-compressor 0.14 wants an older transformers than the course has, so it is no dependency. In an
environment of its own (`pip install --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0
loguru` beside the course's), `PYTHONPATH=tests/support python -m llm_compressor` writes the file
anew. Only the functions are imported: its package would pull in CUDA's libraries.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import sys
import types
from pathlib import Path
from typing import Any

from calibration_inputs import correlated_inputs, hashed, hessian_of
from torch import Tensor, nn

FILE = Path(__file__).with_name("llm_compressor.json")
SHAPE = (6, 32)
GPTQ_CASES = list(itertools.product((2, 3, 4), ("channel", "group"), (False, True)))
GROUP_SIZE = 8
SPARSE_CASES = [(0.5, 0, 0), (0.25, 0, 0), (0.0, 2, 4)]  # share, n of m


def weight_and_hessian() -> tuple[Tensor, Tensor]:
    x = correlated_inputs(100, SHAPE[1])
    return hashed(*SHAPE, salt=1.7).float(), hessian_of(x).float()


def stored() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def _part(name: str) -> Any:
    """A module of theirs without what the packages above it import."""
    *packages, _ = name.split(".")
    root = importlib.util.find_spec("compressed_tensors").origin
    for i in range(1, len(packages) + 1):
        folder = Path(root).parents[1].joinpath(*packages[:i])
        package = types.ModuleType(".".join(packages[:i]))
        package.__path__ = [str(folder)]
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(name)


def gptq(bits: int, strategy: str, act_order: bool) -> Tensor:
    from compressed_tensors.quantization import QuantizationArgs

    from course_utils.compression.gptq import grids

    theirs = _part("llmcompressor.modifiers.gptq.gptq_quantize")
    weight, hessian = weight_and_hessian()
    scale, zero = grids(weight, bits, "zero_point", strategy, GROUP_SIZE)
    settings = QuantizationArgs(
        num_bits=bits,
        type="int",
        symmetric=False,
        strategy=strategy,
        group_size=GROUP_SIZE if strategy == "group" else None,
        actorder="static" if act_order else None,
    )
    signed = (zero.float() - 2 ** (bits - 1))[None]
    out, *_ = theirs.quantize_weight(
        weight[None], hessian[None], scale[None].clone(), signed, None, settings
    )
    return out[0]


def sparsegpt(share: float, n: int, m: int) -> Tensor:
    theirs = _part("llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify")
    weight, hessian = weight_and_hessian()
    layer = nn.Linear(*SHAPE[::-1], bias=False).requires_grad_(False)
    layer.weight.copy_(weight)
    options = {"block_size": 16, "dampening_frac": 0.01, "preserve_sparsity_mask": False}
    _, out = theirs.sparsify_weight(layer, {layer: hessian}, share, n, m, **options)
    return out


if __name__ == "__main__":
    found = {"gptq": [gptq(*case).tolist() for case in GPTQ_CASES]}
    found["sparsegpt"] = [sparsegpt(*case).tolist() for case in SPARSE_CASES]
    FILE.write_text(json.dumps(found) + "\n", encoding="utf-8")
