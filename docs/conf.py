"""How Sphinx builds the documentation; scripts/build_docs.sh runs it, warnings are errors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extension"))

import dmamba  # noqa: E402

project = "DMamba"
author = "DMamba contributors"
release = dmamba.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "dmamba_pages",
]
exclude_patterns = ["search.md"]  # searching.md shows it: search.html is Sphinx's own page
nitpicky = True  # a reference to a name that is not documented is a warning
nitpick_ignore = [
    ("py:class", "dmamba.envs.Returns"),
    ("py:class", "dmamba.reporting.canvas.Figure"),
    ("py:class", "dmamba.reporting.tables.Table"),
]

html_theme = "furo"
html_title = f"DMamba {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_copyright = False
pygments_style = "tango"
pygments_dark_style = "monokai"

myst_heading_anchors = 4  # with the names that a git host gives them

smartquotes_action = "D"  # dashes alone: '' in a default means what it says
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
