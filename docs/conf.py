"""Sphinx settings of the course as a web site: built from stored outputs, without a network."""

project = "LLMs, Measured"
author = "the LLMs, Measured authors"
extensions = ["myst_nb"]
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
