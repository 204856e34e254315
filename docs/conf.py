"""How Sphinx builds these pages: `uv run --group docs sphinx-build -W docs docs/_build`."""

project = "Kvorum"
author = "The Kvorum authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "Kvorum"
exclude_patterns = ["_build"]
default_role = "code"  # docstrings mark code as Markdown does
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
