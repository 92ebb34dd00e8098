"""The packaged models, loaded offline: a decoder, an encoder, g2p_en and the course's checkpoints.

Whatever needs converting (GGUF to safetensors) is converted once. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.assets import cache
from course_utils.assets.catalogue import (
    Asset,
    AssetError,
    cache_folder,
    catalogue,
    data_folder,
    describe,
    with_role,
)
from course_utils.assets.fetching import Progress, fetch, note_use, reporting

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


CONVERSION = 1  # raise it when `_write_converted` changes, and cached conversions are made anew
CONVERTED = "-transformers"  # the converted folder of an asset is its name with this after it


def needs_conversion(asset: Asset) -> bool:
    """Whether transformers needs another form of an asset than the packaged one."""
    return asset.role == "decoder" and any(m.name.endswith(".gguf") for m in asset.members)


# ── GGUF to safetensors, once ───────────────────────────────────────────────────────────────────


def _conversion_digest(asset: Asset) -> str:
    return hashlib.sha256(f"{asset.digest} conversion {CONVERSION}".encode()).hexdigest()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' loading bars off stderr, which notebooks store."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the tokenizer cut every digit off before it splits words, as the model was trained.

    transformers converts a GGUF's "smollm" tokenizer to a plain byte-level one, in which a digit
    keeps the blank or newline before it, and "\\n\\n1." becomes other tokens than in training.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _write_converted(gguf: Path, folder: Path) -> None:
    """Write a GGUF decoder as a folder that transformers loads: float32 weights, tokenizer.

    The weights are the dequantized ones, bit for bit; tied embeddings are stored once.
    """
    import gguf as gguf_format
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"gguf_file": gguf.name, "local_files_only": True}
    # transformers' bar of the dequantization goes to stderr whatever its settings are.
    with _without_bars(), redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            **source,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        pre = gguf_format.GGUFReader(gguf).get_field("tokenizer.ggml.pre")
        if pre is not None and pre.contents() == "smollm":
            _split_digits(tokenizer)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def convert(asset: Asset, progress: Progress | None = None, *, verify: bool = False) -> Path:
    """Return the folder of an asset's converted model; convert it if that has not been done."""
    note_use(asset)
    size = next(m.size for m in asset.members if m.name.endswith(".gguf"))

    def build(scratch: Path, report: cache.Report) -> None:
        # One display for both: older versions of rich refuse a bar inside another's.
        folder = fetch(asset, lambda _, *row: report(*row))
        gguf = _only_gguf(folder, asset.name)
        report("convert", 0, size)
        _write_converted(gguf, scratch)
        report("convert", size, size)

    name, digest = asset.name + CONVERTED, _conversion_digest(asset)
    with reporting(asset, progress) as report:
        return cache.install(cache_folder(), name, digest, build, report, full=verify)


def fetch_all(
    names: Iterable[str] | None = None, progress: Progress | None = None, *, verify: bool = False
) -> dict[str, Path]:
    """Fetch the named assets, or all, and convert what must be converted; return their folders.

    Raises AssetError at the first that can't be had; those before it stay in the cache.
    """
    folders = {}
    for asset in catalogue().values() if names is None else map(describe, names):
        folders[asset.name] = fetch(asset, progress, verify=verify)
        if needs_conversion(asset):
            convert(asset, progress, verify=verify)
    return folders


def verify(asset: Asset) -> list[str]:
    """Hash everything that is cached of an asset and say what is wrong: nothing when it is sound.

    Neither fetches nor changes anything. `fetch_all([name], verify=True)` repairs.
    """
    wrong = cache.problems(cache_folder() / asset.name, asset.digest, full=True)
    if needs_conversion(asset):
        converted = cache_folder() / (asset.name + CONVERTED)
        found = cache.problems(converted, _conversion_digest(asset), full=True)
        wrong += [f"converted to safetensors: {problem}" for problem in found]
    return wrong


def gguf_path(model: str | Path = "smollm2") -> Path:
    """Return the GGUF file of a packaged decoder, of a folder that holds one, or the file itself.

    Raises AssetError when there is none, or more than one to choose from.
    """
    if (asset := catalogue().get(str(model))) is not None:
        return _only_gguf(fetch(asset), str(model))
    path = Path(os.path.expanduser(model))
    return path if path.suffix == ".gguf" and path.is_file() else _only_gguf(path, str(model))


def _only_gguf(folder: Path, model: str) -> Path:
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    if len(files) != 1:
        have = f"the folder has {len(files)}" if folder.is_dir() else "there is no such file"
        raise AssetError(
            f"llama.cpp needs one GGUF file and {model!r} does not name one ({have}); give "
            f"the path of a .gguf file, or one of {', '.join(with_role('decoder'))}"
        )
    return files[0]


