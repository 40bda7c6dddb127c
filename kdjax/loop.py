"""Training and evaluation over many batches: the host's side, which never stalls the device."""

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import reached_preemption_sync_point

from kdjax import metrics as measures
from kdjax import sweep
from kdjax.distributed import gathered
from kdjax.types import Array, Batch, Metrics, TrainState, Variables

HostMetrics = dict[str, Any]
T = TypeVar("T")

# What one call of several steps may take: a request to stop waits for two of them.
_SECONDS_PER_CALL = 0.25
_GROWTH = 4


class NonFiniteLoss(ArithmeticError):
    """The loss of a step was nan or infinite; the message names the step and the term."""


class Stopped(Exception):
    """Training was asked to stop and did, after saving. `step` is where it goes on."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}")
        self.step = step


def fit(
    train_step: Callable[..., tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterable[Batch],
    *,
    num_steps: int,
    steps_per_call: int = 1,
    log_every: int = 50,
    log_fn: Callable[[int, HostMetrics], None] | None = None,
    eval_every: int | None = None,
    eval_fn: Callable[[int, TrainState], None] | None = None,
    checkpoint_every: int | None = None,
    save_fn: Callable[[int, TrainState], None] | None = None,
    stop_fn: Callable[[], bool] | None = None,
) -> TrainState:
    """Train until the state has taken `num_steps` steps.

    A step's metrics are read while the next one runs, so that the device never waits for the host.
    They are checked before anything is saved: a state with a non-finite loss behind it is never
    written.

    Args:
        train_step: `(state, batch) -> (state, metrics)`, as `with_teacher` makes it; as
            `kdjax.resident.several` does where a call takes several steps.
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
        NonFiniteLoss: if a loss was nan or infinite.
        Stopped: if `stop_fn` said so.
        ValueError: if there are too few batches.
    """
    step = int(state.step)
    unread: list[tuple[int, int, float, Metrics]] = []
    window: HostMetrics = {}
    dues = (log_every, eval_every if eval_fn else None, checkpoint_every if save_fn else None)
    call, pace, feed = _caller(train_step, steps_per_call), _Pace(steps_per_call), iter(batches)

    def read(keep: int) -> None:
        nonlocal window
        while len(unread) > keep:
            before, count, called, metrics = unread.pop(0)
            for at, own in enumerate(_each(measures.to_host(metrics), count, steps_per_call), 1):
                window = measures.merge(window, _checked(before + at, own))
            pace.took(count, at_least=called)

    while step < num_steps:
        most = min(pace.most, num_steps - step, *(e - step % e for e in dues if e))
        group = list(itertools.islice(feed, most))
        if not group:
            read(keep=0)
            raise ValueError(f"fit: the batches end at step {step}, expected {num_steps} steps")
        began = time.perf_counter()
        state, metrics = call(state, group)
        unread.append((step, len(group), time.perf_counter() - began, metrics))
        step += len(group)
        read(keep=1)
        last = step == num_steps
        stopping = not last and stop_fn is not None and stop_fn()
        if step % log_every == 0 or last:
            read(keep=0)
            if log_fn is not None:
                log_fn(step, window)
            window = {}
        if eval_fn is not None and (last or _due(step, eval_every)):
            # It may save what it finds good.
            read(keep=0)
            eval_fn(step, state)
        if save_fn is not None and (last or stopping or _due(step, checkpoint_every)):
            read(keep=0)
            save_fn(step, state)
        if stopping:
            raise Stopped(step)
        if not unread:
            pace.starts()
    return state


@contextlib.contextmanager
def profiled(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    directory: str | Path,
    *,
    first: int = 10,
    num_steps: int = 5,
) -> Iterator[Callable[[TrainState, Batch], tuple[TrainState, Metrics]]]:
    """Let a step write a trace of some of its calls, when compilation is behind it.

    The trace opens in TensorBoard's profiler, in XProf and in Perfetto.

    Args:
        train_step: `(state, batch) -> (state, metrics)`.
        directory: where the trace goes.
        first: how many calls come before it.
        num_steps: how many calls it holds.

    Yields:
        A function that does the same. A trace holds fewer calls where training ends within it,
        and there is none where it ends before.
    """
    calls, tracing = 0, False

    def stop() -> None:
        nonlocal tracing
        if tracing:
            tracing = False
            jax.profiler.stop_trace()

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        nonlocal calls, tracing
        if calls == first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(directory), create_perfetto_trace=True)
            tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=calls):
            state, metrics = train_step(state, batch)
        calls += 1
        if calls == first + num_steps:
            jax.block_until_ready((state, metrics))
            stop()
        return state, metrics

    try:
        yield step
    finally:
        stop()


def evaluate(
    eval_step: Callable[[Variables, Batch], Metrics],
    variables: Variables,
    batches: Iterable[Batch],
) -> HostMetrics:
    """Measure a network on every example once.

    Args:
        eval_step: as `make_eval_step` makes it.
        variables: the network's.
        batches: padded batches with a `mask`.

    Returns:
        Metrics as `{name: (total, count)}`; `kdjax.metrics.value` turns one into a number.
    """
    merged: HostMetrics = {}
    for metrics in _one_late(eval_step(variables, batch) for batch in batches):
        merged = measures.merge(merged, measures.to_host(metrics))
    return merged


def predict(apply_fn: Callable[[Batch], Array], batches: Iterable[Batch]) -> np.ndarray:
    """Collect a network's answers to every example, in order.

    Args:
        apply_fn: batch -> array [batch, ...], jitted by the caller.
        batches: padded batches with a `mask`.

    Returns:
        The answers to the examples that count, [examples, ...].
    """
    answers = ((apply_fn(batch), batch["mask"]) for batch in batches)
    return np.concatenate([gathered(own)[gathered(mask)] for own, mask in _one_late(answers)])


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a polite request; a second Ctrl-C interrupts at once.

    Where several processes train together, the request to one of them stops all, at the same step.

    Yields:
        A function that says whether to stop, to be passed as `fit(stop_fn=...)`.
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
        yield lambda: bool(received) if alone else reached_preemption_sync_point(next(steps))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _one_late(values: Iterable[T]) -> Iterator[T]:
    """Hand values on when the next one is under way: the device need not wait for their reader."""
    held: list[T] = []
    for value in values:
        held.append(value)
        if len(held) > 1:
            yield held.pop(0)
    yield from held


class _Pace:
    """How many steps the next call may take, from how long the last ones did.

    Processes that train together would measure different times, and must take the same steps.
    """

    def __init__(self, steps_per_call: int):
        self._limit, self._fixed = steps_per_call, jax.process_count() > 1
        self.most = steps_per_call if self._fixed else 1
        self.starts()

    def starts(self) -> None:
        """Note that the device has nothing to do until the next call."""
        self._since = time.perf_counter()

    def took(self, count: int, *, at_least: float) -> None:
        """Note that a call of so many steps has ended, and that the next one has begun.

        It took the time since the last one ended, or what passed until it returned, where that is
        more: a device may compute in the call itself.
        """
        now = time.perf_counter()
        seconds, self._since = max(now - self._since, at_least), now
        if not self._fixed:
            fitting = int(_SECONDS_PER_CALL * count / max(seconds, 1e-9))
            self.most = max(1, min(fitting, _GROWTH * self.most, self._limit))


def _caller(
    train_step: Callable[..., tuple[TrainState, Metrics]], steps_per_call: int
) -> Callable[[TrainState, list[Batch]], tuple[TrainState, Metrics]]:
    """Call a step with its batch, or several steps with theirs, stacked and filled up."""
    if steps_per_call == 1:
        return lambda state, group: train_step(state, group[0])

    def call(state: TrainState, group: list[Batch]) -> tuple[TrainState, Metrics]:
        filled = [*group, *group[-1:] * (steps_per_call - len(group))]
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *filled)
        return train_step(state, stacked, np.int32(len(group)))

    return call


def _each(metrics: HostMetrics, count: int, steps_per_call: int) -> list[HostMetrics]:
    """Take the metrics of a call apart into those of its steps."""
    if steps_per_call == 1:
        return [metrics]
    return [sweep.member(metrics, i) for i in range(count)]


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _finite(metric: tuple[Any, Any]) -> bool:
    return bool(np.all(np.isfinite(metric[0])))


def _checked(step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics, or name the step and the terms whose loss is not finite."""
    if _finite(metrics["loss"]):
        return dict(metrics)
    bad = [
        name.replace("loss/", "")
        for name, metric in metrics.items()
        if "loss/" in name and not _finite(metric)
    ]
    terms = ", ".join(bad) or "none alone; their weighted sum"
    raise NonFiniteLoss(
        f"the loss is {measures.value(metrics['loss'])} at step {step}; non-finite terms: {terms}"
    )
