"""Numbers in a notebook's prose: where each of them comes from.

A number in a markdown cell has a home when it is *printed* by a cell of the notebook or stands in
its code, when its sentence *cites* a source, or when the sentence *works it out* (the sum is done
again). Not asked for: code and formulas, numbers inside words ("GPT-2", "32-bit"), years, versions,
the numbers of sections and exercises and their minutes, 0, 1 and 2, and what states nothing:
questions, invitations ("Try 40"), suppositions ("Say the model gives 0.6", "By hand: …").
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from course_utils.runner.notebooks import code_cells, source_of, tags_of

NUMBER = re.compile(
    r"(?<![\w.,@:^₀-₉-])"  # not inside a word, a version, a ratio
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
    r"(?P<unit>[ \u00a0\u202f]?%|[ \u00a0](?:million|billion|thousand)\b)?"
    r"(?![\w@:⁻⁰¹²³⁴-⁹]|[.,]\d|-[A-Za-z])"
)
UNITS = {"%": 0.01, "thousand": 1e3, "million": 1e6, "billion": 1e9}
VALUE = re.compile(r"(?<![\w.])\d[\d_]*(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")
UNASKED = {"0", "1", "2"}
YEAR = re.compile(r"(1[6-9]|20)\d\d")
# A number after these names a place, a version or a setting's name, and measures nothing.
BEFORE = re.compile(
    r"(notebooks?|sections?|§§?|chapters?|parts?|equations?|eq\.|figures?|fig\.|tables?|exercises?|"
    r"theorem|lemma|algorithm|appendix|pages?|pp?\.|vol\.|lines?|steps?|question|version|"
    r"Python|torch|seeds?|act|scene|sonnet|no\.|\bIn(?= \[))"
    r"[ \u00a0]?[\[(]?(\d+(\.\d+)?[ \u00a0]?(,|and|or|to|–|-)[ \u00a0]?)*$",
    re.IGNORECASE,
)
AFTER = re.compile(r"[ \u00a0]?(min\b|minutes?\b|★)")
SUPPOSED = re.compile(
    r"\?[”\"’)*_]*$|^(try|set|change|replace|raise|lower|turn)\b|"
    r"(^|[;:,(] ?)(say|suppose|imagine|assume|take|let)\b|"
    r"\b(by hand|for example|for instance|e\.g\.|such as)",
    re.IGNORECASE,
)
AUTHOR = re.compile(
    r"([A-Z][\w’'-]+)(?:, [A-Z][\w’'-]+)*(?: et al\.| (?:&|and) ([A-Z][\w’'-]+))?,? "
    r"\((?:1[6-9]|20)\d\d"
)
CITED = re.compile(
    r"\]\((?!#)[^)]+\)|https?://|arXiv|doi|"
    r"\bet al\b|[A-Z][\w’'-]+( (&|and) [A-Z][\w’'-]+)?,? \(?(1[6-9]|20)\d\d[a-z]?\b"
)


@dataclass(frozen=True)
class Complaint:
    """A number that comes from nowhere, and its sentence."""

    number: str
    sentence: str
    why: str = "no cell prints it, nothing is cited, and it is not worked out"

    def __str__(self) -> str:
        return f"{self.number}: {self.why}: {self.sentence}"


# ── what is read ────────────────────────────────────────────────────────────────────────────────


def sentences(markdown: str) -> Iterator[str]:
    """The sentences, list items and table rows of a cell, without code, formulas and addresses."""
    text = re.sub(r"(?ms)^```.*?^```[^\n]*$|<!--.*?-->", "", markdown)
    text = re.sub(r"(?s)\$\$.*?\$\$|\\begin\{.*?\\end\{\w+\*?\}", "x", text)
    text = re.sub(r"(?<!\\)\$(?=\S)(?:[^$\n]|\n(?!\s*\n))+?(?<=\S)\$(?!\d)", "x", text)
    text = re.sub(r"`+[^`]+`+", "code", text)
    text = re.sub(r"</?[a-z][^>]*>", " ", text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.) |\s*\||#+ )", text):
        block = re.sub(r"^\s*(?:[-*+>]|#+|\d+\.)\s+(?:\d+(?:\.\d+)*\.?\s+(?=\S))?", "", block)
        block = " ".join(block.split())
        yield from filter(None, re.split(r"(?<=[.!?])[*_”\"’)]* (?=[“\"*_]*[A-Z0-9⟨])", block))


def asked(sentence: str) -> Iterator[re.Match]:
    """The numbers of a sentence that must have a home."""
    for found in NUMBER.finditer(sentence):
        digits, unit = found["digits"], (found["unit"] or "").strip()
        before, after = sentence[: found.start()], sentence[found.end() :]
        is_year = YEAR.fullmatch(digits) and not unit
        is_idle = digits in UNASKED and unit != "%"
        if not (is_year or is_idle or BEFORE.search(before) or AFTER.match(after)):
            yield found


# ── where a number may come from ────────────────────────────────────────────────────────────────


class Homes:
    """The numbers that a notebook's cells print, those in its code, and whom it cites."""

    def __init__(self, notebook: dict) -> None:
        self.texts = [source_of(cell) for cell in code_cells(notebook)]
        for cell in code_cells(notebook):
            self.texts += _printed(cell["outputs"])
        markdown = (c for c in notebook["cells"] if c["cell_type"] == "markdown")
        self.prose = "\n".join(map(source_of, markdown))

    @cached_property
    def authors(self) -> set[str]:
        """Whoever is cited with a year somewhere in the notebook, and may be named without it."""
        return {name for pair in AUTHOR.findall(self.prose) for name in pair if name}

    def cites(self, sentence: str) -> bool:
        """Whether a sentence names its source: a link, an author and year, or a cited author."""
        names = re.findall(r"[A-Z][\w-]+", sentence)
        return bool(CITED.search(sentence)) or not self.authors.isdisjoint(names)

    @cached_property
    def values(self) -> set[tuple[str, bool]]:
        """Each number as it is written, and whether its line speaks of percent."""
        return {
            (digits.replace(",", "").replace("_", ""), bool(re.search("%|percent", line)))
            for text in self.texts
            for line in text.splitlines()
            for digits in VALUE.findall(line)
        }

    def have(self, number: re.Match) -> bool:
        """Whether a number, rounded where it has more digits, is that one; 73 % may be 0.734.

        A whole number below 10 is not rounded to: too many would be.
        """
        unit = (number["unit"] or "").strip()
        digits = number["digits"].replace(",", "")
        places, value = len(digits.partition(".")[2]), float(digits)
        for written, percent in self.values:
            there = float(written)
            decimals = len(written.partition(".")[2].partition("e")[0])
            scale = UNITS.get(unit, 1.0)
            if unit == "%" and percent and _rounds(there, value, places, decimals):
                return True
            if unit == "%" and not (decimals >= places + 2 and 0 <= there <= 1):
                continue
            if _rounds(there / scale, value, places, decimals + round(math.log10(scale))):
                return True
        return False


