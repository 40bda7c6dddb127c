"""Compare the ways of distilling: one teacher, one student, the same budget for every method.

    python -m experiments.compare --data.name cifar100 --data.dir DIR \\
        --teacher.name resnet20 --teacher.checkpoint cifar100_resnet20.npz \\
        --student.name resnet8 --workdir W
    python -m experiments.compare --preset repdistiller --pair resnet56-resnet20 --workdir W

Every method trains the student once, with its paper's weights. The best by validation accuracy
are then tried with other weights, the best of which trains further seeds. The test set is measured
after every epoch, less often where epochs are very short, and chooses nothing. The same command on
the same work directory goes on where it was interrupted.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import kdjax
from kdjax import runs
from kdjax.runs import flags, presets
from kdjax.runs.flags import flag
from kdjax.runs.method_names import METHOD
from kdjax.runs.numbers import numbers
from kdjax.runs.settings import NOT_NEGATIVE, POSITIVE, MethodSettings

if TYPE_CHECKING:
    from kdjax.models import Network
    from kdjax.runs.evaluation import Arrays, Run
    from kdjax.runs.experiment import Experiment
    from kdjax.runs.report import Page, Tile
    from kdjax.runs.teaching import TeacherResult
    from kdjax.runs.training import Training

BASELINE = "scratch"
ENDS = FINISHED, DIVERGED = "finished", "diverged"
"""How a training ended, in the log."""
RIGHT = "right"
"""Of which test images the last epoch is right, there: a bit each, as hexadecimal digits."""
COLUMNS = (
    *("method", "weights", "seeds", "test %", "gain", "95 % interval"),
    *("best epoch %", "validation %"),
)
NOTE = (
    "Every method has the paper's or its authors' weights, times the factor in the second column, "
    "which was chosen among the best methods alone, on validation accuracy. 'best epoch' is the "
    "best test accuracy of any epoch (of very short ones, not every one is measured), which the "
    "field's tables state; it was chosen on the test set, and nothing else was. The gain is that "
    "of the last epoch over labels alone, in points; its interval, by paired bootstrap over test "
    "examples and seeds, is that of methods with as many seeds as labels alone, and where it holds "
    "0 the gain may be chance. nan stands where the loss was not finite."
)
CAPTION = (
    "Test accuracy after the last epoch; a dot is a seed, a bar their mean, the line the mean from "
    "labels alone."
)


@dataclasses.dataclass(frozen=True)
class Settings(MethodSettings):
    """What a run of any method depends on, and which methods to compare; all in one process."""

    methods: tuple[str, ...] = flag(
        "Which methods, as the help of distill lists them; + joins several into one. Default: all.",
        METHOD,
        default=(),
    )
    num_best: int = flag(
        "Methods that are tried with other weights and trained from further seeds.",
        NOT_NEGATIVE._replace(expected="zero or more"),
        default=10,
    )
    scales: tuple[float, ...] = flag(
        "What the weights of the best are multiplied by, to try; 1 is always among them.",
        POSITIVE,
        default=(1 / 3, 3.0),
    )
    num_seeds: int | None = flag(
        "Students of each of the best, and from scratch.", POSITIVE, default=3
    )


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


def run(settings: Settings, command: str) -> None:
    """Train the teacher if need be, then every method; write the table, the plot and the page."""
    settings = presets.applied(settings)
    with runs.experiment.opened(settings) as experiment:
        names = chosen(experiment, settings.methods)
        teacher = runs.teaching.obtain_teacher(experiment)
        entries = train_all(
            experiment, teacher, names, num_best=settings.num_best, scales=settings.scales
        )
        save_best(experiment, teacher, entries)
        report(experiment, teacher, entries, command)


def main(args: list[str] | None = None, program: str = "python -m experiments.compare") -> None:
    """Run the command line: some flags, or those of the process; a help page names the program."""
    settings, command = flags.read(Settings, program, __doc__, args, folder="compare-")
    with flags.plain_errors(settings, resume_with=command):
        flags.check(settings)
        check(settings)
        run(settings, command)


def check(settings: Settings) -> None:
    """Raise a ValueError where there is nothing to choose the best by."""
    blind = settings.data.validation_fraction == 0 and settings.preset != "imagenet"
    expected = "0 where --data.validation-fraction is: there are no examples to choose by"
    flags.require(not (blind and settings.num_best), "--num-best", expected, settings.num_best)


def chosen(experiment: Experiment, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the methods to compare: those asked for, or all that both networks fit.

    Raises:
        ValueError: if one that was asked for needs features that a network does not have.
    """
    settings, dataset, given = experiment.settings, experiment.dataset, experiment.given_teacher
    teacher = given.spec if given else runs.networks.spec_of(settings, dataset, settings.teacher)
    specs = runs.teaching.student_spec(experiment), teacher
    for name in asked:
        runs.methods.check(name, *specs)
    fitting = (name for name in runs.methods.METHODS if runs.methods.fits(name, *specs))
    return tuple(asked or fitting)


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
    examples = runs.teaching.student_examples(experiment)
    examples = runs.teaching.with_answers(experiment, teacher, examples)
    first, seeds = experiment.settings.seed, tuple(experiment.settings.seeds)

    def trained(method: str, scale: float, seeds: tuple[int, ...]) -> Entry:
        return _train(experiment, teacher, examples, Trial(method, scale, seeds))

    names = tuple(dict.fromkeys((BASELINE, *names)))
    entries = {name: trained(name, 1.0, (first,)) for name in names}
    rivals = [entry for name, entry in entries.items() if name != BASELINE]
    best = sorted(rivals, key=lambda entry: -_rank(entry.validation))[:num_best]
    for entry in best:
        tried = [trained(entry.method, scale, (first,)) for scale in scales]
        winner = max([entry, *tried], key=lambda e: _rank(e.validation))
        entries[entry.method] = trained(entry.method, winner.scale, seeds)
    if best:
        entries[BASELINE] = trained(BASELINE, 1.0, seeds)
    return sorted(entries.values(), key=lambda entry: -_rank(entry.last))


