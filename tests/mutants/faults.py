"""Faults to plant: where, what stands there, what takes its place, and the tests that must fail."""

from typing import NamedTuple

ASKED, METHODS, RECIPES = (
    f"tests/test_{name}.py" for name in ("asked_and_trained", "methods", "recipes")
)
RUNS, LOSSES, TERMS, DATA = "kdjax/runs/", "kdjax/losses/", "kdjax/terms/", "kdjax/data/"


class Fault(NamedTuple):
    """A change of one place, and the tests that must notice."""

    name: str
    path: str
    was: str
    now: str
    tests: str


FAULTS = (
    # What the command line asks for.
    Fault(
        "sgd-momentum",
        RUNS + "recipes.py",
        "momentum=settings.momentum",
        "momentum=0.99",
        RECIPES,
    ),
    Fault("nesterov", RUNS + "recipes.py", "is not False", "is False", RECIPES),
    Fault("first-drop", RUNS + "recipes.py", "(0.625,", "(0.5,", RECIPES),
    Fault("drop", RUNS + "recipes.py", ": 0.1 for share", ": 0.2 for share", RECIPES),
    Fault(
        "sgd-decay",
        RUNS + "recipes.py",
        "add_decayed_weights(settings.weight_decay, decaying)",
        "add_decayed_weights(0.0, decaying)",
        RECIPES,
    ),
    Fault(
        "adamw-decay",
        RUNS + "recipes.py",
        "adamw(schedule, weight_decay=settings.weight_decay, mask=decaying)",
        "adamw(schedule, mask=decaying)",
        RECIPES,
    ),
    Fault("decay-of-biases", RUNS + "recipes.py", "x.ndim > 1", "x.ndim > 0", RECIPES),
    Fault("clipping", RUNS + "recipes.py", "norm(settings.clip_norm)", "norm(1e9)", RECIPES),
    Fault(
        "mixed-labels",
        "kdjax/data/mixtures.py",
        "share[:, None] * probs + (1 - share[:, None])",
        "(1 - share[:, None]) * probs + share[:, None]",
        "tests/data/test_data_mixtures.py",
    ),
    Fault(
        "cut-area",
        "kdjax/data/mixtures.py",
        "half = jnp.sqrt(1 - share)[:, None] / 2",
        "half = jnp.sqrt(1 - share)[:, None]",
        "tests/data/test_data_mixtures.py",
    ),
    Fault("average", RUNS + "recipes.py", "(n + 1), decay)", "(n + 1), 0.999)", ASKED),
    Fault("smoothing", "kdjax/losses/_classification.py", "(1 - e) * values", "values", ASKED),
    Fault("warm-up", RUNS + "recipes.py", "num_steps // 50", "num_steps // 20", RECIPES),
    Fault(
        "max-norm",
        RUNS + "recipes.py",
        "*([max_norm(norm_limit)] if norm_limit else [])",
        "*[]",
        RECIPES,
    ),
    Fault("norm-of-half", "kdjax/optimizers.py", "param + update", "param + 0.5 * update", RECIPES),
    Fault("crop", RUNS + "recipes.py", "padding=crop_padding", "padding=4", RECIPES),
    Fault(
        "jitter",
        RUNS + "recipes.py",
        "data.jitter(key, images, max_shift=jitter_pixels)",
        "data.jitter(key, images, max_shift=1)",
        RECIPES,
    ),
    Fault("rate-of-batch", RUNS + "resolved.py", "* max(1.0, batch_size / 128)", "* 1.0", RECIPES),
    Fault("worst-student", RUNS + "measures.py", "np.argmax(np", "np.argmin(np", ASKED),
    Fault(
        "teacher-epochs",
        RUNS + "resolved.py",
        "epochs=given.epochs or settings.epochs",
        "epochs=settings.epochs or given.epochs",
        ASKED,
    ),
    Fault(
        "teacher-rate",
        RUNS + "teaching.py",
        "if teacher and teacher.learning_rate:",
        "if not teacher:",
        ASKED,
    ),
    Fault(
        "teacher-norm",
        RUNS + "teaching.py",
        "(teacher or settings.student).max_norm",
        "settings.student.max_norm",
        ASKED,
    ),
    Fault(
        "kept-answers",
        RUNS + "teaching.py",
        "if recipes.changes_images(experiment.settings.augment) or data.is_lazy(examples):",
        "if data.is_lazy(examples):",
        ASKED,
    ),
    Fault(
        "seed-of-order",
        RUNS + "training.py",
        "return data.train_rows(count, seed=seed,",
        "return data.train_rows(count, seed=0,",
        ASKED,
    ),
    Fault(
        "seed-of-state",
        RUNS + "training.py",
        "args = jax.random.key(seed), batch, outputs",
        "args = jax.random.key(0), batch, outputs",
        ASKED,
    ),
    Fault(
        "examples-seen",
        RUNS + "teaching.py",
        'counts = len(examples["label"]),',
        "counts = 1,",
        ASKED,
    ),
    Fault("epochs", RUNS + "teaching.py", "math.ceil(epochs *", "math.floor(epochs *", ASKED),
    Fault(
        "temperature",
        RUNS + "methods.py",
        "setup.task.soft(setup.temperature)",
        "setup.task.soft(4.0)",
        METHODS,
    ),
    Fault(
        "kd-weight",
        RUNS + "methods.py",
        "(terms.cross_entropy(), weights[1])",
        "(terms.cross_entropy(), 1.0)",
        METHODS,
    ),
    # The methods' own numbers.
    Fault(
        "at-weight",
        RUNS + "methods.py",
        "_of(losses.attention_transfer_loss, _stages), 1000.0",
        "_of(losses.attention_transfer_loss, _stages), 100.0",
        METHODS,
    ),
    Fault(
        "review-warm-up",
        RUNS + "methods.py",
        "_review, 0.6, warms_up=True",
        "_review, 0.6",
        METHODS,
    ),
    Fault(
        "rkd-weights",
        RUNS + "methods.py",
        "_embeddings)(setup), 25.0)",
        "_embeddings)(setup), 50.0)",
        METHODS,
    ),
    Fault(
        "scaled-labels", RUNS + "methods.py", '1.0 if term == "hard" else scale', "scale", METHODS
    ),
    Fault("warm-up-length", RUNS + "methods.py", "share(1 / 12)", "share(1 / 2)", METHODS),
    Fault(
        "simkd-labels",
        RUNS + "methods.py",
        "_simkd, label_weight=0.0",
        "_simkd, label_weight=1.0",
        METHODS,
    ),
    Fault(
        "nkd-temperature",
        RUNS + "methods.py",
        "temperature=3.0, nontarget_weight=3.5",
        "temperature=1.0, nontarget_weight=3.5",
        METHODS,
    ),
    Fault("ctkd-length", RUNS + "methods.py", "s.share(1 / 24)", "s.share(1 / 12)", METHODS),
    Fault("mgd-mask", RUNS + "methods.py", "mask_ratio=0.15", "mask_ratio=0.5", METHODS),
    Fault("ft-rate", RUNS + "methods.py", "0.2 / 500", "0.2", METHODS),
    Fault("skd-scale", RUNS + "methods.py", "0.1 * num_classes**2", "0.1 * num_classes", METHODS),
    Fault(
        "simkd-sides",
        RUNS + "methods.py",
        'student="projected", teacher=teacher',
        'student="projected", teacher="projected"',
        METHODS,
    ),
    # Losses and metrics.
    Fault(
        "rest-of-two-sum",
        LOSSES + "_numerics/exact.py",
        "((gap - center) + (rest - shift)) / t",
        "(gap - center) / t",
        "tests/losses",
    ),
    Fault(
        "crd-momentum",
        LOSSES + "_contrastive.py",
        "normalize(momentum * old + (1 - momentum) * new)",
        "normalize((1 - momentum) * old + momentum * new)",
        "tests/losses tests/terms",
    ),
    Fault(
        "ece-absolute",
        "kdjax/metrics/_means.py",
        "np.abs(total).sum() if",
        "np.abs(total.sum()) if",
        "tests/test_metrics.py",
    ),
    Fault(
        "ece-edge",
        "kdjax/metrics/_means.py",
        "jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1",
        "jnp.floor(confidence * num_bins).astype(jnp.int32)",
        "tests/test_metrics.py",
    ),
    # Random streams that must differ.
    Fault(
        "keys-of-terms",
        "kdjax/objective.py",
        "fold_in(key, i) for i, name",
        "fold_in(key, 0) for i, name",
        "tests/test_streams.py",
    ),
    Fault(
        "streams",
        "kdjax/_steps.py",
        "_VIEW_STREAM, SAMPLE_STREAM = 0, 1, 2",
        "_VIEW_STREAM, SAMPLE_STREAM = 0, 0, 2",
        "tests/test_streams.py",
    ),
    Fault(
        "keys-of-parts",
        "kdjax/step.py",
        "part_key = jax.random.fold_in(key, index)",
        "part_key = key",
        "tests/test_streams.py",
    ),
    Fault(
        "constant-peers",
        "kdjax/teachers.py",
        "[jax.lax.stop_gradient(x) for x in outputs]",
        "list(outputs)",
        "tests/test_streams.py",
    ),
    Fault(
        "keys-of-peers",
        "kdjax/online.py",
        "jax.random.split(key, len(students))",
        "jnp.stack([key] * len(students))",
        "tests/test_streams.py",
    ),
    Fault(
        "schedule-of-peers",
        "kdjax/online.py",
        "state.term_state, seen, step=state.step",
        "state.term_state, seen",
        "tests/test_streams.py",
    ),
    Fault(
        "draws-of-centres",
        "kdjax/specialists/_clusters.py",
        "jax.random.categorical(jax.random.fold_in(key, i), ",
        "jax.random.categorical(key, ",
        "tests/test_streams.py",
    ),
    # Data.
    Fault(
        "translate-one-way",
        DATA + "views.py",
        "(1 - rest[1]) * x[:, :-1] + rest[1] * x[:, 1:]",
        "x[:, :-1]",
        "tests/data/test_data_views.py",
    ),
    Fault(
        "warp-between", DATA + "views.py", "order=1)", "order=0)", "tests/data/test_data_views.py"
    ),
    Fault(
        "warp-once",
        DATA + "views.py",
        "shape = (images.shape[0], 2, num_points",
        "shape = (1, 2, num_points",
        "tests/data/test_data_views.py",
    ),
    Fault(
        "epochs-alike",
        DATA + "batches.py",
        "np.random.Philox([seed, epoch])",
        "np.random.Philox([seed, 0])",
        "tests/data/test_data_batches.py",
    ),
    # The loop.
    Fault(
        "no-validation-at-the-end",
        "kdjax/loop.py",
        "if last or due.is_now",
        "if due.is_now",
        "tests/test_loop.py",
    ),
    Fault(
        "stop-at-the-end",
        "kdjax/loop.py",
        "stopping = not last and stop_fn",
        "stopping = stop_fn",
        "tests/test_loop.py",
    ),
    Fault(
        "unread-before-saving",
        "kdjax/loop.py",
        "        calls.read()\n",
        "        pass\n",
        "tests/test_loop.py",
    ),
    Fault(
        "padding-predicted",
        "kdjax/loop.py",
        "gathered(own)[gathered(mask) > 0]",
        "gathered(own)",
        "tests/test_loop.py tests/test_step.py",
    ),
    Fault(
        "trace-too-early",
        "kdjax/loop.py",
        "if call == first:",
        "if call == 0:",
        "tests/test_loop.py",
    ),
    # Steps and objectives.
    Fault(
        "weight-of-labels-squared",
        "kdjax/objective.py",
        "_at(weights[name], step) * total",
        "_at(weights[name], 0) * total",
        "tests/test_step.py",
    ),
    Fault(
        "joint-key-each-step",
        "kdjax/_steps.py",
        "jax.random.fold_in(state.key, state.step)",
        "state.key",
        "tests/test_step.py",
    ),
    # Models.
    Fault(
        "mlp-without-relu",
        "kdjax/models/_mlp.py",
        "nn.relu(nn.Dense(",
        "(nn.Dense(",
        "tests/models " + ASKED,
    ),
    Fault(
        "normalization",
        "kdjax/models/_wrappers.py",
        "jnp.float32) / 255",
        "jnp.float32) / 256",
        "tests/models " + ASKED,
    ),
    # Checkpoints.
    Fault(
        "step-of-checkpoint",
        "kdjax/checkpoint/_saving.py",
        '"step": step, **scored}',
        '"step": 0, **scored}',
        "tests/test_checkpoint.py tests/test_checkpoint_saving.py",
    ),
    Fault(
        "not-copied",
        "kdjax/checkpoint/_saving.py",
        "copies = jax.tree.map(_copy, tree)",
        "copies = tree",
        "tests/test_checkpoint_saving.py",
    ),
    # Metrics.
    Fault(
        "nll-of-all",
        "kdjax/metrics/_means.py",
        "return masked_sum(-picked, mask)",
        "return masked_sum(-picked, jnp.ones_like(mask))",
        "tests/test_metrics.py tests/test_step.py",
    ),
    Fault(
        "merge-forgets",
        "kdjax/metrics/_means.py",
        "operator.add, first[name], second[name]",
        "lambda x, y: y, first[name], second[name]",
        "tests/test_metrics.py tests/test_loop.py",
    ),
    # Specialists.
    Fault(
        "inactive-specialists",
        "kdjax/specialists/_inference.py",
        "jnp.where(jnp.asarray(active), others, 0.0)",
        "others",
        "tests/test_specialists.py",
    ),
    # Data-free and chains.
    Fault(
        "generator-follows-student",
        RUNS + "generator.py",
        "    -jnp.mean(jnp.sum(probs * gap, axis=-1)),",
        "    jnp.mean(jnp.sum(probs * gap, axis=-1)),",
        "tests/test_data_free.py",
    ),
    Fault(
        "generator-unbalanced",
        RUNS + "generator.py",
        "jnp.sum(mean * jnp.log(mean + 1e-12))",
        "-jnp.sum(mean * jnp.log(mean + 1e-12))",
        "tests/test_data_free.py",
    ),
    Fault(
        "same-noise",
        RUNS + "generator.py",
        "key = jax.random.fold_in(state.key, state.step)",
        "key = state.key",
        "tests/test_data_free.py",
    ),
    Fault(
        "one-seed-for-the-chain",
        RUNS + "generations.py",
        "own += len(seeds)",
        "own += 0",
        "tests/test_generations.py",
    ),
    Fault(
        "chain-of-one",
        RUNS + "generations.py",
        "source = _student(experiment, source, network",
        "source = _student(experiment, teacher, network",
        "tests/test_generations.py",
    ),
    # Tables and comparisons.
    Fault(
        "first-epoch",
        RUNS + "compare.py",
        "last, best = tuple(values[-1] for values in test)",
        "last, best = tuple(values[0] for values in test)",
        "tests/test_compare.py",
    ),
    Fault(
        "deviation-of-all",
        RUNS + "numbers.py",
        "statistics.stdev",
        "statistics.pstdev",
        "tests/test_report.py tests/test_compare.py tests/test_hinton2015.py",
    ),
    Fault(
        "agreement-with-labels",
        RUNS + "tasks.py",
        '"ece", "agreement")',
        '"ece", "accuracy")',
        "tests/test_distill.py",
    ),
    # Language models.
    Fault(
        "prompt-read-too-far",
        "kdjax/generation.py",
        "last = counts.astype(jnp.int32) - 1",
        "last = counts.astype(jnp.int32) - 2",
        "tests/test_generation.py",
    ),
    Fault(
        "stop-goes-on",
        "kdjax/generation.py",
        "ended | (new == stop)",
        "ended | (new != new)",
        "tests/test_generation.py",
    ),
    Fault(
        "prompt-judged",
        "kdjax/generation.py",
        '"mask": mask[:, 1:]}',
        '"mask": mask[:, :-1]}',
        "tests/test_language.py",
    ),
    Fault(
        "own-words-as-labels",
        RUNS + "language/lessons.py",
        'inputs.batch.get("of_data", 1.0)',
        "1.0",
        "tests/test_language.py",
    ),
    Fault(
        "taid-stands-still",
        RUNS + "language/lessons.py",
        "jnp.clip(progress, 0, 1)",
        "0 * progress",
        "tests/test_language.py",
    ),
    Fault(
        "other-words-kept",
        RUNS + "language/networks.py",
        "return x[kept] if names",
        "return x[: len(kept)] if names",
        "tests/test_language.py",
    ),
    Fault(
        "head-cut-as-rows",
        RUNS + "language/lessons.py",
        "head[None, None]})",
        "head})",
        "tests/test_language.py",
    ),
    Fault(
        "end-of-another-document",
        "kdjax/data/text.py",
        "np.concatenate([ends, ids])",
        "np.concatenate([ids, ends])",
        "tests/data/test_data_text.py",
    ),
    # Terms.
    Fault(
        "hint-teacher", TERMS + "_reading.py", "jax.lax.stop_gradient", "jnp.asarray", "tests/terms"
    ),
)
