"""Both engines say what the model says: the same tokens, the same probabilities, the same stops."""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter

import gguf
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from scripts import run_python

from course_utils import models
from course_utils.assets.catalogue import AssetError
from course_utils.backends.protocol import Answer, EngineError, Settings
from course_utils.engines import Engine, load_engine
from course_utils.training import batches_by_length

TEXTS = [
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "The meaning of life",
    "Water boils at",
    "In 1969, the first",
    "My favourite food is",
    "List three animals:",
    "The chemical symbol for gold is",
    "To be or not to be",
    "A good teacher",
    "The largest planet",
    "She opened the door and",
    "Recipe for bread:\n\n1.",
    "The speed of light",
    "Roses are red",
    "Shakespeare wrote",
    "import numpy as np\n",
    "Dear Sir or Madam,",
    "Q: What is 2+2?\nA:",
]
QUESTIONS = [
    "What is the capital of France?",
    "Explain gravity to a child.",
    "Write a haiku about the sea.",
    "Name three primary colours.",
    "Is 17 a prime number?",
    "Translate 'good morning' into Spanish.",
    "What is photosynthesis?",
    "Give one reason to exercise.",
    "Who wrote Hamlet?",
    "How many days are in a week?",
    "What is 12 + 30?",
    "Suggest a name for a cat.",
]
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]
PROMPTS = [*TEXTS, *CHATS]
REVIEW = "Review: I loved this film.\nSentiment:"
LABELS = [" positive", " negative", " Positive", " very good indeed", "<|im_end|>"]


@pytest.fixture(scope="module")
def hf(smollm2):
    model, tokenizer = smollm2
    with load_engine("transformers", model, tokenizer=tokenizer) as engine:
        yield engine


@pytest.fixture(scope="module")
def hf_wide(smollm2):
    """The same on so many rows at once that drawing many tokens takes a few calls."""
    model, tokenizer = smollm2
    with load_engine("transformers", model, tokenizer=tokenizer, parallel=100) as engine:
        yield engine


@pytest.fixture(scope="module")
def llama():
    with load_engine("llama.cpp", parallel=4) as engine:
        yield engine


@pytest.fixture(scope="module")
def llama_f32(tmp_path_factory):
    """llama.cpp on the packaged weights written as float32: no activation is rounded."""
    file = tmp_path_factory.mktemp("gguf") / "f32.gguf"
    write_f32(models.gguf_path(), file)
    with load_engine("llama.cpp", file, parallel=16, context_window=256) as engine:
        file.unlink()  # the open mapping keeps it; 540 MB that no later run has to find
        yield engine


@pytest.fixture(params=["llama.cpp", "transformers"])
def engine(request):
    return request.getfixturevalue({"llama.cpp": "llama", "transformers": "hf"}[request.param])


