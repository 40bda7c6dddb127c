"""Distil along a chain: born-again generations, or teacher assistants on the way to the student.

    python -m experiments.generations --data.name mnist --data.dir DIR --generations 3
    python -m experiments.generations --data.name cifar100 --data.dir DIR --teacher.name resnet56 \
        --student.name resnet8 --assistants resnet32 resnet20

Each network learns from the one before it. Born again: all are the student's architecture, and
their ensemble is measured too (Furlanello et al., "Born Again Neural Networks", 2018,
arXiv:1805.04770). Assistants: sizes between teacher and student bridge their gap (Mirzadeh et al.,
"Improved Knowledge Distillation via Teacher Assistant", 2019, arXiv:1902.03393).
"""

import dataclasses
import re
import typing
from collections.abc import Sequence

import tyro

from kdjax.runs import cli, distill
from kdjax.runs import settings as groups
from kdjax.runs.settings import NetworkName, NetworkSettings


@dataclasses.dataclass(frozen=True)
class Settings(distill.Settings):
    """What `experiments.distill` asks, and the chain; all in one process."""

    distributed: tyro.conf.Suppress[groups.DistributedSettings] = dataclasses.field(
        default_factory=groups.DistributedSettings
    )
    audit: tyro.conf.Suppress[bool] = False
    generations: int = 3
    """Students in a row, each taught by the one before; of no account with assistants."""
    assistants: tuple[str, ...] = ()
    """Networks between teacher and student, in this order: a name such as resnet14, or the widths
    of an mlp, such as 128x128."""


def check(settings: Settings) -> None:
    """Raise a ValueError that names the flag of the first setting out of range."""
    distill.check(settings)
    groups.require(settings.generations > 0, "--generations", "positive", settings.generations)
    for name in settings.assistants:
        network_of(name)
    twice = len(set(settings.assistants)) < len(settings.assistants)
    groups.require(not twice, "--assistants", "different networks", " ".join(settings.assistants))
    deploys = "simkd" in settings.method.split("+")
    groups.require(
        not deploys, "--method", "one whose students can teach in their turn", settings.method
    )


def network_of(name: str) -> NetworkSettings:
    """Turn "resnet14" or "128x64" into the settings of a network.

    Raises:
        ValueError: if it is neither.
    """
    if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", name):
        return NetworkSettings("mlp", tuple(int(width) for width in name.split("x")))
    known = [known for known in typing.get_args(NetworkName) if known != "mlp"]
    groups.require(name in known, "--assistants", f"widths or of {', '.join(known)}", name)
    return NetworkSettings(typing.cast(NetworkName, name), ())


def run(settings: Settings, command: str) -> None:
    """Train the teacher if need be, then the chain for every seed; print and write the table."""
    # Seconds of imports: after the flags have been read.
    from kdjax.runs import chain, opening, presets
    from kdjax.runs import distillation as job

    settings = presets.applied(settings)
    with opening.opened(settings, distill.resolve) as experiment:
        student = experiment.settings.student
        if settings.assistants:
            links = {name: network_of(name) for name in settings.assistants}
            chosen = {**links, "student": student}
        else:
            chosen = {f"generation {i + 1}": student for i in range(settings.generations)}
        chain.check(experiment, chosen)
        teacher = job.obtain_teacher(experiment)
        found = chain.train_all(experiment, teacher, chosen)
        chain.report(experiment, found, command)


def main(args: Sequence[str] | None = None, *, prog: str = "kdjax generations") -> None:
    """Run the command line; `prog` is how it was started."""
    cli.main(Settings, prog, __doc__ or "", check, run, args, prefix="generations-")
