"""What llm-compressor and torchao make of the weights of `calibration_inputs`, kept in JSON.

llm-compressor 0.14 wants an older transformers than the course has, and torchao is loaded by every
library that finds it, so that neither is a dependency. In an environment of its own (`pip install
--no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0 loguru torchao==0.18.0` beside the
course's), `PYTHONPATH=tests/support python -m made_elsewhere` writes the file anew. Of
llm-compressor only the functions are imported: its package would pull in CUDA's libraries.
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

FILE = Path(__file__).with_suffix(".json")
SHAPE = (6, 32)
GPTQ_CASES = list(itertools.product((2, 3, 4), ("channel", "group"), (False, True)))
GROUP_SIZE = 8
AWQ_CASES = [2, 3, 4]
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


def wanda(share: float, n: int, m: int) -> Tensor:
    theirs = _part("llmcompressor.modifiers.pruning.wanda.wanda_sparsify")
    weight, hessian = weight_and_hessian()
    layer = nn.Linear(*SHAPE[::-1], bias=False).requires_grad_(False)
    layer.weight.copy_(weight)
    return theirs.sparsify_weight(layer, {layer: hessian.diagonal() / 2}, share, n, m)


def awq(bits: int) -> Tensor:
    """The scales that torchao finds, with this course's own rounding."""
    from torchao.core.config import AOBaseConfig
    from torchao.prototype.awq.core import AWQObserver
    from torchao.quantization.transform_module import register_quantize_module_handler

    from course_utils.compression.rtn import round_to_nearest

    class Rounding(AOBaseConfig):
        pass

    @register_quantize_module_handler(Rounding)
    def _(module: nn.Module, config: Rounding) -> nn.Module:
        rounded = round_to_nearest(module.weight, bits, "minimum", "group", GROUP_SIZE)
        module.weight = nn.Parameter(rounded, requires_grad=False)
        return module

    weight, _ = weight_and_hessian()
    observer = AWQObserver(weight, None, Rounding())
    observer(correlated_inputs(100, SHAPE[1]).float(), None)
    return observer.calculate_qparams()


if __name__ == "__main__":
    found = {"gptq": [gptq(*case).tolist() for case in GPTQ_CASES]}
    found["sparsegpt"] = [sparsegpt(*case).tolist() for case in SPARSE_CASES]
    found["wanda"] = [wanda(*case).tolist() for case in SPARSE_CASES]
    found["awq"] = [awq(bits).tolist() for bits in AWQ_CASES]
    FILE.write_text(json.dumps(found) + "\n", encoding="utf-8")
