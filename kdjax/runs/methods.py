"""The methods that `--method` names, as data: the terms of each with their weights, its needs.

A row of `METHODS` has a function of a `Setup` that makes the terms, and what the method needs of
data and networks; its line of help is in `kdjax.runs.method_names`. Weights are the paper's or its
authors' for CIFAR-100 where that line says no more, brought into the scale of our losses, and where
they have one for each pair of networks, that of one pair; those of older methods are from the
RepDistiller tables (Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2019,
arXiv:1910.10699).
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from kdjax import losses, models, terms
from kdjax.models import NetworkSpec
from kdjax.objective import Weight, combine
from kdjax.runs import networks, tasks
from kdjax.runs.method_names import LINES
from kdjax.runs.needs import Need
from kdjax.runs.settings import TaskName
from kdjax.runs.tasks import SINGLE_LABEL, Task, Weighted
from kdjax.types import Array, FeaturePaths, Objective, PyTree, Term


class Setup(NamedTuple):
    """What a method may have to know."""

    student: FeaturePaths
    teacher: FeaturePaths
    teacher_params: PyTree
    num_examples: int
    num_steps: int
    temperature: float = 4.0
    soft_weight: float = 0.9
    last_soft_weight: float | None = None
    label_smoothing: float = 0.0
    task: Task = SINGLE_LABEL
    of_labels_fn: Callable[[Term], Term] = lambda term: term

    def share(self, of: float) -> int:
        """Return how many steps a share of the training is, at least one."""
        return max(1, round(of * self.num_steps))


_Make = Callable[[Setup], Term]
_PathsFn = Callable[[Setup], tuple[str, str] | tuple[list[str], list[str]]]


class Method(NamedTuple):
    """A row of the table: what makes the terms of a method, their weights, and what it needs.

    `make` returns a term, which has the name of the method and `weight`, or terms by name with
    their weights. The weight grows over the first twelfth of the training, 20 of 240 epochs, if
    `warms_up`. `label_weight` is that of the cross-entropy beside it. The student that
    `reuses_classifier` answers through the teacher's last layer. `task` is the only one that it
    is for, where it is for one. `line` is the line of help.
    """

    needs: Need
    make: Callable[[Setup], Term | Weighted]
    weight: float = 1.0
    label_weight: float = 1.0
    warms_up: bool = False
    reuses_classifier: bool = False
    task: TaskName | None = None
    line: str = ""


def objective_of(name: str, setup: Setup, *, scale: float = 1.0) -> Objective:
    """Return the objective of a method, or of several joined by "+".

    The terms of several are added, each with its weight; the cross-entropy with the labels, which
    most of them have, counts once, with the largest of its weights.

    Args:
        name: such as "kd" or "kd+crd".
        setup: what the methods need to know.
        scale: what all weights but the labels' are multiplied by.

    Raises:
        ValueError: if a method is unknown, or needs maps where a network has none.
    """
    found: Weighted = {}
    labels: list[Any] = []
    _check_paths(name, setup.student, setup.teacher)
    for method in methods_in(name):
        weighted = _weighted(method, setup)
        labels.append(weighted.pop("hard")[1])
        found |= weighted
    if setup.task.hard is not None:
        hard = setup.task.hard(setup.label_smoothing)
        if any(Need.TOKEN in METHODS[method].needs for method in methods_in(name)):
            hard = terms.with_logits_of(hard, "head")
        largest = max(labels, key=lambda w: float(w(jnp.int32(0)) if callable(w) else w))
        found["hard"] = setup.of_labels_fn(hard), largest
    return combine(
        {term: loss for term, (loss, _) in found.items()},
        {term: _scaled(w, 1.0 if term == "hard" else scale) for term, (_, w) in found.items()},
    )


def _weighted(name: str, setup: Setup) -> Weighted:
    """Return the terms of one method with their weights, the labels' under "hard"."""
    method = METHODS[name]
    made, weight = method.make(setup), method.weight
    if method.warms_up:
        weight = optax.linear_schedule(0.0, weight, setup.share(1 / 12))
    parts = {name.replace("-", "_"): (made, weight)} if isinstance(made, Term) else made
    return {"hard": (terms.cross_entropy(), method.label_weight), **parts}