def write_f32(source, target):
    """Write the dequantized weights of a GGUF, everything else unchanged."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = 0 if name == "general.file_type" else entry.contents()  # 0 stands for float32
        array = entry.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(name, value, entry.types[0], entry.types[-1] if array else None)
    for tensor in reader.tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def first_difference(a, b):
    """Return the index of the first token that differs, or None."""
    if a == b:
        return None
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


# ── the two engines against each other ──────────────────────────────────────────────────────────


def test_both_cut_every_prompt_into_the_same_tokens(hf, llama):
    for chat in CHATS:
        assert hf.render(chat) == llama.render(chat)
    assert [hf._ids(prompt) for prompt in PROMPTS] == [llama._ids(prompt) for prompt in PROMPTS]
    assert hf.count_tokens("The capital of France is") == 5
    assert hf.count_tokens(CHATS[0]) == llama.count_tokens(CHATS[0]) == 37


@pytest.fixture(scope="module")
def written(hf):
    """What transformers writes greedily after each prompt, 16 tokens of it."""
    return hf.generate(PROMPTS, max_new_tokens=16)


def test_greedy_answers_are_equal_where_no_activation_is_rounded(written, llama_f32):
    theirs = llama_f32.generate(PROMPTS, max_new_tokens=16)
    differing = [(a.text, b.text) for a, b in zip(written, theirs, strict=True) if a != b]
    # 0 of 32 differ as measured; one may where two logits tie but for the order of a sum.
    assert len(differing) <= 1, differing


def test_greedy_answers_mostly_agree_and_part_only_at_near_ties(hf, written, llama):
    theirs = llama.generate(PROMPTS, max_new_tokens=16)
    pairs = list(zip(PROMPTS, written, theirs, strict=True))
    parted = [first_difference(a.tokens, b.tokens) for _, a, b in pairs]
    gaps = [
        gap_at(hf, prompt, a.tokens, b.tokens, at)
        for (prompt, a, b), at in zip(pairs, parted, strict=True)
        if at is not None
    ]
    equal = {n: sum(at is None or at >= n for at in parted) for n in (1, 4, 8, 16)}
    print(f"of {len(PROMPTS)} answers equal in their first n tokens: {equal}")
    print("nats between the two tokens where they part:", [f"{gap:.2f}" for gap in sorted(gaps)])
    assert equal[8] >= 18  # 23 of 32 measured
    # Rounding usually moves a log-probability by 0.1–0.3, and what it turns around is as close as
    # that, but for one answer of the 32: rounding the activations of the transformers model to
    # 8 bits closes that gap too, from 1.13 to 0.10 nats.
    assert min(gaps) >= 0
    assert sum(gap >= 0.6 for gap in gaps) <= 2, gaps


def gap_at(hf, prompt, ours, theirs, at):
    """Return by how many nats transformers prefers its token to llama.cpp's where they part."""
    ids = torch.tensor([hf._ids(prompt) + list(ours[:at])])
    logp = hf._backend.net(ids, logits_to_keep=1).logits[0, -1].log_softmax(-1)
    return (logp[ours[at]] - logp[theirs[at]]).item()


def test_repetition_penalty_is_the_same_rule_in_both(hf, written, llama_f32):
    lengths = [hf.count_tokens(prompt) for prompt in PROMPTS]
    batches = batches_by_length(lengths, 4, equal=True)  # transformers reads such in one go
    together = [batch for batch in batches if len(batch) > 2]
    chosen = [i for batch in (*together[:2], together[-1]) for i in batch]
    assert len(chosen) >= 8
    assert {type(PROMPTS[i]) for i in chosen} == {str, list}
    prompts = [PROMPTS[i] for i in chosen]
    settings = {"max_new_tokens": 10, "repetition_penalty": 1.3}
    ours, theirs = (e.generate(prompts, **settings) for e in (hf, llama_f32))
    assert ours == theirs
    without = [written[i].tokens[:10] for i in chosen]
    assert [answer.tokens for answer in ours] != without  # and it does something


def test_label_scores_are_equal_where_no_activation_is_rounded(hf, llama_f32):
    ours = np.array(hf.logprobs([REVIEW, *CHATS[:2]], LABELS))
    theirs = np.array(llama_f32.logprobs([REVIEW, *CHATS[:2]], LABELS))
    assert ours.shape == (3, len(LABELS))
    # llama.cpp keeps keys and values in float16, three decimal digits.
    np.testing.assert_allclose(theirs, ours, atol=0.05)


def test_parts_of_a_character_are_scored(hf, llama, llama_f32):
    """A token of 😀 alone is no text, and llama.cpp gives no probability with it."""
    prompt, completions = "Text: I love it\nSentiment:", [" 😀", " 😡", " 日", " good"]
    ours = np.array(hf.logprobs(prompt, completions))
    np.testing.assert_allclose(ours[:2], [-9.22, -10.72], atol=0.01)  # as first measured
    np.testing.assert_allclose(llama_f32.logprobs(prompt, completions), ours, atol=0.05)  # as above
    tokens = np.array([hf.count_tokens(text) for text in completions])
    near = np.array(llama.logprobs([prompt, "So:"], completions))
    assert near.shape == (2, 4)
    assert (np.abs(near[0] - ours) / tokens).max() < 0.6  # as below
    assert tokens.tolist() == [2, 2, 3, 1]