# ── loading ─────────────────────────────────────────────────────────────────────────────────────


def _source_of(model: str, role: str) -> tuple[str, bool]:
    """Return what transformers should load, and whether it is local."""
    if (asset := catalogue().get(model)) is None:
        folder = Path(os.path.expanduser(model))
        return (str(folder), True) if folder.is_dir() else (model, False)
    if asset.role != role:
        raise AssetError(
            f"{model!r} is not a packaged {role}; the course has {', '.join(with_role(role))}, "
            "and a folder or a hub id works too"
        )
    return str(convert(asset) if needs_conversion(asset) else fetch(asset)), True


def _load(auto: type, source: tuple[str, bool], model: str, role: str, dtype: Any) -> Loaded:
    """Load a model in eval mode without gradients, and its tokenizer."""
    import torch
    from transformers import AutoTokenizer

    name, local = source
    try:
        with _without_bars():
            net = auto.from_pretrained(
                name, dtype=dtype or torch.float32, use_safetensors=True, local_files_only=local
            )
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError) as error:
        what = str(error).strip().splitlines()[0]
        raise AssetError(
            f"the {role} {model!r} could not be loaded ({what}); use the packaged "
            f"{', '.join(with_role(role))}, a folder with config.json and safetensors, or a hub "
            "id (owner/name) with a network and without HF_HUB_OFFLINE"
        ) from error
    return net.eval().requires_grad_(False), tokenizer


def load_decoder(
    model: str | Path = "smollm2",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Loaded:
    """Return (causal language model, tokenizer): eval mode, no gradients, float32 unless `dtype`.

    `model` is the name of a packaged decoder, a folder that transformers can load, or a hub id.
    Raises AssetError when it can't be had.
    """
    source = _source_of(str(model), "decoder")
    from transformers import AutoModelForCausalLM

    net, tokenizer = _load(AutoModelForCausalLM, source, str(model), "decoder", dtype)
    return net.to(device), tokenizer


def load_encoder(
    model: str | Path = "minilm",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Loaded:
    """Return (encoder without a head, tokenizer): eval mode, no gradients, float32 unless `dtype`.

    `model` is the name of a packaged encoder, a folder that transformers can load, or a hub id.
    Raises AssetError when it can't be had.
    """
    source = _source_of(str(model), "encoder")
    from transformers import AutoModel

    net, tokenizer = _load(AutoModel, source, str(model), "encoder", dtype)
    return net.to(device), tokenizer


# ── the course's own checkpoints ────────────────────────────────────────────────────────────────


def checkpoint_folder(name: str) -> Path:
    """Return the folder of a checkpoint that the course trained: weights and a card.

    Raises AssetError, with the command that trains it, when it is not there.
    """
    folder = data_folder() / "checkpoints" / name
    if not (folder / "model.safetensors").is_file():
        raise AssetError(
            f"there is no checkpoint {name!r} in {folder.parent}; restore it from the repository, "
            f"or train it with `course train {name}`"
        )
    return folder


#: The symbols that the rows of the arrays `enc_emb` and `dec_emb` stand for, in order.
G2P_GRAPHEMES = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
G2P_PHONEMES = (
    *("<pad>", "<unk>", "<s>", "</s>", "AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1"),
    *("AH2", "AO0", "AO1", "AO2", "AW0", "AW1", "AW2", "AY0", "AY1", "AY2", "B", "CH", "D", "DH"),
    *("EH0", "EH1", "EH2", "ER0", "ER1", "ER2", "EY0", "EY1", "EY2", "F", "G", "HH", "IH0", "IH1"),
    *("IH2", "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG", "OW0", "OW1", "OW2", "OY0"),
    *("OY1", "OY2", "P", "R", "S", "SH", "T", "TH", "UH0", "UH1", "UH2", "UW", "UW0", "UW1"),
    *("UW2", "V", "W", "Y", "Z", "ZH"),
)


def load_g2p() -> dict[str, np.ndarray]:
    """Return the float32 weights of the spelling-to-phonemes network, two GRUs of width 256.

    `enc_*` and `dec_*`: emb (symbols, 256), w_ih and w_hh (768, 256), b_ih and b_hh (768,), gates
    in PyTorch's order; `fc_w` (phonemes, 256), `fc_b`. G2P_GRAPHEMES and G2P_PHONEMES name the
    symbols. It was trained on nearly all of CMUdict: there its score is a training score.
    """
    import numpy as np

    with np.load(fetch(describe("g2p")) / "checkpoint20.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
