"""The table, the plots and the page, on small invented runs."""

import base64
import json
import os
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest

from kdjax.runs import report
from kdjax.runs.workdir import MetricsLog

LABELS = ["zero", "one", "two"]


def entry(errors, num_params=2410, num_test=450):
    accuracy = [1 - e / num_test for e in errors]
    return {
        "num_params": num_params,
        "test_errors": list(errors),
        "accuracy": accuracy,
        "nll": [4.5 * e / num_test for e in errors],
        "ece": [0.45 * e / num_test for e in errors],
        "agreement": accuracy,
        "params_sha256": ["0" * 64 for _ in errors],
    }


def make_summary(scratch=(40, 44, 42), distilled=(20, 22, 24)):
    return {
        "teacher": entry([3], 1_185_002),
        "scratch": entry(scratch),
        "distilled": entry(distilled),
    }


def make_rows(num_seeds=2, *, loss_scale=1.0):
    rows = []
    for phase, seeds in {"teacher": 1, "scratch": num_seeds, "distilled": num_seeds}.items():
        for seed in range(seeds):
            for step in (10, 20, 30):
                loss = loss_scale * (2.0 + seed) / step
                row = {"phase": phase, "seed": seed, "step": step, "accuracy": 1 - 1 / step}
                rows.append({**row, "split": "train", "loss": 9 * loss, "loss/hard": loss})
                rows.append({**row, "split": "validation", "loss": loss})
    return rows


def make_pictures(channels=1, num_classes=3, num_images=4):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, 8, 8, channels), dtype=np.uint8)
    labels = np.arange(num_images) % num_classes
    return images, labels, rng.normal(size=(num_images, num_classes))


def draw_all():
    images, labels, logits = make_pictures()
    pictures = report.plot_dark_knowledge(images, labels, logits, LABELS, 4.0)
    return {
        "errors": (report.plot_errors(make_summary()), "Errors & seeds."),
        "dark_knowledge": (pictures, "Images beside probabilities."),
    }


def write(directory, **changes):
    arguments = {
        "title": "Distillation on <digits>",
        "summary": make_summary(),
        "notes": {"Networks": "a < b"},
        "facts": {"Command": "python -m experiments.distill --data.name 'x' && <y>"},
    }
    page = report.distillation_page(**{**arguments, **changes})
    return report.write_page(directory / "report.html", page)


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_table_has_mean_and_sample_deviation():
    lines = report.format_table(make_summary()).splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == [
        "parameters", "test errors", "accuracy %", "NLL (nats)", "calib. error %", "agreement %",
    ]  # fmt: skip
    teacher, scratch, distilled = lines[2:5]
    assert teacher.split() == ["teacher", "1,185,002", "3", "99.33", "0.0300", "0.30", "99.33"]
    assert scratch.split() == [
        "scratch", "2,410", "42.0", "±", "2.0", "90.67", "±", "0.44", "0.4200", "±", "0.0200",
        "4.20", "±", "0.20", "90.67", "±", "0.44",
    ]  # fmt: skip
    assert distilled.split()[2:5] == ["22.0", "±", "2.0"]
    assert "3 seeds" in lines[-1]


def test_table_is_aligned_narrow_plain_text():
    summary = {
        "teacher": entry([3518], 11_173_962, 10_000),
        "scratch": entry([4500, 4611], 78_042, 10_000),
        "distilled": entry([4301, 4555], 78_042, 10_000),
    }
    lines = report.format_table(summary).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    assert lines[3].index("±") == lines[4].index("±")
    assert "\x1b" not in "".join(lines)


def test_table_of_one_seed_has_no_deviation():
    table = report.format_table(make_summary([40], [20]))
    assert "±" not in table
    assert "one seed" in table.splitlines()[-1]


def test_html_table_has_the_numbers_of_the_text(tmp_path):
    page = Page(write(tmp_path).read_text())
    cells = [line for line in page.text.splitlines() if line]
    assert len(page.all("tr")) == 4
    for cell in ("1,185,002", "42.0 ± 2.0", "90.67 ± 0.44", "0.4200 ± 0.0200", "4.20 ± 0.20"):
        assert cell in cells