def test_a_part_of_a_character_that_is_hardly_possible_is_scored(hf, llama):
    """Beyond the thousand likeliest tokens the whole vocabulary is asked for."""
    prompt = "The capital of France is"
    ours, theirs = (engine.logprobs(prompt, [" 😀"])[0] for engine in (hf, llama))
    assert ours < -12
    assert theirs == pytest.approx(ours, abs=2 * 0.6)  # as below, of two tokens


def test_a_chat_that_ends_with_an_answer_is_continued(hf, llama):
    """One prompt in both: the template up to the answer, then its beginning as it stands."""
    start = "My favourite colour is "
    chat = [*CHATS[3], {"role": "assistant", "content": start}]
    assert hf.render(chat) == llama.render(chat) == hf.render(CHATS[3]) + start
    assert hf.render(chat).endswith(f"<|im_start|>assistant\n{start}")
    assert hf._ids(chat) == llama._ids(chat)
    for engine in (hf, llama):
        answer = engine.generate(chat, max_new_tokens=4)
        assert answer.prompt_tokens == engine.count_tokens(chat) == len(hf._ids(chat))
        assert start not in answer.text
        longer = [*chat[:1], {"role": "assistant", "content": start + answer.text}]
        assert engine.count_tokens(longer) > engine.count_tokens(chat)


def test_label_scores_of_the_packaged_weights_are_near(hf, llama):
    ours, theirs = (np.array(e.logprobs(REVIEW, LABELS)) for e in (hf, llama))
    tokens = np.array([hf.count_tokens(label) for label in LABELS])
    assert (np.abs(ours - theirs) / tokens).max() < 0.6, ours - theirs  # 0.28 measured


# ── each engine against something that is certain ───────────────────────────────────────────────


