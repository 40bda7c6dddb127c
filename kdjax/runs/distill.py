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

import kdjax
from kdjax import runs
from kdjax.runs import flags, presets, processes
from kdjax.runs.flags import flag, group
from kdjax.runs.settings import DistributedSettings, OneMethodSettings, check_distributed


@dataclasses.dataclass(frozen=True)
class Settings(OneMethodSettings):
    """Everything that a run depends on; None leaves it to the data."""

    audit: bool = flag(
        "First hold the objective against what it should satisfy, on the student's first batch; "
        "stop if it does not.",
        default=False,
    )
    extend: bool = flag(
        "Go on with the run in --workdir, finished or not, to a larger --epochs.", default=False
    )
    distributed: DistributedSettings = group(DistributedSettings)


def run(settings: Settings, command: str) -> None:
    """Train the teacher and both kinds of students, measure them and write the report.

    Both students of a seed start from the same values and see the same examples in the same order.
    The student that is exported is the best of the distilled ones by validation.

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
        scratch = runs.teaching.plan_scratch(experiment, examples)
        taught = runs.teaching.plan_method(
            experiment, teacher, settings.method, examples, phase="distilled"
        )
        if settings.audit:
            runs.training.audit(own, taught, settings.seed, exempt=runs.methods.BY_DESIGN)
        students = []
        for seed in decided.seeds:
            for plan in (scratch, taught):
                trained = plan.network(runs.training.train(own, plan, seed))
                students.append((plan.phase, trained))
        summary = runs.measures.summarize(own, teacher, students)
        distilled = [network for phase, network in students if phase == "distilled"]
        best = runs.measures.best_of(distilled, summary["distilled"])
        kdjax.models.save_network(own.workdir / "student", best.spec, best.variables)
        runs.page.write(experiment, teacher, summary, command)
        runs.experiment.finish(own)


def main(args: list[str] | None = None, program: str = "python -m experiments.distill") -> None:
    """Run the command line: some flags, or those of the process; a help page names the program."""
    settings, command = flags.read(Settings, program, __doc__, args, folder="")
    with (
        processes.together(settings.distributed) as join,
        flags.plain_errors(settings, resume_with=command),
    ):
        flags.check(settings)
        check_distributed(settings.distributed)
        join()
        run(settings, command)


if __name__ == "__main__":
    main()
