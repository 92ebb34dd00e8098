"""Plausible wrong versions of course_utils.finetuning.adapter_files."""

from __future__ import annotations

import json
import struct

import torch
from planting import Bug, originals

right = originals("finetuning.adapter_files")


def bytes_in_the_order_given(tensors):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    names = {dtype: name for name, dtype in right["TYPES"].items()}
    for name, tensor in tensors.items():
        content = tensor.detach().flatten().view(torch.uint8).numpy().tobytes()
        where = [len(data), len(data) + len(content)]
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": where,
        }
        data += content
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def bytes_without_filling(tensors):
    content = right["safetensors_bytes"](tensors)
    length = struct.unpack("<Q", content[:8])[0]
    text = content[8 : 8 + length].rstrip(b" ")
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def read_from_the_start(content):
    """Offsets counted from the start of the file, not from the end of the header."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return {name: right["_read"](name, entry, content) for name, entry in header.items()}


def state_without_a_prefix(model, name="default", their_names=None):
    state = right["adapter_state"](model, name, their_names)
    return {key.removeprefix(right["PREFIX"]): tensor for key, tensor in state.items()}


def state_with_a_and_b_changed_over(model, name="default", their_names=None):
    state = right["adapter_state"](model, name, their_names)
    other = {"lora_A": "lora_B", "lora_B": "lora_A"}
    return {
        ".".join(other.get(part, part) for part in key.split(".")): tensor
        for key, tensor in state.items()
    }


def state_scaled(model, name="default", their_names=None):
    """The scale is in B already, and peft multiplies by it again."""
    state = right["adapter_state"](model, name, their_names)
    return {key: 1.5 * t if "lora_B" in key else t for key, t in state.items()}


def state_with_the_adapters_name(model, name="default", their_names=None):
    state = right["adapter_state"](model, name, their_names)
    return {key.replace(".weight", f".{name}.weight"): tensor for key, tensor in state.items()}


def config_without_flags(model, name="default", base=None, their_names=None):
    config = right["adapter_config"](model, name, base, their_names)
    return config | {"use_dora": False, "use_rslora": False}


def config_with_alpha_for_scale(model, name="default", base=None, their_names=None):
    config = right["adapter_config"](model, name, base, their_names)
    return config | {"lora_alpha": config["lora_alpha"] / config["r"]}


def config_with_a_list(model, name="default", base=None, their_names=None):
    config = right["adapter_config"](model, name, base, their_names)
    return config | {"target_modules": config["target_modules"].split("|")}


def load_without_checking_sizes(model, tensors, config):
    return None


def check_nothing(config, base=None):
    return None


def load_without_tensors(model, folder, *, name="default", base=None, their_names=None):
    """The adapter stands as it starts."""
    loaded = right["load_adapter"](model, folder, name=name, base=base, their_names=their_names)
    for layer in loaded:
        model.get_submodule(layer).adapters[name].B.data.zero_()
    return loaded


BUGS = [
    Bug("safetensors_bytes", "keeps the order given", bytes_in_the_order_given),
    Bug("safetensors_bytes", "does not fill the header", bytes_without_filling),
    Bug("read_safetensors", "counts from the file's start", read_from_the_start, "safetensors"),
    Bug("adapter_state", "has no prefix", state_without_a_prefix, "the_same_file"),
    Bug("adapter_state", "changes A and B over", state_with_a_and_b_changed_over, "the_same_file"),
    Bug("adapter_state", "has the scale in B", state_scaled, "the_same_file or read_by_peft"),
    Bug("adapter_state", "keeps the name", state_with_the_adapters_name, "the_same_file"),
    Bug("adapter_config", "forgets DoRA and rsLoRA", config_without_flags, "read_by_peft"),
    Bug("adapter_config", "writes α/r", config_with_alpha_for_scale, "read_by_peft"),
    Bug("adapter_config", "names layers by their ends", config_with_a_list, "no_layer_more"),
    Bug("_check_sizes", "checks nothing", load_without_checking_sizes, "sizes or lost_tensor"),
    Bug("check_config", "checks nothing", check_nothing, "check_config or bases_name"),
    Bug("load_adapter", "loads no numbers", load_without_tensors, "load_adapter or both_ways"),
]
