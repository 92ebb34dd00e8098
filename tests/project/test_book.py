"""The web site: every notebook's stored outputs become a page, without a network."""

from __future__ import annotations

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


def test_stored_outputs_become_pages(tmp_path: Path) -> None:
    notebook = toy_course.notebook("# A title", "# $x^2$ in words", "print('⟨0.5⟩')")
    output = {"output_type": "stream", "name": "stdout", "text": "spread ⟨0.5⟩"}
    notebook["cells"][-1] |= {"outputs": [output], "execution_count": 1}
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
    assert "spread ⟨0.5⟩" in (site / "notebooks" / "00_a.html").read_text(encoding="utf-8")
    assert "A title" in (site / "index.html").read_text(encoding="utf-8")
    page = site / "api" / "course_utils" / "course_utils.inference.processors.html"
    assert "Notebook 09" in page.read_text(encoding="utf-8")
