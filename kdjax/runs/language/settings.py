"""The flags of `lm`, with their limits."""

import dataclasses
from pathlib import Path
from typing import Literal

from kdjax.runs.flags import Limit, flag, group
from kdjax.runs.settings import (
    COUNTED,
    FINITE,
    NOT_NEGATIVE,
    PART,
    POSITIVE,
    SEED,
    SHARE,
    MeshSettings,
    OptimizerSettings,
    Precision,
    audit_flag,
    average_flag,
    eval_flag,
)

Divergence = Literal[
    "kl", "reverse-kl", "jsd", "skew-kl", "skew-reverse-kl", "symmetric-kl", "total-variation",
    "taid", "logit-mse",
]  # fmt: skip
_INNER = Limit("in (0, 1)", lambda x: 0 < x < 1)


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Which text, and how it is cut."""

    file: Path | None = flag(
        "A text file, or JSON lines (.jsonl), a document each. Default: the embedded text, what "
        "Python's help() says of the language's topics."
    )
    name: str | None = flag("A text set of TFDS instead, prepared in --data.dir.")
    dir: Path | None = flag("Where sets of TFDS are prepared. Default: TFDS's own place.")
    field: str = flag("Where a document's text is, in JSON lines and TFDS.", default="text")
    tokenizer: str | None = flag(
        "words, the frequent ones, and bytes for all else; bytes; characters, those of the text; "
        "or a file: tokenizer.json, or a GGUF model. Default: that of --teacher.checkpoint, else "
        "words."
    )
    vocabulary: Literal["all", "text"] = flag(
        "all ids of the tokenizer, or those that the text has: a teacher's answer is then that "
        "among these.",
        default="all",
    )
    length: int = flag("Tokens in a row (a context window).", COUNTED, default=128)
    validation_fraction: float = flag(
        "Share of the text, from its end, that networks are compared on.", _INNER, default=0.1
    )
    student_fraction: float | None = flag(
        "Share of the training text, from its beginning, that students see. Default: 0.1 of the "
        "embedded text, else all.",
        Limit("in (0, 1]", lambda x: 0 < x <= 1),
    )

    @property
    def title(self) -> str:
        """What the text is called before it is read."""
        return self.file.stem if self.file else (self.name or "text").replace("/", "-")


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
    """A decoder, by its sizes."""

    width: int = flag("Of the hidden states.", POSITIVE, default=32)
    depth: int = flag("The number of blocks.", POSITIVE, default=2)
    num_heads: int = flag("Attention heads; they divide the width.", POSITIVE, default=4)
    num_key_heads: int | None = flag(
        "Of keys and values, a divisor of the heads. Default: as many.", POSITIVE
    )
    mlp_width: int | None = flag(
        "Hidden units of a block's perceptron. Default: 8/3 of the width.", POSITIVE
    )
    checkpoint: Path | None = flag(
        "Where it starts: a decoder of the same tokenizer, in a folder or file as a teacher's; its "
        "sizes are those of that."
    )


@dataclasses.dataclass(frozen=True)
class LanguageTeacherSettings(DecoderSettings):
    """The teacher, trained first or read."""

    width: int = flag("Of the hidden states.", POSITIVE, default=96)
    checkpoint: Path | None = flag(
        "A trained teacher: a folder with config.json and .safetensors under Hugging Face's names "
        "(Llama, SmolLM2, Qwen 2 and 3), a GGUF file, or W/teacher of an earlier run."
    )
    epochs: int | None = flag("Passes over the training text. Default: 3.", POSITIVE)
    learning_rate: float | None = flag(
        "Peak learning rate while the teacher trains. Default: as --optimizer.learning-rate.",
        FINITE,
    )
    store: Path | None = flag(
        "Where the teacher's hidden states are kept (2 bytes a number), to be found again by other "
        "runs on the same text. Default: --workdir."
    )


@dataclasses.dataclass(frozen=True)
class LanguageStudentSettings(DecoderSettings):
    """The student."""

    embedding: Literal["own", "teacher"] = flag(
        "own, which is its head too; or the kernel of the teacher's head in both places, as it is, "
        "behind two projections.",
        default="own",
    )


@dataclasses.dataclass(frozen=True)
class LanguageOptimizerSettings(OptimizerSettings):
    """The optimizer, and how its learning rate changes."""

    learning_rate: float | None = flag(
        "Peak learning rate. Default: 0.003 for adamw, 0.1 for sgd.", FINITE
    )
    clip_norm: float | None = flag(
        "Largest norm of the gradient, over all parameters; a longer one is scaled back.",
        FINITE,
        default=1.0,
    )


@dataclasses.dataclass(frozen=True)
class LanguageSettings:
    """What a run depends on; None leaves it to the text."""

    data: TextSettings = group(TextSettings)
    teacher: LanguageTeacherSettings = group(LanguageTeacherSettings)
    student: LanguageStudentSettings = group(LanguageStudentSettings)
    optimizer: LanguageOptimizerSettings = group(LanguageOptimizerSettings)
    mesh: MeshSettings = group(MeshSettings)
    divergence: Divergence = flag(
        "How far the student is from the teacher. kl: KL(teacher || student); reverse-kl: "
        "KL(student || teacher); jsd: generalized Jensen-Shannon, --beta (TRL's GKD); skew-kl and "
        "skew-reverse-kl (DistiLLM), --skew; symmetric-kl: the mean of both; total-variation; "
        "taid: a target that moves from the student to the teacher; logit-mse: squared difference "
        "of centered logits, from hidden states alone.",
        default="kl",
    )
    beta: float = flag(
        "Of jsd: the teacher's share of the mixture; 0 is kl, 1 reverse-kl.", SHARE, default=0.5
    )
    skew: float = flag(
        "Of skew-kl and skew-reverse-kl: the other's share of the mixture.", PART, default=0.1
    )
    temperature: float = flag(
        "Softens both networks' probabilities; times T^2 where there is a logarithm.",
        FINITE,
        default=1.0,
    )
    soft_weight: float = flag(
        "Weight of the divergence; the labels' cross-entropy has the rest.", SHARE, default=0.9
    )
    on_policy_fraction: float = flag(
        "Share of the steps whose rows the student continues itself before the teacher judges the "
        "continuation (GKD; TRL calls it lmbda). These steps have no labels.",
        SHARE,
        default=0.0,
    )
    sequence_level: bool = flag(
        "Students distil from rows that the teacher has continued, not from the text's own "
        "(sequence-level distillation; TRL: seq_kd).",
        default=False,
    )
    prompt_length: int | None = flag(
        "Tokens of a row that are kept where it is continued. Default: a quarter of the row.",
        POSITIVE,
    )
    sampling_temperature: float = flag(
        "Of continuations; 0 takes the likeliest token.", NOT_NEGATIVE, default=1.0
    )
    chunk_size: int = flag(
        "Tokens of each device whose logits are in memory at a time.", POSITIVE, default=1024
    )
    epochs: int | None = flag(
        "Passes of a student over its rows. Default: at least 3, and 200 steps.", POSITIVE
    )
    batch_size: int = flag("Rows in a step, over all devices.", POSITIVE, default=16)
    num_micro_batches: int = flag(
        "Parts of a batch over which the gradient is accumulated.", POSITIVE, default=1
    )
    average: float | None = average_flag()
    rematerialise: bool = flag(
        "Compute the insides of blocks again for the gradient: less memory, more time.",
        default=False,
    )
    precision: Precision = flag(
        "Of the networks' arithmetic; parameters, logits and losses stay float32.",
        default="float32",
    )
    seed: int = flag("Of the teacher and of the first student.", SEED, default=0)
    num_seeds: int = flag("Students of each kind.", POSITIVE, default=3)
    workdir: Path | None = flag("Where everything is written. Default: a new folder in runs/.")
    eval_every: int | None = eval_flag()
    checkpoint_every: int | None = flag(
        "Steps between checkpoints. Default: 20 in a training, but 500 steps apart at least.",
        POSITIVE,
    )
    keep_last: int = flag(
        "How many of the newest checkpoints of a training stay, two at least: one may be damaged.",
        Limit("2 or more: one can be damaged", lambda n: n >= 2),
        default=2,
    )
    keep_best: bool = flag(
        "Also write a checkpoint at every validation that has the least loss so far, and keep it.",
        default=False,
    )
    on_nonfinite: Literal["stop", "skip"] = flag(
        "What a loss that is nan or infinite does: stop the run, or skip the step.", default="stop"
    )
    log_every: int = flag("Steps between lines in metrics.jsonl.", POSITIVE, default=50)
    steps_per_call: int | None = flag(
        "Most steps that one call of the compiled program takes. Default: 50 where one process "
        "trains and the rows fit.",
        POSITIVE,
    )
    audit: bool = audit_flag()
    extend: bool = flag(
        "Go on with the run in --workdir, finished or not, to a larger --epochs.", default=False
    )
    profile: bool = flag(
        "Write traces of the steps 10 to 15 of each training to W/profile.", default=False
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecidedText(TextSettings):
    """Which text, and how it is cut."""

    student_fraction: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecidedTeacher(LanguageTeacherSettings):
    """The teacher, trained first or read."""

    epochs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecidedOptimizer(LanguageOptimizerSettings):
    """The optimizer, and how its learning rate changes."""

    learning_rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecidedLanguage(LanguageSettings):
    """What a run depends on, with nothing left to the text."""

    data: DecidedText
    teacher: DecidedTeacher
    optimizer: DecidedOptimizer
    epochs: int
    prompt_length: int
    workdir: Path
