"""Plausible wrong versions of course_utils.tasks.shakespeare."""

from __future__ import annotations

import re

from planting import Bug, originals

right = originals("tasks.shakespeare")


def speeches_with_the_list_of_persons(text):
    return right["speeches"](re.sub(r"(?m)^ACT\b", "PART", text))


def speeches_end_at_a_stage_direction(text):
    found = []
    for speech in right["speeches"](text):
        direction = text.find("\n[", speech.body, speech.end)
        found.append(speech if direction < 0 else speech._replace(end=direction))
    return found


def as_dialogue_of_songs(text):
    shown = [re.sub(r"^([A-Z][A-Z' ]+)\.?\n", r"\1: ", b).title() for b in text.split("\n\n")]
    return "\n".join(" ".join(b.split()) for b in shown)


def as_dialogue_without_directions(text):
    return right["as_dialogue"](re.sub(r"\[[^\]]*\]", "", text))


def as_spoken_without_the_name(passage, speeches):
    return right["as_dialogue"](passage.text)


def as_spoken_by_the_next(passage, speeches):
    return right["as_spoken"](passage, [s._replace(body=s.start - 40) for s in speeches])


def as_spoken_twice_named(passage, speeches):
    shown = right["as_dialogue"](passage.text)
    speaker = next((s.speaker for s in reversed(speeches) if s.start <= passage.start), "")
    return f"{speaker}: {shown}" if speaker and shown[0] != "[" else shown


def find_line_first(text, line):
    match = re.search(r"\s+".join(map(re.escape, line.split())), text)
    return match.span() if match else right["find_line"](text, line)


def find_line_as_pattern(text, line):
    return next(m.span() for m in re.finditer(r"\s+".join(line.split()), text))


def holding_any_part(passages, question):
    return {
        i
        for i, p in enumerate(passages)
        if p.source == question.play and p.start < question.end and question.start < p.end
    }


def holding_in_any_play(passages, question):
    least = (question.end - question.start) / 2
    return {
        i
        for i, p in enumerate(passages)
        if min(p.end, question.end) - max(p.start, question.start) > least
    }


def is_right_anywhere(reply, question):
    return any(name.lower() in reply.lower() for name in question.accepted)


def is_right_by_the_shortest_name(reply, question):
    found = [name for name in question.accepted if re.search(rf"\b{name}\b", reply, re.IGNORECASE)]
    return bool(found)


def abstains_never(reply):
    return not reply


BUGS = [
    Bug("speeches", "takes the list of persons for speech", speeches_with_the_list_of_persons),
    Bug("speeches", "ends at a stage direction", speeches_end_at_a_stage_direction),
    Bug("as_dialogue", "takes a song for a person", as_dialogue_of_songs),
    Bug("as_dialogue", "loses stage directions", as_dialogue_without_directions),
    Bug("as_spoken", "leaves the name out", as_spoken_without_the_name),
    Bug("as_spoken", "names the next speaker", as_spoken_by_the_next),
    Bug("as_spoken", "names a speaker twice", as_spoken_twice_named),
    Bug("find_line", "takes the first of several", find_line_first),
    Bug("find_line", "takes signs for a pattern", find_line_as_pattern),
    Bug("holding", "counts any overlap", holding_any_part),
    Bug("holding", "forgets the play", holding_in_any_play),
    Bug("is_right", "finds the name anywhere", is_right_anywhere),
    Bug("is_right", "takes a part of a name", is_right_by_the_shortest_name),
    Bug("abstains", "wants silence", abstains_never),
]
