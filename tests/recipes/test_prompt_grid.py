"""The grid of soft prompts: in small, and as it is stored."""

from __future__ import annotations

import pytest
import torch

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.profiles import for_profile
from course_utils.recipes import RECIPES, prompt_grid
from course_utils.recipes.prompt_grid import Cell
from course_utils.tasks import sentiment
from course_utils.tasks.sentiment import Rated

TINY = dict(length=3, lengths=(1, 2), steps=2, long=3, seeds=2, dev=3, test=4)
ROWS = [Rated(str(i), -2.0 if i % 3 else 2.0, f"so{i} {'very ' * (i % 4)}x") for i in range(60)]


class Tokenizer:
    """A number a word; a newline is a word."""

    def encode(self, text, add_special_tokens=True):
        return [1 + sum(map(ord, word)) % 98 for word in text.replace("\n", " \n ").split(" ")
                if word]  # fmt: skip

    def __call__(self, texts, add_special_tokens=True):
        return {"input_ids": [self.encode(text) for text in texts]}


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    sizes = dict(d_model=16, n_heads=4, n_kv_heads=2, n_layers=2, d_ff=24)
    return Decoder(DecoderConfig(vocab_size=100, **sizes)).eval().requires_grad_(False)


@pytest.fixture
def small(monkeypatch, decoder):
    budget = lambda profile: for_profile(profile, cpu=TINY, gpu=TINY)  # noqa: E731
    monkeypatch.setattr(prompt_grid, "budget_for", budget)
    monkeypatch.setattr(prompt_grid, "load_smollm2", lambda: (decoder, Tokenizer()))
    monkeypatch.setattr(prompt_grid, "clear_tweets", lambda tokenizer: sentiment.split(ROWS))
    monkeypatch.setattr(prompt_grid, "RANK", 2)


def planned(rows, budget, seeds):
    both = [prompt_grid.chosen_cell(rows, method, budget) for method in ("soft", "lora")]
    cells = []
    for seed in seeds:
        cells += prompt_grid.first_plan(budget, seed, first=seed == seeds[0])
        soft, lora = (cell._replace(seed=seed) for cell in both)
        cells += prompt_grid.second_plan(budget, soft, lora, first=seed == seeds[0])
    return cells


def test_the_recipe_writes_a_row_a_training(small, tmp_path, monkeypatch):
    folder = prompt_grid.train("cpu", 3, tmp_path / "new" / "folder")
    rows, budget = prompt_grid.runs(folder), prompt_grid.budget_for("cpu")
    assert [row.cell for row in rows] == planned(rows, budget, [3, 4])
    assert len({row.cell for row in rows}) == len(rows)
    assert {row.method for row in rows} == {"soft", "prefix", "lora"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"A grid of {len(rows)} trainings" in card
    best, lora = (prompt_grid.chosen_cell(rows, method, budget) for method in ("soft", "lora"))
    assert f'start "{best.start}" at the rate {best.rate:g}; LoRA at {lora.rate:g}' in card
    monkeypatch.setattr(prompt_grid, "one_row", None)  # nothing is left to train
    assert prompt_grid.runs(prompt_grid.train("cpu", 3, folder)) == rows


def test_a_recipe_that_was_stopped_goes_on(small, tmp_path):
    whole = prompt_grid.runs(prompt_grid.train("cpu", 0, tmp_path / "whole"))
    facts = prompt_grid.facts_of(tmp_path / "whole")
    for n in (5, len(whole) - 3):
        prompt_grid.stored.write_rows(tmp_path / str(n), whole[:n], facts)
        rest = prompt_grid.runs(prompt_grid.train("cpu", 0, tmp_path / str(n)))
        assert [row[:-1] for row in rest] == [row[:-1] for row in whole]


def test_chosen_is_the_least_of_the_first_seed_on_development_tweets():
    budget = prompt_grid.budget_for("cpu")

    def row(start, rate, seed, dev, method="soft", steps=budget.steps, **other):
        cell = Cell(method, "words", start, budget.length, rate, steps, seed)
        return prompt_grid.Run(*cell._replace(**other), dev, 0, 0, 0, 0, 0)

    rows = [
        row("words", 0.1, 4, 2.0),
        row("text", 0.1, 4, 1.5),
        row("words", 0.1, 5, 1.0),  # another seed
        row("text", 0.3, 4, 0.1, steps=budget.long),
        row("text", 0.3, 4, 0.1, task="swapped"),
        row("text", 0.3, 4, 0.1, length=20),
        row("", 0.01, 4, 0.5, method="lora", length=0),
        row("", 0.2, 4, 0.4, method="lora", length=0),
    ]
    assert prompt_grid.chosen_cell(rows, "soft", budget) == rows[1].cell
    assert prompt_grid.chosen_cell(rows, "lora", budget).rate == 0.2
    with pytest.raises(ValueError, match="no row is of the method 'prefix'"):
        prompt_grid.chosen_cell(rows, "prefix", budget)


def test_labels_dealt_anew_are_the_same_labels():
    texts = prompt_grid.asked(ROWS, Tokenizer())
    dealt = prompt_grid.dealt_anew(texts, 0)
    assert dealt.ids == texts.ids
    assert dealt.right.sum() == texts.right.sum()
    assert not torch.equal(dealt.right, texts.right)


@pytest.mark.parametrize("start", prompt_grid.STARTS)
@pytest.mark.parametrize("n", [1, 5])
def test_every_start_gives_vectors(decoder, start, n):
    texts = prompt_grid.asked(ROWS, Tokenizer())
    vectors = prompt_grid.start_vectors(decoder, start, n, Tokenizer(), texts, seed=0)
    assert vectors.shape == (n, 16)
    again = prompt_grid.start_vectors(decoder, start, n, Tokenizer(), texts, seed=0)
    assert torch.equal(vectors, again)


def test_another_start_is_refused(decoder):
    texts = prompt_grid.asked(ROWS, Tokenizer())
    with pytest.raises(ValueError, match="start is 'zeros'; it must be one of random, small"):
        prompt_grid.start_vectors(decoder, "zeros", 2, Tokenizer(), texts, seed=0)


@pytest.mark.parametrize("tune", [prompt_grid.tune_prompt, prompt_grid.tune_prefix])
def test_training_moves_what_stands_before_alone(decoder, tune):
    texts = prompt_grid.asked(ROWS, Tokenizer())
    before = {name: p.clone() for name, p in decoder.named_parameters()}
    bare = prompt_grid.logits_of(prompt_grid.LastLogits(decoder), texts)
    start = torch.randn(3, 16)
    tuned, _ = tune(decoder, start, texts, rate=0.1, steps=3, seed=0)
    assert all(torch.equal(p, before[name]) for name, p in decoder.named_parameters())
    untrained, _ = tune(decoder, start, texts, rate=0.0, steps=1, seed=0)
    found, begun = (prompt_grid.logits_of(net, texts) for net in (tuned, untrained))
    assert not torch.allclose(found, begun, atol=1e-3)
    torch.testing.assert_close(prompt_grid.logits_of(prompt_grid.LastLogits(decoder), texts), bare)


def test_an_untrained_prefix_says_what_its_vectors_say(decoder):
    texts, start = prompt_grid.asked(ROWS, Tokenizer()), torch.randn(3, 16)
    how = dict(rate=0.0, steps=1, seed=0)
    pair = [f(decoder, start, texts, **how)[0] for f in (prompt_grid.tune_prompt,
            prompt_grid.tune_prefix)]  # fmt: skip
    one, other = (prompt_grid.logits_of(net, texts) for net in pair)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)  # fp32, other shapes


