"""The web site: every notebook's stored outputs become a page, without a network."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toy_course

from course_utils.runner import canonical

pytest.importorskip("myst_nb", reason="the book's own packages are installed by make book")
pytest.importorskip("sphinx_book_theme")
pytest.importorskip("autodoc2")

# Any attempt to open a connection ends the build.
OFFLINE = (
    "import socket, sys\n"
    "def refuse(*a, **k): raise OSError('the book must build without a network')\n"
    "socket.socket.connect = refuse\nsocket.getaddrinfo = refuse\n"
    "from sphinx.cmd.build import main\nsys.exit(main(sys.argv[1:]))"
)

PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
# A claim whose texts would be markup, were they not kept from it.
CLAIM = {
    "id": "X1",
    "kind": "measured",
    "text": "It costs $5 or *less*, $6 | at most [1](2)",
    "notes": "it costs <b>a lot</b>",
    "verdict": "holds if `a_b` is {c}",
    "scope": "# one model",
    "holds": True,
    "values": {"price": 5.25},
    "null": {"null: random": {"measured": 0.125}},
}


def test_stored_outputs_become_pages(tmp_path: Path) -> None:
    notebook = toy_course.notebook(
        "# A title", "# $x^2$ [in words](../docs/training.md)", "print('⟨0.5⟩')"
    )
    output = {"output_type": "stream", "name": "stdout", "text": "spread ⟨0.5⟩"}
    box = toy_course.data(text_plain="X1") | {"metadata": {"claim": CLAIM}}
    picture = toy_course.data() | {"data": {"image/png": PICTURE, "text/plain": "<Figure>"}}
    picture["metadata"] = {"image/png": {"alt": "Line chart: it falls."}}
    notebook["cells"][-1] |= {"outputs": [output, box, picture], "execution_count": 1}
    notebook["metadata"]["language_info"] = canonical.LANGUAGE
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(toy_course.ROOT / "docs", source)
    shutil.copytree(toy_course.ROOT / "course_utils", source / "course_utils")
    (source / "notebooks").mkdir()
    (source / "notebooks" / "00_a.ipynb").write_text(json.dumps(notebook))
    build = ["-W", "-q", "-b", "html", str(source), str(site)]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *build], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    shown = (site / "notebooks" / "00_a.html").read_text(encoding="utf-8")
    assert "spread ⟨0.5⟩" in shown
    assert 'href="../training.html"' in shown
    assert 'alt="Line chart: it falls."' in shown
    assert "A title" in (site / "index.html").read_text(encoding="utf-8")
    ledger = (site / "ledger.html").read_text(encoding="utf-8")
    for part in ("$5 or *less*, $6 | at most [1](2)", "&lt;b&gt;a lot", "`a_b` is {c}", "# one m"):
        assert part in ledger
    assert "null: random: 0.125" in ledger
    assert "held / runs: –" in ledger
    assert "What training is" in (site / "training.html").read_text(encoding="utf-8")
    page = site / "api" / "course_utils" / "course_utils.inference.processors.html"
    assert "Notebook 09" in page.read_text(encoding="utf-8")
