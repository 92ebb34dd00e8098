"""Write the questions and pages of notebook 11's ReAct set: `python -m course_utils.recipes.react`.

Each split is a small world of its own: invented towns, people and companies, one page each. A
question's gold steps, worked solution and answer all come from the pages' numbers and names, so
they cannot disagree. Nobody knows these names, so nobody can answer without looking them up.

Needs nothing but the standard library; the same seed gives the same bytes on every machine.
`--check` compares instead of writing.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from course_utils.assets.catalogue import data_folder
from course_utils.recipes.authored import as_lines, write_or_compare

SEED = 20_240_618
PER_KIND = {"shots": 2, "dev": 3, "test": 9}
TOWNS = {"shots": 6, "dev": 8, "test": 18}  # and as many people and companies

# Parts of common words, so that a small model can copy the names; `_names` deals them out.
STARTS = (
    "Amber Ash Black Bright Clear Cold Copper Crow Deep Elder Fair Fox Green Grey High Iron King "
    "Long Maple Marsh North Oak Red Rose Silver Snow Stone Thorn White Wolf"
)
TOWN_ENDS = "ford bridge field town brook hill"
RIVER_ENDS = "water run stream flow"
LAST_ENDS = "wood man ton well smith wright"
COMPANY_ENDS = "mark line works craft ware press"
FIRST_NAMES = (
    "Ada Alan Anna Arthur Betty Boris Carl Clara Colin Daisy David Diana Edgar Ellen Emma Eric "
    "Flora Frank Fred George Grace Hanna Harold Helen Henry Igor Irene Isaac Jack Jane Jenny John "
    "Julia Karen Karl Laura Leo Linda Louis Lucy Mark Martha Mary Max Nancy Nina Nora Oliver Oscar "
    "Paul Peter Rachel Robert Rosa Ruth Sam Sarah Simon Sofia Thomas Tom Victor Walter William"
)
PRODUCTS = "clocks kettles saddles lamps violins ladders carpets bells candles umbrellas"


@dataclass(frozen=True)
class Town:
    name: str
    river: str
    people: int
    mayor: str

    @property
    def page(self) -> str:
        return (
            f"{self.name} is a town on the river {self.river}. It has {self.people} inhabitants. "
            f"Its mayor is {self.mayor}."
        )


@dataclass(frozen=True)
class Person:
    name: str
    town: Town
    born: int
    died: int

    @property
    def page(self) -> str:
        return (
            f"{self.name} was born in the town of {self.town.name} in {self.born} and died in "
            f"{self.died}."
        )


@dataclass(frozen=True)
class Company:
    name: str
    product: str
    founder: Person
    founded: int
    town: Town
    workshops: int
    workers: int

    @property
    def page(self) -> str:
        return (
            f"{self.name} is a company that makes {self.product} in {self.town.name}. "
            f"{self.founder.name} founded it in {self.founded}. It has {self.workshops} workshops "
            f"with {self.workers} workers each."
        )


@dataclass(frozen=True)
class Look:
    """A gold step: what is looked up, why, and what the page says that matters."""

    thought: str
    page: str
    finding: str


@dataclass(frozen=True)
class Sum:
    """A gold step: what is calculated, and why."""

    thought: str
    left: int
    sign: str
    right: int

    @property
    def expression(self) -> str:
        return f"{self.left} {self.sign} {self.right}"

    @property
    def result(self) -> int:
        return self.left - self.right if self.sign == "-" else self.left * self.right


@dataclass(frozen=True)
class Item:
    """A question with its gold steps; `answer` may be left out where a sum gives it."""

    question: str
    steps: tuple[Look | Sum, ...]
    answer: str = ""


@dataclass(frozen=True)
class World:
    towns: list[Town]
    people: list[Person]
    companies: list[Company]

    def pages(self) -> Iterator[dict]:
        for entity in (*self.towns, *self.people, *self.companies):
            yield dict(title=entity.name, text=entity.page)


Kind = Callable[[World, int], Item]


# ── a look-up and a calculation ───────────────────────────────────────────────────────────────


def lifetime(w: World, i: int) -> Item:
    p = w.people[i]
    return Item(
        f"How many years did {p.name} live?",
        (
            Look(
                f"I need to know when {p.name} was born and died.",
                p.name,
                f"{p.name} was born in {p.born} and died in {p.died}.",
            ),
            Sum(f"Born in {p.born}, died in {p.died}: I subtract.", p.died, "-", p.born),
        ),
    )


def workers(w: World, i: int) -> Item:
    c = w.companies[i]
    return Item(
        f"How many workers does {c.name} have in all?",
        (
            Look(
                f"I need the workshops of {c.name}.",
                c.name,
                f"{c.name} has {c.workshops} workshops with {c.workers} workers each.",
            ),
            Sum(
                f"{c.workshops} workshops with {c.workers} workers each: I multiply.",
                c.workshops,
                "*",
                c.workers,
            ),
        ),
    )


# ── two look-ups ──────────────────────────────────────────────────────────────────────────────


def birth_river(w: World, i: int) -> Item:
    p = w.people[i]
    return Item(
        f"On which river is the town where {p.name} was born?",
        (_birthplace(p), Look(f"I need the river of {p.town.name}.", p.town.name,
                              f"{p.town.name} is on the river {p.town.river}.")),
        p.town.river,
    )  # fmt: skip


def birth_people(w: World, i: int) -> Item:
    p = w.people[i]
    return Item(
        f"How many inhabitants has the town where {p.name} was born?",
        (_birthplace(p), Look(f"I need the inhabitants of {p.town.name}.", p.town.name,
                              f"{p.town.name} has {p.town.people} inhabitants.")),
        str(p.town.people),
    )  # fmt: skip


def founder_birthplace(w: World, i: int) -> Item:
    c = w.companies[i]
    return Item(
        f"In which town was the founder of {c.name} born?",
        (_founder(c), _birthplace(c.founder)),
        c.founder.town.name,
    )


def company_mayor(w: World, i: int) -> Item:
    c = w.companies[i]
    return Item(
        f"Who is the mayor of the town where {c.name} makes its {c.product}?",
        (
            Look(f"I need the town of {c.name}.", c.name, f"{c.name} is in {c.town.name}."),
            Look(f"I need the mayor of {c.town.name}.", c.town.name,
                 f"The mayor of {c.town.name} is {c.town.mayor}."),
        ),
        c.town.mayor,
    )  # fmt: skip


# ── two look-ups and a calculation ────────────────────────────────────────────────────────────


def founder_age(w: World, i: int) -> Item:
    c = w.companies[i]
    p = c.founder
    return Item(
        f"How old was the founder of {c.name} when it was founded?",
        (
            Look(f"I need the founder of {c.name}.", c.name,
                 f"{p.name} founded {c.name} in {c.founded}."),
            Look(f"I need to know when {p.name} was born.", p.name,
                 f"{p.name} was born in {p.born}."),
            Sum(f"Founded in {c.founded}, born in {p.born}: I subtract.", c.founded, "-", p.born),
        ),
    )  # fmt: skip


def more_people(w: World, i: int) -> Item:
    a, b = w.towns[i], w.towns[(i + 1) % len(w.towns)]
    a, b = (a, b) if a.people > b.people else (b, a)
    looks = [
        Look(
            f"I need the inhabitants of {t.name}.", t.name, f"{t.name} has {t.people} inhabitants."
        )
        for t in (a, b)
    ]
    difference = Sum(
        f"{a.name} has {a.people} and {b.name} has {b.people}: I subtract.", a.people, "-", b.people
    )
    return Item(f"How many more inhabitants has {a.name} than {b.name}?", (*looks, difference))


def _birthplace(p: Person) -> Look:
    return Look(
        f"I need the town where {p.name} was born.",
        p.name,
        f"{p.name} was born in {p.town.name}.",
    )


def _founder(c: Company) -> Look:
    return Look(f"I need the founder of {c.name}.", c.name, f"{c.founder.name} founded {c.name}.")


KINDS: tuple[Kind, ...] = (
    lifetime, workers,
    birth_river, birth_people, founder_birthplace, company_mayor,
    founder_age, more_people,
)  # fmt: skip


# ── worlds ────────────────────────────────────────────────────────────────────────────────────


def _names(rng: random.Random, ends: str = "") -> Iterator[str]:
    """Yield names in random order, none twice: a start with an end, or first names."""
    words = [a + b for a in STARTS.split() for b in ends.split()] or FIRST_NAMES.split()
    rng.shuffle(words)
    yield from words


def build_worlds(seed: int = SEED) -> dict[str, World]:
    """Return a world for each split; no name stands in two of them."""
    rng = random.Random(f"{seed} names")
    towns, rivers = _names(rng, TOWN_ENDS), _names(rng, RIVER_ENDS)
    firsts, lasts = _names(rng), _names(rng, LAST_ENDS)
    companies = _names(rng, COMPANY_ENDS)

    def person_name() -> str:
        return f"{next(firsts)} {next(lasts)}"

    worlds = {}
    for split, size in TOWNS.items():
        numbers = random.Random(f"{seed} {split}")
        people_of = numbers.sample(range(1_100, 9_900), size)
        places = [Town(next(towns), next(rivers), n, person_name()) for n in people_of]
        people = [_person(person_name(), town, numbers) for town in places]
        firms = [
            _company(next(companies), people[i], places[(i + 1) % size], numbers)
            for i in range(size)
        ]
        worlds[split] = World(places, people, firms)
    return worlds


def _person(name: str, town: Town, rng: random.Random) -> Person:
    born = rng.randint(1801, 1879)
    return Person(name, town, born, born + rng.randint(61, 94))


def _company(name: str, founder: Person, town: Town, rng: random.Random) -> Company:
    product = rng.choice(PRODUCTS.split())
    founded = founder.born + rng.randint(22, 55)
    return Company(name, product, founder, founded, town, rng.randint(3, 15), rng.randint(16, 60))


# ── from an item to a question ────────────────────────────────────────────────────────────────


def make_question(split: str, index: int, kind: Kind, world: World) -> dict:
    """Return question `index` of a kind with its gold steps as tool calls, and in words."""
    item = kind(world, index)
    steps, words, answer = [], [], item.answer
    for step in item.steps:
        if isinstance(step, Look):
            steps.append(dict(thought=step.thought, tool="search", input=step.page))
            words.append(step.finding)
        else:
            answer = str(step.result)
            steps.append(dict(thought=step.thought, tool="calculate", input=step.expression))
            words.append(f"{step.expression} = {answer}.")
    steps.append(dict(thought=f"The answer is {answer}.", tool="finish", input=answer))
    return dict(
        id=f"{split}-{kind.__name__}-{index:02d}",
        kind=kind.__name__,
        hops=sum(isinstance(step, Look) for step in item.steps),
        calculation=any(isinstance(step, Sum) for step in item.steps),
        question=item.question,
        answer=answer,
        pages=[step.page for step in item.steps if isinstance(step, Look)],
        steps=steps,
        reasoning=" ".join([*words, f"The answer is {answer}."]),
    )


def generate(split: str, seed: int = SEED) -> tuple[list[dict], list[dict]]:
    """Return the questions of a split in mixed order, and the pages of its world.

    Raises ValueError for an unknown split.
    """
    if split not in PER_KIND:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(PER_KIND)}")
    world, n = build_worlds(seed)[split], PER_KIND[split]
    # Neighbouring kinds start at other entities, so that a page answers several kinds of question.
    questions = [
        make_question(split, (i + 2 * shift) % TOWNS[split], kind, world)
        for shift, kind in enumerate(KINDS)
        for i in range(n)
    ]
    pages = list(world.pages())
    rng = random.Random(f"{seed} {split} order")
    rng.shuffle(questions)
    rng.shuffle(pages)
    return questions, pages


def files() -> dict[str, str]:
    """Return what each file of the set should hold."""
    written = {}
    for split in PER_KIND:
        questions, pages = generate(split)
        written |= {f"{split}.jsonl": as_lines(questions), f"{split}_pages.jsonl": as_lines(pages)}
    return written


if __name__ == "__main__":
    sys.exit(write_or_compare(data_folder() / "react", files(), sys.argv[1:]))