def test_transformers_engine_writes_what_generate_writes(hf, smollm2):
    model, tokenizer = smollm2
    for prompt, answer in zip(TEXTS[:4], hf.generate(TEXTS[:4], max_new_tokens=8), strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = expected[0, inputs["input_ids"].shape[1] :]
        assert list(answer.tokens) == new.tolist()
        assert answer.text == tokenizer.decode(new, skip_special_tokens=True)
        assert answer.completion_tokens == len(new)


def test_scores_are_the_sum_of_token_logprobs(hf, smollm2):
    model, tokenizer = smollm2
    for label, score in zip(LABELS, hf.logprobs(REVIEW, LABELS), strict=True):
        prompt, ending = tokenizer(REVIEW)["input_ids"], tokenizer(label)["input_ids"]
        logp = model(torch.tensor([prompt + ending])).logits[0].log_softmax(-1)
        by_hand = sum(logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(ending))
        assert score == pytest.approx(by_hand, abs=1e-3)  # float32, with and without the cache


@pytest.mark.parametrize(
    "prompts",
    [
        [f"Review: {text}\nSentiment:" for text in ("Good", "I slept", "", "Never again")],
        ["The sea", "A cat sat on the", "One", "The"],  # nothing in common, and one begins another
        [REVIEW, REVIEW],
        [REVIEW, *CHATS[:2]],
    ],
)
@pytest.mark.parametrize("parallel", [1, 3])
def test_prompts_that_are_read_together_score_as_alone(smollm2, prompts, parallel):
    model, tokenizer = smollm2
    words = LABELS[:3]
    assert all(len(tokenizer(word)["input_ids"]) == 1 for word in words)
    with load_engine("transformers", model, tokenizer=tokenizer, parallel=parallel) as engine:
        together = engine.logprobs(prompts, words)
        alone = [engine.logprobs(prompt, words) for prompt in prompts]
    np.testing.assert_allclose(together, alone, atol=1e-3)  # float32, other batch


def test_scores_of_all_next_tokens_are_a_distribution(hf):
    tokenizer = hf._backend.tokenizer
    likely = [tokenizer.decode([i]) for i in range(17, 2000)]
    words = [w for w in likely if len(tokenizer(w)["input_ids"]) == 1]
    total = sum(map(math.exp, hf.logprobs("The capital of France is", words)))
    assert 0 < total <= 1 + 1e-4  # float32


def test_scores_find_the_right_country(engine):
    right = {"Paris": " France", "Rome": " Italy", "Tokyo": " Japan"}
    scores = engine.logprobs([f"{city} is the capital of" for city in right], [*right.values()])
    assert np.argmax(scores, axis=1).tolist() == [0, 1, 2]
    assert engine.logprobs("Rome is the capital of", [*right.values()]) == pytest.approx(
        scores[1],
        abs=1e-3,  # float32, other batch
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.5, "top_k": 5},
        {"temperature": 2.0, "top_k": 40, "top_p": 0.6},
        {"temperature": 1.5, "min_p": 0.1},
    ],
)
@pytest.mark.parametrize("name", ["hf_wide", "llama_f32"])
def test_samples_follow_the_exact_distribution(name, settings, request, smollm2):
    model, tokenizer = smollm2
    prompt, draws = "Colour", 400  # one token: what is read is drawn from
    logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].double()
    exact = kept_probabilities(logits, **settings)
    engine = request.getfixturevalue(name)
    answers = engine.generate([prompt] * draws, max_new_tokens=1, seed=1, **settings)
    counts = Counter(answer.tokens[0] for answer in answers)
    assert set(counts) <= set(exact)
    seen = np.array([counts[token] for token in exact])
    # A fixed seed: this either passes always or never; 1e-4 is far below any honest draw.
    assert chisquare(seen, draws * np.array(list(exact.values()))).pvalue > 1e-4


def kept_probabilities(logits, *, temperature, top_k=None, top_p=1.0, min_p=0.0):
    """Return {token: probability} by the textbook, in the order temperature, k, p, min-p."""
    probs, order = (logits / temperature).softmax(-1).sort(descending=True)
    if top_k:
        probs, order = probs[:top_k] / probs[:top_k].sum(), order[:top_k]
    before = probs.cumsum(0) - probs
    keep = (before < top_p) & (probs >= min_p * probs[0])
    kept = (probs[keep] / probs[keep].sum()).tolist()
    return dict(zip(order[keep].tolist(), kept, strict=True))


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_is_the_same_alone_and_in_any_batch(engine):
    prompts = PROMPTS[::3][:9]  # 7 texts and 2 chats: more than one batch, in uneven lengths
    together = engine.generate(prompts, max_new_tokens=4)
    backwards = engine.generate(prompts[::-1], max_new_tokens=4)[::-1]
    alone = [engine.generate(prompt, max_new_tokens=4) for prompt in prompts]
    assert alone == together == backwards


def test_padding_is_not_text_to_the_repetition_penalty(hf):
    prompts = ["Yes", "One two three four five six seven eight nine ten eleven twelve,"]
    settings = {"max_new_tokens": 10, "repetition_penalty": 2.0}
    assert hf.generate(prompts, **settings) == [hf.generate(p, **settings) for p in prompts]


def test_one_prompt_gives_an_answer_and_a_list_gives_a_list(engine):
    assert isinstance(engine.generate(TEXTS[0], max_new_tokens=1), Answer)
    assert isinstance(engine.generate(CHATS[0], max_new_tokens=1), Answer)
    for batch in (TEXTS[:1], CHATS[:1], [TEXTS[0], CHATS[0]]):
        answers = engine.generate(batch, max_new_tokens=1)
        assert [type(answer) for answer in answers] == [Answer] * len(batch)


