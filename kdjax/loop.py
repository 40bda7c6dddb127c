"""Training and evaluation over many batches: the host's side, which never stalls the device."""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import reached_preemption_sync_point

from kdjax import distributed, many
from kdjax import metrics as measures
from kdjax._steps import check_batch
from kdjax.distributed import gathered
from kdjax.types import Array, Batch, Metrics, TrainState, Variables

__all__ = [
    "HostMetrics", "NonFiniteLoss", "Stopped", "evaluate", "fit", "predict", "profiled",
    "step_of", "stop_on_signals",
]  # fmt: skip

HostMetrics = dict[str, Any]
"""Metrics on the host: (total, count) by name, as float64 NumPy arrays."""

Step = Callable[..., tuple[TrainState, Metrics]]
LogFn = Callable[[int, HostMetrics], None]
StateFn = Callable[[int, TrainState], None]
T = TypeVar("T")

# What one call of several steps may take: a request to stop waits for two of them.
_SECONDS_PER_CALL = 0.25
_GROWTH = 4


class NonFiniteLoss(ArithmeticError):
    """A loss or a state was nan or infinite; the message names the step, and term or array."""


class Stopped(Exception):
    """Training was asked to stop and did, after saving. `step` is where it goes on."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}")
        self.step = step


def fit(
    train_step: Step,
    state: TrainState,
    batches: Iterable[Batch],
    *,
    num_steps: int,
    steps_per_call: int = 1,
    log_every: int = 50,
    log_fn: LogFn | None = None,
    eval_every: int | None = None,
    eval_fn: StateFn | None = None,
    checkpoint_every: int | None = None,
    save_fn: StateFn | None = None,
    stop_fn: Callable[[], bool] | None = None,
) -> TrainState:
    """Train until the state has taken `num_steps` steps.

    A step's metrics are read while the next one runs, so that the device never waits for the host.
    They are checked before anything is measured or saved, and so are the parameters: a state that
    is not finite, or has a non-finite loss behind it, is never written.

    Args:
        train_step: `(state, batch) -> (state, metrics)`, as `with_teacher` makes it; as
            `kdjax.many.several` does where a call takes several steps.
        state: where to start; its buffers are donated.
        batches: the batches from the state's step on; NumPy arrays where a call takes several.
        num_steps: the step to end at, counted from the beginning of training.
        steps_per_call: the most steps that a call takes. It takes fewer before whatever is due,
            and in a single process as many as take about a quarter of a second.
        log_every: steps per call of `log_fn`.
        log_fn: called with a step and the merged metrics of the steps since the last call.
        eval_every: steps per call of `eval_fn`, which is called at the end too; None for never.
        eval_fn: called with a step and the state; it must not keep the state.
        checkpoint_every: steps per call of `save_fn`; None for the end only.
        save_fn: called with a step and the state.
        stop_fn: asked after every call; when true, the state is saved and `Stopped` is raised.

    Returns:
        The state after `num_steps` steps.

    Raises:
        NonFiniteLoss: if a loss was nan or infinite, or parameters are.
        Stopped: if `stop_fn` said so.
        TypeError: if the first batch holds something that is no numbers.
        ValueError: if there are too few batches, or the first has weights that are none, or
            probabilities for logits.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import loop
        >>> from kdjax.types import TrainState
        >>> state = TrainState(jnp.array(0), {}, (), (), (), jnp.array(0))
        >>> def train_step(state, batch):  # `make_train_step` makes it in real life
        ...     return state.replace(step=state.step + 1), {
        ...         "loss": (jnp.array(2.0), jnp.array(1.0))
        ...     }
        ...
        >>> int(loop.fit(train_step, state, [{}] * 3, num_steps=3).step)
        3
    """
    step = step_of(state)
    calls = _Calls(train_step, batches, num_steps, steps_per_call)

    def log(step: int, _: TrainState) -> None:
        window = calls.window()
        if log_fn is not None:
            log_fn(step, window)

    dues = [_Due(log, log_every, looks_at_state=False)]
    dues += [_Due(eval_fn, eval_every)] if eval_fn else []
    dues += [_Due(save_fn, checkpoint_every, at_stop=True)] if save_fn else []
    while step < num_steps:
        most = min(num_steps - step, *(due.steps_left(step) for due in dues))
        state, count = calls.take(state, step, most)
        step += count
        last = step == num_steps
        stopping = not last and stop_fn is not None and stop_fn()
        _do(dues, calls, step, state, last=last, stopping=stopping)
        if stopping:
            raise Stopped(step)
    return state


def step_of(state: TrainState) -> int:
    """Return the step that a state is at, which the members of a stack share.

    Example:
        >>> import numpy as np
        >>> from kdjax import loop
        >>> from kdjax.types import TrainState
        >>> loop.step_of(TrainState(np.array(7), {}, (), (), (), np.array(0)))
        7
    """
    return int(np.max(state.step))


@contextlib.contextmanager
def profiled(
    train_step: many.Step, directory: str | Path, *, first: int = 10, num_steps: int = 5
) -> Iterator[many.Step]:
    """Write a trace of some calls of a step, when compilation is behind it.

    The trace opens in TensorBoard's profiler, in XProf and in Perfetto.

    Args:
        train_step: `(state, batch) -> (state, metrics)`.
        directory: where the trace goes.
        first: how many calls come before it.
        num_steps: how many calls it holds.

    Yields:
        A function that does the same. A trace holds fewer calls where training ends within it,
        and there is none, with a warning, where it ends before.

    Example:
        >>> import tempfile
        >>> from kdjax import loop
        >>> def train_step(state, batch):
        ...     return state + 1, {}
        ...
        >>> with loop.profiled(train_step, tempfile.mkdtemp(), first=0, num_steps=1) as traced:
        ...     state, metrics = traced(0, {})
        ...
        >>> state
        1
    """
    calls = itertools.count()
    wait: Callable[[Any], Any] = jax.block_until_ready
    with contextlib.ExitStack() as tracing:

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            call = next(calls)
            if call == first:
                wait(state)
                trace = jax.profiler.trace(str(directory), create_perfetto_trace=True)
                tracing.enter_context(trace)
            with jax.profiler.StepTraceAnnotation("train", step_num=call):
                state, metrics = train_step(state, batch)
            if call + 1 == first + num_steps:
                wait((state, metrics))
                tracing.close()
            return state, metrics

        yield step
        if (taken := next(calls)) <= first:
            too_few = f"after {taken} steps there is no trace: it begins behind the first {first}"
            warnings.warn(too_few, stacklevel=4)


def evaluate(
    eval_step: Callable[[Variables, Batch], Metrics], variables: Variables, batches: Iterable[Batch]
) -> HostMetrics:
    """Measure a network on every example once.

    Args:
        eval_step: as `make_eval_step` makes it.
        variables: the network's.
        batches: padded batches with a `mask`.

    Returns:
        Metrics as `{name: (total, count)}`; `kdjax.metrics.value` turns one into a number.

    Raises:
        TypeError: as `fit` does.
        ValueError: as `fit` does.

    Example:
        >>> import numpy as np
        >>> from kdjax import loop, metrics
        >>> from kdjax.types import Variables
        >>> def eval_step(variables, batch):  # `make_eval_step` makes it in real life
        ...     return {"mean": (batch["image"].sum(), batch["image"].size)}
        ...
        >>> found = loop.evaluate(eval_step, Variables({}, {}), [{"image": np.arange(4.0)}] * 2)
        >>> metrics.value(found["mean"])
        1.5
    """
    merged: HostMetrics = {}
    for metrics in _one_late(eval_step(variables, batch) for batch in _looked_at(batches)):
        merged = measures.merge(merged, measures.to_host(metrics))
    return merged


def predict(apply_fn: Callable[[Batch], Array], batches: Iterable[Batch]) -> np.ndarray:
    """Collect a network's answers to every example, in order.

    Args:
        apply_fn: batch -> array [batch, ...], jitted by the caller.
        batches: padded batches with a `mask`.

    Returns:
        The answers to the examples that count, [examples, ...].

    Example:
        >>> import numpy as np
        >>> from kdjax import loop
        >>> batches = [{"image": np.ones((2, 3)), "mask": np.array([True, True])}] * 2
        >>> loop.predict(lambda batch: batch["image"] * 2, batches).shape
        (4, 3)
    """
    answers = ((apply_fn(batch), batch["mask"]) for batch in batches)
    return np.concatenate([gathered(own)[gathered(mask) > 0] for own, mask in _one_late(answers)])


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a polite request; a second Ctrl-C interrupts at once.

    A line says at once that the first was heard, also while a step compiles. Where several
    processes train together, the request to one of them stops all, at the same step.

    Yields:
        A function that returns whether to stop, to be passed as `fit(stop_fn=...)`.

    Example:
        >>> from kdjax import loop
        >>> with loop.stop_on_signals() as stop_fn:
        ...     print(stop_fn())
        ...
        False
    """
    received: list[int] = []
    alone = jax.process_count() == 1

    def handle(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        if not alone:
            signal.raise_signal(signal.SIGTERM)

    # JAX's preemption service takes SIGTERM itself, to agree on a step with the other processes.
    taken = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
    previous = {s: signal.signal(s, handle) for s in taken}
    steps = itertools.count(1)
    try:
        with _answered(taken, "stopping after this step; Ctrl-C again stops at once"):
            yield lambda: bool(received) if alone else reached_preemption_sync_point(next(steps))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _answered(numbers: Collection[int], words: str) -> Iterator[None]:
    """Print some words as soon as the first of some signals comes.

    A thread does so: handlers wait until whatever runs in C is done, and a compiler takes its time.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def answer() -> None:
        unsaid = True
        while number := os.read(reader, 1)[0]:
            if unsaid and number in numbers:
                unsaid = False
                print(words, flush=True)

    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=answer, name="kdjax-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, bytes(1))
        thread.join()
        os.close(reader)
        os.close(writer)


def _looked_at(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Hand batches on, the first after a look at what it holds."""
    for number, batch in enumerate(batches):
        if number == 0 and isinstance(batch, Mapping):
            check_batch(batch)
        yield batch


def _one_late(values: Iterable[T]) -> Iterator[T]:
    """Hand values on when the next one is under way: the device need not wait for their reader."""
    held: list[T] = []
    for value in values:
        held.append(value)
        distributed.advance()
        if len(held) > 1:
            yield held.pop(0)
    yield from held


class _Due(NamedTuple):
    """What is called with a step and the state: every so many steps, and at the end."""

    call: StateFn
    every: int | None
    at_stop: bool = False
    looks_at_state: bool = True

    def steps_left(self, step: int) -> int:
        return self.every - step % self.every if self.every else sys.maxsize

    def is_now(self, step: int, stopping: bool) -> bool:
        return (stopping and self.at_stop) or (self.every is not None and step % self.every == 0)


def _do(
    dues: list[_Due],
    calls: "_Calls",
    step: int,
    state: TrainState,
    *,
    last: bool,
    stopping: bool,
) -> None:
    """Do what is due after a step; not before all losses are known to be finite, and the state."""
    now = [due for due in dues if last or due.is_now(step, stopping)]
    if last or now:
        calls.read()
    if last or any(due.looks_at_state for due in now):
        _check_state(step, state)
    for due in now:
        due.call(step, state)


class _Calls:
    """The calls of a training: how many steps each takes, and what the steps have measured.

    Metrics are read one call late. How many steps the next call takes follows from how long the
    last ones took; processes that train together would measure different times, and must take the
    same steps.
    """

    def __init__(
        self, train_step: Step, batches: Iterable[Batch], num_steps: int, steps_per_call: int
    ):
        self._step, self._feed = train_step, _looked_at(batches)
        self._end, self._limit = num_steps, steps_per_call
        self._fixed = jax.process_count() > 1
        self._most = steps_per_call if self._fixed else 1
        self._unread: list[tuple[int, list[Batch], float, Metrics]] = []
        self._window: HostMetrics = {}

    def take(self, state: TrainState, before: int, most: int) -> tuple[TrainState, int]:
        """Take the next steps, `most` of them or fewer, and read the metrics of the last call.

        Returns:
            The new state, and how many steps were taken.
        """
        group = list(itertools.islice(self._feed, min(self._most, most)))
        if not group:
            self.read()
            raise ValueError(f"fit: the batches end at step {before}, expected {self._end} steps")
        began, count = time.perf_counter(), len(group)
        if not self._unread:
            self._since = began
        distributed.advance()
        if self._limit == 1:
            state, metrics = self._step(state, group[0])
        else:
            filled = [*group, *group[-1:] * (self._limit - count)]
            stacked = jax.tree.map(lambda *parts: np.stack(parts), *filled)
            state, metrics = self._step(state, stacked, np.int32(count))
        self._unread.append((before, group, time.perf_counter() - began, metrics))
        self.read(keep=1)
        return state, count

    def window(self) -> HostMetrics:
        """Return what has been read since the last call of this function, merged."""
        window, self._window = self._window, {}
        return window

    def read(self, keep: int = 0) -> None:
        """Read the metrics of all calls but the last few, and check that losses are finite."""
        while len(self._unread) > keep:
            before, group, called, metrics = self._unread.pop(0)
            found, count = measures.to_host(metrics), len(group)
            each = [found] if self._limit == 1 else [many.member(found, i) for i in range(count)]
            for at, (own, batch) in enumerate(zip(each, group, strict=True), before + 1):
                self._window = measures.merge(self._window, _checked(at, own, batch))
            self._pace(count, called)

    def _pace(self, count: int, called: float) -> None:
        """Adapt the steps of a call to the time that the last one took.

        That is the time since the one before has ended, or what passed until the call returned,
        where that is more: a device may compute in the call itself.
        """
        now = time.perf_counter()
        seconds, self._since = max(now - self._since, called), now
        if not self._fixed:
            fast_enough = int(_SECONDS_PER_CALL * count / max(seconds, 1e-9))
            self._most = max(1, min(fast_enough, _GROWTH * self._most, self._limit))


def _check_state(step: int, state: TrainState) -> None:
    """Raise a NonFiniteLoss that names an array of a state that is not finite.

    What optimizers and terms remember may be infinite by design, such as the best loss so far.
    """
    arrays = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        numeric = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)
        if numeric and not {"opt_state", "term_state"} & set(name.split("/")):
            arrays[name] = leaf
    sound = jax.device_get(_all_finite(list(arrays.values())))
    if not all(sound):
        name = next(name for name, finite in zip(arrays, sound, strict=True) if not finite)
        raise NonFiniteLoss(f"after step {step}, whose loss is finite, {name} is not")