def _scaled(weight: Weight, scale: float) -> Weight:
    return (lambda step: scale * weight(step)) if callable(weight) else scale * weight


def check(name: str, student: NetworkSpec, teacher: NetworkSpec, task: Task = SINGLE_LABEL) -> None:
    """Raise a ValueError unless a task and two networks have what a method needs.

    Args:
        name: the method, or several joined by "+".
        student: describes the student.
        teacher: describes the teacher.
        task: what is learned.
    """
    _check_paths(name, models.build(student).paths, models.build(teacher).paths)
    for method in methods_in(name):
        needs = METHODS[method].needs
        if not is_for(method, task):
            own = METHODS[method].task
            what = f"is for --task {own}" if own else "learns from one class of each image"
            fit = ", ".join(known for known in METHODS if is_for(known, task))
            raise ValueError(
                f"--method {method} {what}, --task is {task.name}; those that fit: {fit}"
            )
        if Need.TOKEN in needs and not student.name.startswith("vit"):
            raise ValueError(f"--method {method} needs a vit as --student.name, not {student.name}")
        if not needs & (Need.SAME_WIDTHS | Need.SAME_LAST_WIDTH):
            continue
        one, two = networks.stage_widths(student), networks.stage_widths(teacher)
        count = min(len(one), len(two)) if Need.SAME_WIDTHS in needs else 1
        if one[-count:] != two[-count:]:
            raise ValueError(
                f"--method {method} needs maps of the same widths; {student.name} has {one} and "
                f"{teacher.name} {two}"
            )


def is_for(name: str, task: Task) -> bool:
    """Whether a task has what a method learns from."""
    method = METHODS[name]
    return method.task in (None, task.name) and not any(x in method.needs for x in task.lacks)


def fits(name: str, student: NetworkSpec, teacher: NetworkSpec) -> bool:
    """Whether two networks have what a method needs."""
    try:
        check(name, student, teacher)
    except ValueError:
        return False
    return True


def _check_paths(name: str, student: FeaturePaths, teacher: FeaturePaths) -> None:
    """Raise a ValueError unless two networks have features where a method needs them."""
    for method in methods_in(name):
        for need, (words, is_met) in _REQUIRED.items():
            if need in METHODS[method].needs and not is_met(student, teacher):
                raise ValueError(f"--method {method} needs {words}")


_REQUIRED: Mapping[Need, tuple[str, Callable[[FeaturePaths, FeaturePaths], bool]]] = {
    Need.MAPS: ("feature maps: networks of convolutions", lambda s, t: s.spatial and t.spatial),
    Need.FEATURES: ("features of hidden layers", lambda s, t: bool(s.stages and t.stages)),
    Need.NORMS: ("a teacher with BatchNorm right before its ReLUs", lambda s, t: bool(t.norms)),
}


def student_of(name: str, spec: NetworkSpec, setup: Setup) -> NetworkSpec:
    """Describe what a method makes of a student: the same, but for those that deploy more."""
    for method in methods_in(name):
        if METHODS[method].reuses_classifier:
            width = classifier_of(method, setup)["kernel"].shape[0]
            return dataclasses.replace(spec, reused_width=width)
        if Need.TOKEN in METHODS[method].needs:
            spec = dataclasses.replace(spec, distillation_token=True)
    return spec


def classifier_of(method: str, setup: Setup) -> PyTree:
    """Return the last layer of the teacher, for a method that reads it.

    Raises:
        ValueError: if the teacher answers through the classifier of its own teacher.
    """
    if setup.teacher.head not in setup.teacher_params:
        raise ValueError(f"--method {method} needs a teacher with a classifier of its own")
    return setup.teacher_params[setup.teacher.head]


def loss_of(name: str) -> str | None:
    """Name the loss of a method that lifts one and does nothing else, None for any other."""
    make = METHODS[name].make
    return make.args[0].__name__ if isinstance(make, functools.partial) else None


def looks_at_features(name: str, *, of_teacher: bool = False) -> bool:
    """Whether a method, or one of several joined by "+", needs more than logits and labels.

    A distillation token is the student's alone.
    """
    looking = Need.FEATURES | Need.MAPS | (Need.NOTHING if of_teacher else Need.TOKEN)
    return any(METHODS[method].needs & looking for method in methods_in(name))


