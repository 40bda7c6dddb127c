"""A run on text: the text, a teacher that is given, mesh and work directory, and that they fit."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax import data, distributed, models
from kdjax.checkpoint import lock
from kdjax.data.text import TextSet, Tokenizer
from kdjax.loop import stop_on_signals
from kdjax.runs import checks, experiment, fingerprints, processes, workdir
from kdjax.runs.console import say
from kdjax.runs.evaluation import Run
from kdjax.runs.language import networks
from kdjax.runs.language.networks import Network
from kdjax.runs.language.settings import (
    DecidedLanguage,
    DecidedOptimizer,
    DecidedTeacher,
    DecidedText,
    LanguageSettings,
)
from kdjax.runs.resolved import narrowed

_RATES = {"adamw": 3e-3, "sgd": 0.1}
_SHORTEST_STUDENT, _EPOCHS = 200, 3
_EMBEDDED_FRACTION = 0.1


@dataclasses.dataclass(frozen=True)
class LanguageRun:
    """Text and decided settings, what all trainings share, and networks that are given.

    `kept` are the ids of the tokenizer that make up a smaller vocabulary, `student_rows` the rows
    of the training text that students see, `student_start` is where students start.
    """

    settings: DecidedLanguage
    text: TextSet
    kept: np.ndarray | None
    run: Run
    given_teacher: Network | None
    student_start: Network | None
    student_rows: data.text.Rows

    def save(self, name: str, network: Network) -> None:
        """Write a network into the work directory, with what its ids are."""
        ids = {} if self.kept is None else {"ids": self.kept.tolist()}
        own, folder = self.text.tokenizer, self.run.workdir / name
        models.save_decoder(folder, *network, config={"tokenizer": own.name, **ids})
        if own.file and distributed.is_leader():
            workdir.write_whole(folder / "tokenizer.json", own.file.encode())

    @property
    def eval_batch_size(self) -> int:
        """How many rows networks are measured on at a time."""
        return max(1, 8192 // self.settings.data.length)


@contextlib.contextmanager
def opened(asked: LanguageSettings) -> Iterator[LanguageRun]:
    """Read text and teacher, and claim the work directory; Ctrl-C and SIGTERM ask it to stop.

    Args:
        asked: the settings as the flags gave them, with a work directory.

    Yields:
        The run.

    Raises:
        ValueError: if text, networks and devices do not fit, or the work directory holds another
            run.
        OSError: if a file is not there or cannot be written.
    """
    with stop_on_signals() as stop_fn:
        processes.agree("settings", dataclasses.asdict(asked), prefix="--")
        text, kept = _read_text(asked)
        teacher, start = (
            _read_network(asked, flag, path, text.tokenizer, kept)
            for flag, path in _checkpoints(asked).items()
        )
        settings = _resolved(asked, text)
        if asked.extend:
            settings = experiment.extended(asked, settings)
        _check(settings, text)
        rows = data.text.first(text.train, settings.data.student_fraction)
        if stop_fn():
            raise KeyboardInterrupt
        with _claimed(asked, settings, text, stop_fn) as run:
            _describe(settings, text, rows, run)
            yield LanguageRun(settings, text, kept, run, teacher, start, rows)


def _read_text(asked: LanguageSettings) -> tuple[TextSet, np.ndarray | None]:
    """Read the text in the vocabulary of the settings; which ids of its tokenizer that has."""
    own = asked.data
    if own.file is not None and own.name is not None:
        raise ValueError("--data.file and --data.name both name a text: leave one out")
    try:
        text = data.text.load(
            own.file or own.name,
            tokenizer=_tokenizer_of(asked),
            length=own.length,
            validation_fraction=own.validation_fraction,
            field=own.field,
            data_dir=own.dir,
        )
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(str(error).replace("data.text: ", "--data: ", 1)) from error
    return data.text.compact(text) if own.vocabulary == "text" else (text, None)


def _checkpoints(settings: LanguageSettings) -> dict[str, Path | None]:
    """Return the networks that are given, by their flags."""
    own = settings.teacher.checkpoint, settings.student.checkpoint
    return dict(zip(("--teacher.checkpoint", "--student.checkpoint"), own, strict=True))


def _read_network(
    asked: LanguageSettings,
    flag: str,
    path: Path | None,
    tokenizer: Tokenizer,
    kept: np.ndarray | None,
) -> Network | None:
    """Read the network that a flag names, if it does, in the vocabulary of the text."""
    if path is None:
        return None
    network, trained_with = networks.read_network(asked, flag, path)
    known = networks.spec_of(network.model).vocab_size
    if trained_with == tokenizer.name and known == tokenizer.vocab_size:
        return network
    if trained_with is None and not asked.data.tokenizer and _beside(path) is None:
        raise ValueError(f"{flag} {path} has no tokenizer beside it: give --data.tokenizer")
    needed = tokenizer.vocab_size if kept is None else int(kept.max()) + 1
    _check_ids(f"{flag} {path}", (trained_with, known), (tokenizer.name, needed))
    # A table may have more rows than its tokenizer has ids.
    kept = np.arange(needed) if kept is None else kept
    return networks.restricted(network, kept, networks.dtype_of(asked))


def _check_ids(network: str, own: tuple[str | None, int], text: tuple[str, int]) -> None:
    """Raise a ValueError if a network and a text, each a tokenizer and ids, do not fit together."""
    (trained_with, known), (name, needed) = own, text
    # A smaller vocabulary is called after the one that it is a part of.
    same = trained_with is None or f"{name}, ".startswith(f"{trained_with}, ")
    if not same or needed > known:
        raise ValueError(
            f"{network} was trained with {trained_with or 'another tokenizer'} and knows {known} "
            f"ids; this text is read with {name}, {needed} ids: give its --data.tokenizer"
        )


def _tokenizer_of(asked: LanguageSettings) -> str | Path:
    """Return the tokenizer that is asked for, else that of a network, else that of words."""
    found = [_beside(path) for path in _checkpoints(asked).values() if path is not None]
    return asked.data.tokenizer or next(filter(None, found), "words")


def _beside(path: Path) -> Path | None:
    """Return the tokenizer that a network's file or folder has."""
    if path.suffix == ".gguf":
        return path
    own = path / "tokenizer.json"
    return own if own.is_file() else None


