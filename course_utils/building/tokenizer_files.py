"""Tokenizers as files, in the format of `tokenizers` (tokenizer.json). Notebook 00."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from course_utils.building.tokenizer import Tokenizer, byte_characters

WITHOUT_OPTIONS = {
    "unk_token": None,
    "dropout": None,
    "byte_fallback": False,
    "ignore_merges": False,
}


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────


def spell(token: bytes) -> str:
    """A token as it stands in files.

    >>> spell(" the".encode()), spell("é".encode())
    ('Ġthe', 'Ã©')
    """
    return "".join(byte_characters()[byte] for byte in token)


def unspell(text: str) -> bytes:
    """The token that stands in a file as `text`; ValueError for a character outside the table."""
    table = {character: byte for byte, character in byte_characters().items()}
    strange = [character for character in text if character not in table]
    if strange:
        raise ValueError(f"{text!r} holds {strange[0]!r}, which stands for no byte")
    return bytes(table[character] for character in text)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def to_json(tokenizer: Tokenizer) -> str:
    """The tokenizer as `tokenizers` writes it, byte for byte."""
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    apart = [{"type": "Digits", "individual_digits": True}, level]
    merges = [[spell(left), spell(right)] for left, right in tokenizer.merges]
    spelled = {spell(token): id for token, id in tokenizer.vocab.items()} | tokenizer.specials
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(sorted(spelled.items(), key=lambda item: item[1])),
        "merges": merges,
    }
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(text, id) for text, id in tokenizer.specials.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": apart}
        if tokenizer.digits
        else level,
        "post_processor": None,
        "decoder": level | {"add_prefix_space": True},  # their default; no decoder reads it
        "model": model,
    }
    return json.dumps(whole, indent=2, ensure_ascii=False)


def _added(text: str, id: int) -> dict[str, Any]:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": text, **off, "special": True}


def from_json(text: str) -> Tokenizer:
    """A byte-level BPE tokenizer from the text of its `tokenizer.json`.

    ValueError names what this module does not know: another model, a normaliser, another way to
    cut words. What is put around a text (`post_processor`) is left out.
    """
    whole = json.loads(text)
    model = whole["model"]
    options = {name: model.get(name, value) for name, value in WITHOUT_OPTIONS.items()}
    if model.get("type") != "BPE" or options != WITHOUT_OPTIONS or whole.get("normalizer"):
        raise ValueError(
            f"the model is {model.get('type')} with {options}, the normalizer "
            f"{whole.get('normalizer')}; only plain BPE without a normalizer is known here"
        )
    digits = _digits_apart(whole.get("pre_tokenizer"))
    specials = {entry["content"]: entry["id"] for entry in whole["added_tokens"]}
    vocab = {unspell(t): id for t, id in model["vocab"].items() if t not in specials}
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    merges = [(unspell(left), unspell(right)) for left, right in pairs]
    return Tokenizer(vocab, merges, specials, digits=digits)


def _digits_apart(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether words are cut with every digit alone; ValueError for a way that is not known."""
    steps = [pre_tokenizer or {"type": None}]
    if steps[0]["type"] == "Sequence":
        steps = list(steps[0]["pretokenizers"])
    digits = steps[0] == {"type": "Digits", "individual_digits": True}
    *others, level = steps[digits:] or [{"type": None}]
    plain = level.get("use_regex", True) and not level.get("add_prefix_space", True)
    if others or level["type"] != "ByteLevel" or not plain:
        raise ValueError(
            f"words are cut by {pre_tokenizer}; only ByteLevel with its regex and without a prefix "
            "space is known here, after Digits one by one or alone"
        )
    return digits


def load(path: str | Path) -> Tokenizer:
    """Read a `tokenizer.json`; see `from_json`."""
    return from_json(Path(path).read_text(encoding="utf-8"))


def save(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a `tokenizer.json` that `tokenizers` and transformers read."""
    Path(path).write_text(to_json(tokenizer), encoding="utf-8")
