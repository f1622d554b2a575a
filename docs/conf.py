"""Settings of the documentation site: ``make docs`` builds it into build/site."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import hftk  # noqa: E402

project = "hftk"
author = "the hftk authors"
release = hftk.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "docstrings"]
exclude_patterns = ["_build"]
smartquotes = False  # flags begin with two hyphens
nitpicky = False  # annotations name types of libraries whose inventories need a network

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}
# Types stand in annotations alone, so that a site can be built where these are not installed.
autodoc_mock_imports = ["torch", "transformers", "datasets", "accelerate", "peft", "bitsandbytes"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wrapped.css"]
html_title = f"hftk {release}"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "footer_icons": []}
html_search_language = "en"