def methods_in(name: str) -> list[str]:
    """Return the methods that a name joins by "+".

    Raises:
        ValueError: if one of them is unknown; the message names those that are known.
    """
    methods = name.split("+")
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"--method has no {method!r}, only {', '.join(METHODS)}")
    if len(set(methods)) < len(methods):
        raise ValueError(f"--method {name} names a method twice")
    return methods


def _paired(student: tuple[str, ...], teacher: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the last features of both, as many as the one with fewer has."""
    count = min(len(student), len(teacher))
    return list(student[-count:]), list(teacher[-count:])


def _stages(setup: Setup) -> tuple[list[str], list[str]]:
    return _paired(setup.student.stages, setup.teacher.stages)


def _preactivations(setup: Setup) -> tuple[list[str], list[str]]:
    return _paired(setup.student.preactivations, setup.teacher.preactivations)


def _last(setup: Setup) -> tuple[str, str]:
    return setup.student.stages[-1], setup.teacher.stages[-1]


def _embeddings(setup: Setup) -> tuple[str, str]:
    return setup.student.embedding, setup.teacher.embedding


def _of(loss: Callable[..., Array], at: _PathsFn | None = None, **hyper: Any) -> _Make:
    """Return what lifts a loss to a term, of the features at these paths."""
    return functools.partial(_lifted, loss, at, hyper)


def _lifted(
    loss: Callable[..., Array], at: _PathsFn | None, hyper: dict[str, Any], setup: Setup
) -> Term:
    student, teacher = at(setup) if at else (None, None)
    return terms.of(loss, student=student, teacher=teacher, **hyper)


def _kd(setup: Setup) -> Weighted:
    first = setup.soft_weight
    weights: list[Weight] = [first, 1 - first]
    if (last := setup.last_soft_weight) is not None:
        ends = (first, last), (1 - first, 1 - last)
        weights = [optax.linear_schedule(*pair, setup.num_steps) for pair in ends]
    soft = setup.task.soft(setup.temperature)
    followed = {name: (term, _scaled(weights[0], own)) for name, (term, own) in soft.items()}
    return {**followed, "hard": (terms.cross_entropy(), weights[1])}


def _skd(setup: Setup) -> Weighted:
    num_classes = classifier_of("skd", setup)["kernel"].shape[-1]
    scale = 0.1 * num_classes**2  # the authors divide the cosines by the classes
    directions = terms.of(losses.direction_relation_loss, regularization=scale)
    soft = terms.soft_targets(temperature=4.0)
    return {"skd_soft": (soft, 0.5), "skd_directions": (directions, 0.5)}


def _uskd(setup: Setup) -> Term:
    early = setup.student.stages[-2 if len(setup.student.stages) > 1 else -1]
    return terms.uskd(early, target_weight=0.1, nontarget_weight=0.1, weak_weight=0.1)


def _by_token(make: _Make) -> _Make:
    return lambda setup: terms.with_logits_of(make(setup), "distillation_head")


def _hint(setup: Setup) -> Term:
    student, teacher = _stages(setup)
    middle = (len(student) - 1) // 2
    # Maps are behind a ReLU, the hidden units of other networks are not always.
    return terms.hint(student[middle], teacher[middle], norm=setup.teacher.spatial)


def _ofd(setup: Setup) -> Term:
    student, teacher = _preactivations(setup)
    # The margins of the teacher's last features are from the BatchNorm right before each.
    paths = [path.split("/") for path in setup.teacher.norms[-len(teacher) :]]
    norms = [functools.reduce(operator.getitem, path, setup.teacher_params) for path in paths]
    margins = [losses.batch_norm_margin(norm["scale"], norm["bias"]) for norm in norms]
    return terms.overhaul(student, teacher, margins=margins)


def _review(setup: Setup) -> Term:
    pairs = zip(_preactivations(setup), _embeddings(setup), strict=True)
    return terms.review(*([*stages, embedding] for stages, embedding in pairs))


def _channel_wise(student_features: Array, teacher_features: Array) -> Array:
    return losses.channel_wise_loss(*losses.match_sizes(student_features, teacher_features))


def _simkd(setup: Setup) -> Term:
    teacher = setup.teacher.last_map
    return terms.of(losses.projected_feature_loss, student="projected", teacher=teacher)


def _semckd(setup: Setup) -> Weighted:
    soft = terms.soft_targets(temperature=4.0)
    stages = terms.semantic_calibration(*_stages(setup))
    return {"semckd_soft": (soft, 1.0), "semckd": (stages, 400.0)}


def _srrl(setup: Setup) -> Term:
    classifier = classifier_of("srrl", setup)
    return terms.softmax_regression(*_embeddings(setup), classifier=classifier)


def _rkd(setup: Setup) -> Weighted:
    return {
        "rkd_distance": (_of(losses.distance_relation_loss, _embeddings)(setup), 25.0),
        "rkd_angle": (_of(losses.angle_relation_loss, _embeddings)(setup), 50.0),
    }


def _crd(setup: Setup) -> Term:
    negatives = min(16_384, setup.num_examples)
    return terms.crd(*_embeddings(setup), num_examples=setup.num_examples, num_negatives=negatives)


_CLASS_MAPS, _LOGITS = ("class_maps", "class_maps"), ("logits", "logits")
_CLASSES, _BATCH, _TOKEN = Need.CLASSES, Need.WHOLE_BATCH, Need.TOKEN | Need.CLASSES
_LABELS = Need.LABELS | Need.CLASSES
_MAPS, _FEATURES = Need.MAPS, Need.FEATURES
_RELATED, _RELATED_MAPS = _FEATURES | _BATCH, _MAPS | _BATCH
_ROWS: dict[str, Method] = {
    "scratch": Method(_LABELS, lambda s: {}),
    "kd": Method(Need.NOTHING, _kd),
    "logit-std": Method(
        _CLASSES,
        lambda s: terms.standardized(terms.soft_targets(temperature=2.0)),
        9.0,
        label_weight=0.1,
    ),
    "dkd": Method(_LABELS, _of(losses.dkd_loss), warms_up=True),
    "nkd": Method(_LABELS, _of(losses.nkd_loss, temperature=3.0, nontarget_weight=3.5)),
    "wsld": Method(_LABELS, _of(losses.wsld_loss, temperature=4.0), 2.25),
    "dist": Method(
        _BATCH | _CLASSES,
        _of(losses.dist_loss, temperature=4.0, inter_weight=2.0, intra_weight=2.0),
    ),
    "ttm": Method(_CLASSES, _of(losses.ttm_loss), 45.0),
    "wttm": Method(_CLASSES, _of(losses.wttm_loss), 4.0),
    "mlkd": Method(_BATCH | _CLASSES, _of(losses.multi_level_loss), 0.9, label_weight=0.1),
    "ctkd": Method(
        _CLASSES, lambda s: terms.curriculum_temperature(s.share(1 / 24)), 0.9, label_weight=0.1
    ),
    "logit-mse": Method(Need.NOTHING, _of(losses.logit_mse_loss)),
    "skd": Method(_BATCH | _CLASSES | Need.CLASSIFIER, _skd),
    "tfkd": Method(_LABELS, _of(losses.virtual_teacher_loss), 0.1, label_weight=0.9),
    "deit-hard": Method(_TOKEN, _by_token(_of(losses.hard_target_loss)), 0.5, 0.5),
    "deit-soft": Method(_TOKEN, _by_token(_of(losses.soft_target_loss, temperature=3.0)), 0.1, 0.9),
    # Divergences, in the forms that language models use; the weights are ours.
    "reverse-kl": Method(_CLASSES, _of(losses.reverse_kl_divergence)),
    "js": Method(_CLASSES, _of(losses.generalized_js_divergence)),
    "skew-kl": Method(_CLASSES, _of(losses.skew_kl_divergence)),
    "skew-reverse-kl": Method(_CLASSES, _of(losses.skew_reverse_kl_divergence)),
    "total-variation": Method(_CLASSES, _of(losses.total_variation)),
    "akl": Method(_CLASSES, _of(losses.adaptive_kl_divergence)),
    "taid": Method(_CLASSES, lambda s: terms.taid(num_steps=s.num_steps)),
    # Features of any shape, relations and contrast.
    "uskd": Method(_FEATURES | _LABELS | _BATCH, _uskd),
    "hint": Method(_RELATED, _hint, 100.0),
    "ab": Method(_RELATED, lambda s: terms.activation_boundary(*_preactivations(s)), 3e-3),
    "vid": Method(_FEATURES, lambda s: terms.vid(*_stages(s))),
    "pad": Method(_RELATED, lambda s: terms.prime_aware(*_embeddings(s)), warms_up=True),
    "srrl": Method(_RELATED | _CLASSES | Need.CLASSIFIER, _srrl),
    "rkd": Method(_RELATED, _rkd),
    "sp": Method(_RELATED, _of(losses.similarity_preserving_loss, _last), 3000.0),
    "cc": Method(_RELATED, _of(losses.correlation_congruence_loss, _embeddings), 100.0),
    "cc-neighbours": Method(
        _RELATED, lambda s: terms.consecutive_correlation(*_embeddings(s)), 0.02
    ),
    "pkt": Method(_RELATED, _of(losses.probabilistic_transfer_loss, _embeddings), 30000.0),
    "darkrank": Method(
        _RELATED, lambda s: terms.normalized(_of(losses.hard_dark_rank_loss, _embeddings)(s))
    ),
    "itrd": Method(_RELATED, lambda s: terms.itrd(*_embeddings(s))),
    "crd": Method(_FEATURES | Need.INDEX, _crd, 0.8),
    # Feature maps.
    "at": Method(_MAPS, _of(losses.attention_transfer_loss, _stages), 1000.0),
    "nst": Method(_MAPS, _of(losses.neuron_selectivity_loss, _stages), 50.0),
    "fsp": Method(_MAPS | Need.SAME_WIDTHS, _of(losses.flow_loss, _stages), 10.0),
    # The paraphraser learns at a fifth of the rate, as in the tables.
    "ft": Method(
        _RELATED_MAPS,
        lambda s: terms.factor_transfer(*_last(s), reconstruction_weight=0.2 / 500),
        500.0,
    ),
    "ofd": Method(_RELATED_MAPS | Need.NORMS, _ofd, 1e-3),
    "review": Method(_RELATED_MAPS, _review, 0.6, warms_up=True),
    "cat": Method(_MAPS | _CLASSES, _of(losses.class_attention_loss, lambda s: _CLASS_MAPS), 50.0),
    "cwd": Method(_MAPS | Need.SAME_LAST_WIDTH, _of(_channel_wise, _last), 10.0),
    "mgd": Method(_MAPS, lambda s: terms.masked_generation(*_last(s), mask_ratio=0.15), 1.2e-3),
    "simkd": Method(
        _MAPS | _CLASSES | Need.CLASSIFIER, _simkd, label_weight=0.0, reuses_classifier=True
    ),
    "semckd": Method(_RELATED_MAPS | _CLASSES, _semckd),
    "ickd": Method(_RELATED_MAPS, lambda s: terms.inter_channel_correlation(*_last(s)), 2.5),
    # Of one task; the weights are ours.
    "affinity": Method(Need.NOTHING, _of(losses.affinity_loss, lambda s: _LOGITS), task="pixels"),
    "ifv": Method(
        _MAPS | Need.LABELS, lambda s: tasks.within_classes(*_last(s)), 50.0, task="pixels"
    ),
    "margin-mse": Method(_BATCH, lambda s: tasks.margins(), 10.0, task="embeddings"),
}
METHODS: Mapping[str, Method] = {
    name: method._replace(line=LINES[name]) for name, method in _ROWS.items()
}
"""What `--method` knows: methods of logits, of features of any shape, and of feature maps."""
BY_DESIGN: Mapping[str, tuple[str, ...]] = {
    "darkrank": ("zero at equality",),  # the likelihood of an order, not a distance
    "logit_mse": ("shift invariance",),  # raw logits, like their cosines in skd
    "skd_directions": ("shift invariance",),
    "ttm": ("zero at equality",),  # the teacher is softened, the student is not
    "wttm": ("zero at equality",),
}
"""What terms break on purpose, of the checks that `--audit` makes."""
