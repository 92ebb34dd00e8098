"""Write the questions over plays: `python -m course_utils.recipes.shakespeare_questions`.

`lines.toml` holds what was written by hand: lines, and each line said again in modern English. This
script finds every line in its play, looks up who says it, and writes two questions about it, one
that quotes and one that paraphrases. With `--check` it only compares with the files there are.
Nothing is drawn at random: the same texts give the same bytes.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator

from course_utils.assets.catalogue import data_folder, describe
from course_utils.recipes.authored import as_lines, write_or_compare
from course_utils.tasks import shakespeare

FOLDER = data_folder() / "shakespeare_questions"
SPLITS = ("dev", "test")
NOBODY = {"All"}  # names that are also common words, and name no one
EXACT = {
    "speaker": 'Who says, "{quote}"?',
    "addressee": 'To whom is it said, "{quote}"?',
    "play": 'In which play does someone say, "{quote}"?',
}


def authored() -> dict[str, dict[str, list[dict]]]:
    """Return split → play → what was written by hand."""
    return tomllib.loads((FOLDER / "lines.toml").read_text(encoding="utf-8"))


def kind_of(line: dict) -> str:
    return "addressee" if "to" in line else line.get("ask", "speaker")


def speech_of(text: str, start: int) -> shakespeare.Speech:
    """Return the speech that a place in a play belongs to."""
    return next(s for s in shakespeare.speeches(text) if s.body <= start < s.end)


def facts(play: str, text: str, line: dict) -> dict:
    """Return what both questions about a line have in common."""
    start, end = shakespeare.find_line(text, line["quote"])
    speech = speech_of(text, start)
    if end > speech.end:
        raise ValueError(f"{line['quote']!r} runs over the end of a speech")
    kind = kind_of(line)
    answer = {"speaker": speech.speaker, "play": play, "addressee": line.get("to")}[kind]
    return {
        "answer": answer,
        "accepted": [answer, *line.get("also", [])],
        "play": play,
        "speaker": speech.speaker,
        "quote": line["quote"],
        "speech": speech.start,
        "start": start,
        "end": end,
        "famous": line.get("famous", False),
    }


def questions(split: str) -> Iterator[dict]:
    """Yield the questions of a split, the exact one of each line before the paraphrased one."""
    texts = shakespeare.load()
    for play, lines in authored()[split].items():
        slug = play.lower().replace("'", "").replace(" ", "-")
        for number, line in enumerate(lines, start=1):
            name, kind = f"{split}-{slug}-{number:02}", kind_of(line)
            asked = {
                "exact": EXACT[kind].format(quote=line["quote"].rstrip(".,;:")),
                "paraphrase": line["paraphrase"],
            }
            for form, question in asked.items():
                row = {"id": f"{name}-{form}", "line": name, "form": form, "kind": kind}
                yield {**row, "question": question, **facts(play, texts[play], line)}


def casts() -> dict[str, list[str]]:
    """Return each play's speakers in the order of their first speech, without "All" and pairs."""
    texts = shakespeare.load()
    names = [play for split in SPLITS for play in authored()[split]]
    speakers = {play: [s.speaker for s in shakespeare.speeches(texts[play])] for play in names}
    return {
        p: list(dict.fromkeys(n for n in found if n not in NOBODY and "," not in n))
        for p, found in speakers.items()
    }


def titles() -> list[str]:
    """Return the titles of all plays, the choices where a play is asked for."""
    return [member.title for member in describe("shakespeare").members[:37]]


def files() -> dict[str, str]:
    """Return what each file of the set should hold."""
    choices = {"plays": titles(), "casts": casts()}
    written = {f"{split}.jsonl": as_lines(questions(split)) for split in SPLITS}
    return written | {"choices.json": json.dumps(choices, ensure_ascii=False, indent=1) + "\n"}


if __name__ == "__main__":
    sys.exit(write_or_compare(FOLDER, files(), sys.argv[1:]))
