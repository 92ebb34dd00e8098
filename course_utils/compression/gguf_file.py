"""A complete GGUF file of a decoder, which llama.cpp loads and runs. Notebook 13.

The format (ggml-org/ggml, docs/gguf.md, version 3): a header that counts, key–value pairs, one line
on each tensor, and the tensors' data, all little-endian. A `Decoder` here is any module with that
one's `config` and names of weights; its tokenizer is GPT-2's kind, byte-level byte-pair encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.compression.gguf import (
    quantize_q4_0,
    quantize_q4_1,
    quantize_q5_0,
    quantize_q5_1,
    quantize_q8_0,
)
from course_utils.compression.k_quants import quantize_q4_k, quantize_q5_k, quantize_q6_k
from course_utils.compression.rtn import check_weight, to_half

ALIGNMENT = 32  # each tensor's data begins at a multiple of it
Value = bool | int | float | str | Sequence[int] | Sequence[float] | Sequence[str]


# ── tensors ───────────────────────────────────────────────────────────────────────────────────────


def _float32(x: Tensor) -> Tensor:
    check_weight(x)
    return x.float().contiguous().view(torch.uint8)


def _float16(x: Tensor) -> Tensor:
    check_weight(x)
    return to_half(x).contiguous().view(torch.uint8)


# Name → ggml's number of the type, and what makes the bytes.
KINDS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "F32": (0, _float32),
    "F16": (1, _float16),
    "Q4_0": (2, quantize_q4_0),
    "Q4_1": (3, quantize_q4_1),
    "Q5_0": (6, quantize_q5_0),
    "Q5_1": (7, quantize_q5_1),
    "Q8_0": (8, quantize_q8_0),
    "Q4_K": (12, quantize_q4_k),
    "Q5_K": (13, quantize_q5_k),
    "Q6_K": (14, quantize_q6_k),
}


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")


def tensor_bytes(x: Tensor, kind: str) -> bytes:
    """The data of a tensor in one of the `KINDS`.

    >>> tensor_bytes(torch.tensor([1.0, -2.0]), "F16").hex()  # 3c00 and c000, low bytes first
    '003c00c0'
    """
    check_kind(kind)
    return KINDS[kind][1](x.detach().cpu()).numpy().tobytes()


# ── keys and values ───────────────────────────────────────────────────────────────────────────────


def string_bytes(text: str) -> bytes:
    """Its length in bytes, in 8 of them, and the text in UTF-8.

    >>> string_bytes("é").hex()
    '0200000000000000c3a9'
    """
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _scalar(value: bool | int | float | str, in_list: bool) -> tuple[int, bytes]:
    """A value's type number, and its bytes: bool, uint32 (int32 in lists), float32, string."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return (5, struct.pack("<i", value)) if in_list else (4, struct.pack("<I", value))
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, string_bytes(value)
    raise TypeError(f"a value is {type(value).__name__}; GGUF takes bool, int, float, str, lists")


def value_bytes(value: Value) -> bytes:
    """The number of the value's type, then the value. A list is type 9: inner type, length, items.

    >>> value_bytes(7).hex(), value_bytes([7]).hex()
    ('0400000007000000', '0900000005000000010000000000000007000000')
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        kind, data = _scalar(value, in_list=False)
        return struct.pack("<I", kind) + data
    items = [_scalar(item, in_list=True) for item in value]
    kinds = {kind for kind, _ in items}
    if len(kinds) != 1:
        raise TypeError(f"a list of {len(items)} values has {len(kinds)} types; GGUF takes one")
    head = struct.pack("<IIQ", 9, *kinds, len(items))
    return head + b"".join(data for _, data in items)


# ── the file ──────────────────────────────────────────────────────────────────────────────────────


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Value],
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, str],
) -> int:
    """Write a GGUF of these tensors, each in its kind of `KINDS`; return its size in bytes."""
    pairs = b"".join(string_bytes(key) + value_bytes(value) for key, value in metadata.items())
    lines, blobs, offset = [], [], 0
    for name, tensor in tensors.items():
        data = tensor_bytes(tensor, kinds[name])
        shape = tensor.shape[::-1]  # the innermost dimension first
        number, _ = KINDS[kinds[name]]
        lines.append(
            string_bytes(name)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            + struct.pack("<IQ", number, offset)
        )
        blobs.append(data + bytes(-len(data) % ALIGNMENT))
        offset += len(blobs[-1])
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)) + pairs + b"".join(lines)
    whole = b"".join([head, bytes(-len(head) % ALIGNMENT), *blobs])
    Path(path).write_bytes(whole)
    return len(whole)


# ── a decoder ─────────────────────────────────────────────────────────────────────────────────────


def neighbouring_pairs(weight: Tensor, n_heads: int) -> Tensor:
    """A query or key weight (H·D, …) from pairs half a head apart to pairs of neighbours.

    Rotary positions turn numbers by pairs. Which rows of a head are a pair is a convention that
    changes no score: ours, as transformers', has i and i + D/2, llama.cpp's has 2i and 2i + 1.

    >>> neighbouring_pairs(torch.tensor([[0], [2], [1], [3]]), n_heads=1).flatten()
    tensor([0, 1, 2, 3])
    """
    return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # (H, D/2, 2, …)


BLOCK_NAMES = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.out": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}


def decoder_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A `Decoder`'s weights, by the names and in the order of rows that llama.cpp expects."""
    state, config = model.state_dict(), model.config
    heads = {
        "attention.query": config.n_heads,
        "attention.key": config.n_heads if config.n_kv_heads is None else config.n_kv_heads,
    }
    tensors = {"token_embd.weight": state["token_embedding.weight"]}
    for i in range(config.n_layers):
        for ours, theirs in BLOCK_NAMES.items():
            weight = state[f"blocks.{i}.{ours}.weight"]
            if ours in heads:
                weight = neighbouring_pairs(weight, heads[ours])
            tensors[f"blk.{i}.{theirs}.weight"] = weight
    tensors["output_norm.weight"] = state["norm.weight"]
    if not config.tied:
        tensors["output.weight"] = state["out.weight"]
    return tensors


