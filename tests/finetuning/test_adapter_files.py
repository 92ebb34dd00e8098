"""Adapters that peft saved, loaded here, and ours loaded by peft; and files that do not fit."""

from __future__ import annotations

import copy
import json

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from course_utils.finetuning import adapter_files as files
from course_utils.finetuning.lora import inject_lora, lora_layers, merge_lora, use_adapters

# peft 0.21 asks transformers 5 for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}  # fp32: the scale is multiplied in before B, not after
OPTIONS = [
    {},
    {"rank_stabilised": True},
    {"dora": True},
    {"dora": True, "dropout": 0.25},
]
ALL_OPTIONS = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
OUR_NAMES = {
    "q_proj": "attention.query",
    "v_proj": "attention.value",
    "down_proj": "feed_forward.down",
}
TARGETS = list(OUR_NAMES)
PATTERN = r".*\.(query|value|down)"


def their_names(model):
    """{our layer: what transformers' Llama calls it}, for every linear layer."""
    names = {"out": "lm_head"}
    parts = {f"attention.{n}": f"self_attn.{n[0]}_proj" for n in ("query", "key", "value", "out")}
    parts |= {f"feed_forward.{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")}
    for i in range(model.config.n_layers):
        for our, their in parts.items():
            names[f"blocks.{i}.{our}"] = f"model.layers.{i}.{their}"
    return names


def shake_ours(model):
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for adapter in layer.adapters.values():
                adapter.B.normal_(std=0.2)
                if adapter.magnitude is not None:
                    adapter.magnitude.mul_(1.5)


def theirs_with(model, options, targets=TARGETS, **more):
    config = LoraConfig(
        r=3,
        lora_alpha=4.5,
        target_modules=targets,
        use_rslora=options.get("rank_stabilised", False),
        use_dora=options.get("dora", False),
        lora_dropout=options.get("dropout", 0.0),
        **more,
    )
    model = get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
            if "magnitude" in name:
                p.mul_(1.5)
    return model.eval()


# ── both ways ─────────────────────────────────────────────────────────────────────────────────────


@ALL_OPTIONS
def test_load_adapter_reads_what_peft_saved(llama, ours, options, tmp_path):
    """From transformers' Llama onto our own, and logits and gradients are the same."""
    theirs = theirs_with(llama, options)
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(30, (2, 7))
    before = ours(ids)
    loaded = files.load_adapter(ours, tmp_path, their_names=their_names(ours))
    assert len(loaded) == 6
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, **TOLERANCE)
    assert not torch.allclose(ours(ids), before, atol=1e-3)  # the adapter does something
    assert ours.get_submodule(loaded[0]).adapters["default"].dropout.p == options.get("dropout", 0)
    for p in theirs.parameters():
        p.requires_grad_(True)  # peft loads for inference
    ours(ids).square().mean().backward()
    theirs(ids).logits.square().mean().backward()
    names = {their: our for our, their in their_names(ours).items()}
    for name, p in theirs.named_parameters():
        if "lora_A" in name:
            layer = name.removeprefix(files.PREFIX).partition(".lora_A")[0]
            adapter = ours.get_submodule(names[layer]).adapters["default"]
            torch.testing.assert_close(adapter.A.grad, p.grad, **TOLERANCE)


@ALL_OPTIONS
def test_save_adapter_is_read_by_peft(llama, ours, options, tmp_path):
    inject_lora(ours, PATTERN, rank=3, alpha=4.5, **options)
    shake_ours(ours)
    files.save_adapter(ours, tmp_path, their_names=their_names(ours))
    theirs = PeftModel.from_pretrained(llama, tmp_path).eval()
    ids = torch.randint(30, (2, 7))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, **TOLERANCE)
    config = theirs.peft_config["default"]
    assert config.use_dora is options.get("dora", False)
    assert config.lora_dropout == options.get("dropout", 0)


