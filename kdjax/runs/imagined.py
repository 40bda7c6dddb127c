"""The stages of `experiments.data_free`: plan, train, report."""

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax

from kdjax.runs import plans, synthesis, training, workdir
from kdjax.runs.console import progress, say
from kdjax.models import Network
from kdjax.runs.numbers import spread
from kdjax.runs.opening import Experiment, facts
from kdjax.runs.plans import TeacherResult
from kdjax import checkpoint, loop, metrics, models, teachers, terms
from kdjax import report as pages
from kdjax.objective import combine
from kdjax.sharding import replicate
from kdjax.step import make_eval_step
from kdjax.types import Model, Variables

if TYPE_CHECKING:
    from kdjax.runs.data_free import GeneratorSettings

COLUMNS = ("network", "images it learned from", "test errors", "test %", "agreement %")


class Plan(NamedTuple):
    """How generator and student are trained, whatever the seed."""

    student: Model
    teacher: Variables
    generator: synthesis.Generator
    init: Any
    step: Any
    num_steps: int
    noise_size: int


class Result(NamedTuple):
    """A trained student, how it did on the test set, and images that it learned from."""

    seed: int
    student: Network
    test_errors: int
    agreement: float
    images: np.ndarray


def plan(
    experiment: Experiment, teacher: TeacherResult, made: "GeneratorSettings", num_steps: int
) -> Plan:
    """Settle what is trained; the step is compiled at its first use."""
    settings, spec = experiment.settings, plans.student_spec(experiment)
    batch_size = settings.batch_size or 1
    optimizer = training.make_optimizer(
        settings.optimizer,
        batch_size=batch_size,
        num_steps=num_steps,
        norm_limit=settings.student.max_norm,
    )
    decay = optax.cosine_decay_schedule(made.learning_rate, num_steps)
    generator = synthesis.Generator(teacher.network.spec.image_shape)
    student = models.build(spec)
    soft = terms.soft_targets(temperature=settings.temperature)
    embedding = teacher.network.model.paths.embedding
    init, step = synthesis.make_step(
        student,
        models.build(teacher.network.spec, features=[embedding]),
        embedding,
        combine({"soft": soft}, {"soft": 1.0}),
        (optimizer, optax.adam(decay)),
        generator,
        batch_size=batch_size,
        noise_size=made.noise_size,
        weights=synthesis.Weights(made.sure, made.active, made.balanced, made.new),
        skip_nonfinite=settings.on_nonfinite == "skip",
    )
    variables = replicate(teacher.network.variables, experiment.run.mesh)
    return Plan(student, variables, generator, init, step, num_steps, made.noise_size)


def train(experiment: Experiment, teacher: TeacherResult, plan: Plan, seed: int) -> Result:
    """Train from a seed, or from where an earlier run left it, and measure the student."""
    run, phase = experiment.run, "data-free"
    directory = run.workdir / "checkpoints" / f"{phase}-{seed}"
    state: Any = plan.init(jax.random.key(seed), plan.teacher)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    found = checkpoint.restore(directory, like)
    state = state if found is None else found[1]
    run.log.rewind(phase, seed, int(state.step))
    with progress(f"student, seed {seed}", int(state.step), plan.num_steps) as update:

        def log(at: int, measured: Any) -> None:
            numbers = {name: metrics.value(metric) for name, metric in measured.items()}
            run.log.append(phase=phase, seed=seed, step=at, split="train", **numbers)
            note = f"loss {numbers['loss']:.3f}, agrees on {numbers['agreement']:.1%} of the images"
            update(at, note)

        state = loop.fit(
            functools.partial(plan.step, teacher_variables=plan.teacher),
            state,
            # The step makes its own images.
            itertools.repeat({}),
            num_steps=plan.num_steps,
            log_every=run.log_every,
            log_fn=log,
            checkpoint_every=run.checkpoint_every or max(500, plan.num_steps // 20),
            save_fn=lambda at, s: checkpoint.save(directory, at, s, keep=run.keep_last),
            stop_fn=run.stop_fn,
        )
    own = Variables(state.student.params["student"], state.student.model_state)
    measured = training.measure(run, make_eval_step(plan.student), own, teacher.test)
    correct, count = measured["accuracy"]
    images = synthesis.images_of(
        plan.generator, state.generator, noise_size=plan.noise_size, count=200, seed=seed
    )
    student = Network(plans.student_spec(experiment), plan.student, own)
    return Result(seed, student, int(count - correct), metrics.value(measured["agreement"]), images)


def report(
    experiment: Experiment,
    teacher: TeacherResult,
    plan: Plan,
    found: list[Result],
    command: str,
) -> None:
    """Write `summary.json`, the student, pictures and the page; print the table."""
    run = experiment.run
    labels = teacher.test["label"]
    wrong = int((teacher.test["teacher_logits"].argmax(-1) != labels).sum())
    known = facts(
        experiment,
        command,
        Training=f"{plan.num_steps} steps of {experiment.settings.batch_size} images made up",
        Seeds=", ".join(str(r.seed) for r in found),
    )
    errors = [r.test_errors for r in found]
    rows = [
        ("teacher", f"{experiment.dataset.name}", str(wrong), _percent([wrong], labels), "100.00"),
        (
            "student",
            "none of them",
            spread(errors, 1),
            _percent(errors, labels),
            spread([100 * r.agreement for r in found], 2),
        ),
    ]
    answer = teachers.frozen(teacher.network.model, plan.teacher).apply
    logits = np.asarray(jax.jit(answer)(plan.teacher, {"image": found[0].images}).logits)
    shown = pages.select_instructive(logits, logits.argmax(-1), experiment.settings.temperature)
    figure = pages.plot_dark_knowledge(
        found[0].images[shown].astype(np.uint8),
        logits[shown].argmax(-1),
        logits[shown],
        experiment.dataset.label_names,
        experiment.settings.temperature,
    )
    pages.save_figure(run.workdir, "images", figure)
    caption = (
        "Images that the generator made up at the end, beside the teacher's probabilities at T = 1 "
        "and softened; the label is the teacher's decision. What they look like is of no account."
    )
    section = pages.Section(
        heading="A student that has seen no data",
        tables=[("", COLUMNS, rows)],
        figures=[((run.workdir / "images.svg").read_bytes(), caption)],
        notes=[],
        facts=known,
    )
    title = f"Data-free distillation, {experiment.dataset.name}"
    page = pages.write_page(run.workdir / "report.html", title=title, sections=[section])
    models.save_network(run.workdir / "student", found[0].student.spec, found[0].student.variables)
    each = [{"seed": r.seed, "test_errors": r.test_errors, "agreement": r.agreement} for r in found]
    workdir.write_json(
        run.workdir / "summary.json", {"facts": known, "teacher_errors": wrong, "students": each}
    )
    say("\n" + pages.format_rows([COLUMNS, *rows]))
    say(f"\nreport: {page}\nstudent: {run.workdir / 'student'}")


def _percent(errors: Sequence[int], labels: np.ndarray) -> str:
    return spread([100 * (1 - count / len(labels)) for count in errors], 2)
