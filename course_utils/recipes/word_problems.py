"""Write the word problems of notebook 11: `python -m course_utils.recipes.word_problems`.

A template is a story with numbers and a chain of steps. From the steps come the answer, the
worked solution in words and the program, so the three cannot disagree. The splits share no name,
no object and no container, so that nothing of a shot can be copied into an answer.

Needs nothing but the standard library; the same seed gives the same bytes on every machine.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

from course_utils.assets.catalogue import data_folder
from course_utils.recipes.authored import as_lines, write_or_compare

SEED = 20_240_601
PER_TEMPLATE = {"shots": 2, "dev": 3, "test": 15}

WORDS = {
    "shots": dict(
        names="Ada Bruno Chloe Dario Elena Felix Greta Hugo",
        objects="marbles apples stickers pencils cookies buttons",
        containers="boxes bags",
    ),
    "dev": dict(
        names="Ines Jonas Kira Lukas Mona Nils",
        objects="shells badges lemons candles",
        containers="jars trays",
    ),
    "test": dict(
        names="Olga Pablo Quinn Rosa Samir Tara Umar Vera Wendy Yusuf Zoe Amir Bela Carla",
        objects="stamps oranges tickets magnets muffins beads postcards tulips crayons ribbons",
        containers="crates baskets drawers packets",
    ),
}


@dataclass(frozen=True)
class Cast:
    """Who and what a story is about."""

    one: str
    other: str
    things: str
    more: str
    boxes: str


@dataclass(frozen=True)
class Step:
    """One line of the solution: `name = expression`, and what the result is, in words."""

    name: str
    expression: str
    says: str


@dataclass(frozen=True)
class Story:
    """A text, the numbers in the order of the text, the steps, and the question."""

    text: str
    numbers: dict[str, int]
    steps: tuple[Step, ...]
    question: str


Number = Callable[[], int]
Template = Callable[[Cast, Number], Story]


# ── one step ──────────────────────────────────────────────────────────────────────────────────


def gain(c: Cast, n: Number) -> Story:
    v = dict(start=n(), gift=n())
    return Story(
        f"{c.one} has {v['start']} {c.things}. {c.other} gives {c.one} {v['gift']} more.",
        v,
        (Step("now", "start + gift", f"{c.things} that {c.one} has now"),),
        f"How many {c.things} does {c.one} have now?",
    )


def loss(c: Cast, n: Number) -> Story:
    v = dict(start=n(), lost=n())
    return Story(
        f"{c.one} had {v['start']} {c.things} and lost {v['lost']} of them.",
        v,
        (Step("left", "start - lost", f"{c.things} that {c.one} has left"),),
        f"How many {c.things} does {c.one} have left?",
    )


def groups(c: Cast, n: Number) -> Story:
    v = dict(boxes=n(), each=n())
    return Story(
        f"{c.one} fills {v['boxes']} {c.boxes} with {v['each']} {c.things} each.",
        v,
        (Step("total", "boxes * each", f"{c.things} in all the {c.boxes}"),),
        f"How many {c.things} are in the {c.boxes} altogether?",
    )


def share(c: Cast, n: Number) -> Story:
    v = dict(total=n() * n(), friends=n())
    return Story(
        f"{c.one} shares {v['total']} {c.things} equally among {v['friends']} friends.",
        v,
        (Step("each", "total / friends", f"{c.things} for each friend"),),
        f"How many {c.things} does each friend get?",
    )


# ── two steps ─────────────────────────────────────────────────────────────────────────────────


def change(c: Cast, n: Number) -> Story:
    v = dict(count=n(), price=n(), paid=n() * n())
    return Story(
        f"{c.one} buys {v['count']} {c.things} at {v['price']} dollars each and pays with "
        f"{v['paid']} dollars.",
        v,
        (
            Step("cost", "count * price", f"dollars for the {c.things}"),
            Step("change", "paid - cost", "dollars of change"),
        ),
        f"How many dollars of change does {c.one} get?",
    )


def compare(c: Cast, n: Number) -> Story:
    v = dict(first=n(), extra=n())
    return Story(
        f"{c.one} has {v['first']} {c.things}. {c.other} has {v['extra']} {c.things} more than "
        f"{c.one}.",
        v,
        (
            Step("second", "first + extra", f"{c.things} that {c.other} has"),
            Step("together", "first + second", f"{c.things} that both have"),
        ),
        f"How many {c.things} do {c.one} and {c.other} have together?",
    )


def packed_and_loose(c: Cast, n: Number) -> Story:
    v = dict(boxes=n(), each=n(), loose=n())
    return Story(
        f"{c.one} has {v['boxes']} {c.boxes} with {v['each']} {c.things} in each, and "
        f"{v['loose']} loose {c.things}.",
        v,
        (
            Step("packed", "boxes * each", f"{c.things} in the {c.boxes}"),
            Step("total", "packed + loose", f"{c.things} in all"),
        ),
        f"How many {c.things} does {c.one} have in all?",
    )


def per_day(c: Cast, n: Number) -> Story:
    v = dict(made=n() * n(), sold=n(), days=n())
    return Story(
        f"{c.one} made {v['made']} {c.things} and sold {v['sold']} of them. The rest will be given "
        f"away over {v['days']} days, the same number each day.",
        v,
        (
            Step("rest", "made - sold", f"{c.things} that are not sold"),
            Step("daily", "rest / days", f"{c.things} given away each day"),
        ),
        f"How many {c.things} will be given away each day?",
    )


# ── three steps ───────────────────────────────────────────────────────────────────────────────


def two_purchases(c: Cast, n: Number) -> Story:
    v = dict(count=n(), price=n(), more=n(), other_price=n())
    return Story(
        f"{c.one} buys {v['count']} {c.things} at {v['price']} dollars each and {v['more']} "
        f"{c.more} at {v['other_price']} dollars each.",
        v,
        (
            Step("first_cost", "count * price", f"dollars for the {c.things}"),
            Step("second_cost", "more * other_price", f"dollars for the {c.more}"),
            Step("total", "first_cost + second_cost", "dollars in all"),
        ),
        f"How many dollars does {c.one} spend in all?",
    )


def collect_and_pack(c: Cast, n: Number) -> Story:
    v = dict(first=n() * n(), second=n(), given=n(), boxes=n())
    return Story(
        f"{c.one} collects {v['first']} {c.things} in the morning and {v['second']} in the "
        f"afternoon, then gives {v['given']} of them to {c.other} and packs the rest equally into "
        f"{v['boxes']} {c.boxes}.",
        v,
        (
            Step("collected", "first + second", f"{c.things} collected"),
            Step("rest", "collected - given", f"{c.things} after the gift"),
            Step("each", "rest / boxes", f"{c.things} in each of the {c.boxes}"),
        ),
        f"How many {c.things} are in each of the {c.boxes}?",
    )


def two_rates(c: Cast, n: Number) -> Story:
    v = dict(pace=n(), days=n(), new_pace=n(), new_days=n())
    return Story(
        f"{c.one} makes {v['pace']} {c.things} a day for {v['days']} days, and then "
        f"{v['new_pace']} {c.things} a day for {v['new_days']} days.",
        v,
        (
            Step("early", "pace * days", f"{c.things} at first"),
            Step("late", "new_pace * new_days", f"{c.things} after that"),
            Step("total", "early + late", f"{c.things} in all"),
        ),
        f"How many {c.things} does {c.one} make in all?",
    )


def fence(c: Cast, n: Number) -> Story:
    v = dict(length=n(), width=n(), price=n())
    return Story(
        f"{c.one} has a rectangular garden {v['length']} meters long and {v['width']} meters wide. "
        f"A fence around it costs {v['price']} dollars per meter.",
        v,
        (
            Step("half", "length + width", "meters for one long and one short side"),
            Step("around", "half * 2", "meters around the garden"),
            Step("cost", "around * price", "dollars for the fence"),
        ),
        "How many dollars does the whole fence cost?",
    )


# ── four steps ────────────────────────────────────────────────────────────────────────────────


def two_purchases_and_change(c: Cast, n: Number) -> Story:
    bought = two_purchases(c, n)
    paid = n() * n()
    steps = (*bought.steps, Step("change", "paid - total", "dollars of change"))
    text = f"{bought.text} {c.one} pays with {paid} dollars."
    question = f"How many dollars of change does {c.one} get?"
    return Story(text, {**bought.numbers, "paid": paid}, steps, question)


def savings(c: Cast, n: Number) -> Story:
    v = dict(wage=n(), hours=n(), weeks=n(), spent=n(), children=n())
    return Story(
        f"{c.one} earns {v['wage']} dollars an hour and works {v['hours']} hours a week for "
        f"{v['weeks']} weeks. {c.one} spends {v['spent']} dollars and shares the rest equally "
        f"among {v['children']} children.",
        v,
        (
            Step("weekly", "wage * hours", "dollars a week"),
            Step("earned", "weekly * weeks", "dollars earned"),
            Step("rest", "earned - spent", "dollars left"),
            Step("each", "rest / children", "dollars for each child"),
        ),
        "How many dollars does each child get?",
    )


def half_sold(c: Cast, n: Number) -> Story:
    v = dict(boxes=n(), each=n(), kept=n(), price=n())
    return Story(
        f"{c.one} brings {v['boxes']} {c.boxes} with {v['each']} {c.things} each to the market. "
        f"Half of all the {c.things} are spoiled by rain. Of the others {c.one} keeps {v['kept']} "
        f"and sells the rest at {v['price']} dollars each.",
        v,
        (
            Step("brought", "boxes * each", f"{c.things} brought to the market"),
            Step("good", "brought / 2", f"{c.things} that are not spoiled"),
            Step("sold", "good - kept", f"{c.things} sold"),
            Step("income", "sold * price", "dollars earned"),
        ),
        f"How many dollars does {c.one} earn?",
    )


def bus(c: Cast, n: Number) -> Story:
    v = dict(riders=n(), off=n(), on=n(), off_again=n(), on_again=n())
    return Story(
        f"A bus leaves with {v['riders']} riders, {c.one} among them. At the first stop {v['off']} "
        f"riders get off and {v['on']} get on; at the second stop {v['off_again']} get off and "
        f"{v['on_again']} get on.",
        v,
        (
            Step("after_off", "riders - off", "riders after the first got off"),
            Step("first_stop", "after_off + on", "riders after the first stop"),
            Step("between", "first_stop - off_again", "riders after more got off"),
            Step("second_stop", "between + on_again", "riders after the second stop"),
        ),
        "How many riders are on the bus after the second stop?",
    )


TEMPLATES: tuple[Template, ...] = (
    gain, loss, groups, share,
    change, compare, packed_and_loose, per_day,
    two_purchases, collect_and_pack, two_rates, fence,
    two_purchases_and_change, savings, half_sold, bus,
)  # fmt: skip

# Sentences with a number that has nothing to do with the question.
DISTRACTORS = (
    "{other} is {x} years old.",
    "It is {x} degrees outside.",
    "The house of {other} has {x} windows.",
)


# ── from a story to a problem ─────────────────────────────────────────────────────────────────


def solve(story: Story) -> list[int] | None:
    """Return every step's result; None where one is not a whole number above one."""
    known, results = dict(story.numbers), []
    for step in story.steps:
        left, sign, right = step.expression.split()
        a, b = (known[side] if side in known else int(side) for side in (left, right))
        if sign == "/" and a % b:
            return None
        known[step.name] = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
        if known[step.name] < 2:
            return None
        results.append(known[step.name])
    return results