def report(
    experiment: Experiment, teacher: TeacherResult, entries: Sequence[Entry], command: str
) -> None:
    """Write `comparison.json`, the plot and the page, and print the table."""
    settings = experiment.settings
    said = runs.evaluation.said(experiment.run, teacher.test)
    right = said.argmax(-1) == teacher.test["label"]
    known = runs.experiment.facts(
        experiment.run,
        command,
        Teacher=f"{teacher.network.spec.name}, {100 * right.mean():.2f} % of the test images",
        Student=f"{settings.student.name}, {settings.epochs} epochs over "
        f"{settings.data.student_examples} images in batches of {settings.batch_size}",
    )
    last, baseline = {entry.method: entry.last for entry in entries}, _baseline(entries)
    table = runs.report.Table(COLUMNS, rows(entries, intervals(experiment, entries)))

    def page() -> Page:
        title = f"Ways of distilling, {experiment.dataset.name}"
        figure = runs.report.plot_dots(last, xlabel="test accuracy (%)", baseline=baseline)
        figures = {"comparison": (figure, CAPTION)}
        tiles = _tiles(entries, teacher=100 * float(right.mean()))
        return runs.report.results_page(
            title, _lede(entries), table, figures, known, tiles=tiles, notes=[NOTE]
        )

    found = {"facts": known, "entries": [entry._asdict() for entry in entries]}
    summary = runs.workdir.sealed(found)
    directory = experiment.run.workdir
    runs.report.publish(directory, summary, table, page, summary_name="comparison.json")


def _tiles(entries: Sequence[Entry], *, teacher: float) -> list[Tile]:
    """Show the teacher, labels alone and the best way of distilling large."""
    baseline = _baseline(entries)
    tiles = [
        runs.report.Tile("teacher", "Teacher", f"{teacher:.2f}", ("% of the test images right",)),
        runs.report.Tile(
            "scratch", "Labels alone", f"{baseline:.2f}", ("% right after the last epoch",)
        ),
    ]
    for best in [entry for entry in entries if entry.method != BASELINE][:1]:
        number, points = f"{statistics.mean(best.last):.2f}", gain(best, baseline)
        details = f"% right, {points} points", "the best here by test accuracy"
        tiles.append(runs.report.Tile("distilled", best.method, number, details))
    return tiles


