"""Freezing, rates, heads and answers: against transformers, by hand, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import llama_sizes
from torch import nn
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from course_utils.architectures.decoder import Decoder
from course_utils.architectures.encoder import Encoder, EncoderConfig
from course_utils.architectures.pretrained import llama_config, load_llama_weights
from course_utils.finetuning import transfer
from course_utils.finetuning.transfer import Classifier, Example

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # fp32: two attentions, with other orders of summation
VOCAB = 30
IDS = torch.tensor([[1, 5, 9, 2, 7], [3, 4, 8, 6, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture
def encoder():
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 3, "d_ff": 24, "max_positions": 8}
    return Encoder(EncoderConfig(vocab_size=VOCAB, **sizes)).eval()


def our_decoder(theirs, state):
    ours = Decoder(llama_config(theirs.config.to_dict()))
    load_llama_weights(ours, state)
    return ours.eval()


class Hidden(nn.Module):
    """A decoder's vectors instead of its logits."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, ids, mask):
        return self.decoder.hidden(ids, mask)


# ── what learns ───────────────────────────────────────────────────────────────────────────────────


def learning(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


def test_freeze_and_trainable(encoder):
    total = sum(p.numel() for p in encoder.parameters())
    assert transfer.trainable(encoder) == total
    assert transfer.freeze(encoder.blocks[0]) == total_of(encoder.blocks[0])
    assert transfer.trainable(encoder) == total - total_of(encoder.blocks[0])
    assert transfer.freeze(encoder) == total
    assert transfer.trainable(encoder) == 0


def total_of(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_train_last_thaws_the_last_blocks(encoder, k):
    count = transfer.train_last(encoder, encoder.blocks, k)
    assert count == k * total_of(encoder.blocks[0])
    assert {name.split(".")[1] for name in learning(encoder)} == {str(i) for i in range(3 - k, 3)}


def test_train_last_after_more_learned_takes_it_back(encoder):
    transfer.train_last(encoder, encoder.blocks, 3)
    transfer.train_last(encoder, encoder.blocks, 1)
    assert {name.split(".")[1] for name in learning(encoder)} == {"2"}


@pytest.mark.parametrize("k", [-1, 4])
def test_train_last_refuses_blocks_that_are_not_there(encoder, k):
    with pytest.raises(ValueError, match=f"k is {k}; there are 3 blocks"):
        transfer.train_last(encoder, encoder.blocks, k)
    assert transfer.trainable(encoder)


def test_only_what_learns_moves(encoder):
    """train_last, and one step of an optimizer over everything."""
    model = Classifier(encoder, 16, 2)
    transfer.train_last(model, encoder.blocks, 1)
    model.head.requires_grad_(True)
    nn.init.normal_(model.head.weight)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(IDS, MASK).square().sum().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    # a key's bias moves all scores of a query alike: no gradient but rounding
    assert moved >= set(learning(model)) - {"encoder.blocks.2.attention.key.bias"}
    assert moved <= set(learning(model))


# ── how fast ──────────────────────────────────────────────────────────────────────────────────────


def test_depths_of_our_nets(encoder, decoder):
    """Embeddings and their norm 0, blocks 1 … n, a head above; a tied head is the embedding."""
    model = Classifier(encoder, 16, 2)
    found = transfer.depths(model, encoder.blocks)
    assert found["encoder.token_embedding.weight"] == found["encoder.norm.weight"] == 0
    assert found["encoder.blocks.0.attention.query.weight"] == 1
    assert found["encoder.blocks.2.feed_forward_norm.bias"] == 3
    assert found["head.weight"] == 4
    found = transfer.depths(decoder, decoder.blocks)
    assert found["norm.weight"] == found["out.weight"] == 3
    decoder.out.weight = decoder.token_embedding.weight
    assert "out.weight" not in transfer.depths(decoder, decoder.blocks)


def test_depths_of_transformers_llama():
    model = LlamaForCausalLM(llama_sizes())
    found = transfer.depths(model, model.model.layers)
    assert found["model.embed_tokens.weight"] == 0
    assert found["model.layers.1.mlp.up_proj.weight"] == 2
    assert found["lm_head.weight"] == 3


def test_layerwise_rates_by_hand(encoder):
    """Head 0.01; block 3 half of it; block 2 a quarter; the frozen rest is left out."""
    model = Classifier(encoder, 16, 2)
    transfer.train_last(model, encoder.blocks, 2)
    model.head.requires_grad_(True)
    groups = transfer.layerwise_rates(model, encoder.blocks, rate=0.01, decay=0.5)
    assert [group["lr"] for group in groups] == pytest.approx([0.0025, 0.005, 0.01])
    assert {id(p) for p in groups[2]["params"]} == {id(p) for p in model.head.parameters()}
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in encoder.blocks[1].parameters()}


@given(decay=st.floats(0.01, 1), frozen=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_layerwise_rates_hold_each_parameter_once(decay, frozen):
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    transfer.train_last(net, net, 4 - frozen)
    groups = transfer.layerwise_rates(net, net, rate=0.1, decay=decay)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert groups[-1]["lr"] == 0.1  # the uppermost part has the rate itself
    assert all(a["lr"] <= b["lr"] for a, b in itertools.pairwise(groups))
    torch.optim.AdamW(groups)  # takes them as they are


@pytest.mark.parametrize("decay", [0, -0.5, 1.01])
def test_layerwise_rates_refuse_a_decay(net, decay):
    with pytest.raises(ValueError, match=f"decay is {decay}"):
        transfer.layerwise_rates(net, net, 0.1, decay)


def test_layerwise_rates_refuse_what_learns_nothing(net):
    transfer.freeze(net)
    with pytest.raises(ValueError, match="nothing in this model learns"):
        transfer.layerwise_rates(net, net, 0.1, 0.5)


def test_depths_refuse_anothers_blocks(net, encoder):
    with pytest.raises(ValueError, match="the blocks are not in this Sequential"):
        transfer.depths(net, encoder.blocks)


# ── a head ────────────────────────────────────────────────────────────────────────────────────────


def test_classifier_on_the_last_token_is_transformers():
    """LlamaForSequenceClassification on a padded batch: logits and every gradient."""
    theirs = LlamaForSequenceClassification(llama_sizes(num_labels=3, pad_token_id=29)).eval()
    state = theirs.state_dict()
    decoder = our_decoder(
        theirs,
        {n: t for n, t in state.items() if n != "score.weight"}
        | {"lm_head.weight": torch.zeros(VOCAB, 16)},
    )
    ours = Classifier(Hidden(decoder), 16, 3, pool=transfer.last_token, bias=False).eval()
    with torch.no_grad():
        ours.head.weight.copy_(state["score.weight"])
    ids = IDS.masked_fill(MASK == 0, 29)
    labels = torch.tensor([2, 0])
    mine, other = ours(ids, MASK), theirs(ids, attention_mask=MASK).logits
    torch.testing.assert_close(mine, other, **TOLERANCE)
    nn.functional.cross_entropy(mine, labels).backward()
    theirs(ids, attention_mask=MASK, labels=labels).loss.backward()
    torch.testing.assert_close(ours.head.weight.grad, theirs.score.weight.grad, **TOLERANCE)
    torch.testing.assert_close(
        decoder.token_embedding.weight.grad, theirs.model.embed_tokens.weight.grad, **TOLERANCE
    )
    torch.testing.assert_close(
        decoder.blocks[1].attention.query.weight.grad,
        theirs.model.layers[1].self_attn.q_proj.weight.grad,
        **TOLERANCE,
    )


def test_classifier_starts_without_an_opinion(encoder):
    logits = Classifier(encoder, 16, 3)(IDS, MASK)
    assert (logits == 0).all()
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("pool", [transfer.mean_pool, transfer.first_token, transfer.last_token])
def test_classifier_does_not_see_padding(encoder, pool):
    """mean_pool, first_token and last_token: with and without two places of padding."""
    model = Classifier(encoder, 16, 2, pool=pool)
    nn.init.normal_(model.head.weight)
    padded = model(IDS[1:], MASK[1:])
    torch.testing.assert_close(padded, model(IDS[1:, :3], MASK[1:, :3]), **TOLERANCE)


def test_pools_by_hand():
    """first_token and last_token: padded on the right, on the left, and not at all."""
    hidden = torch.arange(6.0).view(2, 3, 1)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert transfer.last_token(hidden, mask).flatten().tolist() == [1, 5]
    assert transfer.last_token(hidden).flatten().tolist() == [2, 5]
    assert transfer.first_token(hidden, mask).flatten().tolist() == [0, 3]


def test_classifier_drops_in_training_alone(encoder):
    model = Classifier(encoder, 16, 2, dropout=0.5)
    nn.init.normal_(model.head.weight)
    assert not torch.equal(model.train()(IDS), model(IDS))
    assert torch.equal(model.eval()(IDS), model(IDS))


def test_classifier_refuses_a_text_that_is_too_long(encoder):
    with pytest.raises(ValueError, match="9 tokens, the model 8 positions"):
        Classifier(encoder, 16, 2)(torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "the training set is empty"),
        ([1, 1, 1], "all 3 examples are of class 1"),
        ([0, 2], r"labels go from 0 to 2; they must be 0 … 1"),
        ([-1, 0], "labels go from -1 to 0"),
    ],
)
def test_check_classes_refuses(labels, said):
    with pytest.raises(ValueError, match=said):
        transfer.check_classes(labels, 2)


