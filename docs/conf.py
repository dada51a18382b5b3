"""How Sphinx makes the reference of the docstrings: `make docs`."""

from importlib import metadata

project = "kdlab"
release = metadata.version("kdlab")
html_title = f"kdlab {release}"
html_show_copyright = html_show_sourcelink = False
html_theme_options = {"page_width": "1200px", "body_max_width": "900px"}
extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False  # PyTorch's words about every forward
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

# A name of kdlab that leads nowhere is an error; those of other packages are not linked.
nitpicky = True
nitpick_ignore_regex = [
    ("py:(attr|data)", "[A-Z_.]+"),  # constants are named, and not listed
    ("py:class", r"(PIL|collections|jaxtyping|numpy|pandas|pathlib|torch|tqdm|ultralytics)\..*"),
    ("py:class", r"DetectionModel|Module|Tensor|optional|kdlab\..*\.(Made|Objective)"),
]