def _rounds(there: float, value: float, places: int, decimals: int) -> bool:
    """Whether `there`, written with so many decimals, is the value when rounded to its places."""
    if decimals <= places or (places == 0 and value < 10):
        return math.isclose(there, value, rel_tol=1e-9, abs_tol=1e-12)
    return abs(there - value) <= 0.5 * 10**-places * (1 + 1e-9)


def _printed(outputs: list[dict]) -> Iterator[str]:
    for output in outputs:
        data = output.get("data", {})
        texts = [
            output.get("text", ""),
            *(data.get(k, "") for k in ("text/plain", "text/markdown")),
        ]
        if "text/plain" not in data:
            texts.append(data.get("text/html", ""))
        yield from ("".join(text) for text in texts if text)


# ── sums ────────────────────────────────────────────────────────────────────────────────────────

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
SUM = re.compile(r"(?P<left>[^=≈;:]*?\d[^=≈;:]*)(?:=|≈|\bmakes\b|\bis about\b)(?P<right>[^=≈;:]*)")


def worked_out(sentence: str) -> tuple[str, list[str]]:
    """The part of a sentence that is a sum, with its result; and what is wrong with the results."""
    done, wrong = "", []
    for found in SUM.finditer(sentence):
        value = _value_of(found["left"])
        result = NUMBER.search(found["right"])
        if value is None or result is None:
            continue
        digits = result["digits"].replace(",", "")
        slack = 0.51 * 10 ** -len(digits.partition(".")[2])
        unit = UNITS.get((result["unit"] or "").strip(), 1.0)
        right = any(
            abs(value / scale - float(digits)) <= slack or (
                "≈" in found[0] and math.isclose(value / scale, float(digits), rel_tol=0.05)
            )
            for scale in {1.0, unit}
        )  # fmt: skip
        done += found["left"] + result[0]
        if not right:
            wrong.append(f"{found['left'].strip()} = {value:g}, not {result[0]}")
    return done, wrong


def _value_of(text: str) -> float | None:
    """The value of a sum at the end of a text, whose other words are left out; None for no sum."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    for sign, plain in {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"}.items():
        text = text.replace(sign, plain)
    text = re.sub(r"²", "**2", text.replace("³", "**3").replace("%", "*0.01"))
    text = re.sub(r"[A-Za-z][\w-]*", " ", text)
    tail = re.search(r"(?:[(\s]*\d[\d.]*[)\s]*[*/+-]{1,2}\s*)+[(\s]*\d[\d.]*[)\s]*$", text)
    try:
        tree = ast.parse(" ".join(tail[0].split()), mode="eval").body if tail else None
    except SyntaxError:
        return None
    return _evaluated(tree) if isinstance(tree, ast.BinOp) else None


def _evaluated(node: ast.AST | None) -> float | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _evaluated(node.left), _evaluated(node.right)
        if left is not None and right is not None:
            try:
                return float(OPERATORS[type(node.op)](left, right))
            except (ZeroDivisionError, OverflowError):
                return None
    return None


# ── the whole notebook ──────────────────────────────────────────────────────────────────────────


def homeless(notebook: dict) -> list[Complaint]:
    """The numbers in a notebook's markdown that come from nowhere, and sums that are wrong."""
    homes, complaints = Homes(notebook), []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown" and not {"badge", "cost"} & set(tags_of(cell)):
            for sentence in sentences(source_of(cell)):
                complaints += of_sentence(sentence, homes)
    return complaints


def of_sentence(sentence: str, homes: Homes) -> list[Complaint]:
    """The complaints about one sentence."""
    done, wrong = worked_out(sentence)
    complaints = [Complaint("a sum", sentence, each) for each in wrong]
    if homes.cites(sentence) or SUPPOSED.search(sentence):
        return complaints
    free = {found["digits"] for found in NUMBER.finditer(done)}
    return complaints + [
        Complaint(found[0].strip(), sentence)
        for found in asked(sentence)
        if found["digits"] not in free and not homes.have(found)
    ]
