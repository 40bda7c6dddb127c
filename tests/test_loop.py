"""The loop: what is called when, what stops it, and that nothing bad is ever saved."""

import os
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toys

from kdjax import loop, metrics, step, teachers


def make_run(learning_rate=0.1):
    batch = toys.batch_of(8)
    model, optimizer = toys.linear_model(), toys.sgd(learning_rate)
    teacher = toys.teacher_for(batch)
    objective = toys.kd_objective()
    outputs = teacher.apply(teacher.variables, batch)
    state = step.init_train_state(jax.random.key(0), model, objective, optimizer, batch, outputs)
    return toys.taught(model, objective, optimizer), state


def batches(start=0):
    while True:
        yield toys.batch_of(8, start)
        start += 1


def test_fit_calls_every_hook_on_its_steps():
    run, state = make_run()
    calls = {"log": [], "eval": [], "save": []}
    state = loop.fit(
        run,
        state,
        batches(),
        num_steps=7,
        log_every=3,
        log_fn=lambda at, m: calls["log"].append((at, float(m["loss"][1]))),
        eval_every=2,
        eval_fn=lambda at, s: calls["eval"].append((at, int(s.step))),
        checkpoint_every=5,
        save_fn=lambda at, s: calls["save"].append(at),
    )
    assert int(state.step) == 7
    # Each window counts the examples of its own steps, none twice.
    assert calls["log"] == [(3, 24.0), (6, 24.0), (7, 8.0)]
    assert calls["eval"] == [(2, 2), (4, 4), (6, 6), (7, 7)]
    assert calls["save"] == [5, 7]


def test_a_fit_in_two_halves_equals_one_bitwise():
    run, state = make_run()
    whole = loop.fit(run, state, batches(), num_steps=6)
    run, state = make_run()
    half = loop.fit(run, state, batches(), num_steps=3)
    both = loop.fit(run, half, batches(3), num_steps=6)
    jax.tree.map(np.testing.assert_array_equal, whole.params, both.params)


def test_a_finished_state_is_returned_untouched():
    run, state = make_run()
    state = loop.fit(run, state, batches(), num_steps=2)
    again = loop.fit(run, state, batches(2), num_steps=2, save_fn=lambda *_: pytest.fail("saved"))
    assert again is state


def test_non_finite_loss_names_step_and_term_and_is_not_saved():
    run, state = make_run()
    saved = []

    def poisoned():
        for i, batch in enumerate(batches()):
            yield {**batch, "image": np.full_like(batch["image"], np.nan)} if i == 4 else batch

    with pytest.raises(loop.NonFiniteLoss, match="nan at step 5; non-finite terms: hard, soft"):
        loop.fit(
            run,
            state,
            poisoned(),
            num_steps=20,
            checkpoint_every=1,
            save_fn=lambda at, s: saved.append(at),
        )
    assert saved == [1, 2, 3, 4]


@pytest.mark.parametrize("last", [3, 20])
def test_a_state_that_went_bad_behind_a_finite_loss_is_named_and_not_saved(last):
    run, state = make_run()
    saved, measured = [], []

    def poisoned(state, batch):
        at = int(state.step) + 1
        state, found = run(state, batch)
        if at == 3:
            kernel = jax.tree.map(lambda x: x.at[0].set(np.inf), state.params["student"])
            state = state.replace(params={**state.params, "student": kernel})
        return state, found

    with pytest.raises(loop.NonFiniteLoss, match=r"after step 3, whose loss is finite, params/"):
        loop.fit(
            poisoned,
            state,
            batches(),
            num_steps=last,
            eval_every=1,
            eval_fn=lambda at, s: measured.append(at),
            checkpoint_every=1,
            save_fn=lambda at, s: saved.append(at),
        )
    assert saved == measured == [1, 2]


def test_what_an_optimizer_remembers_may_be_infinite():
    _, state = make_run()
    state = state.replace(opt_state=(state.opt_state, np.float32(np.inf)))

    def step_fn(state, batch):
        return state.replace(step=state.step + 1), {"loss": (1.0, 1.0)}

    assert int(loop.fit(step_fn, state, batches(), num_steps=1).step) == 1


def test_a_signal_saves_and_stops_and_hands_the_handlers_back():
    run, state = make_run()
    saved = []
    before = signal.getsignal(signal.SIGTERM)

    def interrupted():
        for i, batch in enumerate(batches()):
            if i == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(loop.Stopped) as stopped, loop.stop_on_signals() as stop_fn:
        loop.fit(
            run,
            state,
            interrupted(),
            num_steps=20,
            save_fn=lambda at, s: saved.append(at),
            stop_fn=stop_fn,
        )
    assert stopped.value.step == 4
    assert saved == [4]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_interrupt_is_not_polite():
    with pytest.raises(KeyboardInterrupt), loop.stop_on_signals() as stop_fn:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_fn()
        os.kill(os.getpid(), signal.SIGINT)


