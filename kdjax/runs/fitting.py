"""Whether two networks have what a method needs."""

import functools

import jax
import numpy as np

from kdjax import models
from kdjax.models import NetworkSpec
from kdjax.runs import methods

SAME_WIDTHS = ("fsp", "cwd")


def check_fit(name: str, student: NetworkSpec, teacher: NetworkSpec) -> None:
    """Raise a ValueError unless two networks have the features that a method needs.

    Args:
        name: the method, or several joined by "+".
        student: describes the student.
        teacher: describes the teacher.
    """
    methods.check_places(name, models.build(student).paths, models.build(teacher).paths)
    for method in methods.methods_in(name):
        if method in SAME_WIDTHS and not _same_widths(method, student, teacher):
            raise ValueError(
                f"--method {method} needs maps of the same widths; {student.name} has "
                f"{stage_widths(student)} and {teacher.name} {stage_widths(teacher)}"
            )


def fits(name: str, student: NetworkSpec, teacher: NetworkSpec) -> bool:
    """Whether two networks have the features that a method needs."""
    try:
        check_fit(name, student, teacher)
    except ValueError:
        return False
    return True


@functools.cache
def stage_widths(spec: NetworkSpec) -> tuple[int, ...]:
    """Return the channels of each stage of a network."""
    stages = models.build(spec).paths.stages
    model = models.build(spec, features=stages)

    def features(images: jax.Array) -> dict[str, jax.Array]:
        variables = model.init(jax.random.key(0), images)
        return dict(model.apply(*variables, images, train=False)[0].features)

    found = jax.eval_shape(features, jax.ShapeDtypeStruct((1, *spec.image_shape), np.uint8))
    return tuple(found[stage].shape[-1] for stage in stages)


def _same_widths(method: str, student: NetworkSpec, teacher: NetworkSpec) -> bool:
    one, two = stage_widths(student), stage_widths(teacher)
    count = min(len(one), len(two)) if method == "fsp" else 1
    return one[-count:] == two[-count:]
