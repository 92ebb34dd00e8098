"""Claims are true of what was measured and of no null; a reader is never stopped by one."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from course_utils import claims
from course_utils.claims import ClaimFailed, claim, claims_table, finding, follows, here, ledger
from course_utils.evidence import box, records
from course_utils.metrics import paired
from course_utils.runner import comparison
from course_utils.showing import measured

SCOPE = "two coins, thrown once"
SHARP, BLUNT = SimpleNamespace(favourite=0.9, heads=3), SimpleNamespace(favourite=0.2, heads=3)
AHEAD = paired([1] * 12 + [0] * 4, [0] * 8 + [1] * 4 + [0] * 4)


def is_sharp(head):
    return head.favourite > 0.5


def is_ahead(pairs):
    return pairs.difference > 0 and pairs.p_value < 0.05


@pytest.fixture(autouse=True)
def no_records(monkeypatch, tmp_path):
    """A kernel in which nothing was stated, and a course without records."""
    monkeypatch.delenv("COURSE_STRICT", raising=False)
    monkeypatch.setattr(box, "seen", seen := {})
    monkeypatch.setattr(claims, "seen", seen)
    monkeypatch.setattr(records, "records_folder", lambda: tmp_path)
    records.records.cache_clear()
    yield tmp_path
    records.records.cache_clear()


@pytest.fixture
def shown(monkeypatch):
    """What IPython would have displayed: a list of {data, metadata}."""
    outputs = []

    def display(data, raw=False, metadata=None):
        outputs.append({"data": data, "metadata": metadata or {}})

    monkeypatch.setattr("IPython.display.display", display)
    return outputs


def without_what_is_masked(outputs):
    """The texts as the guard compares them."""
    texts = [text for output in outputs for text in output["data"].values()]
    return [re.sub("⟨[^⟩]*⟩", "⟨⟩", text) for text in texts]


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (0.73412, "", "⟨0.734⟩"),
        (12345.6, "", "⟨12,346⟩"),
        (0.5, ".1%", "⟨50.0%⟩"),
        (7, "", "⟨7⟩"),
        ([0.1, 0.25], ".2f", "⟨0.10, 0.25⟩"),
        (np.float32(0.5), "", "⟨0.5⟩"),
        (torch.tensor([1.0, 2.0]), "", "⟨1, 2⟩"),
        ("Paris", "", "⟨Paris⟩"),
        ("a⟩b", "", "⟨a>b⟩"),
    ],
)
def test_measured_wraps(value, spec, text):
    assert str(measured(value, spec)) == repr(measured(value, spec)) == text


# ── kind: measured ──────────────────────────────────────────────────────────────────────────────


def test_a_claim_is_tried_on_what_was_found_and_on_every_null(shown):
    tried = []

    def test(head):
        tried.append(head)
        return is_sharp(head)

    null = {"random weights": BLUNT, "shuffled": BLUNT}
    claim("A11c", "The head is sharp", test, SHARP, null=null, scope=SCOPE, notes="heads attend")
    assert tried == [SHARP, BLUNT, BLUNT]
    text = shown[0]["data"]["text/plain"]
    assert text.startswith("A11c  The head is sharp\n")
    assert "course notes say “heads attend”: holds" in text
    assert "found · favourite ⟨0.9⟩ · heads 3" in text
    assert "null: random weights · favourite ⟨0.2⟩" in text
    assert f"scope: {SCOPE}" in text
    assert "⟨no recorded runs yet⟩" in text


def test_its_metadata_is_all_the_ledger_needs(shown):
    claim("A11c", "The head is sharp", is_sharp, SHARP, null={"random": BLUNT}, scope=SCOPE)
    (entry,) = ledger(json.loads(json.dumps(shown)))
    assert {key: entry[key] for key in ("id", "kind", "verdict", "scope", "holds")} == {
        "id": "A11c",
        "kind": "measured",
        "verdict": "holds",
        "scope": SCOPE,
        "holds": True,
    }
    assert entry["values"] == {"favourite": 0.9, "heads": 3}
    assert entry["null"] == {"null: random": {"favourite": 0.2, "heads": 3}}


@pytest.mark.parametrize(
    ("found", "null", "word"),
    [(BLUNT, SHARP, "true there too"), (BLUNT, BLUNT, "did not"), (SHARP, SHARP, "true there too")],
    ids=["neither", "false of what was found", "true of a null"],
)
def test_what_does_not_come_out_is_amber_for_a_reader_and_an_error_when_strict(
    shown, monkeypatch, found, null, word
):
    arguments = ("A1", "The head is sharp", is_sharp, found)
    claim(*arguments, null={"random weights": null}, scope=SCOPE)
    assert "did not come out in this run" in shown[0]["data"]["text/plain"]
    assert word in shown[0]["data"]["text/plain"]
    assert box.COLOURS["failed"] in shown[0]["data"]["text/html"]
    assert ledger(shown)[0]["holds"] is False
    monkeypatch.setenv("COURSE_STRICT", "1")
    with pytest.raises(ClaimFailed, match="A1 does not hold: The head is sharp"):
        claim(*arguments, null={"random weights": null}, scope=SCOPE)


@pytest.mark.parametrize("value", ["", "0"])
def test_strictness_can_be_switched_off(monkeypatch, value):
    monkeypatch.setenv("COURSE_STRICT", value)
    assert not claims.is_strict()


def test_holds_if_must_be_false_on_the_other_side(shown):
    arguments = ("P3b", "The head is sharp", is_sharp, SHARP)
    options = dict(null={"r": BLUNT}, scope=SCOPE, verdict="holds if", condition="it is trained")
    claim(*arguments, otherwise={"untrained": BLUNT}, **options)
    assert "holds if it is trained" in shown[0]["data"]["text/plain"]
    assert "otherwise: untrained · favourite ⟨0.2⟩" in shown[0]["data"]["text/plain"]
    claim(*arguments, otherwise={"untrained": SHARP}, **options)
    assert "did not come out" in shown[1]["data"]["text/plain"]


def test_a_corrected_sentence_is_the_notes_and_not_ours(shown):
    options = dict(null={"r": BLUNT}, scope=SCOPE, notes="heads are blunt", verdict="corrected")
    claim("A4", "The head is sharp", is_sharp, SHARP, **options)
    first, second, *_ = shown[0]["data"]["text/plain"].splitlines()
    assert "corrected" not in first
    assert "“heads are blunt”: corrected" in second


def test_pairs_bring_their_null_and_show_what_they_rest_on(shown):
    claim("P5", "A program is right more often", is_ahead, AHEAD, scope=SCOPE)
    text = shown[0]["data"]["text/plain"]
    assert "difference ⟨0.5⟩ · interval ⟨0.225, 0.775⟩ · p ⟨0.013⟩ · pairs 16" in text
    assert re.search("null: signs of the pairs flipped · true in ⟨0.\\d%⟩", text)
    assert ledger(shown)[0]["holds"] is True


def test_a_test_that_half_of_all_coin_flips_pass_says_nothing(shown):
    claim("P5", "A program is right more often", lambda p: p.difference > 0, AHEAD, scope=SCOPE)
    assert "true there too" in shown[0]["data"]["text/plain"]
    assert ledger(shown)[0]["holds"] is False


@pytest.mark.parametrize(
    ("second", "word"), [(0.5, "undecided here"), (3.0, "decided in this run")]
)
def test_whether_pairs_decide_is_read_off_their_interval(shown, second, word):
    """Not off the test, which may be of a sentence: that one is false where nothing is decided."""
    pairs = paired([0.0, 1.0, 0.0, 1.0, 0.0, 1.0], [second, *(5 * [second])])
    claim(
        "A1", "The first is better", lambda found: found.low > 0, pairs,
        scope=SCOPE, verdict="undecided here", decided_by="200 problems",
    )  # fmt: skip
    assert f"⟨{word}⟩" in shown[0]["data"]["text/plain"]


def test_undecided_is_never_an_error_and_its_word_is_masked(shown, monkeypatch):
    monkeypatch.setenv("COURSE_STRICT", "1")
    options = dict(scope=SCOPE, verdict="undecided here", decided_by="200 problems")
    for pairs in (paired([1, 0, 1, 0], [0, 1, 0, 1]), AHEAD):
        claim("P4", "Either may be ahead", lambda p: p.low < 0 < p.high, pairs, **options)
    texts = [output["data"]["text/plain"] for output in shown]
    assert "⟨undecided here⟩" in texts[0]
    assert "⟨decided in this run⟩" in texts[1]
    assert "200 problems" in texts[0]
    assert [entry["holds"] for entry in ledger(shown)] == [True, False]


GOOD = dict(null={"r": BLUNT}, scope=SCOPE)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("A1", "s", True, SHARP), GOOD, "the test is True; give a function"),
        (("A1", "s", is_sharp, SHARP), {**GOOD, "null": None}, "has no null"),
        (("A1", "s", is_sharp, SHARP), {**GOOD, "null": {}}, "has no null"),
        (("A1", "s", is_sharp, SHARP), {**GOOD, "scope": ""}, "says nothing of its scope"),
        (("A1", "s", is_sharp, SHARP), {**GOOD, "verdict": "maybe"}, "must be one of holds"),
        (("A1", "s", is_sharp, SHARP), {**GOOD, "verdict": "holds if"}, "holds if … what"),
        (
            ("A1", "s", is_sharp, SHARP),
            {**GOOD, "verdict": "holds if", "condition": "c"},
            "no other side",
        ),
        (("A1", "s", is_sharp, SHARP), {**GOOD, "verdict": "undecided here"}, "decided_by"),
        (("A1", "s", lambda head: head.heads, SHARP), GOOD, "must say one boolean"),
        *(((id, "s", is_sharp, SHARP), GOOD, "claim id") for id in ("i1", "I", "1", "I1ab", "")),
    ],
)
def test_a_malformed_claim_is_refused(shown, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        claim(*arguments, **options)
    assert shown == []


def test_longer_ids_are_ids(shown):
    for id in ("D4b2", "I8a", "A10"):
        claim(id, "The head is sharp", is_sharp, SHARP, **GOOD)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (0.25, "measured ⟨0.25⟩"),
        (3, "measured 3"),
        ({"radius 0.9": 0.5, "radius 1.1": 2.0}, "radius 0.9 ⟨0.5⟩ · radius 1.1 ⟨2⟩"),
        (torch.tensor([1.0, 2.0]), "measured ⟨1, 2⟩"),
        (np.float32(0.5), "measured ⟨0.5⟩"),
        (list(range(9)), "measured 9 numbers, ⟨0⟩ to ⟨8⟩"),
        ({"texts": ["a", "b"]}, "texts a, b"),
        ({"gone": math.nan}, "gone ⟨nan⟩"),
    ],
)
def test_any_plain_measurement_is_shown(shown, found, text):
    follows("A1", "It is there", lambda value: True, found, because="it was put there")
    assert text in shown[0]["data"]["text/plain"]
    json.dumps(ledger(shown), allow_nan=False)


# ── kinds: follows, here ────────────────────────────────────────────────────────────────────────


def test_follows_is_a_check_that_stops_always(shown):
    follows("I2a", "It rises", lambda x: x == sorted(x), [1, 2, 3], because="dH/dT ≥ 0")
    assert "because dH/dT ≥ 0" in shown[0]["data"]["text/plain"]
    assert ledger(shown)[0]["kind"] == "follows"
    with pytest.raises(ClaimFailed, match="I2a does not hold: It rises"):
        follows("I2a", "It rises", lambda x: x == sorted(x), [3, 2], because="dH/dT ≥ 0")
    with pytest.raises(ValueError, match="follows from what"):
        follows("I2a", "It rises", lambda x: True, 1, because="")
    with pytest.raises(ValueError, match="give a function"):
        follows("I2a", "It rises", True, 1, because="dH/dT ≥ 0")


def test_follows_judges_the_notes_sentence(shown):
    judged = dict(because="it was counted", notes="it falls")
    follows("D2", "It rises", lambda x: x > 0, 1, verdict="corrected", **judged)
    assert ledger(shown)[0]["verdict"] == "corrected"
    assert ledger(shown)[0]["notes"] == "it falls"
    assert "course notes say “it falls”: corrected" in shown[0]["data"]["text/plain"]
    for wrong in (dict(judged, verdict=""), dict(judged, verdict="undecided here")):
        with pytest.raises(ValueError, match="'holds' or is 'corrected'"):
            follows("D2", "It rises", lambda x: x > 0, 1, **wrong)
    with pytest.raises(ValueError, match="of none where there is none"):
        follows("D2", "It rises", lambda x: x > 0, 1, because="counted", verdict="holds")


def test_here_is_never_an_error_and_all_its_numbers_but_counts_are_masked(shown, monkeypatch):
    monkeypatch.setenv("COURSE_STRICT", "1")
    masked = []
    for outcome, seconds in ((True, 0.5), (np.bool_(False), 2.5)):
        shown.clear()
        here("A5", "It is quick", outcome, count={"calls": (1024, 12)}, seconds=seconds, runs=9)
        claims_table()
        masked.append(without_what_is_masked(shown[:1]))
        assert ledger(shown)[0]["holds"] is bool(outcome)
        assert ledger(shown)[0]["kind"] == "here"
    assert masked[0] == masked[1]
    assert "calls 1024, 12" in masked[0][1]
    assert "9" not in masked[0][1]


@pytest.mark.parametrize(
    ("outcome", "times", "message"),
    [
        (1, dict(seconds=1.0), "one boolean"),
        (True, {}, "what was timed"),
        (True, dict(ratio="1.7 times"), "give the number itself"),
    ],
)
def test_here_refuses_what_the_guard_would_compare(shown, outcome, times, message):
    with pytest.raises(ValueError, match=message):
        here("A5", "It is quick", outcome, **times)


# ── findings, records, the table ────────────────────────────────────────────────────────────────


def test_a_finding_speaks_with_this_runs_numbers(shown):
    finding("Greedy repeats {share:.0%} of {n} windows: {{so}}", share=0.089, n=5)
    assert shown[0]["data"].data == "Greedy repeats ⟨9%⟩ of ⟨5⟩ windows: {so}"


@pytest.mark.parametrize("values", [{}, dict(share=1, other=2)])
def test_a_finding_needs_a_value_for_each_field(values):
    with pytest.raises(ValueError, match="each field of a finding needs one value"):
        finding("{share} of them", **values)


def test_the_record_is_read_by_id_and_masked(shown, no_records):
    record = {"held": 19, "runs": 20, "values": {"favourite": [0.8, 0.9, 0.95]}}
    (no_records / "02.json").write_text(json.dumps({"claims": {"A11c": record}}))
    claim("A11c", "The head is sharp", is_sharp, SHARP, **GOOD)
    assert "⟨it held in 19 of 20 recorded runs⟩" in shown[0]["data"]["text/plain"]


def test_a_record_of_equal_numbers_says_so(shown, no_records):
    record = {"held": 10, "runs": 10, "values": {"favourite": [0.9, 0.9, 0.9]}}
    (no_records / "02.json").write_text(json.dumps({"claims": {"A11c": record}}))
    claim("A11c", "The head is sharp", is_sharp, SHARP, **GOOD)
    assert "the same in all runs⟩" in shown[0]["data"]["text/plain"]


def test_the_table_repeats_what_was_stated(shown):
    with pytest.raises(ValueError, match="no claim"):
        claims_table()
    claim("I1", "a | b", is_sharp, SHARP, **GOOD)
    claims_table()
    text = shown[-1]["data"].data
    assert "a \\| b" in text
    assert "favourite ⟨0.9⟩" in text


def test_measured_text_is_masked_whole_by_the_guard():
    import configparser

    settings = configparser.ConfigParser()
    settings.read(comparison.SANITIZER, encoding="utf-8")
    regex, replace = settings["measured"]["regex"], settings["measured"]["replace"]
    one, other = f"loss {measured(0.1)} in 3 steps", f"loss {measured([2.0, 'x⟩y'])} in 3 steps"
    assert re.sub(regex, replace, one) == re.sub(regex, replace, other)
    assert re.sub(regex, replace, one) != re.sub(regex, replace, one.replace("3", "4"))
