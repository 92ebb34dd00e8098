"""Plausible wrong versions of course_utils.prompting.reasoning."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from numbers import Real

from planting import Bug, originals

from course_utils.prompting import reasoning
from course_utils.prompting.reasoning import Step, Trace

right = originals("prompting.reasoning")


def solve_all_one_after_another(methods, generate):
    """Right answers, but nothing to batch."""
    return [right["solve_all"]([method], generate)[0] for method in methods]


def solve_all_mixes_up_texts(methods, generate):
    return right["solve_all"](methods, lambda prompts: list(generate(prompts))[::-1])


def solve_all_forgets_calls(methods, generate):
    traces = right["solve_all"](methods, generate)
    return [replace(trace, calls=trace.calls[-1:]) for trace in traces]


def solve_all_pads(methods, generate):
    def padded(prompts):
        texts = list(generate(prompts))
        return (texts + [""] * len(prompts))[: len(prompts)]

    return right["solve_all"](methods, padded)


def replay_trusts(trace, method):
    texts = iter([call.text for call in trace.calls])
    return right["solve"](method, lambda prompt: next(texts, ""))


def replay_returns_the_record(trace, method):
    return trace


def replay_leaves_calls_over(trace, method):
    calls = iter([*trace.calls, *[reasoning.Call("", "")] * 9])

    def generate(prompt):
        call = next(calls)
        if call.prompt != prompt:
            what = "another prompt than was" if call.prompt else "more than was"
            raise reasoning.ReplayError(f"{what} recorded")
        return call.text

    return right["solve"](method, generate)


def few_shot_without_gap(shots, question, part):
    return right["few_shot"](shots, question, part).replace("\n\n", "\n")


def few_shot_trailing_blank(shots, question, part):
    return right["few_shot"](shots, question, part) + " "


def own_part_everything(text):
    return text.strip()


def own_part_first_paragraph(text):
    return re.split(r"\n\s*\n|\n*Question:", text.strip(), maxsplit=1)[0].strip()


def own_part_first_line(text):
    return text.strip().split("\n")[0]


def stated_answer_first(text):
    found = re.search(r"answer is:?[ \t]*([^\n]*)", text, re.IGNORECASE)
    return found[1].strip().rstrip(".") or None if found else None


def stated_answer_keeps_the_stop(text):
    found = re.findall(r"answer is:?[ \t]*([^\n]*)", text, re.IGNORECASE)
    return found[-1].strip() or None if found else None


def zero_shot_forgets_the_thought(question, extract, chat="Q: {}\nA:".format):
    opening = f"{chat(question)} {reasoning.THINK}"
    (thought,) = yield [opening]
    (text,) = yield [opening + reasoning.CONCLUDE]
    steps = (Step("thought", thought), Step("answer", text))
    return Trace(extract(reasoning.own_part(text)), "answered", steps)


def majority_drops_zero(answers):
    return right["majority"](answer for answer in answers if answer)


def self_consistency_asks_once(question, shots, extract, samples=5):
    if samples < 1:
        raise ValueError(f"samples is {samples}; a vote takes at least one")
    texts = yield [reasoning.few_shot(shots, question, "reasoning")]
    answers = [extract(text) for text in texts] * samples
    return Trace(reasoning.majority(answers), "answered", (Step("vote", texts[0]),) * samples)


def program_of_lines_at_the_margin(text):
    """A comment or a bracket there ends it."""
    lines = text.split("\n")
    body = list(itertools.takewhile(lambda line: not line[:1].strip(), lines[1:]))
    kept = "\n".join([reasoning.FUNCTION + lines[0], *body]).rstrip() + "\n"
    return kept if lines[0].strip() or any(map(str.strip, body)) else ""


def program_of_with_the_comment_after_it(text):
    found = right["program_of"](text)
    after = (reasoning.FUNCTION + text).removeprefix(found)
    return found + after.partition("\n")[0] if after.startswith("#") else found


def as_number_of_real_types_only(value):
    return right["as_number"](value) if isinstance(value, Real) else None


def as_number_takes_truth(value):
    return float(value) if isinstance(value, bool) else right["as_number"](value)


def as_number_reads_text(value):
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def pal_repairs_without_the_error(question, shots, run, repairs=1):
    prompt = reasoning.few_shot(shots, question, "program") + f"\n{reasoning.FUNCTION}"
    steps = []
    for _ in range(repairs + 1):
        (text,) = yield [prompt]
        program = reasoning.program_of(text)
        answer, said = right["_run"](program, run)
        steps += [Step("program", program), Step("result", said)]
        if answer is not None:
            break
    return Trace(answer, "failed" if answer is None else "answered", tuple(steps))


def _hide_zero(result):
    if result.ok and result.value == 0:
        return type("Hidden", (), {"ok": False, "value": None, "__str__": lambda _: "0"})()
    return result


def pal_repairs_what_is_falsy(question, shots, run, repairs=1):
    """An answer of 0 counts as none."""
    return right["pal"](question, shots, lambda p: _hide_zero(run(p)), repairs)


def pal_never_gives_up(question, shots, run, repairs=1):
    return right["pal"](question, shots, run, repairs + 1)


def one_line_keeps_lines(text, limit=300):
    return text[:limit]


def one_line_never_cuts(text, limit=300):
    return " ".join(text.split())


def signs_of_any_text(program):
    return [{"//": "/"}.get(sign, sign) for sign in re.findall(r"//|[-+*/]", program)]


def signs_of_without_whole_division(program):
    return [] if "//" in program else right["signs_of"](program)


BUGS = [
    Bug("signs_of", "counts signs in texts", signs_of_any_text),
    Bug("signs_of", "does not know whole division", signs_of_without_whole_division),
    Bug("solve_all", "asks one method at a time", solve_all_one_after_another),
    Bug("solve_all", "gives texts to the wrong methods", solve_all_mixes_up_texts),
    Bug("solve_all", "records the last call only", solve_all_forgets_calls),
    Bug("solve_all", "fills missing texts", solve_all_pads),
    Bug("replay", "does not compare prompts", replay_trusts),
    Bug("replay", "does not run the method", replay_returns_the_record),
    Bug("replay", "leaves calls over in silence", replay_leaves_calls_over),
    Bug("few_shot", "has no blank line between examples", few_shot_without_gap),
    Bug("few_shot", "ends with a blank", few_shot_trailing_blank),
    Bug("own_part", "keeps examples the model made up", own_part_everything),
    Bug("own_part", "keeps one line only", own_part_first_line),
    Bug("own_part", "takes a blank line for the end", own_part_first_paragraph),
    Bug("stated_answer", "takes the first statement", stated_answer_first),
    Bug("stated_answer", "keeps the full stop", stated_answer_keeps_the_stop),
    Bug("zero_shot_thought", "forgets the thought", zero_shot_forgets_the_thought),
    Bug("majority", "does not count zeros", majority_drops_zero),
    Bug("self_consistency", "asks once", self_consistency_asks_once),
    Bug("program_of", "ends at any line at the margin", program_of_lines_at_the_margin),
    Bug("program_of", "keeps the comment after it", program_of_with_the_comment_after_it),
    Bug("as_number", "refuses decimals", as_number_of_real_types_only),
    Bug("as_number", "takes True for 1", as_number_takes_truth),
    Bug("as_number", "reads numbers from texts", as_number_reads_text),
    Bug("pal", "repairs without the error", pal_repairs_without_the_error, tests="pal_feeds"),
    Bug("pal", "repairs an answer of 0", pal_repairs_what_is_falsy, tests="pal_does_not"),
    Bug("pal", "repairs once more", pal_never_gives_up, tests="pal_gives_up"),
    Bug("one_line", "keeps line breaks", one_line_keeps_lines),
    Bug("one_line", "never cuts", one_line_never_cuts),
]