def test_seconds_are_kept_apart():
    first, second = Answer("a", 1, 1, "stop", (5,), 0.1), Answer("a", 1, 1, "stop", (5,), 9.0)
    assert first == second
    assert repr(first) == repr(second)
    with pytest.raises(AttributeError):
        first.text = "b"


def test_the_end_of_an_answer_is_a_stop_and_is_counted(engine):
    chat = [{"role": "user", "content": "Reply with one word: yes or no. Is water wet?"}]
    answer = engine.generate(chat, max_new_tokens=200)
    assert answer.finish_reason == "stop"
    assert answer.completion_tokens == len(answer.tokens) < 200
    assert "<|" not in answer.text
    shorter = engine.generate(chat, max_new_tokens=answer.completion_tokens - 1)
    assert (shorter.text, shorter.finish_reason) == (answer.text, "length")


@pytest.mark.parametrize("many", [False, True])
def test_a_stop_string_ends_the_answer_and_is_left_out(engine, many):
    full = engine.generate("Once upon a time", max_new_tokens=20).text
    stop = full[14:21]  # from within a word to within another: it spans tokens
    prompts = ["Once upon a time", "The sea"] if many else "Once upon a time"
    answer = engine.generate(prompts, max_new_tokens=20, stop=["never seen", stop])
    answer = answer[0] if many else answer
    assert answer.text == full.partition(stop)[0]
    assert answer.finish_reason == "stop"
    assert 0 < answer.completion_tokens < 20
    assert engine.generate("Once upon a time", max_new_tokens=20, stop=stop).text == answer.text


def test_seeds_repeat_and_differ(engine):
    def sample(seed, prompts="Once upon a time"):
        return engine.generate(prompts, max_new_tokens=6, temperature=1.0, seed=seed)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    batch = sample(1, ["Once upon a time"] * 4)
    assert batch == sample(1, ["Once upon a time"] * 4)
    assert len({answer.text for answer in batch}) == 4


def test_a_choice_of_one_is_greedy(engine):
    greedy = engine.generate(TEXTS[:3], max_new_tokens=5)
    for narrowest in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        found = engine.generate(TEXTS[:3], max_new_tokens=5, temperature=1.0, **narrowest)
        assert found == greedy, narrowest


@pytest.mark.parametrize("temperature", [1e-6, 1e-39, 5e-324])
def test_a_temperature_near_zero_is_greedy(engine, temperature):
    greedy = engine.generate(TEXTS[:2], max_new_tokens=4)
    assert engine.generate(TEXTS[:2], max_new_tokens=4, temperature=temperature) == greedy


def test_settings_may_be_numpy_numbers(engine):
    plain = {"max_new_tokens": 3, "top_k": 40, "seed": 2}
    shares = {"temperature": 0.5, "top_p": 0.875, "min_p": 0.125, "repetition_penalty": 1.25}
    numbers = {name: np.int64(value) for name, value in plain.items()}
    numbers |= {name: np.float32(value) for name, value in shares.items()}  # all of them exact
    assert engine.generate("The sea", **numbers) == engine.generate("The sea", **plain, **shares)


def test_settings_are_handed_on_in_their_order():
    """`generate` builds its Settings by position."""
    _, _, *parameters = inspect.signature(Engine.generate).parameters
    assert tuple(parameters) == Settings._fields


def test_transformers_engine_leaves_model_threads_and_randomness_as_found(smollm2):
    model, tokenizer = smollm2
    engine = load_engine("transformers", model, tokenizer=tokenizer, threads=1)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    model.train()
    try:
        engine.generate("The sea", max_new_tokens=2, temperature=1.0)
        engine.logprobs("The sea", [" is", " was"])
        assert model.training
    finally:
        model.eval()
    engine.close()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


# ── grammar ─────────────────────────────────────────────────────────────────────────────────────


