"""Section 2: the gradient of soft targets, its scale, and logit matching as its limit.

    python -m experiments.hinton2015.gradient --data.dir DIR

At a high temperature the gradient is that of half the squared distance of the logits, over N T^2.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import kdjax
from experiments import hinton2015
from experiments.hinton2015.study import Claim, Findings, Recipe, Study, run_script
from kdjax import runs

if TYPE_CHECKING:
    from experiments.hinton2015.networks import Cohort
    from kdjax.runs.report import Table
    from kdjax.types import Array, Objective, TermInputs

TEMPERATURES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TRAINED = (4.0, 20.0, 100.0, 1000.0)
RECIPE, QUICK = Recipe(epochs=10), Recipe(epochs=10, batch_size=64)
NOTES = [
    "The gradient is that of the cross-entropy with the soft targets, as in the paper, for the "
    "logits of a student trained from labels and of the teacher, averaged over test images. The "
    "approximation takes both logits to have mean zero for each image, which biases do not "
    "guarantee: the logits are centered first, which changes no softmax.",
    "Logit matching minimizes half the mean squared difference of centered logits, the limit of "
    "T^2 times the divergence. It shares seeds and batches with the other students.",
]


def run(study: Study) -> Findings:
    """Measure gradients, then train students towards the limit and at it."""
    teacher, networks = hinton2015.teacher.obtain(study), hinton2015.networks
    spec = networks.mlp_spec(study, study.pick((100, 100), (16, 16)))
    recipe, examples = study.pick(RECIPE, QUICK), teacher.answered(study.train._asdict())
    cohort = networks.Cohort(study, spec, recipe, examples, study.seeds(5))
    scratch = networks.train(cohort, "gradient/scratch")
    z = scratch.logits(study.run, study.test.image)[0]
    measured = measure(z, teacher.test_logits, study.test.label)
    soft, matched = students(cohort)
    distances = [relative(centered(a), centered(b)) for a, b in zip(soft[-1], matched, strict=True)]
    errors = {
        "gradient against (z - v)/(N T^2) at T = 1024, relative error": measured["error"][-1:],
        "logits of T = 1000 against logit matching, relative distance": distances,
    }
    return Findings(
        [Claim(what, "equal in the limit", tuple(e), unit="") for what, e in errors.items()],
        tables=[gradient_table(measured), student_table(soft, matched, study.test.label)],
        figures=figures(measured),
        notes=NOTES,
    )


def measure(
    student_logits: np.ndarray, teacher_logits: np.ndarray, labels: np.ndarray
) -> dict[str, list[float]]:
    """Compare the exact gradient with its limit at every temperature; norms are means by image."""
    # Here and not above: flags are read before the seconds that this import takes.
    import jax
    import jax.numpy as jnp

    losses = kdjax.losses
    z, v = jnp.asarray(centered(student_logits)), jnp.asarray(centered(teacher_logits))
    count = z.shape[-1]
    hard = jax.grad(lambda z: losses.cross_entropy(z, jnp.asarray(labels)).sum())(z)
    hard_norm = float(jnp.linalg.norm(hard, axis=-1).mean())

    # Arrays are arguments: XLA would fold ten thousand constant rows while it compiles.
    @jax.jit
    def soft(z: Array, v: Array, temperature: Array) -> Array:
        def loss(z: Array) -> Array:
            values = losses.soft_target_loss(z, v, temperature=temperature)
            return jnp.sum(values / temperature**2)

        return jax.grad(loss)(z)

    found: dict[str, list[float]] = {"error": [], "scale": [], "scaled": []}
    for temperature in TEMPERATURES:
        gradient = soft(z, v, jnp.float32(temperature))
        limit = (z - v) / (count * temperature**2)
        norm = float(jnp.linalg.norm(gradient, axis=-1).mean())
        found["error"].append(relative(np.asarray(gradient), np.asarray(limit)))
        found["scale"].append(norm / hard_norm)
        found["scaled"].append(norm * temperature**2 / hard_norm)
    return found


def students(cohort: Cohort) -> tuple[np.ndarray, np.ndarray]:
    """Train at all temperatures, and by logit matching.

    Returns:
        Test logits, [temperatures, seeds, examples, k] and [seeds, examples, k].
    """
    study, networks, stored = cohort.study, hinton2015.networks, kdjax.teachers.stored()
    temperatures, seeds = zip(*itertools.product(TRAINED, cohort.seeds), strict=True)
    soft = networks.distil(cohort._replace(seeds=seeds), "gradient/soft", temperature=temperatures)
    matched = networks.train(cohort, "gradient/logits", objective_fn=logit_matching, teacher=stored)
    logits = soft.logits(study.run, study.test.image)
    shape = (len(TRAINED), len(cohort.seeds), *logits.shape[1:])
    return logits.reshape(shape), matched.logits(study.run, study.test.image)


def logit_matching(setting: Any) -> Objective:
    """Make the objective that soft targets approach: the squared distance of centered logits."""

    def values(inputs: TermInputs) -> Array:
        assert inputs.teacher is not None
        gap = inputs.student.logits - inputs.teacher.logits
        return 0.5 * gap.var(axis=-1)

    term = kdjax.terms.stateless(values)
    return kdjax.objective.combine({"logits": term}, {"logits": 1.0})


def centered(logits: np.ndarray) -> np.ndarray:
    """Give every example's logits mean zero."""
    return logits - logits.mean(-1, keepdims=True)