def test_trainings_are_given_in_numbers(tmp_path, undrawn):
    text = Page(write(tmp_path, rows=make_rows()).read_text()).text
    # The last losses of the labels are 2/30 and 3/30, not the nine times larger totals.
    assert "0.0833 ± 0.0236" in text
    assert "96.67 ± 0.00" in text
    rows = [{k: v for k, v in row.items() if k != "loss/hard"} for row in make_rows()]
    assert "0.7500 ± 0.2121" in Page(write(tmp_path, rows=rows).read_text()).text


@pytest.mark.parametrize(
    ("scratch", "distilled", "sentence"),
    [
        ((40, 44), (20, 22), "makes 21 test errors on average, 50% fewer than"),
        ((40, 44), (38, 44), "labels alone (42); seeds alone differ by as much."),
        ((40,), (50,), "makes 50 test errors, 25% more than"),
        ((40,), (40,), "both make 40 test errors"),
        ((0,), (2,), "makes 2 test errors, 2 more than"),
    ],
)
def test_page_says_what_came_out(tmp_path, scratch, distilled, sentence):
    page = write(tmp_path, summary=make_summary(scratch, distilled))
    assert sentence in page.read_text()


def test_metrics_come_back_without_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log, rows = MetricsLog(path), make_rows()
    assert log.rows() == []
    whole = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(whole.encode() + b'{"phase": "teacher", "loss": 0.\xff')
    assert log.rows() == rows
    path.write_text(whole + "17")
    assert log.rows() == rows
    path.write_text("")
    assert log.rows() == []


def test_lines_that_were_read_are_read_once_and_are_the_readers_own(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log, parsed, loads = MetricsLog(path), [], json.loads
    monkeypatch.setattr(json, "loads", lambda line: parsed.append(line) or loads(line))
    log.append(phase="kd", seed=0, step=1)
    log.rows()[0]["step"] = 9
    log.append(phase="kd", seed=0, step=2)
    assert [row["step"] for row in log.rows()] == [1, 2] and len(parsed) == 2
    # A line that was torn when it was read is whole, or damaged, by what comes behind it.
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert [row["step"] for row in log.rows()] == [1]
    path.write_bytes(whole)
    assert [row["step"] for row in log.rows()] == [1, 2]
    path.write_bytes(whole[:-9] + b"}\n")
    assert [row["step"] for row in log.rows()] == [1]
    log.rewind("kd", 0, 0)
    assert log.rows() == MetricsLog(path).rows() == []


def lines_of(axes, style):
    return [
        line for line in axes.get_lines() if line.get_linestyle() == style and len(line.get_xdata())
    ]


def test_curves_show_every_seed_and_their_mean():
    figure = report.plot_curves(make_rows())
    loss, accuracy = figure.axes
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "Teacher", "Student, labels alone", "Student, distilled", "training", "validation",
    ]  # fmt: skip
    # A teacher, two students and their mean twice: for training and for validation.
    assert len(lines_of(accuracy, "-")) == len(lines_of(accuracy, "--")) == 7
    mean = lines_of(loss, "--")[3]
    assert mean.get_color() == legend.get_lines()[1].get_color()
    np.testing.assert_allclose(mean.get_xdata(), [10, 20, 30])
    np.testing.assert_allclose(mean.get_ydata(), 2.5 / np.array([10, 20, 30]))
    np.testing.assert_allclose(lines_of(accuracy, "-")[-1].get_ydata()[-1], 100 - 100 / 30)
    assert figure.rows[0] == ["phase", "seed", "split", "step", "loss", "loss/hard", "accuracy"]
    assert figure.rows[1] == ["teacher", 0, "train", 10, 1.8, 0.2, 0.9]
    assert len(figure.rows) == 1 + len(make_rows())


def test_curves_of_other_trainings_have_their_names_and_colors():
    rows = [{**r, "phase": {"scratch": "generation_1"}.get(r["phase"], r["phase"])}
            for r in make_rows()]  # fmt: skip
    (legend,) = report.plot_curves(rows).legends
    names = [text.get_text() for text in legend.get_texts()][:3]
    assert names == ["Teacher", "Student, distilled", "Generation 1"]
    assert report.trainings(rows)[0].tables[0].rows[2][0] == "Generation 1"
    assert report.trainings([]) == []