def test_a_training_that_diverges_is_scored_as_it_was_before(decoder):
    texts = prompt_grid.asked(ROWS, Tokenizer())
    start = torch.full((2, 16), float("nan"))
    tuned, _ = prompt_grid.tune_prompt(decoder, start, texts, rate=0.1, steps=3, seed=0)
    assert tuned.vectors.isnan().all()


def test_logits_do_not_depend_on_the_batch(decoder):
    """Padded on the left, in any company; and a prompt stands before the padding."""
    texts = prompt_grid.asked(ROWS, Tokenizer())
    last, table = prompt_grid.LastLogits(decoder), decoder.token_embedding
    soft = prompt_grid.PromptTuned(last, table, torch.randn(2, 16))
    begun = prompt_grid.PromptTuned(decoder, table, torch.randn(2, 16))
    prefix = prompt_grid.PrefixTuned(decoder, prompt_grid.prompt_as_prefix(begun))
    for read in (last, soft, prompt_grid.LastLogits(prefix)):
        together = prompt_grid.logits_of(read, texts)
        alone = torch.cat([read(torch.tensor([ids])) for ids in texts.ids]).detach()
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_labels_of_two_tokens_are_refused(monkeypatch):
    task = prompt_grid.Task("{text}\nMood:", (" so so", " bad"))
    monkeypatch.setitem(prompt_grid.TASKS, "long", task)
    with pytest.raises(ValueError, match=r"have \[2, 1\] tokens; give one each"):
        prompt_grid.asked(ROWS, Tokenizer(), "long")


def test_smollm2s_labels_are_one_token_each(smollm2):
    _, tokenizer = smollm2
    for task in prompt_grid.TASKS:
        assert len(set(prompt_grid.asked(ROWS[:1], tokenizer, task).labels)) == 2


def test_swapped_labels_are_the_others():
    one, other = (prompt_grid.asked(ROWS[:1], Tokenizer(), task) for task in ("words", "swapped"))
    assert one.labels == other.labels[::-1]


def test_the_stored_grid_is_whole():
    assert RECIPES[prompt_grid.NAME] == prompt_grid.__name__
    rows, budget = prompt_grid.runs(), prompt_grid.budget_for("cpu")
    assert [row.cell for row in rows] == planned(rows, budget, range(budget.seeds))
    assert prompt_grid.facts_of()["seeds"] == budget.seeds
