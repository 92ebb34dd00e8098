"""The ReAct set: reproducible, right by an independent reading, solvable by its gold steps."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from course_utils.assets.catalogue import AssetError
from course_utils.prompting import reasoning
from course_utils.prompting.acting import Tool, calculate, react, search_tool
from course_utils.prompting.retrieval import BM25, tokenize
from course_utils.recipes import react as generator
from course_utils.tasks import question_sets

FOLDER = Path(__file__).parents[2] / "data" / "react"
SPLITS = ("shots", "dev", "test")


SETS = {split: question_sets.load_react(split) for split in SPLITS}
EVERY = [(q, SETS[split].pages) for split in SPLITS for q in SETS[split].questions]


PATTERNS = dict(
    river=r"town on the river (\w+)\.",
    people=r"has (\d+) inhabitants",
    mayor=r"mayor is ([\w ]+)\.",
    town=r"born in the town of (\w+)",
    born=r"born .* in (\d{4}) and",
    died=r"died in (\d{4})",
    seat=r"makes \w+ in (\w+)\.",
    founder=r"\. ([\w ]+) founded it",
    founded=r"founded it in (\d{4})",
    workshops=r"has (\d+) workshops",
    workers=r"with (\d+) workers",
)


class Page:
    """What the sentences of a page say, read by patterns of its own."""

    def __init__(self, pages: dict[str, str], title: str) -> None:
        self.pages, self.text = pages, pages[title]

    def __getattr__(self, name: str):
        found = re.search(PATTERNS[name], self.text)[1]
        return int(found) if found.isdigit() else found

    def to(self, name: str) -> Page:
        return Page(self.pages, getattr(self, name))


ANSWERS = {
    r"How many years did (.+) live\?": lambda p: p.died - p.born,
    r"How many workers does (.+) have": lambda c: c.workshops * c.workers,
    r"On which river is the town where (.+) was born": lambda p: p.to("town").river,
    r"How many inhabitants has the town where (.+) was born": lambda p: p.to("town").people,
    r"In which town was the founder of (.+) born": lambda c: c.to("founder").town,
    r"Who is the mayor of the town where (.+) makes": lambda c: c.to("seat").mayor,
    r"How old was the founder of (.+) when": lambda c: c.founded - c.to("founder").born,
}


def independent_answer(question: str, pages: dict[str, str]) -> str:
    if more := re.search(r"How many more inhabitants has (\w+) than (\w+)\?", question):
        first, second = (Page(pages, name).people for name in more.groups())
        return str(first - second)
    for pattern, answer in ANSWERS.items():
        if found := re.search(pattern, question):
            return str(answer(Page(pages, found[1])))
    raise AssertionError(question)


def tools_of(pages: dict[str, str]) -> dict[str, Tool]:
    texts = list(pages.values())
    index = BM25([tokenize(f"{title} {text}") for title, text in pages.items()])

    def find(query: str) -> list[str]:
        return [texts[hit.index] for hit in index.search(tokenize(query), k=1)]

    return {"search": search_tool(find), "calculate": calculate}


@pytest.mark.parametrize("split", SPLITS)
def test_the_generator_writes_these_very_bytes(split):
    for name in (f"{split}.jsonl", f"{split}_pages.jsonl"):
        assert (FOLDER / name).read_bytes() == generator.files()[name].encode()


def test_every_answer_follows_from_the_pages():
    for question, pages in EVERY:
        assert independent_answer(question["question"], pages) == question["answer"], question


def test_the_gold_steps_bring_every_page_and_end_with_the_answer():
    tools = {split: tools_of(SETS[split].pages) for split in SPLITS}
    for split in SPLITS:
        for question in SETS[split].questions:
            texts = [
                f" {step['thought']}\nAction: {step['tool']}[{step['input']}]"
                for step in question["steps"]
            ]
            replies = iter(texts)
            method = react(question["question"], [], tools[split])
            trace = reasoning.solve(method, lambda prompt, replies=replies: next(replies))
            seen = [step.text for step in trace.steps if step.kind == "observation"]
            assert trace.answer == question["answer"]
            assert seen[: question["hops"]] == [SETS[split].pages[p] for p in question["pages"]]
            assert len(seen) == question["hops"] + question["calculation"]


def test_the_reasoning_in_words_states_the_answer_and_true_sums():
    for question, _ in EVERY:
        assert reasoning.stated_answer(question["reasoning"]) == question["answer"]
        for a, sign, b, result in re.findall(r"(\d+) ([-*]) (\d+) = (\d+)", question["reasoning"]):
            assert {"-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(result)


def test_no_single_page_answers_a_question_of_two_hops():
    for question, pages in EVERY:
        if question["hops"] == 2:
            first = pages[question["pages"][0]]
            assert question["answer"] not in re.findall(r"\w+", first), question


def test_no_answer_stands_in_its_question_and_no_question_twice():
    assert len({question["question"] for question, _ in EVERY}) == len(EVERY)
    for question, _ in EVERY:
        assert question["answer"] not in question["question"]


def test_the_splits_share_no_name():
    def names(split: str) -> set[str]:
        text = " ".join(SETS[split].pages.values())
        return set(re.findall(r"[A-Z]\w+", text)) - {"It", "Its"}

    assert min(len(names(split)) for split in SPLITS) > 40
    whole = {split: set(SETS[split].pages) for split in SPLITS}
    for split in SPLITS:
        for other in SPLITS:
            if other != split:
                assert not names(split) & names(other)
                assert not whole[split] & whole[other]


def test_kinds_and_levels_are_balanced():
    assert len(generator.KINDS) == 8
    for split in SPLITS:
        kinds = Counter(question["kind"] for question in SETS[split].questions)
        assert set(kinds.values()) == {generator.PER_KIND[split]}
    levels = Counter((q["hops"], q["calculation"]) for q in SETS["test"].questions)
    assert levels == {(1, True): 18, (2, False): 36, (2, True): 18}
    assert len(SETS["test"].questions) >= 60


def test_another_seed_gives_another_world():
    questions, pages = generator.generate("test", seed=1)
    assert (questions, pages) == generator.generate("test", seed=1)
    assert {page["title"] for page in pages} != set(SETS["test"].pages)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="split is 'train'"):
        generator.generate("train")
    with pytest.raises(ValueError, match="split is 'train'"):
        question_sets.load_react("train")
    with pytest.raises(ValueError, match=r"split is '\.\./assets'"):
        question_sets.load_word_problems("../assets")


def test_the_loaders_give_what_the_files_hold():
    lines = (FOLDER / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert SETS["test"].questions == [json.loads(line) for line in lines]
    problems = question_sets.load_word_problems("test")
    assert len(problems) == 240
    assert {"question", "answer", "program"} <= set(problems[0])


def test_a_missing_set_is_one_clear_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(question_sets, "data_folder", lambda: tmp_path)
    with pytest.raises(AssetError, match=r"react.*test_pages.jsonl.*restore"):
        question_sets.load_react("test")