def test_seeds_are_averaged_where_all_have_arrived():
    rows = [r for r in make_rows() if (r["phase"], r["seed"], r["step"]) != ("scratch", 1, 30)]
    mean = lines_of(report.plot_curves(rows).axes[0], "-")[3]
    assert list(mean.get_xdata()) == [10, 20]


@pytest.mark.parametrize(("spread", "scale"), [(1.0, "linear"), (1000.0, "log")])
def test_losses_over_decades_are_drawn_logarithmically(spread, scale):
    rows = make_rows()
    rows[-1] = {**rows[-1], "loss": rows[-1]["loss"] * spread}
    assert report.plot_curves(rows).axes[0].get_yscale() == scale


def test_a_loss_of_zero_stays_on_the_axis():
    rows = [*make_rows(), {**make_rows()[0], "step": 40, "loss/hard": 0.0, "loss": 0.0}]
    assert report.plot_curves(rows).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row for row in make_rows() if row["split"] == "train"],
        [row for row in make_rows(1) if row["phase"] == "teacher" and row["step"] == 10],
        [{**row, "loss": float("nan")} for row in make_rows()],
    ],
    ids=["nothing", "no validation", "one point", "nan"],
)
def test_pages_of_unusual_rows(tmp_path, rows):
    write(tmp_path, rows=rows)
    assert (tmp_path / "curves.png").exists() == bool(rows)


def test_errors_are_drawn_seed_by_seed():
    figure = report.plot_errors(make_summary())
    (axes,) = figure.axes
    points = {line.get_label(): line for line in axes.get_lines()}
    assert list(points["Student, labels alone"].get_xdata()) == [40, 44, 42]
    assert list(points["Student, distilled"].get_xdata()) == [20, 22, 24]
    assert set(points["Teacher"].get_xdata()) == {3}
    assert "40 and 20; 44 and 22; 42 and 24. Teacher: 3" in figure.get_label()


def bars(figure):
    return np.array([patch.get_width() for patch in figure.axes[0].patches])


def test_dark_knowledge_is_drawn_and_said():
    images, labels, _ = make_pictures()
    logits = np.log(np.tile([[0.90, 0.09, 0.01]], (4, 1)))
    figure = report.plot_dark_knowledge(images, labels, logits, LABELS, 2.0)
    roots = np.sqrt([0.90, 0.09, 0.01])
    soft = 100 * roots / roots.sum()
    assert figure.rows[0] == ["image", "label", "class", "T = 1 (%)", "T = 2 (%)"]
    assert figure.rows[2][:4] == [0, "zero", "one", 9] and len(figure.rows) == 1 + 4 * 3
    np.testing.assert_allclose([row[4] for row in figure.rows[1:4]], soft, atol=1e-4)
    # The longest of a column is as long as there is room.
    drawn = bars(figure)
    np.testing.assert_allclose(drawn[:3] / drawn[0], [1, 0.1, 0.01 / 0.9])
    np.testing.assert_allclose(drawn[3:6] / drawn[3], soft / soft[0])
    assert (
        "zero: T = 1 zero 90 %, one 9 %, two 1 %; T = 2 zero 70 %, one 22 %" in figure.get_label()
    )
    assert len(figure.axes[0].images) == 4


def test_pictures_show_the_five_likeliest_of_many_classes():
    images, labels, logits = make_pictures(channels=3, num_classes=20)
    names = [f"$class_{c}$ of many" for c in range(20)]
    figure = report.plot_dark_knowledge(images, labels, logits, names, 1.0)
    likeliest = sorted(np.argsort(-logits[0])[:5])
    assert [row[2] for row in figure.rows[1:6]] == [names[c] for c in likeliest]
    # T = 1 twice is one column.
    assert len(bars(figure)) == 4 * 5
    figure.savefig(os.devnull, format="png")


def test_the_worst_disagreements_are_shown_with_both_distributions():
    images, labels, teacher = make_pictures(num_images=9)
    student = teacher.copy()
    student[[4, 7]] = [[0, 0, 9], [9, 0, 0]]
    teacher[[4, 7]] = [[9, 0, 0], [3, 0, 0]]
    assert list(report.select_disagreements(teacher, student)[:2]) == [4, 7]
    figure = report.plot_disagreements(images, labels, teacher, student, LABELS)
    assert figure.rows[0][3:] == ["Teacher (%)", "Student (%)"] and len(figure.rows) == 1 + 6 * 3
    assert (
        figure.rows[1][:3] == [0, "one", "zero"] and figure.rows[1][3] > 99 > 1 > figure.rows[1][4]
    )
    assert "Label one: Teacher zero 100 %" in figure.get_label()


