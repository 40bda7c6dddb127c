"""Distil a teacher into a student and compare it with the same student trained on labels alone.

    python -m experiments.distill
    python -m experiments.distill --preset imagenet --data.dir DIR --data.workers 16 --workdir W
    python -m experiments.distill --data.name mnist --data.dir DIR --teacher.widths 1200 1200 \\
        --student.widths 800 800 --temperature 20 --workdir W

A teacher is trained (or read), then for every seed a student from scratch and a student with the
teacher's soft targets. Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
arXiv:1503.02531. The same command on the same work directory goes on where it was interrupted.
"""

import dataclasses
from pathlib import Path

import kdjax
from kdjax import runs
from kdjax.runs import flags, presets, processes
from kdjax.runs.flags import flag, group
from kdjax.runs.settings import (
    POSITIVE,
    DistributedSettings,
    OneMethodSettings,
    TaskName,
    audit_flag,
)


@dataclasses.dataclass(frozen=True)
class Settings(OneMethodSettings):
    """Everything that a run depends on; None leaves it to the data."""

    task: TaskName = flag(
        "What labels are: one class for an image; several, each true or false, or one of two "
        "classes by one logit; real numbers; embeddings, told apart by class, given or the "
        "teacher's alone; a class for each pixel. --data.dir takes all of them in a .npz file.",
        default="single-label",
    )
    embedding_size: int | None = flag(
        "Numbers of an embedding. Default: those of the labels or of the given teacher, else 64.",
        POSITIVE,
    )
    stored_logits: Path | None = flag(
        "A .npz file with what a teacher says of the images as they are, in its place: logits "
        "`train`, `validation` and `test`, in the order of the data's splits."
    )
    audit: bool = audit_flag()
    extend: bool = flag(
        "Go on with the run in --workdir, finished or not, to a larger --epochs.", default=False
    )
    distributed: DistributedSettings = group(DistributedSettings)


def run(settings: Settings, command: str) -> None:
    """Train the teacher and both kinds of students, measure them and write the report.

    Both students of a seed start from the same values and see the same examples in the same order;
    without labels there is no student of labels alone. The student that is exported is the best of
    the distilled ones by validation.

    Args:
        settings: as the flags gave them.
        command: what goes on with the same work directory.
    """
    settings = presets.applied(settings)
    with runs.experiment.opened(settings) as experiment:
        own, decided = experiment.run, experiment.settings
        if runs.experiment.is_finished(own):
            return
        teacher = runs.teaching.obtain_teacher(experiment)
        examples = runs.teaching.student_examples(experiment)
        taught = runs.teaching.plan_method(
            experiment, teacher, settings.method, examples, phase="distilled"
        )
        plans = [taught]
        if experiment.task.hard is not None:
            plans = [runs.teaching.plan_scratch(experiment, examples), taught]
        if settings.audit:
            runs.training.audit(own, taught, settings.seed, exempt=runs.methods.BY_DESIGN)
        students = []
        for seed in decided.seeds:
            for plan in plans:
                trained = plan.network(runs.training.train(own, plan, seed))
                students.append((plan.phase, trained))
        summary = runs.measures.summarize(own, teacher, students, experiment.task)
        distilled = [network for phase, network in students if phase == "distilled"]
        best = runs.measures.best_of(distilled, summary["distilled"])
        kdjax.models.save_network(own.workdir / "student", best.spec, best.variables)
        said = runs.answers.of(experiment, teacher, students, best)
        runs.page.write(experiment, teacher, summary, said, command)
        runs.experiment.finish(own)


def main(args: list[str] | None = None, program: str = "python -m experiments.distill") -> None:
    """Run the command line: some flags, or those of the process; a help page names the program."""
    settings, command = flags.read(Settings, program, __doc__, args, folder="")
    with (
        processes.together(settings.distributed) as join,
        flags.plain_errors(settings, resume_with=command),
    ):
        flags.check(settings)
        processes.check(settings.distributed)
        join()
        run(settings, command)


if __name__ == "__main__":
    main()