def _lede(entries: Sequence[Entry]) -> str:
    taught = [entry for entry in entries if entry.method != BASELINE]
    better = sum(statistics.mean(entry.last) > _baseline(entries) for entry in taught)
    what = "way of distilling gives" if len(taught) == 1 else "ways of distilling give"
    return f"{better} of {len(taught)} {what} a better student on the test set than labels alone."


def intervals(experiment: Experiment, entries: Sequence[Entry]) -> dict[str, str]:
    """Write by method what chance makes of its gain, where it has the seeds of labels alone."""
    lines, count = experiment.run.log.rows(), len(experiment.dataset.test.label)
    found = {(row["phase"], row["seed"]): row[RIGHT] for row in lines if RIGHT in row}

    def points(entry: Entry) -> list[np.ndarray]:
        phase = Trial(entry.method, entry.scale, ()).phase
        seeds = experiment.settings.seeds[: len(entry.last)]
        bits = (bytes.fromhex(found.get((phase, seed), "")) for seed in seeds)
        return [100.0 * np.unpackbits(np.frombuffer(own, np.uint8))[:count] for own in bits]

    scores = {entry.method: points(entry) for entry in entries}
    whole = {method: own for method, own in scores.items() if all(map(len, own))}
    before, drawn = whole.pop(BASELINE, []), {}
    for method, own in whole.items():
        if len(own) == len(before):
            _, low, high = kdjax.metrics.paired_bootstrap(before, own)
            drawn[method] = f"{low:+.2f} to {high:+.2f}"
    return drawn


