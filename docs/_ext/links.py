"""Links: names in code lead to the API, files of the repository to it, and none leads nowhere."""

import configparser
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from api import parts
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).parents[2]
# Pages of the site that are files at the repository's root.
OUTSIDE = {"results": "RESULTS.md", "changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
# They name everything, and explain nothing.
UNSEARCHED = {"changelog", "golden"}
logger = logging.getLogger(__name__)


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    """Take pages from the root, and lead links to files beside docs/ where a reader can go."""
    text = source[0]
    if page in OUTSIDE:
        text = re.sub(r"\]\(docs/", "](", (ROOT / OUTSIDE[page]).read_text())
    if page in UNSEARCHED:
        text = f"---\nnosearch: true\n---\n\n{text}"
    for name, file in OUTSIDE.items():
        text = re.sub(rf"\]\((?:\.\./)*{file}", f"](/{name}.md", text)
    source[0] = re.sub(
        r"\]\((?:\.\./)+((?:kdjax|experiments|benchmarks|tests|docs)/[^)]+|README.md|setup.cfg)\)",
        rf"]({_repository()}/blob/main/\1)",
        text,
    )


def _repository() -> str:
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg")
    return package["metadata"]["url"]


def _names() -> dict[str, tuple[str, str]]:
    """Return what code may name: `losses.kd_loss`, and `kd_loss` where only one part has it."""
    found: dict[str, set[tuple[str, str]]] = {}
    for part, module in parts().items():
        for own in module.__all__:
            short = part.removeprefix("kdjax.")
            for name in (f"{part}.{own}", f"{short}.{own}", own):
                found.setdefault(name, set()).add((f"{part}.{own}", "obj"))
        found.setdefault(part, set()).add((part, "mod"))
    found["kdjax.runs"] = {("kdjax.runs", "mod")}
    return {name: next(iter(to)) for name, to in found.items() if len(to) == 1}


def _refer(app: Sphinx, tree: nodes.document) -> None:
    """Make links of the names of kdjax in the running text."""
    names = _names()
    for node in list(tree.findall(nodes.literal)):
        target = names.get(node.astext().partition("(")[0])
        inside = node.parent
        while inside is not None and not isinstance(
            inside, nodes.reference | nodes.title | addnodes.pending_xref | addnodes.desc_signature
        ):
            inside = inside.parent
        if target is None or inside is not None or node.get("classes"):
            continue
        reference = addnodes.pending_xref(
            "", refdomain="py", reftype=target[1], reftarget=target[0], refexplicit=True,
            refdoc=app.env.current_document.docname, refwarn=False,
        )  # fmt: skip
        node.replace_self(reference)
        reference += node


class _Page(HTMLParser):
    """The places of a page, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.places |= {v for name in ("id", "name") if (v := found.get(name))}
        self.links |= {v for name in ("href", "src") if (v := found.get(name))}


def broken(folder: Path) -> list[str]:
    """Return the links of a built site that lead to no file, or to no place in it."""
    found = sorted(path for path in folder.rglob("*.html") if "_static" not in path.parts)
    pages = {path: _Page(path.read_text()) for path in found}
    wrong = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parsed = urlsplit(link)
            if parsed.scheme or parsed.netloc:
                continue
            target = (path.parent / unquote(parsed.path)).resolve() if parsed.path else path
            place = unquote(parsed.fragment)
            lost = place and target in pages and place not in pages[target].places
            if not target.exists() or lost:
                wrong.append(f"{path.relative_to(folder)}: {link}")
    return wrong


def _check(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        for link in broken(Path(app.outdir).resolve()):
            logger.warning("a link that leads nowhere: %s", link)


def setup(app: Sphinx) -> dict[str, bool]:
    """Read, refer, and check what was built."""
    app.connect("source-read", _read)
    app.connect("doctree-read", _refer)
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True}
