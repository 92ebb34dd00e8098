"""The web site's own pages: the numbers that they work out are right."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
import toy_course

PAGE = (toy_course.ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def row(name: str) -> list[float]:
    """The numbers of the page's table row of this name."""
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    return [float(x.replace("−", "-")) for x in re.findall(r"−?\d+(?:\.\d+)?", line)]


def test_one_step_of_gradient_descent_is_what_torch_makes_of_it() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0], requires_grad=True)
    before, after = row("probabilities before"), row("probabilities after")
    for shown in (before, after):
        probabilities = 100 * logits.softmax(0)
        loss = F.cross_entropy(logits[None], torch.tensor([1]))
        assert shown == [*(round(p) for p in probabilities.tolist()), round(loss.item(), 2)]
        if shown is before:
            assert row("logits before") == logits.tolist()
            (slopes,) = torch.autograd.grad(loss, logits)
            gradient = row("gradient")  # its middle one is worked out: 0.24 − 1 = −0.76
            assert [gradient[0], *gradient[3:]] == [round(x, 2) for x in slopes.tolist()]
            logits = logits - slopes
            assert row("logits after") == [round(x, 2) for x in logits.tolist()]


def test_softmax_and_the_units_of_the_loss() -> None:
    powers = [row(name)[1] for name in ("sat", "ran", "slept")]
    assert powers == [round(math.exp(z), 2) for z in (2, 1, 0)]
    assert f"{sum(math.exp(z) for z in (2, 1, 0)):.2f}" == "11.11"
    assert round(1 / math.log(2), 2) == 1.44
    assert "1 nat is 1.44 bits" in PAGE


def test_every_page_is_in_the_table_of_contents() -> None:
    folder = toy_course.ROOT / "docs"
    index = (folder / "index.md").read_text(encoding="utf-8").split()
    pages = {path.stem for path in Path(folder).glob("*.md")} - {"index"}
    assert pages <= set(index)