def test_one_logit_is_a_distribution_over_two_classes():
    images, labels = make_pictures(num_classes=2)[:2]
    logits = np.log([[9.0], [1 / 9], [9.0], [1.0]])
    figure = report.plot_disagreements(images, labels, logits, -logits, LABELS[:2])
    found = {row[2]: row[3] for row in figure.rows[1:3]}
    assert found["one"] == pytest.approx(90) or found["one"] == pytest.approx(10)
    own = report.judged(logits, labels)
    np.testing.assert_allclose(own.confidence, [0.9, 0.9, 0.9, 0.5], rtol=1e-6)
    assert list(own.correct) == [False, False, False, False]
    lost = report.judged(np.full((4, 3), np.nan), labels)
    assert report.calibration_table({"scratch": lost}).rows[0][0] == "Labels alone"


def answers_of(rate, num=450, *, seed=0):
    """Return a network that says 80 % of every example and is right about `rate` of them."""
    correct = np.random.default_rng(seed).permutation(num) < rate * num
    return report.Judged(np.full(num, 0.8, np.float32), correct)


def test_calibration_stands_beside_what_chance_shows():
    networks = {"teacher": answers_of(0.79), "scratch": answers_of(0.6), "distilled": answers_of(1)}
    table = report.calibration_table(networks)
    assert [row[1] for row in table.rows] == ["0.89", "20.00", "20.00"]
    assert [row[3] for row in table.rows] == [
        "not distinguishable from calibrated", "overconfident", "underconfident",
    ]  # fmt: skip
    low, high = map(float, table.rows[0][2].split(" to "))
    assert low < 1 < high < 5 and "450 examples" in table.note
    figure = report.plot_reliability(networks)
    assert figure.rows[0] == ["network", "examples", "confidence", "accuracy", "low", "high"]
    phase, count, sure, right, least, most = figure.rows[2]
    assert (phase, count, sure, right) == ("scratch", 450, 80, 60) and least < 80 < most < 86
    assert "Student, labels alone: 80.0 % sure on average, 60.0 % right" in figure.get_label()


def test_a_gain_has_an_interval():
    scratch, distilled = (
        [answers_of(rate, seed=s).points for s in range(3)] for rate in (0.8, 0.9)
    )
    note = report.difference_note(scratch, distilled)
    assert note.startswith("Against labels alone: +10.00 points of accuracy, 95 % interval +")
    assert note.endswith("by paired bootstrap over the 450 test examples and the 3 seeds.")
    alone = report.difference_note(scratch[:1], scratch[:1])
    assert report.difference_note([np.zeros(3)], [np.ones(3)]) == ""
    assert "450 test examples alone: there is one seed. Chance alone may make" in alone


def test_instructive_images_are_sure_and_of_different_classes():
    log = np.log
    probabilities = np.array(
        [
            [0.95, 0.049, 0.001],  # 0: sure, close to another class
            [0.95, 0.026, 0.024],  # 1: as sure, less so
            [0.01, 0.98, 0.01],  # 2: the only sure one of class 1
            [0.60, 0.39, 0.01],  # 3: doubts
            [0.95, 0.049, 0.001],  # 4: wrong
            [0.001, 0.004, 0.995],  # 5: the only one of class 2, dull
        ]
    )
    labels = [0, 0, 1, 0, 2, 2]

    def choose(n):
        return list(report.select_instructive(log(probabilities), labels, 4.0, num_images=n))

    assert set(choose(3)) == {0, 2, 5}
    assert choose(3)[0] == 0
    assert choose(4)[3] == 1
    assert set(choose(6)[4:]) == {3, 4}
    assert len(choose(99)) == 6


