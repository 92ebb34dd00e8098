"""The outermost values that each check allows, and the nearest that it refuses.

A check written with the wrong one of < and <= refuses what it should allow, and tests of refusals
alone do not notice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_sentences import tokenizer

from course_utils import engines, metrics, training
from course_utils.architectures import attention, gradient_flow, kv_cache, objectives, recurrent
from course_utils.backends import protocol
from course_utils.building import corpus
from course_utils.compression import (
    awq,
    distillation,
    gptq,
    int8,
    nf4,
    pruning,
    qat,
    rtn,
    sparsegpt,
    step_size,
    structured_pruning,
)
from course_utils.finetuning import changes, lora, packing, prompt_tuning, ratings, transfer
from course_utils.inference import decoding, processors, search
from course_utils.parallel import checkpoints, data_parallel, launch, sharding
from course_utils.parallel import train as train_ranks
from course_utils.prompting import acting, prompts, ranking, reasoning, retrieval
from course_utils.prompting.prompts import Shot
from course_utils.recipes import distilled_students, how_llms_are_built, word_problems
from course_utils.tasks import editorials, pronunciation, replies, sentence_vectors, sentiment
from course_utils.tasks.editorials import Sentence
from course_utils.tasks.replies import Exchange

LOGITS = torch.tensor([[0.5, 2.0, 1.0]])
IDS = torch.tensor([[0, 1]])
SHOTS = [Shot("fine", "yes"), Shot("bad", "no"), Shot("so so", "no")]
WORDS = [pronunciation.Entry(word, (("K", "AE", "T"),)) for word in ("cat", "bat", "hat", "mat")]
NET = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
LAST = np.array([0.5, 0.1])
SENTENCES = [Sentence(i, f"one two {i} {j}") for i in range(3) for j in range(2)]

PLAY = "FOX.\nWho is it?\n\nOWL.\nI.\n"
EXCHANGES = [Exchange("a", "b?"), Exchange("b", "c!"), Exchange("c", "d.")]


class Edge(NamedTuple):
    """A check: `call(value)` with one argument put in, and what it allows and refuses."""

    call: Callable[[Any], object]
    allowed: tuple
    refused: tuple


def likeliest_is_one(ids: torch.Tensor) -> torch.Tensor:
    return LOGITS.expand(len(ids), -1)


def train(steps: int) -> None:
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    training.train(lambda x: (weight * x).sum(), [1.0], optimizer, steps=steps)


def cropped(length: int) -> None:
    cache = kv_cache.KVCache(1)
    cache.layers[0].extend(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
    cache.crop(length)


def rates_with(decay: float) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(1, 1))
    transfer.layerwise_rates(net, net, 0.1, decay)


def clipped(max_norm: float) -> float:
    weight = torch.ones(1, requires_grad=True)
    weight.grad = torch.ones(1)
    return gradient_flow.clip_gradients([weight], max_norm)


EDGES = {
    "metrics.ngrams n": Edge(lambda n: metrics.ngrams("abc", n), (1, 4), (0,)),
    "metrics.distinct_n n": Edge(lambda n: metrics.distinct_n(["abc"], n), (1, 3), (0, 4)),
    "metrics.mean_interval resamples": Edge(
        lambda n: metrics.mean_interval([0.5], resamples=n), (1,), (0,)
    ),
    "metrics.accuracy confidence": Edge(
        lambda x: metrics.accuracy([True], x), (1e-9, 0.999), (0, 1)
    ),
    "metrics.time_ratio repeats": Edge(
        lambda n: metrics.time_ratio(math.gamma, math.erf, n, 0), (), (0,)
    ),
    "metrics.timed_in_turns warmup": Edge(
        lambda n: metrics.timed_in_turns(int, float, 1, warmup=n), (0,), (-1,)
    ),
    "metrics.timed_in_turns repeats": Edge(
        lambda n: metrics.timed_in_turns(int, float, n), (1,), (0,)
    ),
    "metrics.check_labels labels": Edge(
        metrics.check_labels, (["a", "b"],), (["a"], ["a", ""], ["a", "a"])
    ),
    "training.train steps": Edge(train, (1,), (0, 2)),
    "processors.temperature": Edge(
        lambda x: processors.temperature(LOGITS, x), (0, 1e-6, 1e6), (-1e-6, math.inf)
    ),
    "processors.top_k": Edge(lambda k: processors.top_k(LOGITS, k), (1, 3, 4), (0,)),
    "processors.top_p": Edge(lambda p: processors.top_p(LOGITS, p), (0, 1), (-1e-6, 1.001)),
    "processors.min_p": Edge(lambda p: processors.min_p(LOGITS, p), (0, 1), (-1e-6, 1.001)),
    "processors.repetition_penalty": Edge(
        lambda x: processors.repetition_penalty(LOGITS, IDS, x), (1e-6, 1e6), (0, math.inf)
    ),
    "processors.no_repeat_ngram": Edge(
        lambda n: processors.no_repeat_ngram(LOGITS, IDS, n), (0, 1, 5), (-1,)
    ),
    "decoding.greedy max_new_tokens": Edge(
        lambda n: decoding.greedy(likeliest_is_one, IDS, n), (1,), (0,)
    ),
    "search.beam_search num_beams": Edge(
        lambda n: search.beam_search(likeliest_is_one, IDS, 1, num_beams=n), (1,), (0,)
    ),
    "search.beam_search max_new_tokens": Edge(
        lambda n: search.beam_search(likeliest_is_one, IDS, n, num_beams=2), (1,), (0,)
    ),
    "objectives.hide_tokens rate": Edge(
        lambda x: objectives.hide_tokens(IDS, 2, 3, rate=x), (1e-6, 1), (0, 1.001)
    ),
    "gradient_flow.clip_gradients max_norm": Edge(clipped, (1e-9, 1e9), (0, math.nan)),
    "gradient_flow.recall_batch batch": Edge(
        lambda n: gradient_flow.recall_batch(n, 2, 4), (1,), (0,)
    ),
    "gradient_flow.recall_batch delay": Edge(
        lambda n: gradient_flow.recall_batch(2, n, 4), (0,), (-1,)
    ),
    "gradient_flow.recall_batch n_symbols": Edge(
        lambda n: gradient_flow.recall_batch(2, 2, n), (1,), (0,)
    ),
    "kv_cache.KVCache n_layers": Edge(kv_cache.KVCache, (1,), (0,)),
    "kv_cache.KVCache.crop length": Edge(cropped, (0, 3), (-1, 4)),
    "attention.causal_mask n_queries": Edge(lambda n: attention.causal_mask(n, 3), (1, 3), (4,)),
    "recurrent.Recurrent d_hidden": Edge(lambda n: recurrent.Recurrent("rnn", 2, n), (1,), (0,)),
    "recurrent.Recurrent d_in": Edge(lambda n: recurrent.Recurrent("rnn", n, 2), (1,), (0,)),
    "prompts.random_shots k": Edge(
        lambda k: prompts.random_shots(SHOTS, k, seed=0), (0, 3), (-1, 4)
    ),
    "prompts.different_orders n": Edge(
        lambda n: prompts.different_orders(SHOTS, n, seed=0), (1, 6), (0, 7)
    ),
    "ranking.recall_at_k k": Edge(lambda k: ranking.recall_at_k(["a"], ["a"], k), (1, 2), (0,)),
    "ranking.ndcg_at_k gain": Edge(
        lambda x: ranking.ndcg_at_k(["a"], {"a": 1.0, "b": x}, 1), (0.0,), (-0.5,)
    ),
    "acting.react max_steps": Edge(
        lambda n: next(acting.react("Who?", [], {}, max_steps=n)), (1,), (0,)
    ),
    "reasoning.self_consistency samples": Edge(
        lambda n: next(reasoning.self_consistency("Who?", [], str, n)), (1,), (0,)
    ),
    "reasoning.pal repairs": Edge(lambda n: next(reasoning.pal("Who?", [], str, n)), (0, 1), (-1,)),
    "retrieval.chunk_words overlap": Edge(
        lambda n: retrieval.chunk_words("a b c", size=2, overlap=n), (0, 1), (-1, 2)
    ),
    "retrieval.chunk_words size": Edge(
        lambda n: retrieval.chunk_words("a b c", size=n, overlap=0), (1,), (0,)
    ),
    "retrieval.chunk_blocks size": Edge(
        lambda n: retrieval.chunk_blocks("a b c", size=n), (1,), (0,)
    ),
    "retrieval.bm25_scores k1": Edge(
        lambda x: retrieval.bm25_scores(["a"], [["a"]], k1=x), (1e-9,), (0, math.inf)
    ),
    "retrieval.bm25_scores b": Edge(
        lambda x: retrieval.bm25_scores(["a"], [["a"]], b=x), (0, 1), (-0.01, 1.01)
    ),
    "retrieval.top_k k": Edge(lambda k: retrieval.top_k(LAST, k), (1, 2, 3), (0,)),
    "retrieval.embedder batch_size": Edge(
        lambda n: retrieval.embedder(str, str, batch_size=n), (1,), (0,)
    ),
    "retrieval.reciprocal_rank_fusion k": Edge(
        lambda k: retrieval.reciprocal_rank_fusion([["a"]], k=k), (0,), (-1,)
    ),
    "lora.lora_scale rank": Edge(lambda r: lora.lora_scale(r, 1), (1,), (0,)),
    "lora.lora_scale alpha": Edge(lambda a: lora.lora_scale(2, a), (-1e-9, 1e-9), (0, math.inf)),
    "lora.check_rank rank": Edge(lambda r: lora.check_rank(r, 4, 6), (1, 3), (4,)),
    "prompt_tuning.random_prompt n": Edge(lambda n: prompt_tuning.random_prompt(n, 2), (1,), (0,)),
    "transfer.train_last k": Edge(lambda k: transfer.train_last(NET, NET, k), (0, 2), (-1, 3)),
    "transfer.layerwise_rates decay": Edge(rates_with, (1e-9, 1), (0, 1.001)),
    "transfer.instruction limit": Edge(lambda n: transfer.instruction([1, 2], [3], n), (3,), (2,)),
    "packing.first_fit room": Edge(lambda n: packing.first_fit([3, 1], n), (3,), (0, 2)),
    "rtn.quantize_symmetric bits": Edge(
        lambda n: rtn.quantize_symmetric(LOGITS, n), (2, 8), (1, 9)
    ),
    "rtn.quantize_minimum bits": Edge(lambda n: rtn.quantize_minimum(LOGITS, n), (1, 8), (0, 9)),
    "rtn.quantize_zero_point bits": Edge(
        lambda n: rtn.quantize_zero_point(LOGITS, n), (1, 8), (0, 9)
    ),
    "rtn.into_groups group_size": Edge(
        lambda n: rtn.into_groups(LOGITS, "group", n), (1, 3), (0, 2, 4)
    ),
    "rtn.bits_per_weight group_size": Edge(lambda n: rtn.bits_per_weight(4, n), (1,), (0,)),
    "rtn.unpack_bits n": Edge(
        lambda n: rtn.unpack_bits(torch.zeros(1, dtype=torch.uint8), 3, n), (0, 2), (3,)
    ),
    "awq.salient_columns share": Edge(
        lambda x: awq.salient_columns(LOGITS[0], x), (1e-9, 1), (0, 1.001)
    ),
    "awq.scales_by_size ratio": Edge(
        lambda x: awq.scales_by_size(LOGITS[0], x), (0, 1), (-1e-9, 1.001)
    ),
    "awq.search_scales steps": Edge(
        lambda n: awq.search_scales(LOGITS, torch.eye(3), LOGITS[0], torch.round, n), (1,), (0,)
    ),
    "gptq.damped damping": Edge(lambda x: gptq.damped(torch.eye(2), x), (0,), (-1e-9,)),
    "gptq.gptq block_size": Edge(
        lambda n: gptq.gptq(LOGITS, torch.eye(3), 4, group_size=3, block_size=n), (1, 9), (0,)
    ),
    "gptq.gptq block_size without static groups": Edge(
        lambda n: gptq.gptq(
            LOGITS, torch.eye(3), 4, group_size=1, block_size=n, static_groups=False
        ),
        (1, 9),
        (0,),
    ),
    "step_size.best_step candidates": Edge(
        lambda n: step_size.best_step(LOGITS, 2, candidates=n), (1, 9), (0,)
    ),
    "step_size.best_step bits": Edge(lambda n: step_size.best_step(LOGITS, n), (2, 8), (1, 9)),
    "step_size.best_range candidates": Edge(
        lambda n: step_size.best_range(LOGITS, 2, candidates=n), (1, 9), (0,)
    ),
    "step_size.best_range bits": Edge(lambda n: step_size.best_range(LOGITS, n), (1, 8), (0, 9)),
    "sparsegpt.sparsegpt block_size": Edge(
        lambda n: sparsegpt.sparsegpt(LOGITS, torch.eye(3), 0.5, block_size=n), (1, 9), (0,)
    ),
    "sparsegpt.sparsegpt_n_of_m block_size": Edge(
        lambda n: sparsegpt.sparsegpt_n_of_m(LOGITS, torch.eye(3), 1, 3, block_size=n),
        (1, 9),
        (0,),
    ),
    "pruning.row_mask sparsity": Edge(
        lambda x: pruning.row_mask(LOGITS, x), (0, 1), (-1e-9, 1.001)
    ),
    "pruning.n_of_m_mask n": Edge(lambda n: pruning.n_of_m_mask(LOGITS, n, 3), (1, 3), (0, 4)),
    "pruning.n_of_m_mask m": Edge(lambda m: pruning.n_of_m_mask(LOGITS, 1, m), (1, 3), (2,)),
    "pruning.gradual_sparsity end": Edge(
        lambda n: pruning.gradual_sparsity(0, 0.5, 3, n), (4,), (3,)
    ),
    "pruning.gradual_sparsity start": Edge(
        lambda n: pruning.gradual_sparsity(0, 0.5, n, 3), (0, 2), (-1, 3)
    ),
    "pruning.iterative_sparsities rounds": Edge(
        lambda n: pruning.iterative_sparsities(0.5, n), (1,), (0,)
    ),
    "pruning.iterative_sparsities final": Edge(
        lambda x: pruning.iterative_sparsities(x, 1), (0, 0.999), (-0.5, 1)
    ),
    "structured_pruning.input_scores size": Edge(
        lambda n: structured_pruning.input_scores(LOGITS, LOGITS[0], n), (1, 3), (0, 2)
    ),
    "structured_pruning.largest n": Edge(
        lambda n: structured_pruning.largest(LOGITS[0], n), (1, 3), (0, 4)
    ),
    "structured_pruning.check_kept kept": Edge(
        lambda n: structured_pruning.check_kept([n], 3), (0, 2), (-1, 3)
    ),
    "qat.fake_quantize bits": Edge(
        lambda n: qat.fake_quantize(LOGITS, LOGITS[:, :1], n), (2, 8), (1, 9)
    ),
    "qat.first_scale bits": Edge(lambda n: qat.first_scale(LOGITS, n), (2, 8), (1, 9)),
    "qat.QATLinear activation_bits": Edge(
        lambda n: qat.QATLinear(torch.nn.Linear(2, 2), 4, "channel", activation_bits=n),
        (0, 2, 8),
        (1, 9),
    ),
    "distillation.soft_targets temperature": Edge(
        lambda x: distillation.soft_targets(LOGITS, x), (0, 1e-6, 1e6), (-1e-6, math.inf)
    ),
    "distillation.distillation_loss temperature": Edge(
        lambda x: distillation.distillation_loss(LOGITS, LOGITS, x), (1e-6, 1e6), (0, math.inf)
    ),
    "distillation.jensen_shannon beta": Edge(
        lambda x: distillation.jensen_shannon(LOGITS, LOGITS, x), (1e-6, 0.999), (0, 1)
    ),
    "distillation.labels_and_soft_targets share": Edge(
        lambda x: distillation.labels_and_soft_targets(LOGITS, LOGITS, IDS[0, :1], 1, x),
        (0, 1),
        (-1e-6, 1.001),
    ),
    "distillation.pseudo_labels least": Edge(
        lambda x: distillation.pseudo_labels(LOGITS, x), (0, 1), (-1e-6, 1.001)
    ),
    "distillation.value_relation n_heads": Edge(
        lambda n: distillation.value_relation(LOGITS.unsqueeze(0), n), (1, 3), (0, 2)
    ),
    "distillation.uniform_layers n_student": Edge(
        lambda n: distillation.uniform_layers(n, 3), (1, 3), (0, 4)
    ),
    "distillation.answer_mask n_prompt": Edge(
        lambda n: distillation.answer_mask(IDS, n), (1,), (0, 2)
    ),
    "int8.outlier_columns threshold": Edge(
        lambda x: int8.outlier_columns(LOGITS, x), (1e-9, 1e9), (0, math.nan)
    ),
    "nf4.scaled_groups group_size": Edge(lambda n: nf4.scaled_groups(LOGITS, n), (1, 4), (0,)),
    "nf4.normal_levels offset": Edge(nf4.normal_levels, (0.501, 0.9999), (0.5, 1)),
    "pronunciation.split n_test": Edge(
        lambda n: pronunciation.split(WORDS, n_test=n, n_dev=1), (0, 2), (-1, 3)
    ),
    "pronunciation.split n_dev": Edge(
        lambda n: pronunciation.split(WORDS, n_test=1, n_dev=n), (0, 2), (-1, 3)
    ),
    "training.batches_by_length size": Edge(
        lambda n: training.batches_by_length([1, 2], n), (1, 2), (0,)
    ),
    "pronunciation.batches size": Edge(
        lambda n: next(pronunciation.batches(WORDS, n)), (1, 5), (0,)
    ),
    "changes.cut_to_rank k": Edge(
        lambda k: changes.cut_to_rank(torch.ones(2, 3), k), (1, 2), (0, 3)
    ),
    "ratings.common_words least": Edge(
        lambda n: ratings.common_words([["a"], ["a"]], n), (1, 2), (3,)
    ),
    "ratings.correlation texts": Edge(
        lambda n: ratings.correlation(torch.arange(float(n)), torch.arange(float(n))), (2,), (1,)
    ),
    "ratings.ridge texts": Edge(
        lambda n: ratings.ridge(torch.arange(float(n)).unsqueeze(1), torch.arange(float(n))),
        (3,),
        (2,),
    ),
    "sentiment.split texts": Edge(
        lambda n: sentiment.split([sentiment.Rated(str(i), 0.0, f"text {i}") for i in range(n)]),
        (10,),
        (9,),
    ),
    "editorials.draw articles": Edge(
        lambda n: editorials.draw(SENTENCES, articles=n, each=2, words=(1, 4)), (1, 3), (0, 4)
    ),
    "editorials.draw each": Edge(
        lambda n: editorials.draw(SENTENCES, articles=1, each=n, words=(1, 4)), (2,), (1, 3)
    ),
    "corpus.spread_out n": Edge(lambda n: corpus.spread_out(LOGITS, n), (1, 2), (0,)),
    "replies.exchanges longest_said": Edge(
        lambda n: replies.exchanges(PLAY, longest_said=n), (1, 10), (0,)
    ),
    "replies.exchanges longest_reply": Edge(
        lambda n: replies.exchanges(PLAY, longest_reply=n), (1,), (0,)
    ),
    "replies.some_of_each n": Edge(
        lambda n: replies.some_of_each(EXCHANGES, n, seed=0), (1, 9), (0,)
    ),
    "how_llms_are_built.opinions n": Edge(
        lambda n: how_llms_are_built.opinions("movies", n, 0), (1, 5302), (0, 5303)
    ),
    "distilled_students.load_tweets n_labels": Edge(
        lambda n: distilled_students.load_tweets(n, 0, 0), (0, 1712), (1713,)
    ),
    "distilled_students.load_tweets n_unlabelled": Edge(
        lambda n: distilled_students.load_tweets(10, n, 0), (0, 2823), (2824,)
    ),
    "replies.draw_prompts n": Edge(
        lambda n: replies.draw_prompts(EXCHANGES, n, seed=0), (1, 3), (0, 4)
    ),
    "editorials.by_chance": Edge(lambda n: editorials.by_chance([1] * n), (2,), (0, 1)),
    "sentence_vectors.batches size": Edge(
        lambda n: sentence_vectors.batches(tokenizer, ["a", "b"], n), (1, 3), (0,)
    ),
    "word_problems.generate per_template": Edge(
        lambda n: word_problems.generate("dev", per_template=n), (1,), (0,)
    ),
    "launch.Pool size": Edge(launch.Pool, (), (0, -1)),
    "data_parallel.rank_indices n": Edge(lambda n: data_parallel.rank_indices(n, 0, 1), (1,), (0,)),
    "data_parallel.rank_indices rank": Edge(
        lambda n: data_parallel.rank_indices(4, n, 2), (0, 1), (-1, 2)
    ),
    "sharding.state_bytes world_size": Edge(lambda n: sharding.state_bytes(1, n, 3), (1,), (0,)),
    "sharding.state_bytes n_parameters": Edge(lambda n: sharding.state_bytes(n, 1, 3), (0,), (-1,)),
    "train.rows_of length": Edge(lambda n: train_ranks.rows_of(IDS[0], n), (1, 2), (0,)),
    "checkpoints.save keep": Edge(
        lambda n: checkpoints.save("nowhere", 0, {}, keep=n), (), (0, -1)
    ),
    "sharding.traffic_bytes stage": Edge(
        lambda n: sharding.traffic_bytes(1, 1, n), (0, 3), (-1, 4)
    ),
    "protocol.window_of wanted": Edge(
        lambda n: protocol.window_of(n, 512), (protocol.SMALLEST_WINDOW, 512, None), (1, 513)
    ),
    "engines.load_engine parallel": Edge(
        lambda n: engines.load_engine("nothing", parallel=n), (), (0,)
    ),
}


def rows(which: str) -> list:
    return [
        pytest.param(edge.call, value, id=f"{name}={value}")
        for name, edge in EDGES.items()
        for value in getattr(edge, which)
    ]


@pytest.mark.parametrize(("call", "value"), rows("allowed"))
def test_the_outermost_value_is_allowed(call: Callable, value: Any) -> None:
    call(value)


@pytest.mark.parametrize(("call", "value"), rows("refused"))
def test_the_next_value_is_refused_by_name(call: Callable, value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(str(value))):
        call(value)
