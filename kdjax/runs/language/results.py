"""What came out of a run on text: measures, samples, the teacher's next words; table and page."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax import generation, metrics, models
from kdjax.checkpoint import params_sha256
from kdjax.distributed import gathered, is_leader
from kdjax.runs import report
from kdjax.runs.console import say
from kdjax.runs.evaluation import measure
from kdjax.runs.experiment import facts
from kdjax.runs.language import plans
from kdjax.runs.language.lessons import inputs_of
from kdjax.runs.language.networks import Network, stored
from kdjax.runs.language.opened import LanguageRun
from kdjax.types import Variables

Summary = dict[str, dict[str, Any]]
"""For each kind of network the number of parameters, and lists with one entry per network."""


class Measured(NamedTuple):
    """What networks do on the validation text, by kind."""

    summary: Summary
    blocks: dict[str, list[np.ndarray]]
    """By seed, the bits per byte of each batch, [batches]."""
    judged: dict[str, list[report.Judged]]
    """By seed, how sure they are of each token, and whether they are right."""


_NAMES = {"teacher": "Teacher", "scratch": "Labels alone", "distilled": "Distilled"}
_SAMPLED, _SHOWN, _CANDIDATES = 160, 32, 4


COLUMNS = (
    report.Column("bits_per_byte", "bits per byte", "Bits per byte", 1, 3),
    report.Column("nll", "nats per token", "Nats per token", 1, 3),
    report.Column("kl", "KL from teacher", "KL from the teacher (nats)", 1, 3),
    report.Column("agreement", "agreement %", "Agreement with the teacher (%)", 100, 1),
    report.Column("ece", "calib. error %", "Calibration error (%)", 100, 2),
    report.Column("tokens_per_second", "trained tokens/s", "Trained tokens a second", 1, 0),
)


def summarize(
    opened: LanguageRun, teacher: Network, students: Sequence[tuple[str, int, Network]]
) -> Measured:
    """Measure the teacher and its students on the validation text.

    Args:
        opened: the run.
        teacher: who taught.
        students: kind (`scratch` or `distilled`), seed and network of each.

    Returns:
        All of it for `teacher` and for each kind of student.
    """
    summary, blocks, judged = whole = Measured({}, {}, {})
    rows = plans.with_hidden(opened, teacher, opened.text.validation.arrays)
    source = stored(models.head_of(teacher.variables).kernel)
    kept: list[Any] = []
    step_of = functools.lru_cache(
        lambda model: plans.make_eval_step(opened, model, source, lambda *own: kept.append(own))
    )
    for phase, seed, network in (("teacher", opened.settings.seed, teacher), *students):
        kept.clear()
        given = opened.run, step_of(network.model), network.variables, rows
        found = measure(*given, batch_size=opened.eval_batch_size)
        own: dict[str, Any] = {name: metrics.value(metric) for name, metric in found.items()}
        text = opened.text.validation
        bits = text.num_tokens / text.num_bytes / math.log(2)
        own["bits_per_byte"] = own["nll"] * bits
        # Their mean is that of the text, whatever the size of the last one.
        shares = [float(part["nll"][0]) * len(kept) / found["nll"][1] for part, _ in kept]
        blocks.setdefault(phase, []).append(bits * np.array(shares))
        sure, right, counts = np.concatenate(gathered([tokens for _, tokens in kept])).T
        own_tokens = report.Judged(sure[counts > 0], right[counts > 0] > 0)
        judged.setdefault(phase, []).append(own_tokens)
        own["tokens_per_second"] = _speed(opened, phase, seed)
        own["params_sha256"] = params_sha256(network.variables.params)
        count = int(models.num_params(network.variables.params))
        entry = summary.setdefault(phase, {"num_params": count})
        for name, value in own.items():
            entry.setdefault(name, []).append(value)
    return whole


def best_of(students: Sequence[Network], entry: Mapping[str, Any]) -> Network:
    """Return the student that gives the validation text the fewest bits."""
    return students[int(np.argmin(entry["nll"]))]


def format_table(summary: Summary) -> str:
    """Format the results as plain text: a line per kind of network."""
    table = _table(summary, COLUMNS, [column.short for column in COLUMNS])
    return report.format_rows([table.columns, *table.rows]) + f"\n{table.note}"


def write(
    opened: LanguageRun, found: Measured, trained: Mapping[str, Network], command: str
) -> None:
    """Write `summary.json` and print its table, then draw `report.html`; the first process does.

    Args:
        opened: the run.
        found: see `summarize`.
        trained: a network of each kind, by its name: the teacher, and two students.
        command: what did it.
    """
    said = {name: _sampled(opened, network) for name, network in trained.items()}
    words = _next_words(opened, trained)
    if is_leader():
        page_fn = functools.partial(_page, opened, found, said, words, command)
        report.publish(opened.run.workdir, found.summary, format_table(found.summary), page_fn)
        say(f"student: {opened.run.workdir / 'student'}")


def _speed(opened: LanguageRun, phase: str, seed: int) -> float:
    """Return the tokens that a training took in a second, with its compilation and validations."""
    seconds = opened.run.log.seconds(phase, seed)
    steps = max(
        (r["step"] for r in opened.run.log.rows() if (r["phase"], r["seed"]) == (phase, seed)),
        default=0,
    )
    tokens = steps * opened.settings.batch_size * opened.settings.data.length
    return tokens / seconds if seconds else math.nan


def _written(column: report.Column, entry: Mapping[str, Any]) -> str:
    # A teacher that was given has no speed.
    return "".join(column.written(entry[column.key])).replace("nan", "–")


def _table(
    summary: Summary, columns: Sequence[report.Column], titles: Sequence[str]
) -> report.Table:
    rows = []
    for phase, entry in summary.items():
        cells = [_written(column, entry) for column in columns]
        rows.append([_NAMES[phase], f"{entry['num_params']:,}", *cells])
    most = max(len(entry["nll"]) for entry in summary.values())
    note = f"mean ± sample standard deviation over {most} seeds" if most > 1 else "one seed each"
    return report.Table(["", "parameters", *titles], rows, note=note)


def _page(
    opened: LanguageRun,
    found: Measured,
    said: Mapping[str, str],
    words: report.Table,
    command: str,
) -> report.Page:
    settings, rows = opened.settings, opened.run.log.rows()
    summary, blocks, judged = found
    # Both students of the seed whose distilled one is exported.
    at = int(np.argmin(summary["distilled"]["nll"]))
    shown = {phase: own[at if len(own) > 1 else 0] for phase, own in judged.items()}
    tiles = [
        report.Tile(
            *(phase, _NAMES[phase], f"{np.mean(entry['bits_per_byte']):.3f}"),
            ("bits per byte", f"{entry['num_params']:,} parameters"),
        )
        for phase, entry in summary.items()
    ]
    # As wide as a page is; the speeds are among the facts.
    *columns, speed = COLUMNS
    speeds = [f"{_NAMES[phase]} {_written(speed, entry)}" for phase, entry in summary.items()]
    table = _table(summary, columns, [column.title for column in columns])
    known = {
        "Training time": f"{opened.run.log.total_seconds():.0f} s in the steps of all trainings",
        "Seeds": f"{settings.seed} and up, {settings.num_seeds} of each kind",
        "Text": f"{opened.text.name}, {opened.text.tokenizer.name}",
        speed.title: "; ".join(speeds),
    }
    gain = report.difference_note(
        *(blocks["scratch"], blocks["distilled"]),
        against="the text alone",
        what="bits per byte",
        unit="batches of the validation text",
    )
    return report.results_page(
        f"A language model distilled on {opened.text.name}",
        _lede(summary),
        dataclasses.replace(table, note=f"{table.note}. {gain}".strip()),
        {},
        facts(opened.run, command, **known),
        tiles=tiles,
        sections=[
            report.Section("What they write", notes=[*said.items()]),
            report.Section("What the teacher expects, word by word", [words]),
            report.calibration_section(shown, unit="tokens"),
            *report.trainings(rows),
            report.Section("What was done", notes=_choices(opened)),
        ],
        measured="the validation text",
    )


def _lede(summary: Summary) -> str:
    scratch, distilled, teacher = (
        float(np.mean(summary[phase]["bits_per_byte"]))
        for phase in ("scratch", "distilled", "teacher")
    )
    less = "less" if distilled < scratch else "more"
    return (
        f"Taught by the teacher, the student needs {distilled:.3f} bits for a byte of the "
        f"validation text, {abs(1 - distilled / scratch):.1%} {less} than the same network taught "
        f"by the text alone ({scratch:.3f}); the teacher needs {teacher:.3f}."
    )


def _choices(opened: LanguageRun) -> list[tuple[str, str]]:
    """Return what was done, by heading."""
    settings, text = opened.settings, opened.text
    vocabulary = (
        " (of the tokenizer's ids those that the text has: probabilities are among these)"
        if settings.data.vocabulary == "text"
        else ""
    )
    teacher = "was given" if opened.given_teacher is not None else "learned from all of it"
    lesson = f"--divergence {settings.divergence}, T = {settings.temperature:g}, soft weight "
    lesson += f"{settings.soft_weight:g}"
    if settings.on_policy_fraction:
        lesson += (
            f"; in {settings.on_policy_fraction:.0%} of the steps the student continues rows "
            f"itself from {settings.prompt_length} tokens on"
        )
    if settings.sequence_level:
        lesson += "; on rows that the teacher has continued"
    own = settings.on_policy_fraction or settings.sequence_level
    shared = "" if own else "; both students of a seed see the same batches"
    return [
        (
            "Text",
            f"{text.train.num_tokens:,} tokens to train on and {text.validation.num_tokens:,} to "
            f"validate on, cut by position; {text.tokenizer.vocab_size:,} ids{vocabulary}. The "
            f"teacher {teacher}; students see the first {opened.student_rows.num_tokens:,}.",
        ),
        (
            "Training",
            f"{lesson}. {settings.epochs} epochs of the students in batches of "
            f"{settings.batch_size} rows of {settings.data.length} tokens{shared}.",
        ),
    ]


def _sampled(opened: LanguageRun, network: Network) -> str:
    """Return a continuation of a prompt from the validation text."""
    settings, own = opened.settings, opened.text.tokenizer
    rows = opened.text.validation.arrays["tokens"]
    count = min(settings.prompt_length, settings.data.length)
    prompt = jax.numpy.asarray(rows[len(rows) // 2 : len(rows) // 2 + 1, :count])
    length = min(_SAMPLED, settings.data.length + 1 - count)
    found = generation.sample(
        network.model,
        network.variables,
        jax.random.key(settings.seed),
        prompt,
        length=length,
        temperature=0.8,
        stop=own.end,
    )
    tokens, mask = (gathered(x)[0] for x in found)
    added = own.decode([int(i) for i in tokens[count:][mask[count:]]])
    return f"{own.decode([int(i) for i in prompt[0]])} ▸ {added}"


def _next_words(opened: LanguageRun, trained: Mapping[str, Network]) -> report.Table:
    """Tabulate a passage: what came, how probable it was, and what the teacher expected."""
    own, rows = opened.text.tokenizer, opened.text.validation.arrays
    middle = len(rows["tokens"]) // 2
    tokens, labels = (rows[name][middle : middle + 1] for name in ("tokens", "label"))
    row: dict[str, Any] = {name: x[middle : middle + 1] for name, x in rows.items()}
    probs = {name: _probabilities(network, inputs_of(row))[0] for name, network in trained.items()}

    def word(i: int) -> str:
        return repr(own.decode([int(i)]))[1:-1].replace(" ", "␣") or "∅"

    start = min(opened.settings.prompt_length, max(0, tokens.shape[1] - _SHOWN))
    body = []
    for at in range(start, min(start + _SHOWN, tokens.shape[1])):
        expected = np.argsort(-probs["Teacher"][at])[:_CANDIDATES]
        named = " · ".join(f"{word(i)} {probs['Teacher'][at][i]:.0%}" for i in expected)
        came = [f"{own_probs[at][labels[0, at]]:.0%}" for own_probs in probs.values()]
        body.append([word(tokens[0, at]), word(labels[0, at]), *came, named])
    columns = ["After", "came", *(f"p, {name.lower()}" for name in probs), "Teacher's likeliest"]
    note = (
        "The probabilities of what came, and the four that the teacher thought likeliest: what it "
        "deems almost as likely is what the text does not say. ␣ is a space."
    )
    return report.Table(columns, body, note=note)


def _probabilities(network: Network, inputs: Any) -> np.ndarray:
    @jax.jit
    def answer(variables: Variables, inputs: Any) -> jax.Array:
        logits = network.model.apply(*variables, inputs, train=False)[0].logits
        return jax.nn.softmax(logits, axis=-1)

    return np.asarray(gathered(answer(network.variables, inputs)))
