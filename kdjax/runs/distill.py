"""Distil a teacher into a student and compare it with the same student trained on labels alone.

    python -m experiments.distill
    python -m experiments.distill --preset imagenet --data.dir DIR --data.workers 16 --workdir W
    python -m experiments.distill --data.name mnist --data.dir DIR --teacher.widths 1200 1200 \
        --student.widths 800 800 --temperature 20 --workdir W

A teacher is trained (or read), then for every seed a student from scratch and a student with the
teacher's soft targets. Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
arXiv:1503.02531. The same command on the same work directory goes on where it was interrupted.
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kdjax.runs import cli
from kdjax.runs import settings as groups
from kdjax.runs.method_names import LINES

if TYPE_CHECKING:
    from kdjax.data import Dataset

METHOD_HELP = "How the student is taught; + joins several, as in kd+crd.\n" + "".join(
    f"{name}: {line}\n" for name, line in LINES.items()
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that a run depends on; None means that the data decides."""

    preset: groups.PresetName = "none"
    """A setting of the field's tables, for an accelerator: repdistiller for CIFAR-100, imagenet for
    ImageNet (TFDS imagenet2012), which take the place of what decides on the training."""
    pair: groups.PairName = "resnet56-resnet20"
    """Teacher and student of repdistiller."""
    data: groups.DataSettings = dataclasses.field(default_factory=groups.DataSettings)
    teacher: groups.TeacherSettings = dataclasses.field(default_factory=groups.TeacherSettings)
    student: groups.NetworkSettings = dataclasses.field(default_factory=groups.NetworkSettings)
    optimizer: groups.OptimizerSettings = dataclasses.field(
        default_factory=groups.OptimizerSettings
    )
    mesh: groups.MeshSettings = dataclasses.field(default_factory=groups.MeshSettings)
    distributed: groups.DistributedSettings = dataclasses.field(
        default_factory=groups.DistributedSettings
    )
    method: Annotated[str, tyro.conf.arg(help=METHOD_HELP)] = "kd"
    temperature: float = 4.0
    """Of kd: softens both networks' probabilities."""
    soft_weight: float = 0.9
    """Of kd: weight of the soft targets; the labels have the rest."""
    epochs: int | None = None
    """Passes of a student over its examples. Default: at least 30, and at least 2,000 steps of
    the default --batch-size."""
    batch_size: int | None = None
    """Examples in a step, over all devices. Default: 128, on small sets 64."""
    augment: tuple[groups.Augmentation, ...] | None = None
    """Views of the images that teacher and student share. Default: crop on large colour images,
    flip too unless the classes are digits or letters; none switches it off."""
    crop_padding: int = 4
    """Pixels of padding before the crop."""
    jitter_pixels: int = 2
    """Largest shift of jitter (whole pixels), translate (real numbers) and warp (of parts)."""
    precision: groups.Precision = "float32"
    """Of the networks' arithmetic; parameters, losses and statistics stay float32."""
    num_micro_batches: int = 1
    """Parts of a batch over which the gradient is accumulated."""
    rematerialise: bool = False
    """Compute the insides of networks' blocks again for the gradient: less memory, more time."""
    seed: int = 0
    """Of the teacher and of the first student."""
    num_seeds: int | None = None
    """Students of each kind. Default: 5 where students see less than 10,000 examples, else 1."""
    workdir: Path | None = None
    """Where everything is written. Default: a new folder in runs/."""
    checkpoint_every: int | None = None
    """Steps between checkpoints. Default: 20 in a training, but 500 steps apart at least."""
    keep_last: int = 2
    """How many of the newest checkpoints of a training stay, two at least: one may be damaged."""
    keep_best: bool = False
    """Also write a checkpoint at every validation that is the best so far, and keep it."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss that is nan or infinite does: stop the run, naming step and term, or skip the
    step, leaving everything as it was, also where only the gradient is not finite."""
    eval_every: int | None = None
    """Steps between validations. Default: 20 in a training."""
    log_every: int = 50
    """Steps between lines in metrics.jsonl."""
    steps_per_call: int | None = None
    """Most steps that one call of the compiled program takes; a single process ends it after about
    0.25 s. With more than 1 every device holds the examples. Default: 50 where they fit and one
    process trains, but 1 for convolutions on CPUs."""
    profile: bool = False
    """Write traces of the steps 10 to 15 of each training to W/profile, for TensorBoard, XProf or
    Perfetto."""
    audit: bool = False
    """First hold the objective against what it should satisfy, on the student's first batch; stop
    if it does not."""


