"""Vectors, moments and lessons of a tiny encoder, whose tokens are letters."""

from __future__ import annotations

import pytest
import torch
from tiny_sentences import tiny_encoder, tokenizer

from course_utils.architectures.encoder import embed_sentences
from course_utils.tasks import sentence_vectors

TEXTS = [f"{'abc' * (i % 3 + 1)}{i}" for i in range(10)]


@pytest.fixture
def encoder():
    return tiny_encoder()


def test_batches_keep_the_order():
    found = sentence_vectors.batches(tokenizer, TEXTS, 4)
    assert [len(ids) for ids, _ in found] == [4, 4, 2]
    lengths = [n for _, mask in found for n in mask.sum(dim=1).tolist()]
    assert lengths == [len(text) for text in TEXTS]
    with pytest.raises(ValueError, match="0 texts in batches of 4"):
        sentence_vectors.batches(tokenizer, [], 4)


def test_vectors_of_are_those_of_each_sentence_alone(encoder):
    found = sentence_vectors.vectors_of(encoder, sentence_vectors.batches(tokenizer, TEXTS, 4))
    alone = [embed_sentences(encoder, *tokenizer([t]).values()) for t in TEXTS]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-5)  # fp32, padding
    assert not found.requires_grad


def test_moments_leave_padding_out(encoder):
    together = sentence_vectors.moments(encoder, sentence_vectors.batches(tokenizer, TEXTS, 5))
    alone = sentence_vectors.moments(encoder, sentence_vectors.batches(tokenizer, TEXTS, 1))
    for name, seen in together.items():
        assert seen.n == alone[name].n == sum(map(len, TEXTS))
        torch.testing.assert_close(seen.hessian(), alone[name].hessian(), rtol=1e-4, atol=1e-5)


def test_lessons_hold_whole_batches_and_the_models_vectors(encoder):
    found = sentence_vectors.lessons(encoder, tokenizer, TEXTS, 4, seed=1)
    assert [len(wanted) for _, wanted in found] == [4, 4]
    for (ids, mask), wanted in found:
        torch.testing.assert_close(embed_sentences(encoder, ids, mask).detach(), wanted)
        assert mask.sum(dim=1).max() - mask.sum(dim=1).min() <= 7  # of like length
    other = sentence_vectors.lessons(encoder, tokenizer, TEXTS, 2, seed=2)
    again = sentence_vectors.lessons(encoder, tokenizer, TEXTS, 2, seed=2)
    moved = sentence_vectors.lessons(encoder, tokenizer, TEXTS, 2, seed=3)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(other, again, strict=True))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(other, moved, strict=True))


def test_lessons_by_stops_begin_alike_and_take_texts_in_turn(encoder):
    options = dict(size=4, seed=3, device="cpu")
    made = sentence_vectors.lessons_by_stops
    short, long = (made(encoder, tokenizer, TEXTS, s, **options) for s in ((0, 2), (0, 2, 5)))
    assert (len(short), len(long)) == (2, 5)
    for (a, _), (b, _) in zip(short, long, strict=False):
        assert torch.equal(a[0], b[0])
    lengths = [n for (_, mask), _ in long for n in mask.sum(dim=1).tolist()]
    assert sorted(lengths) == sorted(len(TEXTS[i % len(TEXTS)]) for i in range(20))


def test_mean_cosine_is_1_with_the_models_own_vectors(encoder):
    texts = sentence_vectors.batches(tokenizer, TEXTS, 4)
    own = sentence_vectors.vectors_of(encoder, texts)
    assert sentence_vectors.mean_cosine(encoder, texts, own) == pytest.approx(1)
    assert sentence_vectors.mean_cosine(encoder, texts, -own) == pytest.approx(-1)


def test_distance_is_0_for_the_model_itself_and_above_for_another(encoder):
    (lesson,) = sentence_vectors.lessons(encoder, tokenizer, TEXTS[:4], 4)
    assert sentence_vectors.distance(encoder, lesson).item() == pytest.approx(0, abs=1e-6)
    layer = encoder.blocks[0].feed_forward
    layer.up.weight.data.normal_()
    layer.down.weight.data.normal_()
    assert sentence_vectors.distance(encoder, lesson).item() > 1e-3


def test_learn_blocks_leaves_the_embeddings(encoder):
    learning = sentence_vectors.learn_blocks(encoder)
    names = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert len(names) == len(learning)
    assert names == {name for name, _ in encoder.named_parameters() if name.startswith("blocks.")}
