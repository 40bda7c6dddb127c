"""Decoders as the flags name them, and what a teacher says of rows of text."""

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import data, generation, models, sharding
from kdjax.checkpoint import params_sha256
from kdjax.distributed import exchange, gathered, is_leader
from kdjax.runs import evaluation, workdir
from kdjax.runs.console import say
from kdjax.runs.evaluation import Arrays, Run
from kdjax.runs.language.lessons import answer_of, inputs_of, without_logits
from kdjax.runs.language.settings import DecidedLanguage, DecoderSettings, LanguageSettings
from kdjax.types import Array, Batch, Model, Outputs, PyTree, Teacher, Variables


class Network(NamedTuple):
    """A decoder and its variables; its sizes are `model.decode.spec`."""

    model: Model
    variables: Variables


class Student(NamedTuple):
    """A decoder to be trained, and what of it does not start from drawn values."""

    model: Model
    start: Variables | None = None


def dtype_of(settings: LanguageSettings) -> Any:
    """Return what networks compute in, None for the parameters' own type."""
    return jnp.bfloat16 if settings.precision == "bfloat16" else None


def decoder_of(settings: LanguageSettings, own: DecoderSettings, vocab_size: int) -> Model:
    """Make a decoder by its flags; it captures what its head reads."""
    return models.transformer(
        vocab_size,
        width=own.width,
        depth=own.depth,
        num_heads=own.num_heads,
        num_key_heads=own.num_key_heads,
        mlp_width=own.mlp_width,
        context=settings.data.length + 1,
        dtype=dtype_of(settings),
        features=("norm",),
    )


def student_of(
    settings: LanguageSettings, vocab_size: int, teacher: Network, start: Network | None = None
) -> Student:
    """Make the student of the flags; what it has of the teacher, or of a file, it starts with."""
    if start is not None:
        return Student(*start)
    if settings.student.embedding == "own":
        return Student(decoder_of(settings, settings.student, vocab_size))
    table = gathered(models.head_of(teacher.variables).kernel)
    details = models.Details(embedding_width=table.shape[1], frozen_embedding=True)
    spec = spec_of(decoder_of(settings, settings.student, vocab_size))._replace(details=details)
    model = models.decoder(spec, dtype=dtype_of(settings), features=("project_out",))
    drawn = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 1), np.int32))
    params = jax.tree.map(lambda _: None, drawn.params)
    state = jax.tree.map(lambda x: np.asarray(table, x.dtype), drawn.state)
    return Student(model, Variables(params, state))


def read_network(settings: LanguageSettings, flag: str, path: Path) -> tuple[Network, str | None]:
    """Read the decoder that a flag names; it captures what its head reads.

    Returns:
        The network, and what it says of the tokenizer that it was trained with, if it does.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is no decoder, or reads less than a row.
    """
    model, variables, config = models.load_decoder(path, dtype=dtype_of(settings))
    spec = spec_of(model)
    if spec.context < settings.data.length:
        raise ValueError(
            f"--data.length is {settings.data.length}, but {flag} {path} reads {spec.context} "
            "tokens at most"
        )
    model = models.decoder(spec, dtype_of(settings), (model.paths.embedding,))
    return Network(model, variables), config.get("tokenizer")


def spec_of(model: Model) -> models.DecoderSpec:
    """Return the sizes of a decoder."""
    assert model.decode is not None
    spec: models.DecoderSpec = model.decode.spec
    return spec


def restricted(network: Network, kept: np.ndarray, dtype: Any) -> Network:
    """Keep of a network's vocabulary some ids, in that order: rows of its tables."""

    def rows(path: Any, x: Any) -> Any:
        names = [getattr(entry, "key", "") for entry in path][-2:]
        return x[kept] if names in (["tokens", "embedding"], ["head", "kernel"]) else x

    variables = Variables(*jax.tree.map_with_path(rows, tuple(network.variables)))
    spec = spec_of(network.model)._replace(vocab_size=len(kept))
    return Network(models.decoder(spec, dtype, (network.model.paths.embedding,)), variables)


def live(network: Network) -> Teacher:
    """Make a teacher that runs on every batch; it answers with hidden states and its head."""
    model = without_logits(network.model)

    def apply(variables: Variables, batch: Batch) -> Outputs:
        outputs, _ = model.apply(*variables, inputs_of(batch), train=False)
        return jax.lax.stop_gradient(outputs)

    return Teacher(network.variables, apply)


def stored(head: Array) -> Teacher:
    """Make a teacher that has answered: its hidden states are in the batch, `teacher_hidden`."""

    def apply(variables: PyTree, batch: Batch) -> Outputs:
        hidden = jnp.asarray(batch["teacher_hidden"]).astype(jnp.float32)
        return answer_of(hidden, variables["head"])

    return Teacher({"head": head}, apply, held_in=("teacher_hidden",))