def check(settings: Settings) -> None:
    """Raise a ValueError that names the flag of the first setting out of range."""
    groups.check_data(settings.data)
    groups.check_network("--teacher", settings.teacher)
    groups.check_network("--student", settings.student)
    groups.check_optimizer(settings.optimizer)
    groups.check_rate("--teacher.learning-rate", settings.teacher.learning_rate)
    groups.check_mesh(settings.mesh)
    groups.check_distributed(settings.distributed)
    keep_last = settings.keep_last
    groups.require(keep_last >= 2, "--keep-last", "2 or more: one can be damaged", keep_last)
    known = all(name in LINES for name in settings.method.split("+"))
    groups.require(known, "--method", f"of {', '.join(LINES)}", settings.method)
    temperature, soft_weight = settings.temperature, settings.soft_weight
    groups.require(0 < temperature < math.inf, "--temperature", "positive and finite", temperature)
    groups.require(0 <= soft_weight <= 1, "--soft-weight", "in [0, 1]", soft_weight)
    counts = {
        "--epochs": settings.epochs,
        "--teacher.epochs": settings.teacher.epochs,
        "--batch-size": settings.batch_size,
        "--num-seeds": settings.num_seeds,
        "--num-micro-batches": settings.num_micro_batches,
        "--checkpoint-every": settings.checkpoint_every,
        "--eval-every": settings.eval_every,
        "--log-every": settings.log_every,
        "--steps-per-call": settings.steps_per_call,
    }
    for flag, count in counts.items():
        groups.require(count is None or count > 0, flag, "positive", count)


def resolve(settings: Settings, dataset: "Dataset") -> Settings:
    """Put the data's defaults where a setting is None."""
    defaults = groups.defaults_for(
        settings.data.name,
        len(dataset.train.label),
        dataset.image_shape,
        dataset.label_names,
        settings.data.student_examples,
    )
    augment = defaults.augment if settings.augment is None else settings.augment
    inherited = defaults.teacher_augment if settings.augment is None else augment
    batch_size = settings.batch_size or defaults.batch_size
    optimizer, teacher = settings.optimizer, groups.with_architecture(settings.teacher, (256, 256))
    rate = optimizer.learning_rate or groups.default_learning_rate(optimizer.name, batch_size)
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, student_examples=defaults.student_examples),
        teacher=dataclasses.replace(
            teacher,
            epochs=teacher.epochs or settings.epochs or defaults.teacher_epochs,
            augment=inherited if teacher.augment is None else teacher.augment,
        ),
        student=groups.with_architecture(settings.student, (32,)),
        optimizer=dataclasses.replace(optimizer, learning_rate=rate),
        epochs=settings.epochs or defaults.epochs,
        batch_size=batch_size,
        augment=augment,
        num_seeds=settings.num_seeds or defaults.num_seeds,
    )


def run(settings: Settings, command: str) -> None:
    """Train the teacher and both kinds of students, measure them and write the report."""
    # Seconds of imports: after the flags have been read.
    from kdjax.runs import distillation as job
    from kdjax.runs import opening, presets, reporting

    settings = presets.applied(settings)
    if job.say_if_finished(settings):
        return
    with opening.opened(settings, resolve) as experiment:
        teacher = job.obtain_teacher(experiment)
        students = job.train_students(experiment, teacher)
        summary = job.summarize(experiment, teacher, students)
        reporting.report(experiment, teacher, summary, command)


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    module = "experiments.distill"
    cli.main(Settings, module, __doc__ or "", check, run, args)


if __name__ == "__main__":
    main()