def test_grammar_and_schema_restrict_the_answer(llama):
    either = llama.generate(TEXTS[:4], grammar='root ::= " yes" | " no"')
    assert {answer.text for answer in either} <= {" yes", " no"}
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    answer = llama.generate(CHATS[0], json_schema=schema)
    assert 0 <= json.loads(answer.text)["age"] <= 99
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"grammar": "yes | no"}, "must be in GBNF"),
        ({"grammar": "root ::= answer"}, "Undefined rule identifier 'answer'"),
        ({"json_schema": {"type": "objec"}}, "JSON schema can't be used: {'type': 'objec'}"),
        ({"grammar": "root ::= [a-z]", "json_schema": {}}, "can follow only one"),
    ],
)
def test_an_impossible_constraint_is_refused_in_silence(llama, constraint, message, capfd):
    with pytest.raises(ValueError, match=message):
        llama.generate("Hello", **constraint)
    assert capfd.readouterr() == ("", "")


def test_transformers_engine_has_no_grammar(hf):
    with pytest.raises(ValueError, match=r"only the llama\.cpp engine"):
        hf.generate("Hello", grammar='root ::= "a"')


# ── bad input ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ("", {}, "prompt is empty"),
        ([], {}, "list of prompts is empty"),
        (["fine", ""], {}, "prompt is empty"),
        (5, {}, "not int"),
        (["fine", 5], {}, "not int"),
        ([{"role": "user"}], {}, "not {'role': 'user'}"),
        ([CHATS[0][0] | {"role": "assistant"}], {}, "an answer, to be continued, and nothing bef"),
        (CHATS[0] + [{"role": "assistant", "content": "A"}] * 2, {}, "and another one before it"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ("a", {"max_new_tokens": 2.5}, r"max_new_tokens is 2.5; .* at least 1 \(an integer\)"),
        ("a", {"top_k": 2.5}, r"top_k is 2.5; it must be at least 1 \(an integer\)"),
        ("a", {"seed": 0.5}, "seed is 0.5; it must be an integer"),
        ("a", {"temperature": -0.5}, r"temperature is -0.5; it must be 0 \(greedy\) or more"),
        ("a", {"temperature": math.nan}, "temperature is nan"),
        ("a", {"top_k": 0}, "top_k is 0; it must be at least 1"),
        ("a", {"top_p": 1.5}, "top_p is 1.5; it must be between 0 and 1"),
        ("a", {"min_p": -0.1}, "min_p is -0.1; it must be between 0 and 1"),
        ("a", {"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be above 0"),
        ("a", {"stop": ["x", ""]}, "stop is .* at least one character"),
        ("a", {"seed": -1}, "seed is -1"),
        ("word " * 2100, {}, "has 2101 tokens and 64 more .* window holds 2048"),
        ("word", {"max_new_tokens": 2048}, "has 1 tokens and 2048 more .* window holds 2048"),
    ],
)
def test_bad_input_is_named_with_its_limit(engine, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(prompts, **settings)


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("the prompt", lambda engine, text: engine.generate(text)),
        ("the prompt", lambda engine, text: engine.generate(["fine", text])),
        ("the prompt", lambda engine, text: engine.logprobs(text, [" a"])),
        ("the prompt", lambda engine, text: engine.count_tokens(text)),
        ("a message", lambda engine, text: engine.render([{"role": "user", "content": text}])),
        ("a stop string", lambda engine, text: engine.generate("a", stop=["b", text])),
        ("a completion", lambda engine, text: engine.logprobs("a", [" b", text])),
        ("the grammar", lambda engine, text: engine.generate("a", grammar=f"root::={text}")),
        ("the json_schema", lambda engine, text: engine.generate("a", json_schema={"a": [text]})),
    ],
)
def test_half_a_character_is_named(engine, name, ask):
    with pytest.raises(
        ValueError, match=rf"{name} has '\\ud83d' at position \d+, a lone surrogate"
    ):
        ask(engine, "so \ud83d")
    assert len(engine._ids("so 😀")) == 3, "the whole character is a text like any other"


