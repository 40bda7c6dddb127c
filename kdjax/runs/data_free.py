"""Distil without data: a generator makes up the images that the student learns from.

    python -m experiments.data_free --data.name mnist --data.dir DIR --teacher.widths 1200 1200 \
        --student.widths 800 800 --steps 6000

The data trains the teacher, unless --teacher.checkpoint names one, and measures the student at the
end; the student sees none of it. Chen et al., "Data-Free Learning of Student Networks", 2019,
arXiv:1904.01186, with the adversary of Fang et al., "Data-Free Adversarial Distillation", 2019,
arXiv:1912.11006.
"""

import dataclasses
from collections.abc import Sequence

import tyro

from kdjax.runs import cli, distill
from kdjax.runs import settings as groups


@dataclasses.dataclass(frozen=True)
class GeneratorSettings:
    """The generator, and what it is asked for."""

    noise_size: int = 100
    """Numbers that an image is made from."""
    learning_rate: float = 1e-3
    """Of Adam, with a cosine to zero."""
    sure: float = 1.0
    """Weight of the teacher's cross-entropy with its own decisions."""
    active: float = 0.1
    """Weight of the size of the teacher's embedding."""
    balanced: float = 5.0
    """Weight of the entropy of the mean prediction: every class as often."""
    new: float = 1.0
    """Weight of the student's divergence from the teacher: images where it is wrong."""


@dataclasses.dataclass(frozen=True)
class Settings(distill.Settings):
    """What `experiments.distill` asks, where it applies, and the generator; all in one process."""

    distributed: tyro.conf.Suppress[groups.DistributedSettings] = dataclasses.field(
        default_factory=groups.DistributedSettings
    )
    preset: tyro.conf.Suppress[groups.PresetName] = "none"
    pair: tyro.conf.Suppress[groups.PairName] = "resnet56-resnet20"
    method: tyro.conf.Suppress[str] = "kd"
    soft_weight: tyro.conf.Suppress[float] = 1.0
    audit: tyro.conf.Suppress[bool] = False
    augment: tyro.conf.Suppress[tuple[groups.Augmentation, ...] | None] = None
    num_micro_batches: tyro.conf.Suppress[int] = 1
    rematerialise: tyro.conf.Suppress[bool] = False
    generator: GeneratorSettings = dataclasses.field(default_factory=GeneratorSettings)
    steps: int = 6000
    """Steps of a student; --epochs is the teacher's."""


def check(settings: Settings) -> None:
    """Raise a ValueError that names the flag of the first setting out of range."""
    distill.check(settings)
    made = settings.generator
    groups.require(settings.steps > 0, "--steps", "positive", settings.steps)
    groups.require(made.noise_size > 0, "--generator.noise-size", "positive", made.noise_size)
    groups.require(
        made.learning_rate > 0, "--generator.learning-rate", "positive", made.learning_rate
    )


def run(settings: Settings, command: str) -> None:
    """Train the teacher if need be, then generator and student for every seed; write the page."""
    # Seconds of imports: after the flags have been read.
    from kdjax.runs import distillation as job
    from kdjax.runs import imagined, opening

    with opening.opened(settings, distill.resolve) as experiment:
        teacher = job.obtain_teacher(experiment)
        plan = imagined.plan(experiment, teacher, settings.generator, settings.steps)
        seeds = opening.seeds_of(experiment.settings)
        found = [imagined.train(experiment, teacher, plan, seed) for seed in seeds]
        imagined.report(experiment, teacher, plan, found, command)


def main(args: Sequence[str] | None = None, *, prog: str = "kdjax data-free") -> None:
    """Run the command line; `prog` is how it was started."""
    cli.main(Settings, prog, __doc__ or "", check, run, args, prefix="data-free-")
