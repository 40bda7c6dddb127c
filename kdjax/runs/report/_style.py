"""Colors and typography, for plots and page, on light and on dark paper."""

import itertools
from collections.abc import Iterable

INK, MUTED, RULE = "#24292f", "#59636e", "#d8dde3"
PHASE_COLORS = {"teacher": "#6a7380", "scratch": "#c2560a", "distilled": "#0b6fb3"}
SOFT = "#7fb5da"
GREEN, PURPLE = "#1a7f37", "#8250df"
LINE_COLORS = (*(PHASE_COLORS[x] for x in ("distilled", "scratch")), GREEN, PURPLE,
               PHASE_COLORS["teacher"])  # fmt: skip


def colors_of(names: Iterable[str]) -> dict[str, str]:
    """Return a color for each name: kinds of trainings have their own, others take turns."""
    others = itertools.cycle(LINE_COLORS)
    return {name: PHASE_COLORS.get(name) or next(others) for name in names}


# The same colors on dark paper; orange and blue stay apart for every kind of color vision.
DARK = {
    INK: "#e6e8eb",
    MUTED: "#a0a8b2",
    RULE: "#363c45",
    PHASE_COLORS["teacher"]: "#9aa4b1",
    PHASE_COLORS["scratch"]: "#f0903c",
    PHASE_COLORS["distilled"]: "#56b0ec",
    SOFT: "#2f6c97",
    GREEN: "#57c26e",
    PURPLE: "#b993f5",
}

CSS = """
:root { color-scheme: light dark; --paper: #fdfdfc; --card: #f4f5f4; --ink: #24292f;
  --muted: #59636e; --rule: #d8dde3; --teacher: #6a7380; --scratch: #b34d06; --distilled: #0b6fb3; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --card: #1d2127; --ink: #e6e8eb; --muted: #a0a8b2; --rule: #363c45;
    --teacher: #9aa4b1; --scratch: #f0903c; --distilled: #56b0ec; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  overflow-wrap: break-word;
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 54rem; margin: 0 auto; padding: 3.5rem 1.25rem 5rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .8rem; letter-spacing: -.02em; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 .8rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
p { margin: 0 0 1rem; max-width: 42rem; }
.lede { font-size: 1.2rem; line-height: 1.5; color: var(--ink); }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; list-style: none; margin: 1.8rem 0 0;
  padding: 0; }
.tiles li { --accent: var(--muted); flex: 1 1 12rem; padding: 1rem 1.2rem; border-radius: .6rem;
  background: var(--card); border-left: .3rem solid var(--accent); }
.tiles strong { display: block; font-size: 2rem; line-height: 1.2; letter-spacing: -.02em;
  color: var(--accent); font-variant-numeric: tabular-nums; }
.tiles span { display: block; color: var(--muted); font-size: .9rem; line-height: 1.45; }
.tiles .name { color: var(--ink); font-weight: 600; }
.tiles .teacher { --accent: var(--teacher); } .tiles .scratch { --accent: var(--scratch); }
.tiles .distilled { --accent: var(--distilled); }
.scroll { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .45rem; text-align: right; vertical-align: bottom; }
td { white-space: nowrap; } td.words { white-space: normal; min-width: 11rem; }
th:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: .8125rem;
  border-bottom: 1px solid var(--ink); }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
tbody th { font-weight: 600; }
.note, figcaption { color: var(--muted); font-size: .925rem; line-height: 1.5; }
.note { margin-top: .7rem; }
.figures { display: grid; gap: 2.4rem 2.2rem; margin: 2.4rem 0; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
figure { margin: 0; max-width: 27rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .7rem; }
a { color: var(--distilled); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .45rem 1.4rem; margin: 0;
  font-size: .925rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .9em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media (max-width: 34rem) {
  main { padding-top: 2rem; } h1 { font-size: 1.7rem; } .lede { font-size: 1.1rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .7rem; }
  th:first-child { white-space: normal; min-width: 6rem; }
  .few thead, .few td:empty { display: none; } .few tr { display: block; padding: .7rem 0; }
  .few tr > * { display: flex; justify-content: space-between; gap: 1rem; padding: .1rem 0; }
  .few td::before { content: attr(data-name); color: var(--muted); text-align: left;
    white-space: normal; }
  .few tbody tr > * { border: 0; } .few tbody tr + tr { border-top: 1px solid var(--rule); } }
@media print {
  body { font-size: 10pt; background: none; } main { max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; } .tiles li, figure, tr { break-inside: avoid; }
  .tiles li { border: 1px solid var(--rule); border-left: .3rem solid var(--accent); }
  .scroll { overflow: visible; } figure { max-width: 19rem; } figcaption a { display: none; } }
"""
