"""The chain's parts on toys, the grid in small, and that it is read as it was written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from course_utils.architectures.objectives import IGNORED
from course_utils.building import chat, corpus, tokenizer
from course_utils.recipes import RECIPES
from course_utils.recipes import how_llms_are_built as chain
from course_utils.tasks import replies, sentiment
from course_utils.tasks.replies import Exchange

PAIRS = [
    Exchange("What now, my lord?", "Why, what?"),
    Exchange("Good morrow.", "Good morrow!"),
    Exchange("Stand!", "I stand."),
    Exchange("Who is it?", "It is I."),
]
TINY = SimpleNamespace(
    merges=20, width=32, layers=1, heads=2, d_ff=32, pretraining=30, batch=8, tuning=4, rounds=1,
    asked=6, prompts=9, rows=4, rated=15, seeds=1,
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train([part for pair in PAIRS for part in pair], 20, specials=chat.SPECIALS)


def tiny(bpe, seed: int = 0):
    return chain.new_model(len(bpe), TINY, seed)


# ── nulls ───────────────────────────────────────────────────────────────────────────────────────


def test_merges_of_shuffled_letters_know_the_letters_and_not_their_order():
    counts = {b"abcdefgh": 5, b"x": 3}
    babble = chain.of_shuffled_letters(counts, 4, seed=1)
    assert len(babble.merges) == 4
    assert {byte for pair in babble.merges for part in pair for byte in part} <= set(b"abcdefgh")
    assert babble.decode(babble.encode("any text, é")) == "any text, é"
    learned = tokenizer.learn_merges(counts, 4, tokenizer.byte_tokens())
    assert babble.merges != learned
    assert chain.of_shuffled_letters(counts, 4, seed=1).merges == babble.merges


def test_an_unordered_file_has_the_rows_as_they_are(bpe, monkeypatch, tmp_path):
    written = {}
    monkeypatch.setattr(chain.gguf_file, "write_gguf", lambda *parts: written.update(file=parts))
    model = tiny(bpe)
    chain.write_unordered(tmp_path / "x.gguf", model, chat.gguf_tokenizer(bpe))
    path, metadata, tensors, kinds = written["file"]
    attention = model.blocks[0].attention
    assert torch.equal(tensors["blk.0.attn_q.weight"], attention.query.weight)
    assert torch.equal(tensors["blk.0.attn_k.weight"], attention.key.weight)
    ordered = chain.gguf_file.decoder_tensors(model)
    other = [name for name in tensors if not torch.equal(tensors[name], ordered[name])]
    assert other == ["blk.0.attn_q.weight", "blk.0.attn_k.weight"]
    assert (path.name, set(kinds.values())) == ("x.gguf", {"F32"})
    assert len(metadata["tokenizer.ggml.tokens"]) == len(bpe)


# ── supervised tuning ───────────────────────────────────────────────────────────────────────────


def test_lessons_count_the_answer_alone(bpe):
    examples = chain.lessons(bpe, PAIRS)
    assert {kind: len(of) for kind, of in examples.items()} == {
        "question": 1,
        "exclamation": 1,
        "statement": 2,
    }
    ids, labels = examples["question"][0]
    at = ids.index(bpe.specials[chat.REPLY])
    assert labels[: at + 1] == [IGNORED] * (at + 1)
    assert labels[at + 1 :] == ids[at + 1 :] == chat.answer_ids(bpe, "Why, what?")
    assert bpe.decode(ids[1:at]) == "Reply with a question. What now, my lord?"


def test_drawn_batches_are_balanced_or_as_they_come(bpe):
    examples = chain.lessons(bpe, PAIRS)

    def marks(balanced):
        batch = next(chain.drawn_batches(examples, 300, 0, balanced=balanced))
        last = batch.ids.gather(1, (batch.mask.sum(1) - 2).unsqueeze(1)).flatten().tolist()
        ends = [bpe.decode([token])[-1] for token in last]
        return [ends.count(mark) for mark in "?!."]

    assert marks(True) == [100, 100, 100]
    assert marks(False)[2] > 120  # half of 300 are expected, with a deviation of 9


def test_tuning_learns_the_answers_and_not_the_prompts(bpe):
    model, examples = tiny(bpe), chain.lessons(bpe, PAIRS)
    before = chain.answer_nats(model, bpe, PAIRS)
    prompts = corpus.packed(bpe, [pair.said for pair in PAIRS], 8, chat.END)
    unread = chain.nats_of_rows(model, prompts)
    chain.tune(model, examples, steps=60, seed=0, lr=1e-2, size=6)
    after = chain.answer_nats(model, bpe, PAIRS)
    assert sum(after) < 0.5 * sum(before)
    assert sum(chain.nats_of_rows(model, prompts)) > 0.7 * sum(unread)


def test_answer_nats_is_the_answers_loss_one_by_one(bpe):
    model = tiny(bpe)
    found = chain.answer_nats(model, bpe, PAIRS, batch_size=3)
    for pair, nats in zip(PAIRS, found, strict=True):
        asked = replies.asked(pair.said, replies.kind_of(pair.reply))
        prompt, answer = chat.prompt_ids(bpe, asked), chat.answer_ids(bpe, pair.reply)
        logprobs = model(torch.tensor([prompt + answer]))[0].log_softmax(-1)
        total = sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
        assert nats == pytest.approx(-total / len(answer), abs=1e-4)  # fp32, padded beside others


# ── preferences ─────────────────────────────────────────────────────────────────────────────────


LINES = [(pair.said, replies.kind_of(pair.reply)) for pair in PAIRS]


def test_pairs_of_and_pair_batch(bpe):
    model = tiny(bpe)
    pairs = chain.pairs_of(model, LINES, len, bpe, seed=0, obeying=False)
    assert pairs
    for _, chosen, rejected in pairs:
        assert abs(len(chosen) - len(rejected)) <= 2
        good, bad = (len(bpe.decode(t, specials=False)) for t in (chosen, rejected))
        assert good > bad
    ids, mask = chain.pair_batch(pairs)
    assert ids.shape == mask.shape == (2 * len(pairs), ids.shape[1])
    assert mask.sum(dim=1).tolist() == [
        *(len(chosen) for _, chosen, _ in pairs),
        *(len(rejected) for _, _, rejected in pairs),
    ]
    assert not mask[:, 0].any()


def test_pairs_of_obeying_answers(bpe, monkeypatch):
    """Of five answers, three end as the question that was asked for; the best two do not."""
    end = bpe.specials[chat.END]
    said = ["Why?", "What now?", "Wherefore art thou Romeo.", "Ay?", "Wherefore art thou Romeo?"]
    written = [(*bpe.encode(text), end) for text in said]
    written[-1] = written[-1][:-1]  # the last comes to no end
    monkeypatch.setattr(replies, "write_replies", lambda *_, **__: written)
    how = dict(seed=0, k=5, max_gap=None)
    ((_, chosen, rejected),) = chain.pairs_of(None, [("Stand!", "question")], len, bpe, **how)
    assert (bpe.decode(chosen, specials=False), rejected) == ("What now?", written[3])
    how |= dict(obeying=False)
    ((_, chosen, _),) = chain.pairs_of(None, [("Stand!", "question")], len, bpe, **how)
    assert chosen in (written[2], written[4])
    assert not chain.pairs_of(None, [("Stand!", "exclamation")], len, bpe, seed=0, k=5)


def share_of_o(text: str) -> float:
    return text.count("o") / max(len(text), 1)


def written_share(model, bpe, lines) -> float:
    prompts = chain.chat_prompts(bpe, lines)
    written = replies.write_replies(model, prompts, end=bpe.specials[chat.END], seed=5)
    return sum(share_of_o(bpe.decode(t, specials=False)) for t in written) / len(written)


@pytest.mark.parametrize("learn", [chain.prefer, chain.policy_gradient])
def test_preferring_raises_what_is_rewarded(bpe, learn):
    """Reward the letter o, and there is more of it."""
    model, lines = tiny(bpe), 24 * [("Stand!", "statement")]
    before = written_share(model, bpe, lines)
    every = dict(obeying=False) if learn is chain.prefer else dict(fine=0.0)
    learn(model, lines, share_of_o, bpe, rounds=3, seed=0, lr=2e-2, size=6, **every)
    assert written_share(model, bpe, lines) > before + 0.02


def test_preferring_without_a_pair_changes_nothing(bpe):
    """All answers are as good: there is nothing to prefer."""
    model = tiny(bpe)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    lines = 4 * [("Stand!", "statement")]
    every = dict(obeying=False, rounds=2, seed=0)
    assert chain.prefer(model, lines, lambda text: 1.0, bpe, **every) == [0, 0]
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_policy_is_fined_for_what_does_not_obey(bpe, monkeypatch):
    """Every answer is rewarded alike; of each group one obeys, and its advantage is above 0."""
    end, seen = bpe.specials[chat.END], []
    monkeypatch.setattr(
        replies,
        "write_replies",
        lambda model, prompts, *_, **__: [
            (*bpe.encode("Why." if i % 2 else "Why?"), end) for i in range(len(prompts))
        ],
    )
    loss_of = chain.policy_loss_of

    def noting(*arguments):
        seen.append(arguments[-1])
        return loss_of(*arguments)

    monkeypatch.setattr(chain, "policy_loss_of", noting)
    lines = 3 * [("Stand!", "question")]
    how = dict(rounds=1, seed=0, k=2)
    chain.policy_gradient(tiny(bpe), lines, lambda text: 1.0, bpe, **how)
    assert (seen[0].view(-1, 2) > 0).tolist() == 3 * [[True, False]]


def test_policy_loss_by_hand(bpe):
    """Nothing has changed yet: r = 1 and KL = 0, so it is minus the mean advantage."""
    model = tiny(bpe).eval()
    prompt = chat.prompt_ids(bpe, "Stand!")
    rows = [
        chain.instruction(prompt, chat.answer_ids(bpe, text), limit=99)
        for text in ("Ay.", "I", "No, my lord.")
    ]
    loss_of = chain.policy_loss_of(model, model, model, rows, torch.tensor([2.0, -0.5, 9.0]))
    assert loss_of(torch.tensor([0, 1])).item() == pytest.approx(-0.75, abs=1e-5)  # fp32
    assert loss_of(torch.tensor([2])).item() == pytest.approx(-9, abs=1e-5)


def test_reward_of_shuffled_ratings_is_another():
    texts = [
        sentiment.Rated(str(i), 3.0 if i % 2 else -3.0, f"{'good' if i % 2 else 'bad'} thing")
        for i in range(100)
    ]
    assert chain.reward_of(texts)("good") > 1
    assert abs(chain.reward_of(texts, shuffled=0)("good")) < 1


def test_opinions_are_drawn_by_seed_and_share_no_text():
    (first, judge), again, other = (chain.opinions("movies", 50, seed) for seed in (1, 1, 2))
    assert [first, judge] == again != other
    assert len({row.id for row in (*first, *judge)}) == 100


def test_too_few_opinions_are_an_error():
    with pytest.raises(ValueError, match="n is 9000; it is at least 1"):
        chain.opinions("movies", 9000, 0)


# ── scores ──────────────────────────────────────────────────────────────────────────────────────


def test_card_of_counts(bpe):
    end = bpe.specials[chat.END]
    written = [(*bpe.encode("Why?"), end), tuple(bpe.encode("Why?")), (*bpe.encode("Ay."), end)]
    prompts = [("a", "question"), ("b", "question"), ("c", "question")]
    card = chain.card_of(written, prompts, bpe, judge=len, reward=str.isalpha)
    assert card.obeys == [True, False, False]
    assert card.ends == [True, False, True]
    assert card.texts == ["Why?", "Why?", "Ay."]
    assert card.judged == [4, 4, 3]
    assert card.rewarded == [False] * 3
    assert card.lengths == [len(tokens) for tokens in written]


# ── the grid ────────────────────────────────────────────────────────────────────────────────────


SPEECHES = (("Who is it", "say?"), ("Stand by the", "lord!"), ("It is I", "my lord."))


def plays() -> corpus.Corpus:
    """Four plays of 60 speeches, in which all kinds of replies come in turns."""

    def play(part: str) -> str:
        lines = [f"{line} {part}{i}, {end}" for i in range(20) for line, end in SPEECHES]
        blocks = (f"{'FOX' if i % 2 else 'OWL'}.\n{line}" for i, line in enumerate(lines))
        return "ACT I.\n\n" + "\n\n".join(blocks)

    texts = {name: play(name) for name in "abcd"}
    return corpus.Corpus(texts, corpus.Split(["a", "b"], ["c"], ["d"]))


@pytest.fixture
def small(monkeypatch):
    words = ["say lord", "stand lord", "is lord"]
    texts = [sentiment.Rated(str(i), i % 3 - 1.0, words[i % 3]) for i in range(30)]
    monkeypatch.setattr(replies, "load_plays", lambda seed: plays())
    monkeypatch.setattr(sentiment, "load", lambda domain: texts)
    monkeypatch.setattr(chain, "budget_for", lambda profile: TINY)


STAGES = ("pretraining_of", "tune", "prefer", "policy_gradient")


@pytest.fixture
def ran(small, monkeypatch) -> list:
    """Which stages ran, with what: told by the functions that do them."""
    seen = []

    def noting(stage, function):
        def noted(*arguments, **options):
            steps = arguments[-1] if stage == "pretraining_of" else None
            how = [options[k] for k in ("balanced", "rounds", "max_gap", "obeying") if k in options]
            seen.append((stage, *(how or [steps])))
            return function(*arguments, **options)

        return noted

    for stage in STAGES:
        monkeypatch.setattr(chain, stage, noting(stage, getattr(chain, stage)))
    return seen


BASE, TUNED, PREFERRED = ("pretraining_of", 1), ("tune", True), ("prefer", 1, 2, True)
EXPECTED = {
    "whole": [BASE, TUNED, PREFERRED],
    "no preferences": [BASE, TUNED],
    "no tuning": [BASE],
    "no pre-training": [TUNED],
    "no merges": [BASE],
    "kinds unbalanced": [BASE, ("tune", False)],
    "pairs of any length": [BASE, TUNED, ("prefer", 1, None, True)],
    "pairs that need not obey": [BASE, TUNED, ("prefer", 1, 2, False)],
    "three times the rounds": [BASE, TUNED, ("prefer", 3, 2, True)],
    "ratings shuffled": [BASE, TUNED, PREFERRED],
    "policy gradient": [BASE, TUNED, ("policy_gradient", 1)],
    "four times as long": [("pretraining_of", 4)],
}


@pytest.mark.parametrize("name", chain.ARMS)
def test_every_arm_leaves_out_what_it_says(name, ran):
    row = chain.build(name, 0, TINY, CPU)
    assert ran == EXPECTED[name]
    assert (row.bits is None) == (name == "no pre-training")
    if chain.ARMS[name].chatting:
        assert 0 <= row.obeys <= row.ends <= 1
        assert 1 <= row.length <= 24
    else:
        assert {row.obeys, row.ends, row.length, row.judged, row.reply_nats} == {None}


def test_chains_of_one_seed_share_what_they_have_in_common(ran):
    shelf = {}
    rows = [chain.build(name, 0, TINY, CPU, shelf) for name in chain.ARMS]
    assert [stage for stage, *_ in ran].count("pretraining_of") == 3  # merges, none, four times
    assert [stage for stage, *_ in ran].count("tune") == 3  # base or none, balanced or not
    for row in rows[:4]:
        assert chain.build(row.arm, 0, TINY, CPU)._replace(seconds=0) == row._replace(seconds=0)


def test_a_chain_depends_on_its_seed_alone(small):
    first, again, other = (chain.build("whole", seed, TINY, CPU) for seed in (1, 1, 2))
    assert first._replace(seconds=0) == again._replace(seconds=0)
    assert first.play_nats != other.play_nats


def test_the_recipe_goes_on_where_it_was_stopped(small, monkeypatch, tmp_path):
    names = ("no preferences", "no pre-training", "no merges")
    monkeypatch.setattr(chain, "ARMS", {name: chain.ARMS[name] for name in names})
    build = chain.build

    def stopped(name, *rest):
        if name == "no pre-training":
            raise KeyboardInterrupt
        return build(name, *rest)

    monkeypatch.setattr(chain, "build", stopped)
    with pytest.raises(KeyboardInterrupt):
        chain.train("cpu", 3, tmp_path)
    (before,) = chain.runs(tmp_path)
    monkeypatch.setattr(chain, "build", build)
    assert chain.train("cpu", 3, tmp_path) == tmp_path
    rows = chain.runs(tmp_path)
    assert rows[0] == before
    assert [(row.arm, row.seed) for row in rows] == [(name, 3) for name in names]
    assert rows[1].bits is rows[2].obeys is None
    assert chain.scores(rows, "no preferences", "length") == {3: before.length}
    assert chain.facts_of(tmp_path)["pretraining"] == 30
    assert "3 chains of 3 kinds" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_dear_arm_is_run_with_the_first_seed_alone(small, monkeypatch, tmp_path):
    names = ("no merges", "four times as long")
    monkeypatch.setattr(chain, "ARMS", {name: chain.ARMS[name] for name in names})
    two = SimpleNamespace(**vars(TINY) | {"seeds": 2})
    monkeypatch.setattr(chain, "budget_for", lambda profile: two)
    rows = chain.runs(chain.train("cpu", 5, tmp_path))
    ran = [("no merges", 5), ("four times as long", 5), ("no merges", 6)]
    assert [(row.arm, row.seed) for row in rows] == ran


def test_what_is_stored_is_the_grid_of_today():
    assert RECIPES[chain.NAME] == chain.__name__
    rows, budget = chain.runs(), chain.budget_for("cpu")
    arms = [(name, seed) for seed in range(budget.seeds) for name in chain.ARMS
            if seed == 0 or name not in chain.ONCE]  # fmt: skip
    assert [(row.arm, row.seed) for row in rows] == arms
    facts = chain.facts_of()
    assert {name: facts[name] for name in vars(budget)} == vars(budget)
