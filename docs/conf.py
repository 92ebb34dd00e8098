"""Sphinx settings of the course as a web site: built from stored outputs, without a network.

`make book` lays the package and the notebooks beside this file; the package's modules become the
pages under api/, and the claims of the notebooks the ledger.
"""

import json
from pathlib import Path

from astroid.builder import AstroidBuilder

from course_utils.runner import ledger_page, notebooks

# The pages are made from what stands in the package. To know of attributes that are set elsewhere,
# the reader would follow a tokenizer's through all of transformers, for minutes.
AstroidBuilder.delayed_assattr = lambda self, node: None

HERE = Path(__file__).parent
COURSE = next((up for up in HERE.parents if notebooks.is_root(up / "pyproject.toml")), HERE)
(HERE / "ledger.md").write_text(ledger_page.page(HERE, COURSE), encoding="utf-8")

project = "LLMs, Measured"
author = "the LLMs, Measured authors"
extensions = ["myst_nb", "autodoc2"]
autodoc2_packages = [
    {
        "path": "course_utils",
        "auto_mode": True,
        "exclude_dirs": ["checks", "recipes", "runner"],
        "exclude_files": ["cli.py", "sandbox_child.py"],
    }
]
autodoc2_index_template = None
autodoc2_output_dir = "api"
autodoc2_render_plugin = "myst"
autodoc2_docstring_parser_regexes = [(".*", "myst")]
autodoc2_hidden_objects = ["inherited", "private", "dunder", "undoc"]
html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_toc_level": 2}
html_show_copyright = False
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
# Notebooks link to files of the repository that are no pages of the site.
suppress_warnings = ["myst.xref_missing"]


def setup(app):
    """Hand what notebooks know on to the site."""
    app.connect("source-read", from_the_repository)


def from_the_repository(app, name, source):
    """Links to this folder, which is above the notebooks here; and pictures' alt text.

    The site takes the text from a cell's metadata, where a notebook keeps it with the picture.
    """
    if not name.startswith("notebooks/"):
        return
    notebook = json.loads(source[0].replace("](../docs/", "](../"))
    for cell in notebook["cells"]:
        about = (output.get("metadata", {}) for output in cell.get("outputs", []))
        words = [each["image/png"]["alt"] for each in about if "alt" in each.get("image/png", {})]
        if words:
            cell["metadata"]["mystnb"] = {"image": {"alt": " ".join(words)}}
    source[0] = json.dumps(notebook)