def test_page_is_self_contained(tmp_path):
    path = write(tmp_path, figures=draw_all())
    assert path == tmp_path / "report.html"
    names = ("dark_knowledge", "errors")
    pictures = {f"{name}.{kind}" for name in names for kind in ("png", "svg", "csv")}
    assert {other.name for other in tmp_path.iterdir()} == {path.name, *pictures}
    for name in names:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
    text = path.read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    embedded = re.sub(r'(src|href)="data:[^"]*"', "", text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|href", embedded)
    images, links = page.all("img"), page.all("a")
    assert len(images) == len(links) == 2
    for link in links:
        kind, data = link["href"].split(";base64,")
        whole = base64.b64decode(data, validate=True)
        assert kind == "data:text/csv" and whole == (tmp_path / link["download"]).read_bytes()
    assert whole.decode().splitlines()[1].startswith("0,zero,zero,")
    for image in images:
        kind, data = image["src"].split(";base64,")
        assert kind == "data:image/svg+xml"
        svg = base64.b64decode(data, validate=True).decode()
        assert "prefers-color-scheme: dark" in svg
        assert "#24292f" not in svg.split("</style>", 1)[1]
        assert not re.search(r'href="(?!#|data:)', svg)
        assert len(image["alt"]) > 40 and re.search(r"\d", image["alt"])
    assert "prefers-color-scheme: dark" in text
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert page.all("html") == [{"lang": "en"}]


def test_page_escapes_and_shows_what_it_is_given(tmp_path):
    figures = {"errors": (report.plot_errors(make_summary()), "Errors & seeds.")}
    page = Page(write(tmp_path, figures=figures).read_text())
    for text in (
        "Distillation on <digits>",
        "Errors & seeds.",
        "a < b",
        "python -m experiments.distill --data.name 'x' && <y>",
        "42.0 ± 2.0",
    ):
        assert text in page.text


def test_the_same_run_gives_the_same_page(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()

    def page(name):
        figures = {"errors": (report.plot_errors(make_summary()), "Errors.")}
        return write(tmp_path / name, figures=figures).read_bytes()

    assert page("first") == page("second")


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    before = write(tmp_path).read_bytes()

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path, title="New")
    assert (tmp_path / "report.html").read_bytes() == before


def test_all_but_the_summary_may_be_left_out(tmp_path):
    page = report.distillation_page("Bare", make_summary(), notes={"Chosen": "by hand"})
    text = Page(report.write_page(tmp_path / "report.html", page).read_text()).text
    assert "Chosen" in text
    assert "by hand" in text
    assert "How to have it again" not in text


def test_what_was_found_is_written_and_printed_once(tmp_path, capsys):
    table = report.Table(("method", "test %"), [("kd", "97.1 ± 0.2"), ("scratch", "95.0")])
    figure = report.plot_dots({"kd": [96.9, 97.3], "scratch": [95.0]}, xlabel="test accuracy (%)")
    figures, facts = {"dots": (figure, "A dot is a seed.")}, {"Command": "python"}
    notes = ["Plain.", ("Headed", "Text of `a < b`.")]

    def page():
        return report.results_page("Ways", "One helps.", table, figures, facts, notes=notes)

    summary = {"kd": 97.1, "lost": [float("nan"), float("inf")]}
    report.publish(tmp_path, summary, table, page, summary_name="all.json")
    page = Page((tmp_path / "report.html").read_text())
    assert [line.strip() for line in page.text.splitlines() if line][-19:] == [
        "Ways", "One helps.", "Results on the test set", "method", "test %", "kd", "97.1 ± 0.2",
        "scratch", "95.0", "A dot is a seed.", "Its numbers (CSV)", "Plain.", "Headed",
        "Text of", "a < b", ".", "How to have it again", "Command", "python",
    ]  # fmt: skip
    assert "<code>a &lt; b</code>" in (tmp_path / "report.html").read_text()
    alt = "test accuracy (%), means: kd: 97.10; scratch: 95.00."
    assert page.all("img")[0]["alt"] == alt
    # An earlier run's figure, with its numbers and what they say.
    section = report.Section(figures={"dots": (tmp_path / "dots.svg", "Again.")})
    again = Page(
        report.write_page(tmp_path / "all.html", report.Page("All", [section])).read_text()
    )
    assert again.all("img")[0]["alt"] == alt and again.all("a")[0]["download"] == "dots.csv"
    written = json.loads((tmp_path / "all.json").read_text(), parse_constant=pytest.fail)
    assert written == {"kd": 97.1, "lost": [None, None]}
    assert capsys.readouterr().out == (
        "\nmethod   test %\nkd       97.1 ± 0.2\nscratch  95.0\n"
        f"\nreport: {tmp_path / 'report.html'}\n"
    )


def test_numbers_are_safe_before_a_plot_fails(tmp_path, capsys):
    def page():
        raise ValueError("a plot of nothing")

    with pytest.raises(ValueError, match="a plot of nothing"):
        report.publish(tmp_path, {"kd": 97.1}, "the table", page)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"kd": 97.1}
    assert capsys.readouterr().out == "\nthe table\n"


