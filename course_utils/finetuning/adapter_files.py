"""Adapters on the disk, in peft's own format: a few MB beside a base of hundreds. Notebook 07.

A folder with adapter_config.json and adapter_model.safetensors, which peft loads; and what peft
saved, loaded here. A safetensors file is eight bytes with a length, a JSON of that length which
says where each tensor lies, and the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.finetuning.lora import Adapter, inject_lora, linear_names, lora_layers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what peft writes before each name
TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # in a file's order
PARTS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "magnitude"}

# Fields of peft's configuration that change no number of a trained adapter's answer.
BOOKKEEPING = {
    *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("task_type", "inference_mode", "target_modules", "exclude_modules", "init_lora_weights"),
    *("megatron_core", "runtime_config", "qalora_group_size", "layers_pattern"),
    *("layers_to_transform", "ensure_weight_tying"),  # the tensors' names say which layers
}
FOLLOWED = {"r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"}
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # of init_lora_weights


# ── safetensors ───────────────────────────────────────────────────────────────────────────────────


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A file's bytes, as the safetensors library writes them: by type, then by name.

    >>> written = safetensors_bytes({"x": torch.tensor([1.0])})
    >>> struct.unpack("<Q", written[:8]), written[-4:].hex()  # the header's length; 1.0
    ((88,), '0000803f')
    """
    names = {dtype: name for name, dtype in TYPES.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in names:
            raise TypeError(f"{name} is {tensor.dtype}; a file here holds {', '.join(TYPES)}")
    rank = list(names).index
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start, data = 0, b""
    for name, tensor in sorted(tensors.items(), key=lambda item: (rank(item[1].dtype), item[0])):
        content = tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
        end = start + len(content)
        entry = {"dtype": names[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**entry, "data_offsets": [start, end]}
        start, data = end, data + content
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(content: bytes) -> dict[str, Tensor]:
    """Name → tensor, of a file's bytes. ValueError where it is cut off or of another type.

    >>> read_safetensors(safetensors_bytes({"x": torch.tensor([[1.0, 2.0]])}))
    {'x': tensor([[1., 2.]])}
    """
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else -1
    if not 0 < length <= len(content) - 8:
        raise ValueError(f"{len(content)} bytes with a header of {length}: no safetensors file")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    return {name: _read(name, entry, data) for name, entry in header.items()}


def _read(name: str, entry: Mapping[str, Any], data: bytes) -> Tensor:
    if entry["dtype"] not in TYPES:
        raise ValueError(f"{name} is {entry['dtype']}; known here are {', '.join(TYPES)}")
    dtype, (start, end) = TYPES[entry["dtype"]], entry["data_offsets"]
    if end > len(data) or end - start != math.prod(entry["shape"]) * dtype.itemsize:
        raise ValueError(f"{name} does not fit its place in the file, which seems cut off")
    if start == end:  # frombuffer refuses to read nothing
        return torch.empty(entry["shape"], dtype=dtype)
    return torch.frombuffer(bytearray(data[start:end]), dtype=dtype).reshape(entry["shape"])


# ── saving ────────────────────────────────────────────────────────────────────────────────────────


def adapter_state(
    model: nn.Module, name: str = "default", their_names: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """One adapter's tensors under peft's names.

    `their_names` says what a layer of ours is called in the model that peft will load it on.

    >>> net = nn.Sequential(nn.Linear(4, 4))
    >>> _ = inject_lora(net, "0", rank=1, alpha=1)
    >>> list(adapter_state(net))
    ['base_model.model.0.lora_A.weight', 'base_model.model.0.lora_B.weight']
    """
    state = {}
    for layer, adapter in _adapters(model, name).items():
        theirs = _theirs(layer, their_names)
        for part, attribute in PARTS.items():
            if (tensor := getattr(adapter, attribute)) is not None:
                state[f"{PREFIX}{theirs}.{part}"] = tensor.detach()
    return state


def _adapters(model: nn.Module, name: str) -> dict[str, Adapter]:
    layers = lora_layers(model)
    found = {n: layer.adapters[name] for n, layer in layers.items() if name in layer.adapters}
    if not found:
        raise ValueError(f"there is no adapter {name!r} in this {type(model).__name__}")
    return found


def _theirs(layer: str, their_names: Mapping[str, str] | None) -> str:
    if their_names is None:
        return layer
    if layer not in their_names:
        raise ValueError(f"their_names has no name for {layer}")
    return their_names[layer]


def adapter_config(
    model: nn.Module,
    name: str = "default",
    base: str | None = None,
    their_names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What peft must know beside the tensors. `base` is the name of the base model."""
    adapters = _adapters(model, name)
    first, *others = adapters.values()
    settings = _settings(first)
    if any(_settings(other) != settings for other in others):
        raise ValueError(f"the layers of {name!r} have different settings; peft's file knows one")
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "target_modules": _exactly(_theirs(layer, their_names) for layer in adapters),
        **settings,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
    }


def _exactly(names: Iterable[str]) -> str:
    """A regular expression of these names; in a list, peft takes "0" for the end of "3.0" too."""
    return "|".join(map(re.escape, names))


def _settings(adapter: Adapter) -> dict[str, Any]:
    return {
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout.p,
        "use_rslora": adapter.rank_stabilised,
        "use_dora": adapter.magnitude is not None,
    }


def save_adapter(
    model: nn.Module,
    folder: Path,
    *,
    name: str = "default",
    base: str | None = None,
    their_names: Mapping[str, str] | None = None,
) -> None:
    """Write one adapter to `folder`, which `PeftModel.from_pretrained` then loads."""
    state = adapter_state(model, name, their_names)
    config = adapter_config(model, name, base, their_names)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(safetensors_bytes(state))
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


# ── loading ───────────────────────────────────────────────────────────────────────────────────────


def load_adapter(
    model: nn.Module,
    folder: Path,
    *,
    name: str = "default",
    base: str | None = None,
    their_names: Mapping[str, str] | None = None,
) -> list[str]:
    """Put an adapter that peft or `save_adapter` wrote onto a model; returns the layers' names.

    It alone is then active. ValueError names what does not fit: another base (by its name, if both
    sides give one, by its layers or their sizes), or what these adapters do not do. Then nothing is
    changed.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    check_config(config, base)
    state = read_safetensors((folder / WEIGHTS).read_bytes())
    ours = {_theirs(layer, their_names): layer for layer in linear_names(model)}
    tensors = _by_layer(state, ours)
    _check_sizes(model, tensors, config)
    options = {
        "rank_stabilised": bool(config.get("use_rslora")),
        "dora": bool(config.get("use_dora")),
        "dropout": config.get("lora_dropout", 0.0),
    }
    inject_lora(model, _exactly(tensors), config["r"], config["lora_alpha"], name=name, **options)
    with torch.no_grad():
        for layer, parts in tensors.items():
            adapter = model.get_submodule(layer).adapters[name]
            for attribute, tensor in parts.items():
                getattr(adapter, attribute).copy_(tensor)
    return list(tensors)


def check_config(config: Mapping[str, Any], base: str | None = None) -> None:
    """Raise ValueError for a configuration that asks for what these adapters do not do."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"peft_type is {config.get('peft_type')!r}; only LORA is read here")
    theirs = config.get("base_model_name_or_path")
    if base and theirs and base != theirs:
        raise ValueError(f"the adapter was made on {theirs!r}, this base is {base!r}")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGES_THE_BASE):
        raise ValueError(f"init_lora_weights is {start!r}: that start changed the base's weights")
    for field, value in config.items():
        known = field in BOOKKEEPING or field in FOLLOWED
        if not known and value not in (None, False, [], {}, "none"):
            raise ValueError(f"{field} is {value!r}; these adapters have no such thing")


def _by_layer(state: Mapping[str, Tensor], ours: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """Our layer → its tensors by our names."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        part = next((part for part in PARTS if key.endswith(f".{part}")), None)
        if part is None:
            raise ValueError(f"the file holds {key}; these adapters have no such tensor")
        layer = key.removeprefix(PREFIX).removesuffix(f".{part}")
        if layer not in ours:
            some = ", ".join(list(ours)[:3])
            raise ValueError(
                f"the adapter is for {layer}, which is no linear layer here ({some} …): it was "
                "made on another base, or their_names must say what ours are called there"
            )
        found.setdefault(ours[layer], {})[PARTS[part]] = tensor
    return found


def _check_sizes(
    model: nn.Module, tensors: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]
) -> None:
    rank = config["r"]
    for layer, parts in tensors.items():
        module = model.get_submodule(layer)
        wanted = {"A": (rank, module.in_features), "B": (module.out_features, rank)}
        if config.get("use_dora"):
            wanted["magnitude"] = (module.out_features,)
        got = {part: tuple(tensor.shape) for part, tensor in parts.items()}
        if got != wanted:
            raise ValueError(f"{layer} needs {wanted}, the file has {got}: made on another base?")
