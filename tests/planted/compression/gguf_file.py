"""Plausible wrong versions of course_utils.compression.gguf_file."""

from __future__ import annotations

import struct

from planting import Bug, originals

right = originals("compression.gguf_file")
BYTES = "packages_bytes"


def string_of_characters(text):
    """The length in characters, and a zero at the end."""
    return struct.pack("<Q", len(text) + 1) + text.encode() + b"\0"


def value_with_short_length(value):
    if isinstance(value, list):
        items = [right["_scalar"](item, True) for item in value]
        return struct.pack("<III", 9, items[0][0], len(items)) + b"".join(d for _, d in items)
    return right["value_bytes"](value)


def scalar_of_64_bits(value, in_list):
    if isinstance(value, int) and not isinstance(value, bool):
        return 10, struct.pack("<Q", value)
    return right["_scalar"](value, in_list)


def scalar_with_bool_as_int(value, in_list):
    return right["_scalar"](int(value) if isinstance(value, bool) else value, in_list)


def pairs_left_alone(weight, n_heads):
    return weight


def pairs_the_other_way(weight, n_heads):
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def pairs_without_heads(weight, n_heads):
    return right["neighbouring_pairs"](weight, 1)


def kinds_with_small_norms(tensors, kind, embedding_kind="Q8_0"):
    return {name: right["fitting_kind"](kind, t.shape[-1]) for name, t in tensors.items()}


def kind_that_fits_anything(kind, row):
    return kind


def write_with_shapes_as_torch_has_them(path, metadata, tensors, kinds):
    turned = {name: t.T.contiguous().view(t.shape[::-1]) for name, t in tensors.items()}
    return right["write_gguf"](path, metadata, turned, kinds)


def added_tokens_as_text(state, vocab_size, end, pre="gpt-2"):
    """Special tokens are of the normal kind, so that llama.cpp would read them in a text."""
    found = right["metadata_of_tokenizer"](state, vocab_size, end, pre)
    return {**found, "tokenizer.ggml.token_type": [1] * vocab_size}


def rows_without_a_token_left_out(state, vocab_size, end, pre="gpt-2"):
    fewer = len(state["model"].get("vocab", ())) or vocab_size
    return right["metadata_of_tokenizer"](state, min(vocab_size, fewer), end, pre)


BUGS = [
    Bug("string_bytes", "counts characters and a zero", string_of_characters, "value_bytes"),
    Bug("value_bytes", "has lengths of 4 bytes", value_with_short_length),
    Bug("_scalar", "writes 64 bits", scalar_of_64_bits, BYTES),
    Bug("_scalar", "takes bool for int", scalar_with_bool_as_int, BYTES),
    Bug("neighbouring_pairs", "leaves the rows", pairs_left_alone),
    Bug("neighbouring_pairs", "goes the other way", pairs_the_other_way),
    Bug("neighbouring_pairs", "forgets the heads", pairs_without_heads),
    Bug("metadata_of_tokenizer", "takes special tokens for text", added_tokens_as_text),
    Bug("metadata_of_tokenizer", "leaves rows out", rows_without_a_token_left_out),
    Bug("decoder_kinds", "rounds the norms", kinds_with_small_norms),
    Bug("fitting_kind", "falls back to nothing", kind_that_fits_anything),
    Bug("write_gguf", "writes torch's shapes", write_with_shapes_as_torch_has_them),
]