@pytest.mark.parametrize("completions", [[], [""], " yes", [" yes", ""]])
def test_empty_completions_are_refused(engine, completions):
    with pytest.raises(ValueError, match="give a list of non-empty texts"):
        engine.logprobs("Is it?", completions)


def test_a_prompt_that_just_fits_is_answered(smollm2):
    model, tokenizer = smollm2
    prompt = " word" * 56
    for engine in (
        load_engine("transformers", model, tokenizer=tokenizer, context_window=64),
        load_engine("llama.cpp", context_window=64, parallel=1),
    ):
        with engine:
            answer = engine.generate(prompt, max_new_tokens=8)
            assert (answer.prompt_tokens, answer.completion_tokens) == (56, 8)
            with pytest.raises(ValueError, match="window holds 64"):
                engine.generate(prompt, max_new_tokens=9)
            assert engine.count_tokens(" word" * 9000) == 9000  # counting has no limit


def test_unknown_engine_and_models_come_with_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"'vllm'; choose one of llama\.cpp, transformers"):
        load_engine("vllm")
    with pytest.raises(AssetError, match="smollm2"):
        load_engine("llama.cpp", "nope")
    with pytest.raises(AssetError, match="smollm2"):
        load_engine("transformers", "nope")


def test_a_model_for_the_other_engine_is_explained(tmp_path, smollm2):
    model, tokenizer = smollm2
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match=r"folder for transformers.*load_engine\('transformers'"):
        load_engine("llama.cpp", tmp_path)
    with pytest.raises(EngineError, match=r"is a GGUF file.*load_engine\('llama\.cpp'"):
        load_engine("transformers", models.gguf_path())
    with pytest.raises(ValueError, match=r"reads a \.gguf file"):
        load_engine("llama.cpp", model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="needs its tokenizer"):
        load_engine("transformers", model)


@pytest.mark.parametrize("name", ["llama.cpp", "transformers"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_window": 1}, "context_window is 1"),
        ({"context_window": 10_000}, "context_window is 10000; .* at most 8192 tokens"),
        ({"context_window": 10**12}, "at most 8192 tokens"),  # before any memory is reserved
        ({"parallel": 0}, "parallel is 0; it must be at least 1"),
        ({"threads": 0}, "threads is 0; it must be at least 1"),
    ],
)
def test_sizes_out_of_range_are_named(name, settings, message, smollm2):
    given = {} if name == "llama.cpp" else {"model": smollm2[0], "tokenizer": smollm2[1]}
    with pytest.raises(ValueError, match=message):
        load_engine(name, **given, **{"parallel": 1} | settings)


# ── processes, threads, streams ─────────────────────────────────────────────────────────────────


def test_import_is_light():
    heavy = run_python("""
        import sys, course_utils.engines
        print([m for m in ("torch", "transformers", "xllamacpp", "numpy") if m in sys.modules])
    """)
    assert heavy.stdout.strip() == "[]", heavy.stderr


@pytest.mark.parametrize("name", ["llama.cpp", "transformers"])
def test_a_process_that_never_closes_ends_quietly(name):
    done = run_python(f"""
        from course_utils.engines import load_engine
        engine = load_engine("{name}", parallel=2)
        assert engine.generate(["The sea", "A"], max_new_tokens=4, stop="zzz")[0].text
        engine.generate("A", max_new_tokens=4, temperature=0.7, top_k=5, top_p=0.9, min_p=0.01)
        engine.logprobs("A", [" b", " c d"])
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_closed_engine_says_so(llama):
    with load_engine("llama.cpp", parallel=1, context_window=64) as engine:
        assert "64 tokens" in repr(engine)
    engine.close()
    assert "closed" in repr(engine)
    with pytest.raises(EngineError, match="is closed"):
        engine.generate("Hello")