def test_what_is_not_finite_is_drawn_and_written_all_the_same(tmp_path):
    nan = float("nan")
    lost, rows = [None, nan, nan], [{**r, "loss": None, "loss/hard": None} for r in make_rows()]
    summary = make_summary()
    summary["scratch"] = {**summary["scratch"], "nll": lost, "ece": lost}
    assert "nan" in report.format_table(summary)
    line = report.Line([1, 2, 3], [0.5, -1.0, 4.0])
    figures = {
        "lines": (report.plot_lines({"a": line}, xlabel="x", ylabel="y", log_y=True), "Lines."),
        "none": (
            report.plot_lines(
                {"a": line._replace(y=[nan] * 3)}, xlabel="x", ylabel="y", log_y=True
            ),
            "None.",
        ),
        "dots": (report.plot_dots({"kd": [nan, 2.0]}, xlabel="x", baseline=nan), "Dots."),
    }
    assert "nan" in write(tmp_path, summary=summary, rows=rows, figures=figures).read_text()


def test_lines_of_the_log_are_json_whatever_was_measured(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        log.append(phase="kd", seed=0, step=step, loss=float("nan"), seconds=2.0 * step)
    log.append(phase="teacher", seed=0, step=1, loss=float("inf"), seconds=3.0)
    log.rewind("kd", 0, 2)
    text = (tmp_path / "metrics.jsonl").read_text()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [row["loss"] for row in rows] == [None] * 3
    assert log.total_seconds() == 7.0


def test_nothing_is_wider_than_a_phone(tmp_path):
    text = write(tmp_path, figures=draw_all()).read_text()
    fixed = re.findall(r"[^-](?:min-)?width: ?([\d.]+)(rem|px|in|pt)", text)
    pixels = {"rem": 16, "px": 1, "in": 96, "pt": 4 / 3}
    assert all(float(number) * pixels[unit] <= 390 for number, unit in fixed)
    for image in Page(text).all("img"):
        assert "width" not in image
        svg = base64.b64decode(image["src"].partition(",")[2]).decode()
        # Drawn as wide as it is seen: its text keeps its size.
        assert float(re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)[1]) * 4 / 3 <= 390


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="it asks Chromium, as `chromium`")
def test_a_browser_scrolls_no_page_sideways(tmp_path):
    long = "a-name-without-a-place-to-break" * 4
    figures, facts = draw_all(), {"Command": f"python --workdir /{long}"}
    wide = report.Table(["", *LABELS * 4], [[long, *["1.00 ± 0.10"] * 12]] * 8)
    few = report.Table(["", "Validation mean average precision (%)"], [["a", "98.44 ± 0.12"]])
    sections = [report.Section(long, [wide, few])]
    path = write(
        tmp_path, title=long, figures=figures, notes={long: long}, facts=facts, sections=sections
    )
    page = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text())
    frames = "".join(
        f'<iframe width="{n}" srcdoc="{escape(page)}"></iframe>' for n in (320, 390, 1280)
    )
    script = (
        "onload = () => { document.title = [...document.querySelectorAll('iframe')].map("
        "({ contentDocument: page }) => [...page.querySelectorAll('.scroll:has(.few)')].some("
        "x => x.scrollWidth > x.clientWidth) || page.documentElement.scrollWidth); }"
    )
    asks = tmp_path / "asks.html"
    asks.write_text(f"<style>iframe {{ border: 0 }}</style><script>{script}</script>{frames}")
    command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars"]
    command += ["--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", f"file://{asks}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert re.findall("<title>([^<]*)</title></head>", done.stdout) == ["320,390,1280"]


def test_seeds_have_their_own_numbers_in_the_plot():
    (axes,) = report.plot_errors(make_summary(), first_seed=7).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["seed 7", "seed 8", "seed 9"]