def _resolved(asked: LanguageSettings, text: TextSet) -> DecidedLanguage:
    """Put the text's defaults where a setting is None."""
    own = asked.data
    share = own.student_fraction
    if share is None:
        share = _EMBEDDED_FRACTION if text.name == data.text.EMBEDDED else 1.0
    rows = len(data.text.first(text.train, share).arrays["tokens"])
    enough = -(-_SHORTEST_STUDENT * asked.batch_size // rows)
    rate = asked.optimizer.learning_rate or _RATES[asked.optimizer.name]
    return narrowed(
        DecidedLanguage,
        asked,
        data=narrowed(DecidedText, own, student_fraction=share),
        teacher=narrowed(DecidedTeacher, asked.teacher, epochs=asked.teacher.epochs or _EPOCHS),
        optimizer=narrowed(DecidedOptimizer, asked.optimizer, learning_rate=rate),
        epochs=asked.epochs or max(_EPOCHS, enough),
        prompt_length=asked.prompt_length or max(1, own.length // 4),
    )


def _check(settings: DecidedLanguage, text: TextSet) -> None:
    """Raise a ValueError, naming the flag, where settings do not fit together."""
    rows = len(text.train.arrays["tokens"])
    if rows < settings.batch_size:
        raise ValueError(
            f"--batch-size is {settings.batch_size}, but the training text has {rows} rows of "
            f"{settings.data.length} tokens"
        )
    if settings.prompt_length > settings.data.length:
        raise ValueError(
            f"--prompt-length is {settings.prompt_length}, more than the {settings.data.length} "
            "tokens of a row"
        )
    _check_lesson(settings)
    made = {"--student": settings.student, "--teacher": settings.teacher}
    for flag, own in made.items():
        if own.checkpoint is not None:
            continue
        try:
            networks.decoder_of(settings, own, text.tokenizer.vocab_size)
        except ValueError as error:
            raise ValueError(f"{flag}: {str(error).removeprefix('transformer: ')}") from error


def _check_lesson(settings: LanguageSettings) -> None:
    """Raise a ValueError where a flag would do nothing, or leave nothing to learn."""
    own, student = settings, settings.student
    if own.on_policy_fraction and own.num_micro_batches > 1:
        raise ValueError("--on-policy-fraction goes with --num-micro-batches 1 alone")
    if own.on_policy_fraction == 1 and not own.soft_weight:
        raise ValueError("--soft-weight 0 leaves labels alone, and --on-policy-fraction 1 has none")
    if student.checkpoint is not None and student.embedding == "teacher":
        raise ValueError("--student.embedding teacher is for a student without a checkpoint")
    if own.divergence == "logit-mse" and own.temperature != 1:
        raise ValueError("--divergence logit-mse is the limit of high temperatures and takes none")


@contextlib.contextmanager
def _claimed(
    asked: LanguageSettings, settings: DecidedLanguage, text: TextSet, stop_fn: Callable[[], bool]
) -> Iterator[Run]:
    """Claim the work directory, and lock it meanwhile."""
    mesh = experiment.mesh_of(settings.mesh)
    checks.check_batches(settings, mesh)
    with lock(settings.workdir):
        content: dict[str, Any] = {"text": _content(text)}
        for flag, path in _checkpoints(settings).items():
            content[flag[2:].partition(".")[0]] = fingerprints.of_path(path)
        claimed = experiment.claim(content, asked, settings)
        if claimed.resumed:
            say(f"resuming the run in {settings.workdir}")
        log = experiment.log_of(settings.workdir, claimed.run)
        own: dict[str, Any] = {"mesh": mesh, "log": log, "stop_fn": stop_fn, "claim": claimed}
        yield narrowed(Run, settings, **own)


def _content(text: TextSet) -> dict[str, str]:
    """Fingerprint a text: its tokens, and by what they were made."""
    found = {"tokenizer": text.tokenizer.name}
    for split in ("train", "validation"):
        arrays = getattr(text, split).arrays
        found[split] = networks.digest(np.concatenate([arrays["tokens"], arrays["label"]], 1))
    return found


def _describe(settings: DecidedLanguage, text: TextSet, rows: data.text.Rows, run: Run) -> None:
    device = jax.devices()[0]
    say(
        f"{text.name}: {text.train.num_tokens:,} training and {text.validation.num_tokens:,} "
        f"validation tokens ({text.tokenizer.name}, {text.tokenizer.vocab_size:,} ids), "
        f"{text.validation.num_bytes / text.validation.num_tokens:.2f} bytes each; students see "
        f"{rows.num_tokens:,}"
    )
    say(f"{run.mesh.size} x {device.device_kind} ({device.platform}), writing to {run.workdir}")