def program(story: Story) -> str:
    """Return the solution as a Python function; division is exact, so // gives an integer."""
    lines = [f"    {name} = {value}" for name, value in story.numbers.items()]
    lines += [f"    {s.name} = {s.expression.replace('/', '//')}" for s in story.steps]
    return "\n".join(["def solution():", *lines, f"    return {story.steps[-1].name}", ""])


def reasoning(story: Story, results: list[int]) -> str:
    """Return the solution in words, one sentence with its sum per step."""
    known, sentences = dict(story.numbers), []
    for step, result in zip(story.steps, results, strict=True):
        left, sign, right = step.expression.split()
        a, b = (known.get(side, side) for side in (left, right))
        known[step.name] = result
        sentences.append(f"{a} {sign} {b} = {result} {step.says}.")
    return " ".join([*sentences, f"The answer is {results[-1]}."])


def difficulty(steps: int, large: bool, distracted: bool) -> str:
    """One point per step, one for numbers beyond the times table, one for a useless number."""
    points = steps + large + distracted
    return "easy" if points <= 2 else "medium" if points <= 4 else "hard"


def draw_story(template: Template, cast: Cast, large: bool, rng: random.Random) -> Story:
    """Draw numbers until every step comes out whole and the answer cannot be copied."""
    top = 60 if large else 12
    while True:
        story = template(cast, lambda: rng.randint(2, top))
        results = solve(story)
        numbers = list(story.numbers.values())
        repeated = len(set(numbers)) < len(numbers)
        if not results or repeated or results[-1] in numbers or results[-1] > 20_000:
            continue
        if large and max(numbers) <= 12:
            continue
        return story