# ── instructions ──────────────────────────────────────────────────────────────────────────────────


def test_instruction_by_hand():
    example = transfer.instruction([7, 8, 9], [4, 2], limit=5)
    assert example.ids == [7, 8, 9, 4, 2]
    assert example.labels == [-100, -100, -100, 4, 2]


@pytest.mark.parametrize(
    ("prompt", "answer", "said"),
    [
        ([1, 2], [3, 4], "the example has 4 tokens, the model 3 positions"),
        ([], [3], "the prompt has 0 tokens, the answer 1"),
        ([1], [], "the prompt has 1 tokens, the answer 0"),
    ],
)
def test_instruction_refuses(prompt, answer, said):
    with pytest.raises(ValueError, match=said):
        transfer.instruction(prompt, answer, limit=3)


def test_chat_prompt_is_smollm2s(smollm2):
    _, tokenizer = smollm2
    turns = [
        ("system", "Be brief."),
        ("user", "Hi, {you}!"),
        ("assistant", "Hi."),
        ("user", "Why?"),
    ]
    theirs = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert transfer.chat_prompt(turns) == theirs


def test_chat_prompt_by_hand():
    said = transfer.chat_prompt([("user", "a"), ("assistant", "b"), ("user", "c")])
    assert said.count("<|im_start|>") == 4
    assert said.count("<|im_end|>") == 3
    assert said.endswith("c<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(ValueError, match="there are no turns"):
        transfer.chat_prompt([])


def test_pad_by_hand():
    batch = transfer.pad([Example([7, 8, 9], [-100, 8, 9]), Example([5], [5])], pad_id=1)
    assert batch.ids.tolist() == [[7, 8, 9], [5, 1, 1]]
    assert batch.labels.tolist() == [[-100, 8, 9], [5, -100, -100]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match="the training set is empty"):
        transfer.pad([])


def test_answer_loss_is_transformers():
    """Answers of 1 and 3 tokens in one batch: value and gradient."""
    theirs = LlamaForCausalLM(llama_sizes()).eval()
    ours = our_decoder(theirs, theirs.state_dict())
    batch = transfer.pad(
        [transfer.instruction([1, 5, 9], [2], 9), transfer.instruction([3, 4], [8, 6, 2], 9)]
    )
    mine = transfer.answer_loss(ours(batch.ids, batch.mask), batch.labels)
    other = theirs(batch.ids, attention_mask=batch.mask, labels=batch.labels).loss
    torch.testing.assert_close(mine, other, **TOLERANCE)
    mine.backward()
    other.backward()
    torch.testing.assert_close(
        ours.blocks[0].feed_forward.up.weight.grad,
        theirs.model.layers[0].mlp.up_proj.weight.grad,
        **TOLERANCE,
    )


def test_answer_loss_by_hand():
    """Rows with one and three answers: ln 2, and 0 three times: ln 2 / 4, not ln 2 / 2."""
    logits = torch.zeros(2, 4, 2)
    logits[1, :, 1] = 1e4
    labels = torch.tensor([[-100, 0, -100, -100], [-100, 1, 1, 1]])
    loss = transfer.answer_loss(logits, labels)
    assert loss.item() == pytest.approx(0.6931 / 4, abs=1e-4)


def test_answer_loss_has_no_gradient_at_the_prompt():
    """Only logits just before an answer's token are moved."""
    logits = torch.randn(1, 5, 4, requires_grad=True)
    labels = torch.tensor([[-100, -100, -100, 1, 2]])
    transfer.answer_loss(logits, labels).backward()
    moved = logits.grad.abs().sum(dim=-1)[0] > 0
    assert moved.tolist() == [False, False, True, True, False]


def test_answer_loss_refuses_labels_that_say_nothing():
    with pytest.raises(ValueError, match="no token of an answer is left to count"):
        transfer.answer_loss(torch.zeros(1, 2, 3), torch.tensor([[1, -100]]))


def test_graded_by_hand():
    logits = torch.tensor([[0.0, torch.log(torch.tensor(3.0))], [0.0, 0.0]])
    right, nats = transfer.graded(logits, torch.tensor([1, 0]))
    assert right == 1
    assert nats == pytest.approx((0.2876821 + 0.6931472) / 2)
