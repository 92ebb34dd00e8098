"""Claims hold with numbers, fail with numbers, and travel in output metadata."""

import json
import math
import re

import numpy as np
import pytest
import torch

from course_utils import claims
from course_utils.claims import ClaimFailed, claim, claims_table, ledger
from course_utils.showing import measured


@pytest.fixture
def shown(monkeypatch):
    """What IPython would have displayed: a list of (data, metadata)."""
    outputs = []

    def display(data, raw=False, metadata=None):
        outputs.append({"data": data, "metadata": metadata or {}})

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(claims, "_seen", {})
    return outputs


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


def test_measured_text_is_masked_whole_by_the_guard():
    import configparser

    from course_utils.runner import comparison

    settings = configparser.ConfigParser()
    settings.read(comparison.SANITIZER, encoding="utf-8")
    regex, replace = settings["measured"]["regex"], settings["measured"]["replace"]
    one, other = f"loss {measured(0.1)} in 3 steps", f"loss {measured([2.0, 'x⟩y'])} in 3 steps"
    assert re.sub(regex, replace, one) == re.sub(regex, replace, other)
    assert re.sub(regex, replace, one) != re.sub(regex, replace, one.replace("3", "4"))


def test_claim_shows_a_row_and_carries_its_values(shown):
    claim("I2", "Entropy rises with temperature", holds=np.bool_(True), low=0.5, steps=3)
    (entry,) = ledger(shown)
    assert entry["id"] == "I2"
    assert entry["holds"] is True
    assert entry["values"] == {"low": 0.5, "steps": 3}
    assert "⟨0.5⟩" in shown[0]["data"]["text/html"]
    assert "steps 3" in shown[0]["data"]["text/plain"]
    json.dumps(shown[0], allow_nan=False)


def test_claim_that_does_not_hold_raises_with_its_numbers(shown):
    with pytest.raises(ClaimFailed, match=r"I2 does not hold: Entropy rises.*low = ⟨0.5⟩"):
        claim("I2", "Entropy rises", holds=torch.tensor(False), low=0.5)
    assert shown == []


def test_claim_escapes_html_and_keeps_json_valid(shown):
    claim("A1", "x < y & z", holds=True, worst=math.inf, name="<b>")
    assert "x &lt; y &amp; z" in shown[0]["data"]["text/html"]
    assert shown[0]["metadata"]["claim"]["values"]["worst"] == "inf"


def without_what_is_masked(shown):
    """What the guard compares of a claim's box and of the closing table."""
    claims_table()
    box, table = shown[0]["data"], shown[-1]["data"].data
    return [re.sub("⟨[^⟩]*⟩", "", text) for text in (*box.values(), table)]


def test_claim_about_time_never_stops_and_shows_nothing_that_the_guard_compares(shown):
    masked = []
    for holds, tokens in ((True, 8), (np.bool_(False), 9)):
        shown.clear()
        options = dict(verdict="holds if", condition="texts are long", timing=True)
        claim("I9", "A cache is faster", holds=holds, tokens=tokens, times=[2.5, 1], **options)
        (entry,) = ledger(shown)
        assert entry["holds"] is bool(holds)
        assert entry["timing"] is True
        assert entry["values"] == {"tokens": tokens, "times": [2.5, 1]}
        assert "holds if texts are long" in shown[0]["data"]["text/plain"]
        assert ("not on this machine" in shown[0]["data"]["text/plain"]) is not bool(holds)
        masked.append(without_what_is_masked(shown))
    assert masked[0] == masked[1]
    assert "holds" not in "".join(masked[0])
    assert not re.search(r"[2589]\b", masked[0][1].removeprefix("I9"))


def test_other_claims_say_that_they_are_not_about_time(shown):
    claim("I2", "Entropy rises with temperature", holds=True, steps=3)
    assert ledger(shown)[0]["timing"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(holds=1, n=3), "must be one boolean"),
        (dict(holds=torch.tensor([True, False]), n=3), "must be one boolean"),
        (dict(holds=True), "no measured value"),
        (dict(holds=True, verdict="maybe", n=1), "must be one of"),
        (dict(holds=True, verdict="holds if", n=1), "condition"),
    ],
)
def test_malformed_claim_is_refused(shown, arguments, message):
    with pytest.raises(ValueError, match=message):
        claim("I1", "text", **arguments)


@pytest.mark.parametrize("id", ["i1", "I", "1", "I1ab", ""])
def test_malformed_id_is_refused(shown, id):
    with pytest.raises(ValueError, match="claim id"):
        claim(id, "text", holds=True, n=1)


def test_table_repeats_what_was_measured(shown):
    with pytest.raises(ValueError, match="no claim"):
        claims_table()
    claim("I1", "a | b", holds=True, verdict="holds if", condition="k is small", k=3)
    claims_table()
    table = shown[-1]["data"].data if hasattr(shown[-1]["data"], "data") else shown[-1]["data"]
    assert "a \\| b" in table
    assert "holds if k is small" in table
