"""Compare the ways of distilling: one teacher, one student, the same budget for every method.

    python -m experiments.compare --data.name cifar100 --data.dir DIR \
        --teacher.name resnet20 --teacher.checkpoint cifar100_resnet20.npz \
        --student.name resnet8 --workdir W
    python -m experiments.compare --preset repdistiller --pair resnet56-resnet20 --workdir W

Every method trains the student once, with its paper's weights. The best by validation accuracy
are then tried with other weights, the best of which trains further seeds. The test set is measured
after every epoch and chooses nothing. The same command on the same work directory goes on where it
was interrupted.
"""

import dataclasses
from typing import Annotated

import tyro

from kdjax.runs import cli, distill, presets
from kdjax.runs import settings as groups
from kdjax.runs.method_names import LINES


@dataclasses.dataclass(frozen=True)
class Settings(distill.Settings):
    """What `experiments.distill` asks, and which methods to compare; all in one process."""

    distributed: tyro.conf.Suppress[groups.DistributedSettings] = dataclasses.field(
        default_factory=groups.DistributedSettings
    )
    method: tyro.conf.Suppress[str] = "kd"
    audit: tyro.conf.Suppress[bool] = False
    eval_every: tyro.conf.Suppress[int | None] = None
    methods: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: all)")] = ()
    """Which methods, as experiments.distill --help lists them; + joins several into one."""
    num_best: int = 10
    """Methods that are tried with other weights and trained from further seeds."""
    scales: tuple[float, ...] = (1 / 3, 3.0)
    """What the weights of the best are multiplied by, in trial; 1 is always among them."""
    num_seeds: int | None = 3
    """Students of each of the best, and from scratch."""


def check(settings: Settings) -> None:
    """Raise a ValueError that names the flag of the first setting out of range."""
    distill.check(settings)
    for method in settings.methods:
        known = all(name in LINES for name in method.split("+"))
        groups.require(known, "--methods", f"of {', '.join(LINES)}", method)
    groups.require(settings.num_best >= 0, "--num-best", "zero or more", settings.num_best)
    blind = settings.data.validation_fraction == 0 and settings.preset != "imagenet"
    groups.require(
        not (blind and settings.num_best),
        "--num-best",
        "0 where --data.validation-fraction is: there are no examples to choose by",
        settings.num_best,
    )
    positive = all(scale > 0 for scale in settings.scales)
    groups.require(positive, "--scales", "positive", settings.scales)


def run(settings: Settings, command: str) -> None:
    """Train the teacher if need be, then every method; write the table, the plot and the page."""
    # Seconds of imports: after the flags have been read.
    from kdjax.runs import comparison, opening
    from kdjax.runs import distillation as job

    settings = presets.applied(settings)
    with opening.opened(settings, distill.resolve) as experiment:
        names = comparison.chosen(experiment, settings.methods)
        teacher = job.obtain_teacher(experiment)
        entries = comparison.train_all(
            experiment,
            teacher,
            names,
            num_best=settings.num_best,
            scales=settings.scales,
        )
        comparison.report(experiment, teacher, entries, command)


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    module = "experiments.compare"
    cli.main(Settings, module, __doc__ or "", check, run, args, prefix="compare-")


if __name__ == "__main__":
    main()
