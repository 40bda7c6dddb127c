"""Train students whose teacher learns meanwhile: their own moving average, or a peer.

    python -m experiments.online
    python -m experiments.online --data.name mnist --data.dir DIR --student.widths 800 800

Beside them the same student learns from labels alone, for as many steps, on images as they are. No
teacher is trained first, so that the flags under --teacher are not used. Tarvainen, Valpola, "Mean
teachers are better role models", 2017, arXiv:1703.01780; Zhang, Xiang, Hospedales, Lu, "Deep Mutual
Learning", 2017, arXiv:1706.00384. docs/online.md has the same in a loop of your own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import kdjax
from kdjax import runs
from kdjax.runs import flags
from kdjax.runs.flags import flag
from kdjax.runs.settings import SHARE, RunSettings

if TYPE_CHECKING:
    from kdjax.runs.experiment import Experiment
    from kdjax.runs.report import Judged, Page, Tile
    from kdjax.types import Array, TrainState, Variables

LABELS, AVERAGE, PEER = KINDS = ("labels alone", "its own moving average", "a peer")
COLUMNS = ("taught by", "test errors", "test %")


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """What a run depends on, and how much the students hear of their teachers."""

    soft_weight: float = flag(
        "Weight of what the teacher thinks; the labels have the rest.", SHARE, default=0.5
    )
    decay: float = flag("Of the moving average, once it is warm.", SHARE, default=0.99)


class Peers(NamedTuple):
    """Two students that teach each other, and the step that both are at."""

    step: Array
    states: tuple[TrainState, ...]


def run(settings: Settings, command: str) -> None:
    """Train every kind for every seed, measure on the test set, write the page."""
    with runs.experiment.opened(settings) as experiment:
        seeds = experiment.settings.seeds
        found = {
            kind: [judged(experiment, train(experiment, settings, kind, s)) for s in seeds]
            for kind in KINDS
        }
        report(experiment, found, command)


def main(args: list[str] | None = None, program: str = "python -m experiments.online") -> None:
    """Run the command line: some flags, or those of the process; a help page names the program."""
    settings, command = flags.read(Settings, program, __doc__ or "", args, folder="online-")
    with flags.plain_errors(settings, resume_with=command):
        flags.check(settings)
        more = settings.data.unlabelled
        flags.require(
            more is None, "--data.unlabelled", "left out: students here learn labels", more
        )
        run(settings, command)


def train(experiment: Experiment, settings: Settings, kind: str, seed: int) -> Variables:
    """Train a student, or two of which the first is kept, from where an earlier run left them."""
    run, decided = experiment.run, experiment.settings
    examples, size = runs.teaching.student_examples(experiment), decided.batch_size
    num_steps = -(-decided.epochs * len(examples["label"]) // size)
    rows = np.arange(size)
    first = kdjax.data.train_batch(examples, 0, seed=seed, batch_size=size, rows=rows)
    state, step = prepared(experiment, settings, kind, seed, first, num_steps)
    label = f"{kind}, seed {seed}"
    directory = run.workdir / "checkpoints" / label.replace(" ", "_").replace(",", "")
    log = runs.log.TrainingLog(run, kind, seed, label, num_steps)
    state = runs.training.restored(log, directory, state)
    batches = kdjax.data.train_batches(
        examples, seed=seed, batch_size=size, start_step=kdjax.loop.step_of(state), rows=rows
    )
    trained = runs.training.fit(log, state, runs.training.Feed(step, batches), directory)
    own = trained.states[0] if kind == PEER else trained
    return kdjax.types.Variables(own.params["student"], own.model_state)


def prepared(
    experiment: Experiment,
    settings: Settings,
    kind: str,
    seed: int,
    batch: Mapping[str, Any],
    num_steps: int,
) -> tuple[Any, Callable[..., Any]]:
    """Make the state that a training of some kind starts from, and its compiled step."""
    # Here and not above: flags are read before the seconds that this import takes.
    import jax

    model = kdjax.models.build(runs.teaching.student_spec(experiment))
    optimizer = runs.recipes.make_optimizer(
        experiment.settings.optimizer,
        batch_size=experiment.settings.batch_size,
        num_steps=num_steps,
        norm_limit=settings.student.max_norm,
    )
    key, temperature = jax.random.key(seed), settings.temperature
    kd = kdjax.terms.kd(temperature=temperature, soft_weight=settings.soft_weight)
    objective = kdjax.objective.combine({"kd": kd}, {"kd": 1.0})
    if kind == LABELS:
        parts = model, runs.teaching.labels_only(), optimizer
        state = kdjax.step.init_train_state(key, *parts, batch, None)
        return state, kdjax.step.with_teacher(
            kdjax.step.make_train_step(*parts), kdjax.teachers.absent()
        )
    if kind == AVERAGE:
        warm = jax.numpy.minimum
        teacher = kdjax.teachers.ema(model, decay=lambda n: warm(1 - 1 / (n + 1), settings.decay))
        state = kdjax.online.init_online_state(key, model, objective, optimizer, batch, teacher)
        train_step = kdjax.step.make_train_step(model, objective, optimizer)
        return state, kdjax.online.with_online_teacher(train_step, teacher)
    two = (model,) * 2, (objective,) * 2, (optimizer,) * 2
    states = kdjax.online.init_mutual_states(key, *two, batch, temperature=temperature)
    mutual = kdjax.online.make_mutual_step(*two, temperature=temperature)

    def step(peers: Peers, batch: Mapping[str, Any]) -> tuple[Peers, Any]:
        states, metrics = mutual(peers.states, batch)
        return Peers(states[0].step, tuple(states)), metrics

    return Peers(states[0].step, tuple(states)), step


def judged(experiment: Experiment, variables: Variables) -> Judged:
    """Hold a student against the labels of the test images."""
    model, test = (
        kdjax.models.build(runs.teaching.student_spec(experiment)),
        experiment.dataset.test,
    )
    logits = runs.evaluation.predict(experiment.run, model, variables, test._asdict())
    return runs.report.judged(logits, np.asarray(test.label))


def report(experiment: Experiment, found: Mapping[str, list[Judged]], command: str) -> None:
    """Write `summary.json`, the plots and the page; print the table."""
    formatted = runs.numbers.mean_and_deviation
    errors = {kind: [int((~x.correct).sum()) for x in own] for kind, own in found.items()}
    right = {kind: [100 * float(x.correct.mean()) for x in own] for kind, own in found.items()}
    rows = [(kind, formatted(errors[kind], 1), formatted(right[kind], 2)) for kind in errors]
    known, table = runs.experiment.facts(experiment.run, command), runs.report.Table(COLUMNS, rows)
    means = "; ".join(f"{np.mean(own):,.4g} taught by {kind}" for kind, own in errors.items())

    def page() -> Page:
        baseline = float(np.mean(right[LABELS]))
        figure = runs.report.plot_dots(right, xlabel="test accuracy (%)", baseline=baseline)
        points = {kind: [own.points for own in judged] for kind, judged in found.items()}
        gains = [
            f"Taught by {kind}. {runs.report.difference_note(points[LABELS], points[kind])}"
            for kind in (AVERAGE, PEER)
        ]
        return runs.report.results_page(
            f"Teachers that learn meanwhile, {experiment.dataset.name}",
            f"Test errors: {means}.",
            dataclasses.replace(table, note=" ".join(gains)),
            {"online": (figure, "A dot is a seed, a bar their mean, the line labels alone.")},
            known,
            tiles=[_tile(kind, errors[kind], own) for kind, own in right.items()],
            sections=[
                runs.report.calibration_section({kind: own[0] for kind, own in found.items()}),
                *runs.report.trainings(experiment.run.log.rows()),
            ],
        )

    summary = {"facts": known, "test_errors": errors}
    runs.report.publish(experiment.run.workdir, summary, table, page)


def _tile(kind: str, errors: list[int], right: list[float]) -> Tile:
    color = "scratch" if kind == LABELS else "distilled"
    seeds = f"{len(right)} seeds" if len(right) > 1 else "one seed"
    share = f"{np.mean(right):.2f}"
    return runs.report.errors_tile(color, f"Taught by {kind}", errors, share, seeds)


if __name__ == "__main__":
    main()
