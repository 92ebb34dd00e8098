"""Sphinx settings of the course as a web site: built from stored outputs, without a network.

`make book` lays the package beside this file; its modules become the pages under api/.
"""

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
