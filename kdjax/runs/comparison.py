"""The stages of `experiments.compare`: train every method, choose the best, tabulate."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax import loop
from kdjax import report as pages
from kdjax.runs import methods, plans, training, workdir
from kdjax.runs.console import say
from kdjax.runs.numbers import spread
from kdjax.runs.opening import Experiment, facts, seeds_of, spec_of
from kdjax.runs.plans import TeacherResult
from kdjax.runs.training import Arrays

BASELINE = "scratch"
ENDS = FINISHED, DIVERGED = "finished", "diverged"
"""How a training ended, in the log."""
COLUMNS = ("method", "weights", "seeds", "test %", "gain", "best epoch %", "validation %")


class Trial(NamedTuple):
    """A method with the weights of its terms multiplied by `scale`, trained from some seeds."""

    method: str
    scale: float
    seeds: tuple[int, ...]

    @property
    def phase(self) -> str:
        """What its trainings are called."""
        return self.method if self.scale == 1 else f"{self.method} x {self.scale:.3g}"


class Entry(NamedTuple):
    """What came out of a trial, by seed: accuracies in per cent.

    `last` is on the test set after the last epoch, `best` after the epoch that was best on it
    (which the field's tables state, and which flatters), `validation` on the validation examples
    after the last epoch. All are nan where the loss was not finite.
    """

    method: str
    scale: float
    last: tuple[float, ...]
    best: tuple[float, ...]
    validation: tuple[float, ...]


def chosen(experiment: Experiment, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the methods to compare: those asked for, or all that both networks fit.

    Raises:
        ValueError: if one that was asked for needs features that a network does not have.
    """
    settings, dataset, given = experiment.settings, experiment.dataset, experiment.given_teacher
    teacher = given.spec if given else spec_of(settings, dataset, settings.teacher)
    specs = plans.student_spec(experiment), teacher
    for name in asked:
        methods.check(name, *specs)
    return tuple(asked or (name for name in methods.METHODS if methods.fits(name, *specs)))


def train_all(
    experiment: Experiment,
    teacher: TeacherResult,
    names: Sequence[str],
    *,
    num_best: int,
    scales: Sequence[float],
) -> list[Entry]:
    """Train every method once, then the best with other weights and from further seeds.

    Args:
        experiment: data and settings.
        teacher: who teaches.
        names: the methods; from scratch is added.
        num_best: how many of them go on to the second round.
        scales: what their weights are multiplied by there; the best by validation accuracy counts.

    Returns:
        An entry for each method, the best mean accuracy on the test set first.
    """
    settings = experiment.settings
    examples = plans.with_answers(experiment, teacher, plans.student_examples(experiment))
    first, seeds = settings.seed, seeds_of(settings)

    def trained(trial: Trial) -> Entry:
        return _train(experiment, teacher, examples, trial)

    names = tuple(dict.fromkeys((BASELINE, *names)))
    entries = {name: trained(Trial(name, 1.0, (first,))) for name in names}
    rivals = [entry for name, entry in entries.items() if name != BASELINE]
    best = sorted(rivals, key=lambda entry: -_rank(entry.validation))[:num_best]
    for entry in best:
        tried = [trained(Trial(entry.method, scale, (first,))) for scale in scales]
        chosen = max([entry, *tried], key=lambda e: _rank(e.validation))
        entries[entry.method] = trained(Trial(entry.method, chosen.scale, tuple(seeds)))
    if best:
        entries[BASELINE] = trained(Trial(BASELINE, 1.0, tuple(seeds)))
    return sorted(entries.values(), key=lambda entry: -_rank(entry.last))


def report(
    experiment: Experiment, teacher: TeacherResult, entries: Sequence[Entry], command: str
) -> None:
    """Write `comparison.json`, the plot and the page, and print the table."""
    run, settings = experiment.run, experiment.settings
    right = teacher.test["teacher_logits"].argmax(-1) == np.asarray(teacher.test["label"])
    known = facts(
        experiment,
        command,
        Teacher=f"{teacher.network.spec.name}, {100 * right.mean():.2f} % of the test images",
        Student=f"{settings.student.name}, {settings.epochs} epochs over "
        f"{settings.data.student_examples} images in batches of {settings.batch_size}",
    )
    result = {"facts": known, "entries": [entry._asdict() for entry in entries]}
    workdir.write_json(run.workdir / "comparison.json", result)
    table = rows(entries)
    figure = pages.plot_dots(
        {entry.method: entry.last for entry in entries},
        xlabel="test accuracy (%)",
        baseline=statistics.mean(_named(entries, BASELINE).last),
    )
    pages.save_figure(run.workdir, "comparison", figure)
    caption = (
        "Test accuracy after the last epoch; a dot is a seed, a bar their mean, the line the mean "
        "from labels alone."
    )
    svg = (run.workdir / "comparison.svg").read_bytes()
    section = pages.Section(
        heading="Methods",
        tables=[("", COLUMNS, table)],
        figures=[(svg, caption)],
        notes=[NOTE],
        facts=known,
    )
    page = pages.write_page(
        run.workdir / "report.html",
        title=f"Ways of distilling, {experiment.dataset.name}",
        sections=[section],
    )
    say("\n" + pages.format_rows([COLUMNS, *table]))
    say(f"\nreport: {page}")


NOTE = (
    "Every method has the paper's or its authors' weights, times the factor in the second column, "
    "which was chosen among the best methods alone, on validation accuracy. 'best epoch' is the "
    "best test accuracy of any epoch, which the field's tables state; it was chosen on the test "
    "set, and nothing else was. The gain is that of the last epoch over labels alone, in points; "
    "nan stands where the loss was not finite."
)


def rows(entries: Iterable[Entry]) -> list[tuple[str, ...]]:
    """Format entries as rows of text, mean ± sample standard deviation by seed."""
    entries = list(entries)
    baseline = statistics.mean(_named(entries, BASELINE).last)
    return [
        (
            entry.method,
            "" if entry.method == BASELINE else f"x {entry.scale:.3g}",
            str(len(entry.last)),
            spread(entry.last, 2),
            "" if entry.method == BASELINE else gain(entry, baseline),
            spread(entry.best, 2),
            spread(entry.validation, 2),
        )
        for entry in entries
    ]


def gain(entry: Entry, baseline: float) -> str:
    """Format the points of accuracy that a method's last epochs have over labels alone."""
    points = statistics.mean(entry.last) - baseline
    return "nan" if math.isnan(points) else f"{points:+.2f}"


def read(path: Path) -> list[Entry]:
    """Read what `report` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    result = workdir.read_json(path)
    if result is None:
        raise FileNotFoundError(f"{path} does not exist: python -m experiments.compare writes it")
    return [
        Entry(e["method"], e["scale"], *(tuple(e[name]) for name in Entry._fields[2:]))
        for e in result["entries"]
    ]


def _train(experiment: Experiment, teacher: TeacherResult, examples: Arrays, trial: Trial) -> Entry:
    """Train what the log does not hold yet."""
    run = experiment.run
    done = _ends(run.log.rows())
    # What diverged is worth another try where its bad steps are skipped.
    good = (FINISHED,) if experiment.settings.on_nonfinite == "skip" else ENDS
    missing = [seed for seed in trial.seeds if done.get((trial.phase, seed)) not in good]
    if missing:
        plan = plans.plan_method(
            experiment, teacher, trial.method, examples, phase=trial.phase, scale=trial.scale
        )
        watched = {**plan.watched, "test": experiment.dataset.test._asdict()}
        plan = dataclasses.replace(plan, watched=watched)
        each = dataclasses.replace(run, eval_every=-(-plan.num_steps // _epochs(experiment)))
        for seed in missing:
            end = FINISHED
            try:
                training.train(each, plan, seed)
            except loop.NonFiniteLoss as error:
                say(f"{training.label_of(plan, seed)} diverged: {error}")
                end = DIVERGED
            run.log.append(phase=trial.phase, seed=seed, step=plan.num_steps, split=end)
        # Every method is a program of its own, which nothing will call again.
        jax.clear_caches()
    return _entry(run.log.rows(), trial)


def _ends(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], str]:
    """Return how the trainings ended at last, by phase and seed."""
    return {(row["phase"], row["seed"]): row["split"] for row in rows if row["split"] in ENDS}


def _entry(rows: Sequence[dict[str, Any]], trial: Trial) -> Entry:
    lost = {key for key, end in _ends(rows).items() if end == DIVERGED}

    def accuracies(split: str, seed: int) -> list[float]:
        if (trial.phase, seed) in lost:
            return [float("nan")]
        found = [
            (row["step"], 100 * row["accuracy"])
            for row in rows
            if (row["phase"], row["seed"], row["split"]) == (trial.phase, seed, split)
        ]
        return [accuracy for _, accuracy in sorted(found)] or [float("nan")]

    test = [accuracies("test", seed) for seed in trial.seeds]
    validation = [accuracies("validation", seed)[-1] for seed in trial.seeds]
    return Entry(
        trial.method,
        trial.scale,
        last=tuple(values[-1] for values in test),
        best=tuple(max(values) for values in test),
        validation=tuple(validation),
    )


def _rank(accuracies: Sequence[float]) -> float:
    """Return the mean to sort by: behind all others where a training diverged."""
    mean = statistics.mean(accuracies)
    return -math.inf if math.isnan(mean) else mean


def _epochs(experiment: Experiment) -> int:
    return experiment.settings.epochs or 1


def _named(entries: Iterable[Entry], name: str) -> Entry:
    return next(entry for entry in entries if entry.method == name)
