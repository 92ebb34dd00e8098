"""Our adapters against peft's on the CPU, with equal numbers, and what they cost after merging.

`PYTHONPATH=tests/support python tests/benchmarks/bench_finetuning.py [--json FILE] [--clock]`
exits with 1 when a floor is missed. Ratios in processor time on one thread; above one, ours is
faster. Both sides adapt the same nets of layers, so that nothing but the adapters differs.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial

import bitsandbytes as bnb
import torch
from peft import LoraConfig, inject_adapter_in_model
from side_by_side import Row, compare, hold, main
from torch import Tensor, nn

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.finetuning.lora import fold_lora, inject_lora, lora_layers
from course_utils.finetuning.packing import pack, packed_logits
from course_utils.finetuning.qlora import quantize_linears
from course_utils.finetuning.transfer import Example, answer_loss, pad

Compare = Callable[..., Row]

TITLE = "Fine-tuning against peft"
ALL_LINEAR = r"blocks\..*\.(query|key|value|out|gate|up|down)"
VOCAB, TOKENS = 4096, (4, 64)


def decoder() -> Decoder:
    """SmolLM2's widths, four blocks of it."""
    sizes = {"d_model": 576, "n_heads": 9, "n_kv_heads": 3, "n_layers": 4, "d_ff": 1536}
    return Decoder(DecoderConfig(vocab_size=VOCAB, **sizes))


def twins(base: nn.Module, other: nn.Module, **options: bool) -> tuple[nn.Module, nn.Module]:
    """Ours and peft's adapters, with the same numbers, on two equal nets."""
    inject_lora(base, ALL_LINEAR, rank=8, alpha=16, **options)
    settings = {"use_dora": options.get("dora", False), "use_rslora": False}
    config = LoraConfig(r=8, lora_alpha=16, target_modules=ALL_LINEAR, **settings)
    theirs = inject_adapter_in_model(config, other)
    with torch.no_grad():
        for name, layer in lora_layers(base).items():
            adapter, twin = layer.adapters["default"], theirs.get_submodule(name)
            adapter.B.normal_(std=0.02)
            twin.lora_A["default"].weight.copy_(adapter.A)
            twin.lora_B["default"].weight.copy_(adapter.B)
    return base, theirs


def step_of(model: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    """Forward, backward and one step of AdamW on the adapters."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = answer_loss(model(ids), ids)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def same(ours: Tensor, theirs: Tensor) -> None:
    """Both sides must do the same work: fp32 differs by rounding alone."""
    apart = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert apart <= 1e-5, f"the two sides differ by {apart:.1e} of the largest number"


def training_rows(compare: Compare) -> list[Row]:
    rows, ids = [], torch.randint(VOCAB, TOKENS)
    for name, options, floor in (("LoRA", {}, 1.0), ("DoRA", {"dora": True}, 1.0)):
        base = decoder()
        ours, theirs = twins(base, copy.deepcopy(base), **options)
        our_step, their_step = step_of(ours, ids), step_of(theirs, ids)
        same(our_step(), their_step())
        title = f"{name} training step, rank 8 on all linears, {TOKENS[0]}×{TOKENS[1]} tokens"
        rows.append(compare(title, our_step, their_step, floor=floor, repeats=9))
    return rows


def linear4bit(linear: nn.Linear) -> nn.Module:
    sizes = linear.in_features, linear.out_features
    options = {"compute_dtype": torch.float32, "quant_type": "nf4"}
    theirs = bnb.nn.Linear4bit(*sizes, bias=False, **options)
    theirs.load_state_dict(linear.state_dict())
    return theirs.requires_grad_(False).to("cpu")


def qlora_rows(compare: Compare) -> list[Row]:
    """Our NF4 base under our adapters, bitsandbytes' under peft's."""
    base, ids = decoder(), torch.randint(VOCAB, TOKENS)
    other = copy.deepcopy(base)
    for name in quantize_linears(base, ALL_LINEAR):
        other.set_submodule(name, linear4bit(other.get_submodule(name)))
    ours, theirs = twins(base, other)
    our_step, their_step = step_of(ours, ids), step_of(theirs, ids)
    same(our_step(), their_step())
    title = f"QLoRA training step, rank 8, {TOKENS[0]}×{TOKENS[1]} tokens"
    return [compare(title, our_step, their_step, repeats=5)]


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids)


def merged_rows(compare: Compare) -> list[Row]:
    """After merging, the base and nothing else runs."""
    base, ids = decoder().eval(), torch.randint(VOCAB, TOKENS)
    adapted = copy.deepcopy(base)
    inject_lora(adapted, ALL_LINEAR, rank=8, alpha=16)
    before = compare(
        "Adapters beside the layers, against the base",
        partial(logits, adapted, ids),
        partial(logits, base, ids),
        repeats=9,
    )
    fold_lora(adapted)
    after = compare(
        "Adapters merged, against the base",
        partial(logits, adapted, ids),
        partial(logits, base, ids),
        floor=0.95,
        repeats=15,
    )
    return [before, after]


def packing_rows(compare: Compare) -> list[Row]:
    """16 examples of 8 to 128 tokens: packed in rows of 128 against padded to 128."""
    model = decoder()
    lengths = [8, 12, 16, 16, 20, 24, 24, 32, 32, 40, 40, 48, 56, 64, 96, 128]
    examples = [Example(row, row) for row in (torch.randint(VOCAB, (n,)).tolist() for n in lengths)]
    packed, padded = pack(examples, 128), pad(examples)

    def packed_step() -> Tensor:
        model.zero_grad()
        logits = packed_logits(model, packed.ids, packed.segments)
        loss = answer_loss(logits, packed.labels)
        loss.backward()
        return loss.detach()

    def padded_step() -> Tensor:
        model.zero_grad()
        loss = answer_loss(model(padded.ids, padded.mask), padded.labels)
        loss.backward()
        return loss.detach()

    same(packed_step(), padded_step())
    share = sum(lengths) / (128 * len(lengths))
    title = f"Packed, against padded with {share:.0%} of the places in use"
    return [compare(title, packed_step, padded_step, floor=1.0, repeats=3)]


def measure(compare: Compare) -> list[Row]:
    torch.manual_seed(0)
    parts = (training_rows, qlora_rows, merged_rows, packing_rows)
    return [row for part in parts for row in part(compare)]


def test_finetuning_meets_its_floors():
    hold(TITLE, measure(compare))


if __name__ == "__main__":
    sys.exit(main(TITLE, measure, __doc__))
