"""Soft prompts and prefixes against peft's, on one Llama: logits, gradients; and by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_llama import llama_sizes
from torch import nn
from transformers import LlamaForCausalLM

from course_utils.architectures.objectives import label_loss
from course_utils.finetuning import prompt_tuning
from course_utils.finetuning.prompt_tuning import (
    FreePrefix,
    PrefixTuned,
    ProjectedPrefix,
    PromptTuned,
)
from course_utils.inference.decoding import greedy
from course_utils.inference.next_logits import CachedNextLogits

# peft 0.21 asks transformers 5 for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # fp32: two attentions, with other orders of summation
LAYERS, HEADS, SIZE, VOCAB, N = 2, 2, 4, 30, 3
IDS = torch.tensor([[1, 5, 9, 2, 7], [3, 4, 8, 6, 0]])
MASKS = {
    "no mask": None,
    "padded on the right": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
ALL_MASKS = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
TABLE = torch.arange(12.0).view(6, 2)


@pytest.fixture
def llama():
    return LlamaForCausalLM(llama_sizes(max_position_embeddings=16)).eval()


def real(logits, mask, n=0):
    """Of what stands at real tokens: at padding both sides may say anything."""
    return logits[:, n:] if mask is None else logits[:, n:][mask.bool()]


def loss_of(logits):
    return logits.square().mean()


# ── soft prompt ───────────────────────────────────────────────────────────────────────────────────


@ALL_MASKS
def test_prompt_tuned_is_pefts(llama, ours, mask):
    """Logits at all steps, and the gradient of the vectors."""
    theirs = get_peft_model(
        llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N)
    ).eval()
    learned = theirs.prompt_encoder["default"].embedding.weight
    tuned = PromptTuned(ours, ours.token_embedding, learned)
    mine, other = tuned(IDS, mask), theirs(input_ids=IDS, attention_mask=mask).logits
    assert mine.shape == (2, N + 5, VOCAB)
    torch.testing.assert_close(mine[:, :N], other[:, :N], **TOLERANCE)
    torch.testing.assert_close(real(mine, mask, N), real(other, mask, N), **TOLERANCE)
    loss_of(real(mine, mask, N)).backward()
    loss_of(real(other, mask, N)).backward()
    torch.testing.assert_close(tuned.vectors.grad, learned.grad, **TOLERANCE)
    assert [name for name, p in tuned.named_parameters() if p.requires_grad] == ["vectors"]


def test_predictions_loss_is_pefts(llama, ours):
    """peft counts the first token of the text too: the prompt stands before it."""
    theirs = get_peft_model(
        llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N)
    ).eval()
    tuned = PromptTuned(
        ours, ours.token_embedding, theirs.prompt_encoder["default"].embedding.weight
    )
    labels = IDS.clone()
    labels[0, 1:3] = -100
    mine = label_loss(tuned.predictions(IDS), labels)
    other = theirs(input_ids=IDS, labels=labels, attention_mask=torch.ones_like(IDS)).loss
    torch.testing.assert_close(mine, other, **TOLERANCE)


def test_prompt_tuned_with_words_own_vectors_is_the_text_with_them(ours):
    """prompt_tuned and predictions: nothing is learned yet, so that it is a hard prompt."""
    words = torch.tensor([4, 11, 2])
    tuned = PromptTuned(ours, ours.token_embedding, ours.token_embedding.weight[words])
    whole = torch.cat([words.expand(2, -1), IDS], dim=1)
    torch.testing.assert_close(tuned(IDS), ours(whole), **TOLERANCE)
    torch.testing.assert_close(tuned.predictions(IDS), ours(whole)[:, 2:-1], **TOLERANCE)


def test_prompt_tuned_leaves_the_model_as_it_was(ours):
    before = ours(IDS)
    tuned = PromptTuned(ours, ours.token_embedding, torch.randn(N, 16))
    tuned(IDS)
    assert torch.equal(ours(IDS), before)
    with pytest.raises(ValueError, match="19 tokens, the model 16 positions"):
        tuned(torch.zeros(1, 16, dtype=torch.long))
    assert torch.equal(ours(IDS), before)
    assert "model.token_embedding.weight" in tuned.state_dict()
    assert len(tuned.state_dict()) == len(ours.state_dict()) + 1


def test_prompt_tuned_pads_on_the_left_too(ours):
    """A text padded on the left says what the text alone says."""
    tuned = PromptTuned(ours, ours.token_embedding, torch.randn(N, 16))
    padded = torch.tensor([[0, 0, 1, 5, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    torch.testing.assert_close(
        tuned(padded, mask)[:, N + 2 :], tuned(padded[:, 2:])[:, N:], **TOLERANCE
    )


@pytest.mark.parametrize("shape", [(0, 16), (3, 15), (16,)])
def test_prompt_tuned_refuses_vectors(ours, shape):
    with pytest.raises(ValueError, match=r"the vectors are .*; give \(P, 16\)"):
        PromptTuned(ours, ours.token_embedding, torch.zeros(shape))


# ── prefix ────────────────────────────────────────────────────────────────────────────────────────


def pefts_prefix(llama, **options):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, **options)
    return get_peft_model(llama, config).eval()


@ALL_MASKS
def test_prefix_tuned_is_pefts(llama, ours, mask):
    """Free keys and values, grouped heads, split_prefix: logits and their gradient."""
    theirs = pefts_prefix(llama)
    learned = theirs.prompt_encoder["default"].embedding.weight
    prefix = FreePrefix(*prompt_tuning.split_prefix(learned.detach(), LAYERS, HEADS))
    tuned = PrefixTuned(ours, prefix)
    full = torch.ones_like(IDS) if mask is None else mask
    mine, other = tuned(IDS, mask), theirs(input_ids=IDS, attention_mask=full).logits
    torch.testing.assert_close(real(mine, mask), real(other, mask), **TOLERANCE)
    loss_of(real(mine, mask)).backward()
    loss_of(real(other, mask)).backward()
    keys, values = prompt_tuning.split_prefix(learned.grad, LAYERS, HEADS)
    torch.testing.assert_close(prefix.keys.grad, keys, **TOLERANCE)
    torch.testing.assert_close(prefix.values.grad, values, **TOLERANCE)


def test_projected_prefix_is_pefts(llama, ours):
    """ProjectedPrefix in prefix_tuned: two layers with a tanh between them, every gradient."""
    theirs = pefts_prefix(llama, prefix_projection=True, encoder_hidden_size=7)
    encoder = theirs.prompt_encoder["default"]
    prefix = ProjectedPrefix(N, 7, LAYERS, HEADS, SIZE)
    pairs = [
        (prefix.vectors, encoder.embedding.weight),
        (prefix.up.weight, encoder.transform[0].weight),
        (prefix.up.bias, encoder.transform[0].bias),
        (prefix.down.weight, encoder.transform[2].weight),
        (prefix.down.bias, encoder.transform[2].bias),
    ]
    with torch.no_grad():
        for one, other in pairs:
            one.copy_(other)
    logits = PrefixTuned(ours, prefix)(IDS)
    theirs_logits = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    torch.testing.assert_close(logits, theirs_logits, **TOLERANCE)
    loss_of(logits).backward()
    loss_of(theirs_logits).backward()
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad, **TOLERANCE)


def test_prefix_of_a_text_is_that_text(ours):
    """prefix_of: keys and values of real tokens do what these tokens do."""
    text = torch.tensor([[4, 11, 2]])
    tuned = PrefixTuned(ours, prompt_tuning.prefix_of(ours, text))
    whole = torch.cat([text.expand(2, -1), IDS], dim=1)
    torch.testing.assert_close(tuned(IDS), ours(whole)[:, 3:], **TOLERANCE)


def test_a_soft_prompt_as_prefix_says_the_same(ours):
    """prompt_as_prefix."""
    soft = PromptTuned(ours, ours.token_embedding, torch.randn(N, 16))
    tuned = PrefixTuned(ours, prompt_tuning.prompt_as_prefix(soft))
    torch.testing.assert_close(tuned(IDS), soft(IDS)[:, N:], **TOLERANCE)


def test_prefix_tuned_gives_the_last_logits_alone(ours):
    tuned = PrefixTuned(ours, FreePrefix(*torch.randn(2, LAYERS, HEADS, N, SIZE)))
    last = tuned(IDS, last_only=True)
    torch.testing.assert_close(last, tuned(IDS)[:, -1:], **TOLERANCE)


def test_side_by_side_each_row_has_its_own_prompt(ours):
    prefixes = [FreePrefix(*torch.randn(2, LAYERS, HEADS, N, SIZE)) for _ in IDS]
    with torch.no_grad():
        together = ours(IDS, cache=prompt_tuning.side_by_side(prefixes))
        pairs = zip(prefixes, IDS, strict=True)
        apart = torch.cat([PrefixTuned(ours, prefix)(row[None]) for prefix, row in pairs])
    torch.testing.assert_close(together, apart, **TOLERANCE)
    longer = FreePrefix(*torch.randn(2, LAYERS, HEADS, N + 1, SIZE))
    for odd in ([], [prefixes[0], longer]):
        with pytest.raises(ValueError, match="prefixes of the same shape"):
            prompt_tuning.side_by_side(odd)


@pytest.mark.parametrize("padded", [False, True])
def test_prefix_tuned_writes_with_a_cache_what_it_reads_without(ours, padded):
    """cache, read_and_reorder: each greedy token is the likeliest after the whole text."""
    tuned = PrefixTuned(ours, FreePrefix(*torch.randn(2, LAYERS, HEADS, N, SIZE)))
    ids = torch.tensor([[0, 0, 5, 9]]) if padded else torch.tensor([[5, 9]])
    mask = torch.tensor([[0, 0, 1, 1]]) if padded else None
    (written,) = greedy(CachedNextLogits(*tuned.read_and_reorder(mask)), ids, 6)
    text = [5, 9]
    for token in written.tokens:
        assert token == tuned(torch.tensor([text]))[0, -1].argmax()
        text.append(token)
    assert tuned.cache(4).length == N


def test_prefix_tuned_changes_nothing_but_the_prefix(ours):
    before = ours(IDS)
    tuned = PrefixTuned(ours, FreePrefix(*torch.randn(2, LAYERS, HEADS, N, SIZE)))
    learning = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert learning == ["prefix.keys", "prefix.values"]
    assert not torch.allclose(tuned(IDS), before, atol=1e-3)
    assert torch.equal(ours(IDS), before)


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (2, 4, 3, 4), (2, 2, 3, 8)])
def test_prefix_tuned_refuses_another_decoders_prefix(ours, shape):
    with pytest.raises(ValueError, match="the decoder 2 of 2 of 4"):
        PrefixTuned(ours, FreePrefix(torch.zeros(shape), torch.zeros(shape)))


def test_free_prefix_refuses_shapes():
    with pytest.raises(ValueError, match="give both"):
        FreePrefix(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4, 3))


def test_split_prefix_refuses_a_row():
    with pytest.raises(ValueError, match="a row has 10 numbers; 2 layers of 2 key and 2 value"):
        prompt_tuning.split_prefix(torch.zeros(1, 10), 2, 2)


# ── starts ────────────────────────────────────────────────────────────────────────────────────────


def test_sampled_prompt_is_pefts(llama):
    """The same draw from the same table."""
    torch.manual_seed(3)
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=N, prompt_tuning_init="SAMPLE_VOCAB"
    )
    table = llama.get_input_embeddings().weight.detach().clone()
    theirs = get_peft_model(copy.deepcopy(llama), config)
    learned = theirs.prompt_encoder["default"].embedding.weight.detach()
    ids, _ = prompt_tuning.nearest_words(learned, table)
    assert torch.equal(table[ids], learned)  # peft's are rows of the table
    ours = prompt_tuning.sampled_prompt(table, 500)
    ids, cosines = prompt_tuning.nearest_words(ours, table)
    assert torch.equal(table[ids], ours)
    torch.testing.assert_close(cosines, torch.ones(500), atol=1e-5, rtol=0)  # fp32 norms
    assert len(ids.unique()) == VOCAB  # 500 draws of 30: each has a chance of e⁻¹⁷ to be left out


def test_random_prompt_is_pefts_distribution():
    """Deviation 1 unless told: 20,000 numbers, so that the deviation is ± 0.5 %."""
    assert prompt_tuning.random_prompt(20, 1000).std().item() == pytest.approx(1, abs=0.02)
    assert prompt_tuning.random_prompt(20, 1000, 0.1).std().item() == pytest.approx(0.1, abs=0.002)


@given(n=st.integers(1, 9), ids=st.lists(st.integers(0, 5), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_text_prompt_repeats_as_pefts(n, ids):
    """The list said as often as needed, and cut: what peft does with its text."""
    repeated = (ids * (n // len(ids) + 1))[:n]
    assert torch.equal(prompt_tuning.text_prompt(TABLE, ids, n), TABLE[repeated])


def test_label_prompt_by_hand():
    """Two labels of two and one tokens; the third vector is some word."""
    start = prompt_tuning.label_prompt(TABLE, [[0, 2], [5]], 3)
    assert start[:2].tolist() == [[2, 3], [10, 11]]
    assert start[2].tolist() in TABLE.tolist()


def test_prompts_do_not_share_the_tables_memory():
    table = TABLE.clone()
    for start in (
        prompt_tuning.text_prompt(table, [1], 1),
        prompt_tuning.sampled_prompt(table, 1),
        prompt_tuning.label_prompt(table, [[1]], 1),
    ):
        start.zero_()
    assert torch.equal(table, TABLE)
    tuned = PromptTuned(nn.Identity(), nn.Embedding(6, 2), table)
    with torch.no_grad():
        tuned.vectors.zero_()
    assert torch.equal(table, TABLE)


def test_nearest_words_looks_at_directions():
    """A long vector is nearest to the word it points to, not to the longest word."""
    table = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 0.1]])
    ids, cosines = prompt_tuning.nearest_words(torch.tensor([[9.0, 0.0], [0.0, 2.0]]), table)
    assert ids.tolist() == [0, 2]
    assert cosines.tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: prompt_tuning.random_prompt(0, 4), "n is 0; it must be at least 1"),
        (lambda: prompt_tuning.sampled_prompt(TABLE, 0), "n is 0"),
        (lambda: prompt_tuning.text_prompt(TABLE, [1], 0), "n is 0"),
        (lambda: prompt_tuning.text_prompt(TABLE, [], 2), "ids hold no token"),
        (lambda: prompt_tuning.label_prompt(TABLE, [[1], [2]], 1), "2 labels, 1 vectors"),
        (lambda: prompt_tuning.label_prompt(TABLE, [], 1), "0 labels, 1 vectors"),
        (lambda: prompt_tuning.label_prompt(TABLE, [[]], 1), "a label has no token"),
    ],
)
def test_starts_refuse(call, said):
    with pytest.raises(ValueError, match=said):
        call()
