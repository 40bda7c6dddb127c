"""Section 2: the gradient of soft targets, its scale, and logit matching as its limit.

    python -m experiments.hinton2015.gradient --data.dir DIR

At a high temperature the gradient is that of half the squared distance of the logits, over N T^2.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.hinton2015 import group, teacher
from experiments.hinton2015 import lab as labs
from experiments.hinton2015.lab import Claim, Findings, Lab, Table
from kdjax import losses, teachers, terms
from kdjax.objective import combine
from kdjax.runs.numbers import mean_and_deviation
from kdjax.runs.report import Line, plot_lines
from kdjax.types import Array, Objective, TermInputs

TEMPERATURES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TRAINED = (4.0, 20.0, 100.0, 1000.0)
RECIPE, QUICK = group.Recipe(epochs=10), group.Recipe(epochs=10, batch_size=64)
NOTES = [
    "The gradient is that of the cross-entropy with the soft targets, as in the paper, for the "
    "logits of a student trained from labels and of the teacher, averaged over test images. The "
    "approximation takes both logits to have mean zero for each image, which biases do not "
    "guarantee: the logits are centred first, which changes no softmax.",
    "Logit matching minimises half the mean squared difference of centred logits, the limit of "
    "T^2 times the divergence. It shares seeds and batches with the other students.",
]


def run(lab: Lab) -> Findings:
    """Measure gradients, then train students towards the limit and at it."""
    big = teacher.obtain(lab)
    seeds = lab.seeds(5)
    spec = group.mlp_spec(lab, lab.pick((100, 100), (16, 16)))
    recipe = lab.pick(RECIPE, QUICK)
    examples = big.answered(lab.train._asdict())
    scratch = group.train_group(lab, "gradient/scratch", spec, recipe, examples, seeds=seeds)
    measured = measure(group.test_logits(lab, scratch)[0], big.test_logits, lab.test.label)
    soft, logits = students(lab, spec, recipe, examples, seeds)
    truth = lab.test.label
    rows = []
    for i, temperature in enumerate(TRAINED):
        own = soft[i * len(seeds) : (i + 1) * len(seeds)]
        agreeing = [
            100 * float((a.argmax(-1) == b.argmax(-1)).mean())
            for a, b in zip(own, logits, strict=True)
        ]
        distances = [relative(centred(a), centred(b)) for a, b in zip(own, logits, strict=True)]
        counted = group.errors(own, truth)
        rows.append(
            (
                f"soft targets, T = {temperature:g}",
                mean_and_deviation(counted),
                mean_and_deviation(agreeing, 2),
                mean_and_deviation(distances, 4),
            )
        )
    rows.append(("logit matching", mean_and_deviation(group.errors(logits, truth)), "", ""))
    at_limit = [relative(centred(a), centred(b)) for a, b in zip(own, logits, strict=True)]
    return Findings(
        [
            Claim(
                "gradient against (z - v)/(N T^2) at T = 1024, relative error",
                "equal in the limit",
                (measured["error"][-1],),
                unit="",
            ),
            Claim(
                "logits of T = 1000 against logit matching, relative distance",
                "equal in the limit",
                tuple(at_limit),
                unit="",
            ),
        ],
        tables=[
            gradient_table(measured),
            Table(
                ("student", "test errors", "agrees with logit matching %", "distance of logits"),
                tuple(rows),
                "Students trained towards the limit",
            ),
        ],
        figures=figures(measured),
        notes=NOTES,
    )


def measure(
    student_logits: np.ndarray, teacher_logits: np.ndarray, labels: np.ndarray
) -> dict[str, list[float]]:
    """Compare the exact gradient with its limit at every temperature; norms are means by image."""
    z, v = jnp.asarray(centred(student_logits)), jnp.asarray(centred(teacher_logits))
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


def students(
    lab: Lab, spec: Any, recipe: group.Recipe, examples: Mapping[str, Any], seeds: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Train at all temperatures, and by logit matching; return their test logits."""
    grid = [(t, s) for t in TRAINED for s in seeds]
    settings = group.constant(len(grid), soft_weight=1.0)
    settings["temperature"] = np.array([t for t, _ in grid], np.float32)
    soft = group.train_group(
        lab,
        "gradient/soft",
        spec,
        recipe,
        examples,
        seeds=[s for _, s in grid],
        settings=settings,
        objective_fn=group.soft_and_hard,
        teacher=teachers.stored(),
    )
    matched = group.train_group(
        lab,
        "gradient/logits",
        spec,
        recipe,
        examples,
        seeds=seeds,
        objective_fn=logit_matching,
        teacher=teachers.stored(),
    )
    return group.test_logits(lab, soft), group.test_logits(lab, matched)


def logit_matching(setting: Any) -> Objective:
    """Make the objective that soft targets approach: the squared distance of centred logits."""

    def values(inputs: TermInputs) -> Array:
        assert inputs.teacher is not None
        gap = inputs.student.logits - inputs.teacher.logits
        return 0.5 * jnp.var(gap, axis=-1)

    return combine({"logits": terms.stateless(values)}, {"logits": 1.0})


def centred(logits: np.ndarray) -> np.ndarray:
    """Give every example's logits mean zero."""
    return logits - logits.mean(-1, keepdims=True)


def relative(first: np.ndarray, second: np.ndarray) -> float:
    """Return the distance of two arrays over the size of the second."""
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


def gradient_table(measured: Mapping[str, list[float]]) -> Table:
    """Lay out the gradients by temperature."""
    columns = ("T", "error of the limit", "soft over hard gradient", "the same times T^2")
    rows = tuple(
        (f"{t:g}", f"{e:.4f}", f"{s:.2e}", f"{q:.3f}")
        for t, e, s, q in zip(
            TEMPERATURES, measured["error"], measured["scale"], measured["scaled"], strict=True
        )
    )
    return Table(columns, rows, "The gradient by temperature")


def figures(measured: Mapping[str, list[float]]) -> dict[str, Any]:
    """Draw both halves of the table."""
    error = {"exact against (z - v)/(N T²)": Line(TEMPERATURES, measured["error"])}
    scale = {
        "without T²": Line(TEMPERATURES, measured["scale"]),
        "with T²": Line(TEMPERATURES, measured["scaled"]),
    }
    ylabel = "norm over that of the hard gradient"
    return {
        "limit": (
            plot_lines(
                error, xlabel="temperature", ylabel="relative error", log_x=True, log_y=True
            ),
            "How far the gradient of soft targets is from its limit at high temperature.",
        ),
        "scale": (
            plot_lines(scale, xlabel="temperature", ylabel=ylabel, log_x=True, log_y=True),
            "The gradient of soft targets shrinks by 1/T² beside that of labels; T² undoes it.",
        ),
    }


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    labs.main("gradient", __doc__ or "", run, args)


if __name__ == "__main__":
    main()