@jax.jit
def _all_finite(arrays: list[Array]) -> list[Array]:
    return [jnp.isfinite(array).all() for array in arrays]


def _finite(metric: tuple[Any, Any]) -> bool:
    return bool(np.all(np.isfinite(metric[0])))


def _checked(step: int, metrics: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    """Return the metrics, or name the step and the terms whose loss is not finite."""
    if _finite(metrics["loss"]):
        return dict(metrics)
    bad = [name for name, metric in metrics.items() if "loss/" in name and not _finite(metric)]
    terms = ", ".join(name.replace("loss/", "") for name in bad) or "none alone; their weighted sum"
    raise NonFiniteLoss(
        f"the loss is {measures.value(metrics['loss'])} at step {step}; non-finite terms: {terms}"
        + _advice(batch)
    )


def _advice(batch: Batch) -> str:
    """Say what may be done: a label that is no class makes a loss nan, as too large steps do."""
    labels = measures.known(batch.get("label")) if isinstance(batch, Mapping) else None
    smaller = "a smaller learning rate or weight may help"
    if labels is None or labels.dtype.kind not in "iu" or not labels.size:
        return f"; {smaller}"
    return (
        f"; its labels are {labels.min()} to {labels.max()}: leave those that are no class out by "
        f"batch['mask'], or name them as the loss's ignore_label; if all are classes, {smaller}"
    )
