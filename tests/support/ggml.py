"""llama.cpp's own C functions, which the shared library of xllamacpp exports."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
import xllamacpp
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor


@functools.cache
def library() -> ctypes.CDLL:
    (file,) = (f for f in Path(xllamacpp.__file__).parent.iterdir() if f.suffix in (".so", ".pyd"))
    return ctypes.CDLL(str(file))


def quantize(name: str, x: Tensor) -> Tensor:
    """The bytes of x (…, N) as `quantize_row_<name>_ref` writes them, for "q4_0", "q4_K" …"""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]]
    x = x.float().contiguous()
    out = torch.empty(*x.shape[:-1], x.shape[-1] // block * size, dtype=torch.uint8)
    function = getattr(library(), f"quantize_row_{name}_ref")
    function.restype = None
    pointer = ctypes.c_void_p
    function(pointer(x.data_ptr()), pointer(out.data_ptr()), ctypes.c_int64(x.numel()))
    return out
