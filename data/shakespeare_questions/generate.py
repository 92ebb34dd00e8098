"""Write the questions over Shakespeare's plays: `python data/shakespeare_questions/generate.py`.

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
from pathlib import Path

from course_utils import plays
from course_utils.assets import describe, load_shakespeare

FOLDER = Path(__file__).parent
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


def speech_of(text: str, start: int) -> plays.Speech:
    """Return the speech that a place in a play belongs to."""
    return next(s for s in plays.speeches(text) if s.body <= start < s.end)


def facts(play: str, text: str, line: dict) -> dict:
    """Return what both questions about a line have in common."""
    start, end = plays.find_line(text, line["quote"])
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
    texts = load_shakespeare()
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
    texts = load_shakespeare()
    names = [play for split in SPLITS for play in authored()[split]]
    speakers = {play: [s.speaker for s in plays.speeches(texts[play])] for play in names}
    return {
        p: list(dict.fromkeys(n for n in found if n not in NOBODY and "," not in n))
        for p, found in speakers.items()
    }


def titles() -> list[str]:
    """Return the titles of all plays, the choices where a play is asked for."""
    return [member.title for member in describe("shakespeare").members[:37]]


def files() -> dict[str, str]:
    """Return what each file should hold."""
    written = {
        f"{split}.jsonl": "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in questions(split)
        )
        for split in SPLITS
    }
    choices = {"plays": titles(), "casts": casts()}
    return written | {"choices.json": json.dumps(choices, ensure_ascii=False, indent=1) + "\n"}


def main(arguments: list[str]) -> int:
    stale = []
    for name, text in files().items():
        if "--check" not in arguments:
            (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
        elif (FOLDER / name).read_text(encoding="utf-8") != text:
            stale.append(name)
    print(f"differs: {', '.join(stale)}" if stale else "as generated")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