def relative(first: np.ndarray, second: np.ndarray) -> float:
    """Return the distance of two arrays over the size of the second."""
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


def student_table(soft: np.ndarray, matched: np.ndarray, truth: np.ndarray) -> Table:
    """Lay out how students at each temperature compare with those that match logits."""
    formatted, errors = runs.numbers.mean_and_deviation, hinton2015.networks.errors
    rows = []
    for temperature, own in zip(TRAINED, soft, strict=True):
        pairs = list(zip(own, matched, strict=True))
        agreeing = [100 * float((a.argmax(-1) == b.argmax(-1)).mean()) for a, b in pairs]
        distances = [relative(centered(a), centered(b)) for a, b in pairs]
        numbers = formatted(errors(own, truth)), formatted(agreeing, 2), formatted(distances, 4)
        rows.append((f"soft targets, T = {temperature:g}", *numbers))
    rows.append(("logit matching", formatted(errors(matched, truth)), "", ""))
    columns = ("student", "test errors", "agrees with logit matching %", "distance of logits")
    return runs.report.Table(columns, tuple(rows), "Students trained towards the limit")


def gradient_table(measured: Mapping[str, list[float]]) -> Table:
    """Lay out the gradients by temperature."""
    columns = ("T", "error of the limit", "soft over hard gradient", "the same times T^2")
    numbers = zip(TEMPERATURES, *measured.values(), strict=True)
    rows = tuple((f"{t:g}", f"{e:.4f}", f"{s:.2e}", f"{q:.3f}") for t, e, s, q in numbers)
    return runs.report.Table(columns, rows, "The gradient by temperature")


def figures(measured: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return what draws both halves of the table, with captions."""

    def plot(names: Mapping[str, str], ylabel: str) -> Any:
        lines = {name: runs.report.Line(TEMPERATURES, measured[key]) for name, key in names.items()}
        labels: Any = {"xlabel": "temperature", "ylabel": ylabel}
        return lambda: runs.report.plot_lines(lines, **labels, log_x=True, log_y=True)

    scales = {"without T²": "scale", "with T²": "scaled"}
    return {
        "limit": (
            plot({"exact against (z - v)/(N T²)": "error"}, "relative error"),
            "How far the gradient of soft targets is from its limit at high temperature.",
        ),
        "scale": (
            plot(scales, "norm over that of the hard gradient"),
            "The gradient of soft targets shrinks by 1/T² beside that of labels; T² undoes it.",
        ),
    }


if __name__ == "__main__":
    run_script("gradient", __doc__, run)
