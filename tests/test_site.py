"""A new user finds what is wanted by the site's search alone: a browser walks the built site.

It takes sphinx and Chromium. KDJAX_SITE names a site that is built already.
"""

import functools
import html
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.skipif(
        importlib.util.find_spec("sphinx") is None and "KDJAX_SITE" not in os.environ,
        reason="sphinx is not installed",
    ),
]
# What is looked for, the words that are typed, and what the page found must say. Two clicks each:
# into the search's field, and on one of its first three results.
SEARCHES = {
    "kd_loss in NNX": ("kd_loss nnx", "nnx.value_and_grad"),
    "a teacher of timm on a folder": ("timm folder", "--teacher.module"),
    "what TTM is, and when it helps": ("TTM", "whether they help"),
    "resuming on another mesh": ("another mesh", "continued on another mesh"),
    "checking a loss of one's own": ("check own loss", "check_loss(brier_loss)"),
}
# Loads pages at a width, and says how wide what is in them is.
PROBE = """<body><script>(async () => {
  const found = {};
  for (const page of PAGES) {
    const frame = document.createElement("iframe");
    frame.style = "width: WIDTHpx; height: 900px";
    const loaded = new Promise((resolve) => { frame.onload = resolve; });
    frame.src = page;
    document.body.append(frame);
    await loaded;
    await new Promise((resolve) => setTimeout(resolve, 100));
    found[page] = frame.contentDocument.documentElement.scrollWidth;
    frame.remove();
  }
  document.body.textContent = "<<" + JSON.stringify(found) + ">>";
})();</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site without its notebooks' figures, serve it; yield its folder and address."""
    folder = Path(os.environ.get("KDJAX_SITE") or tmp_path_factory.mktemp("site"))
    if "KDJAX_SITE" not in os.environ:
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
        command += ["-D", "nb_execution_mode=off", "docs", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def browsed(address, milliseconds=20_000):
    """Return what a page holds once its scripts have run, which may take so long."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--virtual-time-budget={milliseconds}", "--window-size=1280,1000", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=300).stdout


def plain(text):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split()).lower()


@pytest.mark.parametrize("wanted", SEARCHES)
def test_the_search_leads_there_in_two_clicks(site, wanted):
    folder, address = site
    words, phrase = SEARCHES[wanted]
    page = browsed(f"{address}/search.html?q={urllib.parse.quote(words)}")
    results = page.partition('class="search"')[2] or page
    links = dict.fromkeys(re.findall(r'<li[^>]*><a href="([^"#?]+)', results))
    assert links, f"nothing is found for {words}"
    for link in [*links][:3]:
        if phrase.lower() in plain((folder / link).read_text()):
            return
    raise AssertionError(f"{words}: {phrase} is in none of {[*links][:3]}")


def test_the_catalogue_is_searched_by_name_acronym_and_need(site):
    _, address = site
    counts = {}
    for words in ("", "minillm", "contrast bank", "no teacher", "nothing of the kind"):
        page = browsed(f"{address}/catalogue.html?find={urllib.parse.quote(words)}")
        counts[words] = int(re.search(r"<output[^>]*>(\d+) of \d+</output>", page)[1])
    assert counts[""] > 80 and counts["nothing of the kind"] == 0
    assert 1 <= counts["minillm"] <= 3 and 1 <= counts["contrast bank"] <= 3
    assert 2 <= counts["no teacher"] <= 6


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways(site, width):
    folder, address = site
    skipped = ("_static", "genindex", "py-modindex")
    pages = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.html"))]
    pages = [page for page in pages if not page.startswith(skipped) and page != "probe.html"]
    probe = PROBE.replace("PAGES", json.dumps(pages)).replace("WIDTH", str(width))
    (folder / "probe.html").write_text(probe)
    try:
        text = html.unescape(browsed(f"{address}/probe.html", 300_000))
    finally:
        (folder / "probe.html").unlink()
    found = json.loads(text.partition("<<")[2].partition(">>")[0])
    assert {page: wide for page, wide in found.items() if wide > width} == {}