def decoder_metadata(config: Any, name: str = "decoder") -> dict[str, Value]:
    """The sizes of a `DecoderConfig`, as llama.cpp's architecture "llama" asks for them."""
    if not config.causal:
        raise ValueError("causal is False; llama.cpp runs a decoder whose tokens see those before")
    rule = (config.scaling or {}).get("rope_type", "default")
    if rule != "default":
        raise ValueError(f"scaling is {rule!r}; only decoders without a scaling rule are written")
    d_head = config.d_model // config.n_heads if config.d_head is None else config.d_head
    return {
        "general.architecture": "llama",
        "general.name": name,
        "general.alignment": ALIGNMENT,
        "general.quantization_version": 2,
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_positions,
        "llama.embedding_length": config.d_model,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.d_ff,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": (
            config.n_heads if config.n_kv_heads is None else config.n_kv_heads
        ),
        "llama.attention.key_length": d_head,
        "llama.attention.value_length": d_head,
        "llama.attention.layer_norm_rms_epsilon": float(config.eps),
        "llama.rope.dimension_count": d_head,
        "llama.rope.freq_base": float(config.theta),
    }


def tokenizer_metadata(
    tokens: Sequence[str],
    merges: Sequence[tuple[str, str]],
    special: Collection[int],
    end: int,
    pre: str = "gpt-2",
) -> dict[str, Value]:
    """A byte-level byte-pair tokenizer, for llama.cpp.

    `tokens` by id and `merges` in order, both in GPT-2's alphabet, in which a space is "Ġ".
    `special` are ids that text never makes; `end` is the id that ends a text; `pre` the rule that
    cuts a text into words first.
    """
    if not 0 <= end < len(tokens):
        raise ValueError(f"end is {end}; the tokens are 0 … {len(tokens) - 1}")
    control, normal = 3, 1
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": [
            control if i in special else normal for i in range(len(tokens))
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": end,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }


def metadata_of_tokenizer(
    state: Mapping[str, Any], vocab_size: int, end: int, pre: str = "gpt-2"
) -> dict[str, Value]:
    """`tokenizer_metadata` from what a tokenizer.json of `tokenizers` holds.

    A model's rows of the embedding (`vocab_size`) that no token has are filled up with unused ones.
    Raises ValueError for a tokenizer that is no byte-pair encoding.
    """
    model = state["model"]
    if model.get("type") != "BPE":
        raise ValueError(f"the tokenizer's type is {model.get('type')!r}; only BPE is written")
    added = {token["content"]: token["id"] for token in state["added_tokens"]}
    named = {i: token for token, i in (model["vocab"] | added).items()}
    special = {token["id"] for token in state["added_tokens"] if token["special"]}
    tokens = [named.get(i, f"<unused {i}>") for i in range(vocab_size)]
    special |= set(range(vocab_size)) - named.keys()
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return tokenizer_metadata(tokens, merges, special, end, pre)


# What llama.cpp takes where 256 does not divide a row, and then where 32 does not.
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def fitting_kind(kind: str, row: int) -> str:
    """The kind itself, or what llama.cpp's quantizer falls back to for rows of this length.

    >>> [fitting_kind("Q4_K", row) for row in (512, 576, 100)]
    ['Q4_K', 'Q5_0', 'F16']
    """
    check_kind(kind)
    if kind.endswith("_K") and row % 256:
        kind = FALLBACK[kind]
    return "F16" if kind.startswith("Q") and row % 32 else kind


def decoder_kinds(
    tensors: Mapping[str, Tensor], kind: str, embedding_kind: str = "Q8_0"
) -> dict[str, str]:
    """Matrices in `kind`, embedding and output layer in `embedding_kind`, norms in F32.

    The embedding has its own, as in llama.cpp's files, since where it is also the output layer a
    coarse one costs most. Rows that a kind's blocks do not fill get the `fitting_kind`.
    """
    edges = ("token_embd.weight", "output.weight")
    wanted = {name: embedding_kind if name in edges else kind for name in tensors}
    return {
        name: "F32" if tensor.ndim == 1 else fitting_kind(wanted[name], tensor.shape[-1])
        for name, tensor in tensors.items()
    }


def write_decoder(
    path: str | Path,
    model: nn.Module,
    tokenizer: Mapping[str, Value],
    kind: str = "F16",
    embedding_kind: str = "Q8_0",
) -> int:
    """Write a `Decoder` and its tokenizer (`tokenizer_metadata`) as a GGUF; return its bytes.

    `kind` and `embedding_kind` as in `decoder_kinds`. ValueError where the tokenizer has another
    number of tokens, or llama.cpp could not run the model.
    """
    n_tokens, vocab_size = len(tokenizer["tokenizer.ggml.tokens"]), model.config.vocab_size
    if n_tokens != vocab_size:
        raise ValueError(
            f"the tokenizer has {n_tokens} tokens, the model {vocab_size} rows; they must be one "
            "each: fill the tokenizer up with unused tokens, or cut the embedding"
        )
    tensors = decoder_tensors(model)
    metadata = {**decoder_metadata(model.config), **tokenizer}
    return write_gguf(path, metadata, tensors, decoder_kinds(tensors, kind, embedding_kind))
