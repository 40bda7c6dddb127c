"""The site: `python -m sphinx -W --keep-going docs site`, after `pip install -e '.[docs]'`."""

import configparser
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "_ext")]
# Notebooks run in processes of their own, on the same sources.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from kdjax import __version__  # noqa: E402

# The address of the repository has one place, setup.cfg.
_package = configparser.ConfigParser()
_package.read(ROOT / "setup.cfg")
repository = _package["metadata"]["url"]

project, author, release = "kdjax", _package["metadata"]["author"], __version__
copyright = f"2026, {author}"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "api",
    "docstrings",
    "links",
    "notebooks",
]
exclude_patterns = ["_build", "results/*"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_preserve_defaults = True
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _reachable(address: str) -> bool:
    """Whether an inventory answers: without a network the site builds without its links."""
    try:
        with urllib.request.urlopen(f"{address}objects.inv", timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError):
        print(f"{address} does not answer: no links to it")
        return False


intersphinx_mapping = {
    name: (address, None)
    for name, address in {
        "jax": "https://docs.jax.dev/en/latest/",
        "flax": "https://flax.readthedocs.io/en/latest/",
        "optax": "https://optax.readthedocs.io/en/latest/",
    }.items()
    if _reachable(address)
}

html_theme = "sphinx_book_theme"
html_title = "kdjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["tables.js"]
html_theme_options = {
    "repository_url": repository,
    "repository_branch": "main",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_issues_button": True,
    "home_page_in_toc": False,
    "show_navbar_depth": 1,
    "max_navbar_depth": 3,
    "show_toc_level": 2,
}
