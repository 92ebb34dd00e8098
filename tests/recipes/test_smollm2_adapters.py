"""The adapters of SmolLM2: their recipe in small, and as they are stored."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from peft import PeftConfig, PeftModel
from tiny_llama import llama_sizes
from transformers import LlamaForCausalLM

from course_utils import models
from course_utils.finetuning.lora import lora_layers
from course_utils.finetuning.transfer import Example
from course_utils.profiles import for_profile
from course_utils.recipes import RECIPES, smollm2_adapters
from course_utils.recipes.smollm2_adapters import Mood, Run, Split

SIZES = dict(steps=2, speech_steps=2, seeds=2, devs=2, tests=3, news=2, batch=2, speech_rate=1e-2)


class Characters:
    """A tokenizer of 30 numbers: a text's bytes, folded."""

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [ord(c) % 30 for c in text][-12:]}


def mood(i):
    ids = [1 + i % 5, 2, 3, 4 + i % 2, 6]
    return Mood(Example(ids, [-100, -100, -100, *ids[3:]]), i % 2, f"tweet {i}")


MOODS = Split(*([mood(i + k) for i in range(8)] for k in range(3)))


@pytest.fixture
def small(monkeypatch):
    def load_decoder(name="smollm2", *, device="cpu"):
        torch.manual_seed(0)
        net = LlamaForCausalLM(llama_sizes()).eval().requires_grad_(False)
        return net, Characters()

    pairs = [("who is there", f"it is I {i}") for i in range(9)]
    monkeypatch.setattr(models, "load_decoder", load_decoder)
    monkeypatch.setattr(smollm2_adapters, "moods", lambda tokenizer: MOODS)
    monkeypatch.setattr(smollm2_adapters, "speech_pairs", lambda: Split(pairs, pairs, pairs))
    monkeypatch.setattr(
        smollm2_adapters, "news_of", lambda tokenizer, n: [Example([1, 2, 3], [-100, 2, 3])] * n
    )
    monkeypatch.setattr(
        smollm2_adapters, "budget_for", lambda profile: for_profile(profile, cpu=SIZES, gpu=SIZES)
    )


def test_the_recipe_writes_adapters_rows_and_a_card(small, tmp_path, monkeypatch):
    folder = smollm2_adapters.train("cpu", 5, tmp_path / "new")
    rows = smollm2_adapters.runs(folder)
    assert len(rows) == 2 + 2 * (1 + 1) + 1  # bases, a rate and the other seed, dealt labels
    assert {row.method for row in rows} == {"base", "base-nf4", "lora", "qlora"}
    assert all(math.isfinite(row.nats) for row in rows)
    assert {row.trainable for row in rows if row.method == "lora"} == {
        row.trainable for row in rows if row.method == "qlora"
    }
    assert "rank 4" in (folder / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(smollm2_adapters.stored, "folder_of", lambda name: folder)
    for adapter in smollm2_adapters.ADAPTERS:
        net, _ = models.load_decoder()
        smollm2_adapters.put_on(net, adapter)
        assert len(lora_layers(net)) == 14
        config = json.loads((folder / adapter / "adapter_config.json").read_text())
        assert (config["r"], config["base_model_name_or_path"]) == (4, smollm2_adapters.BASE)
    monkeypatch.setattr(smollm2_adapters, "tune", pytest.fail)  # nothing is left to train
    assert smollm2_adapters.runs(smollm2_adapters.train("cpu", 5, folder)) == rows


def test_scores_by_hand(small):
    """A net whose likeliest token is always the same one."""
    net, tokenizer = models.load_decoder()
    names = [smollm2_adapters.ids_of(tokenizer, label)[0] for label in smollm2_adapters.LABELS]
    with torch.no_grad():
        net.model.norm.weight.zero_()  # logits of 0: argmax is token 0
    found = smollm2_adapters.score_moods(net, MOODS.test, tokenizer)
    assert found.nats == pytest.approx(math.log(30))
    assert found.first == [0] * 8
    assert found.format == float(0 in names)
    each = smollm2_adapters.nats(net, [m.example for m in MOODS.test])
    torch.testing.assert_close(each, torch.full((8,), math.log(30)))


def test_the_answer_alone_counts():
    example = smollm2_adapters.answering(Characters(), "Hm", "yes")
    counted = [label for label in example.labels if label != -100]
    assert counted == example.ids[-len(counted) :]
    assert counted == smollm2_adapters.ids_of(Characters(), "yes<|im_end|>")


def test_shuffled_labels_keep_the_tweets():
    dealt = smollm2_adapters.shuffled_labels(MOODS.train, Characters(), 0)
    assert len(dealt) == len(MOODS.train)


def test_prepare_refuses_another_method(small):
    with pytest.raises(ValueError, match="method is 'dora'; it must be full, lora, qlora or base"):
        smollm2_adapters.prepare(models.load_decoder()[0], "dora")


def test_an_unknown_adapter_is_refused():
    with pytest.raises(ValueError, match="there is no adapter 'pirate'; there are mood"):
        smollm2_adapters.folder_of("pirate")


def test_the_rate_is_the_first_seeds_best_on_dev():
    def row(rate, seed, dev):
        return Run("lora", rate, seed, False, 1, 1.0, dev, 0.1, 1.0, 1.0, 3.0, 0.1, 1.0, 1.0)

    rows = [row(1e-3, 0, 0.5), row(3e-3, 0, 0.4), row(3e-3, 1, 0.9), row(1e-3, 1, 0.0)]
    assert smollm2_adapters.best_rate(rows, "lora") == 3e-3
    assert [r.seed for r in smollm2_adapters.at_its_best(rows, "lora")] == [0, 1]
    with pytest.raises(ValueError, match="no row is of the method"):
        smollm2_adapters.best_rate(rows, "full")


def test_speech_pairs_leave_plays_out():
    parts = smollm2_adapters.speech_pairs()
    assert len(parts.train) > 1000
    assert min(len(parts.dev), len(parts.test)) > 100
    assert not set(parts.train) & set(parts.test)


def test_the_stored_adapters_are_whole():
    assert RECIPES[smollm2_adapters.NAME] == smollm2_adapters.__name__
    rows = smollm2_adapters.runs()
    assert {row.method for row in rows} == {"base", "base-nf4", *smollm2_adapters.RATES}
    for adapter in smollm2_adapters.ADAPTERS:
        weights = smollm2_adapters.folder_of(adapter) / "adapter_model.safetensors"
        assert 2e6 < weights.stat().st_size < 3e6
        theirs = PeftConfig.from_pretrained(str(weights.parent))
        assert (theirs.r, theirs.lora_alpha) == (smollm2_adapters.RANK, smollm2_adapters.ALPHA)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("adapter", ["mood", "shakespeare"])
def test_peft_gives_the_stored_adapters_the_same_logits(adapter):
    """On SmolLM2 itself: what a learner loads into peft is what the notebooks loaded."""
    base, tokenizer = models.load_decoder()
    ids = torch.tensor([smollm2_adapters.ids_of(tokenizer, "What a lovely morning it is!")])
    with torch.no_grad():
        plain = base(ids).logits.clone()
        folder = str(smollm2_adapters.folder_of(adapter))
        theirs = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()(ids).logits
        smollm2_adapters.put_on(base, adapter)
        ours = base.eval()(ids).logits
    assert (theirs - plain).abs().max() > 1  # the adapter does something
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)  # logits reach 30
