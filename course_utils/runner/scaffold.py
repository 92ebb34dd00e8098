"""The cells of a new notebook, in the order in which a reader meets them; `course new` writes them.

{title}, {number} and {standard} are filled in; other braces are the text's own. A cell is its kind,
its id, and its text; ids in TAGS are tags too.
"""

from __future__ import annotations

TAGS = {"cost", "parameters"}

# Below the parameters of every notebook: what the brackets and the boxes mean.
STANDARD = """\
`PROFILE` chooses the size of the experiments and `SEED` the random numbers. Numbers between ⟨ and
⟩ depend on the machine or on floating-point arithmetic; every other text comes out exactly as
printed.

Boxes with a coloured edge are **claims**: a sentence, what this very run measured, where its test
must come out true, and a *null*, a world in which it must come out false. An amber edge says that
it did not come out in this run, and how often it does; the notebook goes on. Where course notes
have a sentence of their own, the verdict is on that one: it *holds*, *holds if* a condition is
met, is *corrected*, or stays *undecided here*.
"""

CELLS = (
    (
        "markdown",
        "title",
        """\
# {title}

*Which question does this notebook answer?* Then the whole idea in a line.

**You will be able to** … (three to five verbs, each of which an exercise asks for)

**Before this** … (links; [what training is](../docs/training.md)) · **Hardware** two CPU cores; a
GPU for `PROFILE = "gpu"`""",
    ),
    ("markdown", "cost", "**Cost** is written here by `course record`."),
    ("code", "parameters", 'PROFILE = "cpu"\nSEED = 0'),
    ("markdown", "standard", "{standard}"),
    (
        "code",
        "setup",
        """\
import torch

from course_utils import plots
from course_utils.claims import claim, claims_table, finding
from course_utils.exercises import check, hint, judge, predict, solution
from course_utils.profiles import for_profile, seed_everything

budget = for_profile(PROFILE, cpu=dict(draws=2000), gpu=dict(draws=200_000))
generator = seed_everything(SEED)""",
    ),
    (
        "markdown",
        "question",
        """\
## 1 · The first question

What is asked, what do course notes say about it, and which outcome would refute them? (The cells of
this section measure how often two numbers add up to less than a half: replace them, one by one.)

**Predict** ★ (1 minute). Before you measure: of two numbers drawn between 0 and 1, how often is the
sum below a half? Commit yourself.""",
    ),
    ("code", "guess", "my_guess = ...  # a share, such as 0.4"),
    (
        "markdown",
        "idea",
        r"""
The idea in words. Then one equation, $P(x + y < s) = s^2/2$ for $s \le 1$, and one picture.

By hand, on numbers small enough for paper: of the pairs (0.1, 0.3), (0.4, 0.2) and (0.2, 0.2), two
have a sum below a half.""",
    ),
    (
        "markdown",
        "exercise-1",
        """\
### Exercise 1 · Build it ★★ (10 minutes)

The exercise stands before its answer. It is declared in `course_utils/checks/`, with the mistakes
that learners make; its number is found through the table there.""",
    ),
    (
        "code",
        "build",
        '''\
def my_share_below(pairs, limit):
    """pairs (N, 2), a number → the share of pairs whose sum is below it."""
    ...


check("{number}.share_below", my_share_below)
hint("{number}.share_below")
solution("{number}.share_below")''',
    ),
    (
        "markdown",
        "experiment",
        """\
The experiment, on real data, beside a baseline and a *null*, a world in which the sentence is
false: here pairs that are the same number twice.""",
    ),
    (
        "code",
        "measure",
        """\
pairs = torch.rand(budget.draws, 2, generator=generator)
twins = pairs[:, :1].repeat(1, 2)
share = {
    name: (each.sum(dim=1) < 0.5).float().mean().item()
    for name, each in {"two numbers": pairs, "one number twice": twins}.items()
}
plots.bars(share, title="Two small numbers are rarer than one", y="share of sums below a half")""",
    ),
    (
        "markdown",
        "finding",
        "The finding in words, in the indicative, with this run's numbers:",
    ),
    (
        "code",
        "claim",
        """\
predict("How often is the sum below a half?", my_guess, share["two numbers"], within=0.03)
finding("Two numbers fall below a half in {both:.0%} of the draws.", both=share["two numbers"])
claim(
    "X1",
    "Two numbers add up to less than a half in fewer than a fifth of the draws",
    lambda share: share < 0.2,
    share["two numbers"],
    null={"one number twice": share["one number twice"]},
    notes="what course notes say of it",
    scope=f"{budget.draws:,} pairs from torch's generator",
)""",
    ),
    (
        "markdown",
        "limits",
        """\
**What this does not show** …""",
    ),
    (
        "markdown",
        "exercise-2",
        """\
### Exercise 2 · Change the experiment ★★ (10 minutes)

Which setting would you turn, and what do you expect? Say it first, then change it and run.""",
    ),
    (
        "code",
        "change",
        """\
limit, my_guess = 1.0, ...
below = (pairs.sum(dim=1) < limit).float().mean().item()
predict(f"How often is the sum below {limit:g}?", my_guess, below, within=0.03)""",
    ),
    (
        "markdown",
        "know",
        """\
## What you now know

Five sentences, each of which a claim carries, and what was not shown.""",
    ),
    ("code", "claims", "claims_table()"),
    (
        "markdown",
        "exercises",
        """\
## Exercises

Those not yet met.""",
    ),
    (
        "markdown",
        "exercise-3",
        """\
### Exercise 3 · Judge ★ (3 minutes)

Which of these sentences did the run support? Give their letters.""",
    ),
    ("code", "judged", 'judge("{number}.sentences", ...)'),
    ("markdown", "reading", "## Further reading\n\n- Author (year), *Title*: what it adds. Link."),
)


def cells(number: str, title: str) -> list[tuple[str, str, bool, str]]:
    """The cells as (kind, id, whether the id is a tag, text), for a notebook of this number."""
    filled = []
    for kind, id, text in CELLS:
        for name, value in {"title": title, "number": number, "standard": STANDARD}.items():
            text = text.replace(f"{{{name}}}", value)
        filled.append((kind, id, id in TAGS, text.strip()))
    return filled