@ALL_OPTIONS
def test_saving_what_was_loaded_is_the_same_file(llama, ours, options, tmp_path):
    """Byte for byte: peft → ours → the same tensors in the same order."""
    theirs_with(llama, options).save_pretrained(tmp_path / "theirs")
    files.load_adapter(ours, tmp_path / "theirs", their_names=their_names(ours))
    files.save_adapter(ours, tmp_path / "ours", their_names=their_names(ours))
    one, two = ((tmp_path / side / files.WEIGHTS).read_bytes() for side in ("theirs", "ours"))
    assert one == two


def test_peft_adapts_no_layer_more_than_we_did(tmp_path):
    """In a list, peft would take "0" for the end of "1.0" too."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    base = copy.deepcopy(net)
    inject_lora(net, "0", rank=2, alpha=1)
    files.save_adapter(net, tmp_path)
    theirs = PeftModel.from_pretrained(base, tmp_path)
    adapted = [name for name, module in theirs.named_modules() if hasattr(module, "lora_A")]
    assert adapted == ["base_model.model.0"]


def test_adapters_of_a_net_without_names_go_both_ways(net, tmp_path):
    """Any nn.Module, and two adapters from two files on one base."""
    base, x = copy.deepcopy(net), torch.randn(4, 6)
    answers = {}
    for name in ("one", "two"):
        torch.manual_seed(len(answers))
        theirs = theirs_with(net, {}, targets=["0", "2"])
        theirs.save_pretrained(tmp_path / name)
        answers[name] = theirs(x)
    for name in answers:
        files.load_adapter(base, tmp_path / name, name=name)
    for name, answer in answers.items():
        use_adapters(base, [name])
        torch.testing.assert_close(base(x), answer, **TOLERANCE)


def test_load_adapter_makes_it_act_alone_and_learn(net, tmp_path):
    theirs_with(net, {}, targets=["0"]).save_pretrained(tmp_path)
    files.load_adapter(net, tmp_path)
    learning = [name for name, p in net.named_parameters() if p.requires_grad]
    assert learning == ["0.adapters.default.A", "0.adapters.default.B"]


# ── safetensors ───────────────────────────────────────────────────────────────────────────────────


@given(
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3), max_size=5),
    types=st.lists(st.sampled_from(sorted(files.TYPES)), min_size=5, max_size=5),
    names=st.lists(st.text('ab.é_"\\', min_size=1), min_size=5, max_size=5, unique=True),
)
@settings(max_examples=60, deadline=None)
def test_safetensors_bytes_are_the_librarys(shapes, types, names):
    """safetensors_bytes writes, and read_safetensors reads, what the library does."""
    tensors = {
        name: torch.randn(shape).to(files.TYPES[dtype])
        for shape, dtype, name in zip(shapes, types, names, strict=False)
    }
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    assert files.safetensors_bytes(tensors) == content
    again = files.read_safetensors(content)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_safetensors_bytes_of_nothing():
    again = files.read_safetensors(files.safetensors_bytes({"x": torch.empty(0, 3)}))
    assert again["x"].shape == (0, 3)


def test_safetensors_bytes_of_a_view():
    """Transposed in memory, in order in the file."""
    tensor = torch.arange(6.0).view(2, 3).T
    assert torch.equal(files.read_safetensors(files.safetensors_bytes({"x": tensor}))["x"], tensor)


def test_safetensors_bytes_refuses_a_type():
    with pytest.raises(TypeError, match=r"x is torch.int64; a file here holds F32, BF16, F16"):
        files.safetensors_bytes({"x": torch.arange(3)})


@pytest.mark.parametrize("cut", [0, 4, 40, -4])
def test_read_safetensors_refuses_a_cut_file(cut):
    content = files.safetensors_bytes({"x": torch.arange(3.0)})
    with pytest.raises(ValueError, match=r"no safetensors file|seems cut off"):
        files.read_safetensors(content[:cut])


def test_read_safetensors_refuses_a_type():
    content = safetensors.torch.save({"x": torch.arange(3)})
    with pytest.raises(ValueError, match="x is I64; known here are F32, BF16, F16"):
        files.read_safetensors(content)


# ── what does not fit ─────────────────────────────────────────────────────────────────────────────


def untouched(net):
    return not [name for name in net.state_dict() if "adapters" in name]


def test_load_adapter_refuses_another_bases_layers(llama, net, tmp_path):
    theirs_with(llama, {}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"mlp.down_proj, which is no linear layer here \(0, 2"):
        files.load_adapter(net, tmp_path)
    assert untouched(net)


def test_load_adapter_refuses_another_bases_sizes(net, tmp_path):
    other = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8))
    theirs_with(other, {}, targets=["0"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"0 needs .*\(10, 3\).*, the file has .*\(12, 3\)"):
        files.load_adapter(net, tmp_path)
    assert untouched(net)


def test_load_adapter_refuses_another_bases_name(net, tmp_path):
    inject_lora(net, "0", rank=2, alpha=1)
    files.save_adapter(net, tmp_path, base="smollm2")
    files.load_adapter(net, tmp_path, name="again", base="smollm2")
    files.load_adapter(net, tmp_path, name="unsaid")
    with pytest.raises(ValueError, match="made on 'smollm2', this base is 'minilm'"):
        files.load_adapter(net, tmp_path, name="other", base="minilm")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA is read here"),
        ({"bias": "all"}, "bias is 'all'; these adapters have no such thing"),
        ({"modules_to_save": ["head"]}, r"modules_to_save is \['head'\]"),
        ({"rank_pattern": {"0": 8}}, r"rank_pattern is \{'0': 8\}"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4': that start changed the base"),
        ({"something_new": 1}, "something_new is 1"),
    ],
)
def test_check_config_refuses(net, changed, said, tmp_path):
    theirs_with(net, {}, targets=["0"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / files.CONFIG).read_text())
    (tmp_path / files.CONFIG).write_text(json.dumps(config | changed))
    with pytest.raises(ValueError, match=said):
        files.load_adapter(net, tmp_path)
    assert untouched(net)


def test_load_adapter_refuses_an_unknown_tensor(net, tmp_path):
    theirs_with(net, {}, targets=["0"]).save_pretrained(tmp_path)
    state = files.read_safetensors((tmp_path / files.WEIGHTS).read_bytes())
    state["base_model.model.head.weight"] = torch.zeros(2)
    (tmp_path / files.WEIGHTS).write_bytes(files.safetensors_bytes(state))
    with pytest.raises(ValueError, match=r"holds base_model.model.head.weight; these adapters"):
        files.load_adapter(net, tmp_path)
    assert untouched(net)


def test_load_adapter_refuses_a_lost_tensor(net, tmp_path):
    """B alone is there: A would stay as it started, at random."""
    theirs_with(net, {}, targets=["0"]).save_pretrained(tmp_path)
    state = files.read_safetensors((tmp_path / files.WEIGHTS).read_bytes())
    del state["base_model.model.0.lora_A.weight"]
    (tmp_path / files.WEIGHTS).write_bytes(files.safetensors_bytes(state))
    with pytest.raises(ValueError, match=r"0 needs \{'A'.*the file has \{'B': \(10, 3\)\}"):
        files.load_adapter(net, tmp_path)


def test_save_adapter_refuses_what_one_file_cannot_say(net, tmp_path):
    with pytest.raises(ValueError, match="Sequential has no adapters"):
        files.save_adapter(net, tmp_path)
    inject_lora(net, "0", rank=2, alpha=1)
    with pytest.raises(ValueError, match="no adapter 'other' in this Sequential"):
        files.save_adapter(net, tmp_path, name="other")
    with pytest.raises(ValueError, match="their_names has no name for 0"):
        files.save_adapter(net, tmp_path, their_names={"2": "b"})
    layer = lora_layers(net)["0"]
    layer.adapters["default"].rank = 3
    inject_lora(net, "2", rank=2, alpha=1, name="default")
    with pytest.raises(ValueError, match="layers of 'default' have different settings"):
        files.save_adapter(net, tmp_path)


def test_a_merged_models_adapter_is_saved_as_it_is(net, tmp_path):
    """Not what merging made of the base."""
    inject_lora(net, "0", rank=2, alpha=1)
    before = files.adapter_state(net)
    merge_lora(net)
    after = files.adapter_state(net)
    assert all(torch.equal(before[key], after[key]) for key in before | after)