def rows(entries: Iterable[Entry], intervals: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Format entries as rows of text, mean ± sample standard deviation by seed.

    Args:
        entries: what came out, labels alone among it.
        intervals: of the gains, by method, where there are some.
    """
    entries = list(entries)
    baseline, formatted = _baseline(entries), runs.numbers.mean_and_deviation

    def row(entry: Entry) -> tuple[str, ...]:
        last, best, validation = (formatted(values, 2) for values in entry[2:])
        scale, points = f"x {entry.scale:.3g}", gain(entry, baseline)
        if entry.method == BASELINE:
            scale = points = ""
        between = intervals.get(entry.method, "")
        return entry.method, scale, str(len(entry.last)), last, points, between, best, validation

    return list(map(row, entries))


def gain(entry: Entry, baseline: float) -> str:
    """Format the points of accuracy that a method's last epochs have over labels alone."""
    points = statistics.mean(entry.last) - baseline
    return "nan" if math.isnan(points) else f"{points:+.2f}"


def read(path: Path) -> list[Entry]:
    """Read what `report` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged.
    """
    again = "run python -m experiments.compare again on the same work directory"
    result = runs.workdir.read_json(path, mend=again)
    if result is None:
        raise FileNotFoundError(f"{path} does not exist: python -m experiments.compare writes it")
    with runs.workdir.reading(path, mend=again):
        return [
            Entry(e["method"], e["scale"], *(tuple(numbers(e[name])) for name in Entry._fields[2:]))
            for e in result["entries"]
        ]


def _train(experiment: Experiment, teacher: TeacherResult, examples: Arrays, trial: Trial) -> Entry:
    """Train what the log does not hold yet."""
    run, settings = experiment.run, experiment.settings
    done = _ends(run.log.rows())
    # What diverged is worth another try where its bad steps are skipped.
    good = (FINISHED,) if settings.on_nonfinite == "skip" else ENDS
    ended = {seed: done.get((trial.phase, seed), ("", 0))[0] for seed in trial.seeds}
    missing = [seed for seed, end in ended.items() if end not in good]
    if missing:
        plan = _plan(experiment, teacher, examples, trial)
        # Short epochs would take less time than their measurement.
        least = runs.evaluation.least_steps_between(plan.watched, plan.batch_size)
        every = max(-(-plan.num_steps // settings.epochs), least)
        each = dataclasses.replace(run, eval_every=every)
        for seed in missing:
            end, found = FINISHED, {}
            try:
                variables = runs.training.train(each, plan, seed)
                found[RIGHT] = _right(experiment, plan.network(variables))
            except kdjax.loop.NonFiniteLoss as error:
                runs.console.say(f"{runs.training.label_of(plan, seed)} diverged: {error}")
                end = DIVERGED
            run.log.append(phase=trial.phase, seed=seed, step=plan.num_steps, split=end, **found)
        runs.evaluation.forget_programs()
    return _entry(run, trial)


def _right(experiment: Experiment, network: Network) -> str:
    test = experiment.dataset.test
    parts = network.model, network.variables, test._asdict()
    logits = runs.evaluation.predict(experiment.run, *parts)
    correct = runs.report.judged(logits, np.asarray(test.label)).correct
    return np.packbits(correct).tobytes().hex()


def _plan(
    experiment: Experiment, teacher: TeacherResult, examples: Arrays, trial: Trial
) -> Training:
    plan = runs.teaching.plan_method(
        experiment, teacher, trial.method, examples, phase=trial.phase, scale=trial.scale
    )
    watched = {**plan.watched, "test": experiment.dataset.test._asdict()}
    return dataclasses.replace(plan, watched=watched)


def save_best(experiment: Experiment, teacher: TeacherResult, entries: Iterable[Entry]) -> None:
    """Write the student of the best validation accuracy, read from the end of its training."""
    sound = [entry for entry in entries if entry.method != BASELINE and _rank(entry.last) > 0]
    if not sound:
        return
    best = max(sound, key=lambda entry: _rank(entry.validation))
    at = max(range(len(best.validation)), key=lambda i: _rank(best.validation[i : i + 1]))
    seed = experiment.settings.seeds[at]
    examples = runs.teaching.student_examples(experiment)
    plan = _plan(experiment, teacher, examples, Trial(best.method, best.scale, (seed,)))
    network = plan.network(runs.training.train(experiment.run, plan, seed))
    directory = experiment.run.workdir / "student"
    kdjax.models.save_network(directory, network.spec, network.variables)
    runs.console.say(f"student: {directory}, of {best.method}")


def _ends(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], tuple[str, int]]:
    """Return how the trainings ended at last, and at which step, by phase and seed."""
    ends = [row for row in rows if row.get("split") in ENDS]
    return {(row["phase"], row["seed"]): (row["split"], row["step"]) for row in ends}


def _entry(run: Run, trial: Trial) -> Entry:
    """Read the figures of a trial whose trainings have ended; all their lines must be there."""
    ends = _ends(run.log.rows())

    def rows(seed: int) -> list[dict[str, Any]]:
        end, step = ends[trial.phase, seed]
        return run.log.whole(trial.phase, seed, step) if end == FINISHED else []

    def accuracies(rows: list[dict[str, Any]], split: str) -> list[float]:
        return [100 * row["accuracy"] for row in rows if row["split"] == split] or [math.nan]

    by_seed = [rows(seed) for seed in trial.seeds]
    with runs.workdir.reading(run.log.path):
        test = [accuracies(own, "test") for own in by_seed]
        validation = tuple(accuracies(own, "validation")[-1] for own in by_seed)
    last, best = tuple(values[-1] for values in test), tuple(map(max, test))
    return Entry(trial.method, trial.scale, last, best, validation)


def _rank(accuracies: Sequence[float]) -> float:
    """Return the mean to sort by: behind all others where a training diverged."""
    mean = statistics.mean(accuracies)
    return -math.inf if math.isnan(mean) else mean


def _baseline(entries: Iterable[Entry]) -> float:
    return statistics.mean(next(entry.last for entry in entries if entry.method == BASELINE))


if __name__ == "__main__":
    main()
