"""How Sphinx makes the site of these pages: `make docs`."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_site"))

import aiosmrt

FILES = "https://github.com/aiosmrt/aiosmrt/blob/main/"

project = "aiosmrt"
author = "the authors of aiosmrt"
copyright = author
release = version = aiosmrt.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference"]
exclude_patterns = ["_site"]

# Anchors as GitHub makes them.
myst_heading_anchors = 4

# `name` in a docstring links to it if it is public, and is code if it is not.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"aiosmrt {release}"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": "https://github.com/aiosmrt/aiosmrt/",
    "source_branch": "main",
    "source_directory": "docs/",
}


def files_of_the_repository(app, name, source):
    """Link to the files that are not part of the site where the repository shows them."""
    up = "../" * (name.count("/") + 1)
    source[0] = re.sub(rf"\]\({re.escape(up)}(?!\.\.)", f"]({FILES}", source[0])


def setup(app):
    app.connect("source-read", files_of_the_repository)