def make_problem(split: str, index: int, template: Template, rng: random.Random) -> dict:
    """Return problem `index` of a template: odd ones have large numbers, each third distracts."""
    words = {kind: text.split() for kind, text in WORDS[split].items()}
    one, other = rng.sample(words["names"], 2)
    things, more = rng.sample(words["objects"], 2)
    cast = Cast(one, other, things, more, rng.choice(words["containers"]))
    large, distracted = index % 2 == 1, index % 3 == 2
    story = draw_story(template, cast, large, rng)
    results = solve(story)
    parts = [story.text, story.question]
    if distracted:
        taken = {*story.numbers.values(), results[-1]}
        useless = rng.choice([x for x in range(2, 40) if x not in taken])
        parts.insert(1, rng.choice(DISTRACTORS).format(other=other, x=useless))
    return dict(
        id=f"{split}-{template.__name__}-{index:02d}",
        template=template.__name__,
        steps=len(story.steps),
        numbers="large" if large else "small",
        distractor=distracted,
        difficulty=difficulty(len(story.steps), large, distracted),
        question=" ".join(parts),
        answer=results[-1],
        reasoning=reasoning(story, results),
        program=program(story),
    )


def generate(split: str, seed: int = SEED, per_template: int | None = None) -> list[dict]:
    """Return the problems of a split, no two with the same question, in mixed order.

    Raises ValueError for an unknown split and for less than one problem per template.
    """
    if per_template is not None and per_template < 1:
        raise ValueError(f"per_template is {per_template}; ask for at least one problem each")
    if split not in WORDS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(WORDS)}")
    rng = random.Random(f"{seed} {split}")
    problems: dict[str, dict] = {}
    for template in TEMPLATES:
        wanted = len(problems) + (per_template or PER_TEMPLATE[split])
        index = 0
        while len(problems) < wanted:
            problem = make_problem(split, index, template, rng)
            if problem["question"] not in problems:
                problems[problem["question"]] = problem
                index += 1
    mixed = list(problems.values())
    rng.shuffle(mixed)
    return mixed


def files() -> dict[str, str]:
    """Return what each file of the set should hold."""
    return {f"{split}.jsonl": as_lines(generate(split)) for split in WORDS}


if __name__ == "__main__":
    sys.exit(write_or_compare(data_folder() / "word_problems", files(), sys.argv[1:]))
