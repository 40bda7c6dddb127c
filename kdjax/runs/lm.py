"""Distil a language model, and compare the student with the same one trained on the text alone.

    python -m experiments.lm
    python -m experiments.lm --data.file TEXT --teacher.width 256 --student.width 64 --workdir W
    python -m experiments.lm --data.file TEXT --teacher.checkpoint SmolLM2-135M --divergence jsd

A teacher is trained (or read: Llama, SmolLM2, Qwen; a folder of Hugging Face's or a GGUF file),
then for every seed a student from the text's labels and a student with the teacher's next-token
probabilities. Losses see hidden states and heads, a chunk of tokens at a time (docs/language.md).
The same command on the same work directory goes on where it was interrupted.
"""

import dataclasses
import functools

from kdjax import runs
from kdjax.runs import flags, processes
from kdjax.runs.flags import group
from kdjax.runs.language.settings import LanguageSettings
from kdjax.runs.settings import DistributedSettings


@dataclasses.dataclass(frozen=True)
class Settings(LanguageSettings):
    """Everything that a run depends on; None leaves it to the text."""

    distributed: DistributedSettings = group(DistributedSettings)


def run(settings: Settings, command: str) -> None:
    """Train the teacher and both kinds of students, measure them and write the report.

    Both students of a seed start from the same values; where neither continues rows, they see the
    same ones in the same order. The student that is exported is the best of the distilled ones on
    the validation text.

    Args:
        settings: as the flags gave them.
        command: what goes on with the same work directory.
    """
    # Here and not above: flags are read before the seconds that these imports take.
    from kdjax.runs.language import lessons, networks, opened, plans, results

    with opened.opened(settings) as on_text:
        own, decided = on_text.run, on_text.settings
        if runs.experiment.is_finished(own, results.format_table):
            return
        teacher = plans.obtain_teacher(on_text)
        if on_text.given_teacher is None:
            on_text.save("teacher", teacher)
        of_text = decided, on_text.text.tokenizer.vocab_size
        student = networks.student_of(*of_text, teacher, on_text.student_start)
        of_both = plans.plan_students(on_text, student, teacher)
        if decided.audit:
            of_logits = functools.partial(lessons.of_logits, decided)
            runs.training.audit(own, of_both[1], decided.seed, exempt={}, of_logits=of_logits)
        students = []
        for seed in range(decided.seed, decided.seed + decided.num_seeds):
            for plan in of_both:
                variables = runs.training.train(own, plan, seed)
                students.append((plan.phase, seed, networks.Network(student.model, variables)))
        found = results.summarize(on_text, teacher, students)
        distilled = [network for phase, _, network in students if phase == "distilled"]
        best = results.best_of(distilled, found.summary["distilled"])
        on_text.save("student", best)
        shown = {"Teacher": teacher, "Labels alone": students[0][2], "Distilled": best}
        results.write(on_text, found, shown, command)
        runs.experiment.finish(own)


def main(args: list[str] | None = None, program: str = "python -m experiments.lm") -> None:
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
