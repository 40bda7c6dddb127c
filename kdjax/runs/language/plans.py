"""How the networks of a run on text are trained: the teacher, and both kinds of students."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import generation, many, models, sharding, step, teachers
from kdjax._steps import SAMPLE_STREAM, key_of
from kdjax.runs import recipes, training
from kdjax.runs.language import lessons, networks
from kdjax.runs.language.networks import Network, Student
from kdjax.runs.language.opened import LanguageRun
from kdjax.runs.training import Training
from kdjax.types import Batch, Metrics, Model, Objective, PyTree, Teacher, TrainState, Variables


def obtain_teacher(opened: LanguageRun) -> Network:
    """Return the teacher that the settings name, or train one on all of the training text."""
    settings, run = opened.settings, opened.run
    if opened.given_teacher is not None:
        return networks.placed(run, opened.given_teacher)
    own, size = settings.teacher, opened.text.tokenizer.vocab_size
    model = networks.decoder_of(settings, own, size)
    rate = own.learning_rate or settings.optimizer.learning_rate
    objective = lessons.from_labels(settings.chunk_size)
    lesson = objective, teachers.absent(), opened.text.train.arrays
    plan = _plan(opened, "teacher", model, *lesson, epochs=own.epochs, rate=rate)
    return Network(model, training.train(run, plan, settings.seed))


def plan_students(opened: LanguageRun, student: Student, teacher: Network) -> list[Training]:
    """Return how the student learns from the text alone, and how from the teacher.

    The teacher answers once, and its hidden states are kept; where students continue rows
    themselves, it runs in every step.
    """
    objective = lessons.from_labels(opened.settings.chunk_size)
    lesson = objective, teachers.absent(), opened.student_rows.arrays
    scratch = _plan(opened, "scratch", student.model, *lesson, start=student.start)
    taught = _plan(
        opened, "distilled", student.model, *_taught(opened, teacher), start=student.start
    )
    return [scratch, dataclasses.replace(taught, eval_step=scratch.eval_step)]


def _taught(opened: LanguageRun, teacher: Network) -> tuple[Objective, Teacher, Mapping[str, Any]]:
    """Return what is minimized with the teacher, what it says, and of which rows."""
    settings, run = opened.settings, opened.run
    rows = opened.student_rows
    if settings.sequence_level:
        rows = networks.continued_rows(run, teacher, rows, settings, opened.text.tokenizer.end)
    examples: Mapping[str, Any] = rows.arrays
    source = networks.live(teacher)
    if not settings.on_policy_fraction:
        examples = with_hidden(opened, teacher, rows.arrays)
        source = networks.stored(models.head_of(teacher.variables).kernel)
    num_steps = _num_steps(opened, settings.epochs, examples)
    return lessons.distilled(settings, num_steps), source, examples


def with_hidden(
    opened: LanguageRun, teacher: Network, arrays: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Put the teacher's hidden states beside rows."""
    own = opened.settings.teacher.store or opened.run.workdir
    size = opened.eval_batch_size
    precision = opened.settings.precision
    return networks.with_hidden(
        opened.run, teacher, arrays, own, batch_size=size, precision=precision
    )


def make_eval_step(
    opened: LanguageRun, model: Model, teacher: Teacher | None, keep_fn: Any = None
) -> Any:
    """Compile what a network of the run is measured by."""
    return lessons.make_eval_step(
        lessons.without_logits(model),
        chunk_size=opened.settings.chunk_size * opened.run.mesh.size,
        layout_fn=opened.run.layout_fn,
        teacher=teacher,
        keep_fn=keep_fn,
    )


def with_continuations(
    opened: LanguageRun, train_step: Any, model: Model, teacher: Teacher
) -> many.Step:
    """Let the student continue the rows of some steps itself; the teacher runs in every step."""
    settings, layout = opened.settings, sharding.layout_of(teacher.variables)
    layout_fn, stop = opened.run.layout_fn, opened.text.tokenizer.end

    @functools.partial(jax.jit, donate_argnums=0)
    def taken(
        state: TrainState, batch: Batch, *, teacher_variables: PyTree
    ) -> tuple[TrainState, Metrics]:
        choice, key = jax.random.split(key_of(state, SAMPLE_STREAM))
        params = sharding.gather(state.params["student"], layout_fn)
        variables = Variables(params, state.model_state)
        given = {**batch, "of_data": jnp.float32(1)}

        def own() -> Batch:
            continued = generation.continued(
                *(model, variables, key, batch),
                prompt_length=settings.prompt_length,
                temperature=settings.sampling_temperature,
                stop=stop,
            )
            return {**continued, "of_data": jnp.float32(0)}

        mine = jax.random.uniform(choice) < settings.on_policy_fraction
        view = jax.lax.cond(mine, own, lambda: given)
        whole = sharding.gather(teacher_variables, layout)
        answered: tuple[TrainState, Metrics] = train_step(state, view, teacher.apply(whole, view))
        return answered

    return many.carrying(taken, teacher_variables=teacher.variables)


def _plan(
    opened: LanguageRun,
    phase: str,
    model: Model,
    objective: Objective,
    teacher: Teacher,
    examples: Mapping[str, Any],
    *,
    epochs: int | None = None,
    rate: float | None = None,
    start: Variables | None = None,
) -> Training:
    """Return how one network is trained; the step is compiled at its first use."""
    settings, run = opened.settings, opened.run
    num_steps = _num_steps(opened, epochs or settings.epochs, examples)
    asked = dataclasses.replace(
        settings.optimizer, learning_rate=rate or settings.optimizer.learning_rate
    )
    optimizer = recipes.make_optimizer(
        asked, batch_size=settings.batch_size, num_steps=num_steps, norm_limit=None
    )
    answering = lessons.without_logits(model)
    average = None if phase == "teacher" else recipes.make_average(settings.average, answering)
    if settings.rematerialise:
        answering = models.rematerialized(answering)
    train_step = step.make_train_step(
        *(answering, objective, optimizer),
        num_micro_batches=settings.num_micro_batches,
        skip_nonfinite=settings.on_nonfinite == "skip",
        inputs_fn=lessons.inputs_of,
        layout_fn=run.layout_fn,
        average=average,
    )

    def step_fn(setting: PyTree, teacher: Teacher) -> Any:
        if phase == "distilled" and settings.on_policy_fraction:
            return with_continuations(opened, train_step, model, teacher)
        return step.with_teacher(train_step, teacher)

    return Training(
        *(phase, None, answering, objective, optimizer, teacher, step_fn),
        *(examples, settings.batch_size, num_steps),
        eval_step=make_eval_step(opened, model, None),
        watched={"validation": opened.text.validation.arrays},
        start=start,
        average=average,
        inputs_fn=lessons.inputs_of,
        eval_batch_size=opened.eval_batch_size,
        score_fn=lessons.fewest_nats,
    )


def _num_steps(opened: LanguageRun, epochs: int, examples: Mapping[str, Any]) -> int:
    return math.ceil(epochs * len(examples["label"]) / opened.settings.batch_size)