def test_evaluate_and_predict_cover_every_example_once():
    model, batch = toys.linear_model(), toys.batch_of(10)
    variables = model.init(jax.random.key(0), batch["image"])
    padded = [
        {name: x[:6] for name, x in batch.items()} | {"mask": np.ones(6, bool)},
        {name: np.concatenate([x[6:], x[:2]]) for name, x in batch.items()}
        | {"mask": np.arange(6) < 4},
    ]
    measured = loop.evaluate(step.make_eval_step(model), variables, padded)
    whole = step.make_eval_step(model)(variables, batch)
    for name, metric in whole.items():
        np.testing.assert_allclose(metrics.value(measured[name]), metrics.value(metric), rtol=1e-5)

    def logits_of(part):
        return model.apply(variables.params, {}, part["image"], train=False)[0].logits

    np.testing.assert_allclose(loop.predict(logits_of, padded), logits_of(batch), rtol=1e-5)


def test_absent_teacher_fails_with_words_when_a_term_needs_one():
    batch, model, optimizer = toys.batch_of(8), toys.linear_model(), toys.SGD
    with pytest.raises(ValueError, match="needs a teacher's outputs"):
        state = step.init_train_state(
            jax.random.key(0), model, toys.kd_objective(), optimizer, batch, None
        )
        run = step.make_train_step(model, toys.kd_objective(), optimizer)
        step.with_teacher(run, teachers.absent())(state, batch)


def test_too_few_batches_are_an_error_after_all_steps_were_looked_at():
    run, state = make_run()
    with pytest.raises(ValueError, match="fit: the batches end at step 2, expected 5 steps"):
        loop.fit(run, state, [toys.batch_of(8), toys.batch_of(8)], num_steps=5)

    def bad(state, batch):
        return state, {"loss": (np.float32(np.nan), np.float32(1))}

    with pytest.raises(loop.NonFiniteLoss, match="nan at step 1;"):
        loop.fit(bad, SimpleNamespace(step=0), [{}], num_steps=5)


def test_the_peer_whose_loss_is_not_finite_is_named():
    one, nan = (np.float32(1), np.float32(1)), (np.float32(np.nan), np.float32(1))
    found = {"loss": nan, "peer_0/loss": nan, "peer_0/loss/soft": nan, "peer_1/loss/soft": one}
    with pytest.raises(loop.NonFiniteLoss, match=r"non-finite terms: peer_0/soft;"):
        loop.fit(lambda s, b: (s, found), SimpleNamespace(step=0), [{}], num_steps=1)


def test_a_training_that_ends_within_its_trace_leaves_room_for_the_next(tmp_path):
    for name in ("one", "two"):
        run, state = make_run()
        with loop.profiled(run, tmp_path / name, first=1, num_steps=5) as traced:
            loop.fit(traced, state, batches(), num_steps=3)
        assert list((tmp_path / name).rglob("*.xplane.pb"))


def test_measuring_asks_for_the_next_batch_before_it_reads_the_last():
    order = []

    class Answer:
        def __init__(self, i):
            self.i = i

        def __array__(self, dtype=None, copy=None):
            order.append(f"read {self.i}")
            return np.full(2, self.i)

    def apply(batch):
        order.append(f"asked {batch['i']}")
        return Answer(batch["i"])

    fed = [{"i": i, "mask": np.ones(2, bool)} for i in range(3)]
    np.testing.assert_array_equal(loop.predict(apply, fed), [0, 0, 1, 1, 2, 2])
    assert order == ["asked 0", "asked 1", "read 0", "asked 2", "read 1", "read 2"]


def test_a_profiled_step_leaves_a_trace_and_changes_nothing(tmp_path):
    run, state = make_run()
    plain = loop.fit(run, state, batches(), num_steps=5)
    run, state = make_run()
    with loop.profiled(run, tmp_path, first=2, num_steps=2) as traced:
        state = loop.fit(traced, state, batches(), num_steps=5)
    jax.tree.map(np.testing.assert_array_equal, plain.params, state.params)
    found = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert any(name.endswith(".xplane.pb") for name in found), found
    assert any("perfetto" in name for name in found), found


def test_a_trace_holds_the_calls_that_are_asked_for(tmp_path, monkeypatch):
    taken, traced = [], []

    class Trace:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            traced.append(len(taken))

        def __exit__(self, *_):
            traced.append(len(taken))

    monkeypatch.setattr(jax.profiler, "trace", Trace)
    with loop.profiled(
        lambda s, b: taken.append(b) or (s, {}), tmp_path, first=3, num_steps=2
    ) as f:
        for call in range(8):
            f({}, call)
    assert traced == [3, 5]


def test_a_stop_that_comes_with_the_last_step_is_none():
    run, state = make_run()
    state = loop.fit(run, state, batches(), num_steps=1, stop_fn=lambda: True)
    assert int(state.step) == 1