def with_hidden(
    run: Run,
    network: Network,
    rows: Mapping[str, Any],
    folder: Path,
    *,
    batch_size: int,
    precision: str,
) -> Arrays:
    """Put a teacher's hidden states, in half precision, beside rows of tokens.

    They are computed once and kept in a file whose name is that of the rows and of the teacher, by
    their bytes; another run, or a later one, finds them there.

    Args:
        run: the mesh that computes them.
        network: the teacher.
        rows: `tokens` [rows, length], and what belongs to them.
        folder: where the file is.
        batch_size: rows at a time.
        precision: of the teacher's arithmetic.

    Returns:
        The rows and `teacher_hidden`, [rows, length, width], float16, read as it is needed.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if states are too large for half precision, or the file is damaged.
    """
    given = {name: x for name, x in rows.items() if name in ("tokens", "document", "label")}
    answer = functools.partial(_hidden, without_logits(network.model), network.variables)

    def make() -> np.ndarray:
        say(f"teacher's hidden states: of {rows['tokens'].size:,} tokens, to {folder}")
        states = evaluation.answers(run, answer, given, batch_size=batch_size)
        if not np.isfinite(states).all():
            raise ValueError(
                "the teacher's hidden states are too large for half precision; with "
                "--on-policy-fraction it runs in every step, and none are kept"
            )
        return states

    content = _content(network, given, precision=precision)
    return {**rows, "teacher_hidden": _kept(folder, "hidden", content, make)}


def continued_rows(
    run: Run, network: Network, rows: data.text.Rows, settings: DecidedLanguage, stop: int | None
) -> data.text.Rows:
    """Let the teacher continue every row, once: what students learn from at the level of sequences.

    Args:
        run: the mesh, and the folder that keeps them.
        network: the teacher.
        rows: their first tokens are the prompts; where these are not all there, or of several
            documents, a row does not count.
        settings: prompts, temperature and seed.
        stop: the token that ends a text.
    """
    key, told = jax.random.key(settings.seed), ("tokens", "label", "mask")

    @jax.jit
    def answer(batch: Batch, variables: Variables, number: Array) -> Array:
        own = generation.continued(
            *(network.model, variables, jax.random.fold_in(key, number), batch),
            prompt_length=settings.prompt_length,
            temperature=settings.sampling_temperature,
            stop=stop,
        )
        return jnp.stack([own[name].astype(jnp.int32) for name in told], 1)

    def make() -> np.ndarray:
        say(f"teacher continues {len(rows.arrays['tokens']):,} rows, to {run.workdir}")
        numbers = itertools.count()
        # The mask of an evaluation is of whole rows: that of the tokens has another name meanwhile.
        given = {**rows.arrays, "there": rows.arrays["mask"]}
        del given["mask"]

        def answer_fn(batch: Batch) -> Array:
            batch = {**batch, "mask": batch["there"]}
            found: Array = answer(batch, network.variables, jnp.int32(next(numbers)))
            return found

        return evaluation.answers(run, answer_fn, given, batch_size=settings.batch_size)

    names = "prompt_length", "sampling_temperature", "seed", "batch_size"
    asked = tuple(getattr(settings, name) for name in names)
    content = _content(network, rows.arrays, precision=settings.precision, asked=str(asked))
    tokens, label, mask = np.moveaxis(_kept(run.workdir, "continued", content, make), 1, 0)
    return data.text.Rows({"tokens": tokens, "label": label, "mask": mask > 0}, 0)


def _content(network: Network, rows: Mapping[str, Any], **beside: str) -> str:
    """Fingerprint what a network says of rows: its variables, its sizes, and the tokens."""
    content = {"network": params_sha256(tuple(network.variables)), **beside}
    content["spec"] = str(spec_of(network.model))
    content |= {name: digest(rows[name]) for name in ("tokens", "document") if name in rows}
    return digest(str(sorted(content.items())).encode())


def _kept(folder: Path, kind: str, content: str, make_fn: Callable[[], np.ndarray]) -> np.ndarray:
    """Return an array of that content from a folder; if it is not there, make and write it first.

    All processes must call, and see the same folder.
    """
    path = folder / f"{kind}-{content}.npy"
    if exchange(f"there {path.name}", str(path.exists()))[0] != "True":
        made = make_fn()
        if is_leader():
            folder.mkdir(parents=True, exist_ok=True)
            # Of its own name: another run may be writing the same.
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            with workdir.naming(path), open(partial, "wb") as file:
                np.save(file, made)
            os.replace(partial, path)
        exchange(f"written {path.name}", "")
    if "False" in exchange(f"seen {path.name}", str(path.exists())):
        raise ValueError(
            f"{folder} must be on a file system that all processes share: {path.name} is not there "
            "for all of them"
        )
    with workdir.reading(path, mend="delete it, and it is made again"):
        found: np.ndarray = np.load(path, mmap_mode="r")
        return found


def placed(run: Run, network: Network) -> Network:
    """Put a network on the mesh of a run."""
    variables = network.variables
    return network._replace(variables=sharding.put(variables, run.layout_fn(variables)))


@functools.partial(jax.jit, static_argnums=0)
def _hidden(model: Model, variables: Variables, batch: Batch) -> Array:
    outputs, _ = model.apply(*variables, inputs_of(batch), train=False)
    return outputs.features["hidden"].astype(jnp.float16)


def digest(content: bytes | np.ndarray) -> str:
    """Digest bytes, or an array."""
    whole = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
    return hashlib.sha256(whole).hexdigest()[:32]
