"""The methods that `--method` names: for each the terms of its objective, with their weights.

A method is a function of a `Setup`; the first line of its docstring is its line of help. Weights
are the paper's or its authors' for CIFAR-100 where that line says no more, brought into the scale
of our losses, and where they have one for each pair of networks, that of one pair; those of older
methods are from the RepDistiller tables (Tian, Krishnan, Isola, "Contrastive Representation
Distillation", 2019, arXiv:1910.10699).
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from kdjax import losses, terms
from kdjax.models import NetworkSpec
from kdjax.objective import Weight, combine
from kdjax.runs.networks import classifier_of
from kdjax.types import Array, FeaturePaths, Objective, PyTree, Term

Weighted = dict[str, tuple[Term, Weight]]


class Setup(NamedTuple):
    """What a method may have to know."""

    student: FeaturePaths
    teacher: FeaturePaths
    teacher_params: PyTree
    num_examples: int
    num_steps: int
    temperature: float = 4.0
    soft_weight: float = 0.9

    def share(self, of: float) -> int:
        """Return how many steps a share of the training is, at least one."""
        return max(1, round(of * self.num_steps))


def objective_of(name: str, setup: Setup, *, scale: float = 1.0) -> Objective:
    """Make the objective of a method, or of several joined by "+".

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
    check_places(name, setup.student, setup.teacher)
    for method in methods_in(name):
        weighted = METHODS[method](setup)
        labels.append(weighted.pop("hard")[1])
        found |= weighted
    found["hard"] = terms.cross_entropy(), max(labels, key=float)
    return combine(
        {term: loss for term, (loss, _) in found.items()},
        {term: _scaled(w, 1.0 if term == "hard" else scale) for term, (_, w) in found.items()},
    )


def _scaled(weight: Weight, scale: float) -> Weight:
    return (lambda step: scale * weight(step)) if callable(weight) else scale * weight


def check_places(name: str, student: FeaturePaths, teacher: FeaturePaths) -> None:
    """Raise a ValueError unless two networks have features where a method needs them."""
    for method in methods_in(name):
        if method in SPATIAL and not (student.spatial and teacher.spatial):
            raise ValueError(f"--method {method} needs feature maps: networks of convolutions")
        if method in FEATURES and not (student.stages and teacher.stages):
            raise ValueError(f"--method {method} needs features: networks with hidden layers")
        if method == "ofd" and not teacher.norms:
            raise ValueError("--method ofd needs a teacher with BatchNorm right before its ReLUs")


def student_of(name: str, spec: NetworkSpec, setup: Setup) -> NetworkSpec:
    """Describe what a method makes of a student: the same, but for those that deploy more."""
    if "simkd" not in methods_in(name):
        return spec
    width = classifier_of("simkd", setup.teacher, setup.teacher_params)["kernel"].shape[0]
    return dataclasses.replace(spec, reused_width=width)


def looks_at_features(name: str) -> bool:
    """Whether a method, or one of several joined by "+", needs more than logits and labels."""
    return any(method not in LOGITS for method in methods_in(name))


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


def _with_labels(weight: float = 1.0, **others: tuple[Term, Weight]) -> Weighted:
    return {"hard": (terms.cross_entropy(), weight), **others}


def _warm_up(setup: Setup, weight: float) -> Weight:
    """Return a weight that grows over the first twelfth of the training, 20 of 240 epochs."""
    return optax.linear_schedule(0.0, weight, setup.share(1 / 12))


def _paired(student: tuple[str, ...], teacher: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the last features of both, as many as the one with fewer has."""
    count = min(len(student), len(teacher))
    return list(student[-count:]), list(teacher[-count:])


def _stages(setup: Setup) -> tuple[list[str], list[str]]:
    return _paired(setup.student.stages, setup.teacher.stages)


def _last(setup: Setup) -> tuple[str, str]:
    return setup.student.stages[-1], setup.teacher.stages[-1]


def _embeddings(setup: Setup) -> tuple[str, str]:
    return setup.student.embedding, setup.teacher.embedding


def _margins(setup: Setup, count: int) -> list[Array]:
    """Return the margins of the teacher's last features from the BatchNorm right before each."""
    paths = [path.split("/") for path in setup.teacher.norms[-count:]]
    norms = [functools.reduce(operator.getitem, path, setup.teacher_params) for path in paths]
    return [losses.batch_norm_margin(norm["scale"], norm["bias"]) for norm in norms]


# Logits


def scratch(setup: Setup) -> Weighted:
    """Labels alone."""
    return _with_labels()


def kd(setup: Setup) -> Weighted:
    """Soft targets, T and their weight as the flags say (Hinton et al., 2015)."""
    soft = terms.soft_targets(temperature=setup.temperature)
    return _with_labels(1 - setup.soft_weight, soft=(soft, setup.soft_weight))


def logit_std(setup: Setup) -> Weighted:
    """Soft targets of z-scores of the logits, T = 2 (Sun et al., 2024)."""
    soft = terms.standardized(terms.soft_targets(temperature=2.0))
    return _with_labels(0.1, logit_std=(soft, 9.0))


def dkd(setup: Setup) -> Weighted:
    """The labelled class and the others apart (Zhao et al., 2022); warm-up over a twelfth."""
    return _with_labels(dkd=(terms.dkd(), _warm_up(setup, 1.0)))


def nkd(setup: Setup) -> Weighted:
    """The labelled class and the others, normalised (Yang et al., 2023)."""
    return _with_labels(nkd=(terms.nkd(temperature=3.0, nontarget_weight=3.5), 1.0))


def wsld(setup: Setup) -> Weighted:
    """Soft targets weighed by what they have on the labels (Zhou et al., 2021)."""
    return _with_labels(wsld=(terms.wsld(temperature=4.0), 2.25))


def dist(setup: Setup) -> Weighted:
    """Correlations between and within classes, T = 4 (Huang et al., 2022)."""
    return _with_labels(dist=(terms.dist(temperature=4.0, inter_weight=2.0, intra_weight=2.0), 1.0))


def ttm(setup: Setup) -> Weighted:
    """Only the teacher is softened (Zheng & Yang, 2024)."""
    return _with_labels(ttm=(terms.ttm(), 45.0))


def wttm(setup: Setup) -> Weighted:
    """The same, weighed by the teacher's doubt (Zheng & Yang, 2024)."""
    return _with_labels(wttm=(terms.wttm(), 4.0))


def mlkd(setup: Setup) -> Weighted:
    """Instances, batch and classes at five temperatures (Jin et al., 2023)."""
    return _with_labels(0.1, mlkd=(terms.multi_level(), 0.9))


def ctkd(setup: Setup) -> Weighted:
    """A temperature that learns to be difficult (Li et al., 2022), over a twenty-fourth."""
    soft = terms.curriculum_temperature(setup.share(1 / 24))
    return _with_labels(0.1, ctkd=(soft, 0.9))


def logit_mse(setup: Setup) -> Weighted:
    """Squared differences of the logits (Ba & Caruana, 2013); the weight is ours."""
    return _with_labels(logit_mse=(terms.logit_mse(), 1.0))


def skd(setup: Setup) -> Weighted:
    """Soft targets, and cosines between examples' logits (Jeong et al., 2026)."""
    num_classes = classifier_of("skd", setup.teacher, setup.teacher_params)["kernel"].shape[-1]
    # The authors divide the cosines by the classes.
    directions = terms.direction_relation(regularization=0.1 * num_classes**2)
    soft = terms.soft_targets(temperature=4.0)
    return _with_labels(skd_soft=(soft, 0.5), skd_directions=(directions, 0.5))


def tfkd(setup: Setup) -> Weighted:
    """A teacher made by hand, T = 20 (Yuan et al., 2019): no teacher."""
    return _with_labels(0.9, tfkd=(terms.virtual_teacher(), 0.1))


def uskd(setup: Setup) -> Weighted:
    """Soft labels from the student itself (Yang et al., 2023): no teacher."""
    early = setup.student.stages[-2 if len(setup.student.stages) > 1 else -1]
    term = terms.uskd(early, target_weight=0.1, nontarget_weight=0.1, weak_weight=0.1)
    return _with_labels(uskd=(term, 1.0))


# Divergences, in the forms that language models use; the weights are ours.


def reverse_kl(setup: Setup) -> Weighted:
    """KL of the student from the teacher (Gu et al., 2023)."""
    return _with_labels(reverse_kl=(terms.reverse_kl(), 1.0))


def js(setup: Setup) -> Weighted:
    """Generalised Jensen-Shannon, beta = 0.5 (Agarwal et al., 2023)."""
    return _with_labels(js=(terms.generalized_js(), 1.0))


def skew_kl(setup: Setup) -> Weighted:
    """KL from a mixture, skew 0.1 (Ko et al., 2024)."""
    return _with_labels(skew_kl=(terms.skew_kl(), 1.0))


def skew_reverse_kl(setup: Setup) -> Weighted:
    """Reverse KL from a mixture, skew 0.1 (Ko et al., 2024)."""
    return _with_labels(skew_reverse_kl=(terms.skew_reverse_kl(), 1.0))


def total_variation(setup: Setup) -> Weighted:
    """Half the L1 distance of probabilities (Wen et al., 2023)."""
    return _with_labels(total_variation=(terms.total_variation(), 1.0))


def akl(setup: Setup) -> Weighted:
    """Forward and reverse KL by how head and tail differ (Wu et al., 2024)."""
    return _with_labels(akl=(terms.adaptive_kl(), 1.0))


def taid(setup: Setup) -> Weighted:
    """A target that moves from the student to the teacher (Shing et al., 2025)."""
    return _with_labels(taid=(terms.taid(num_steps=setup.num_steps), 1.0))


# Features


def hint(setup: Setup) -> Weighted:
    """The middle feature through a learned map (Romero et al., 2014)."""
    student, teacher = _stages(setup)
    middle = (len(student) - 1) // 2
    # Maps are behind a ReLU, the hidden units of other networks are not always.
    term = terms.hint(student[middle], teacher[middle], norm=setup.teacher.spatial)
    return _with_labels(hint=(term, 100.0))


def at(setup: Setup) -> Weighted:
    """Attention maps of all stages (Zagoruyko & Komodakis, 2016)."""
    return _with_labels(at=(terms.attention(*_stages(setup)), 1000.0))


def nst(setup: Setup) -> Weighted:
    """Neuron selectivity of all stages (Huang & Wang, 2017)."""
    return _with_labels(nst=(terms.neuron_selectivity(*_stages(setup)), 50.0))


def fsp(setup: Setup) -> Weighted:
    """The flow from stage to stage (Yim et al., 2017), with the labels; the weight is ours."""
    return _with_labels(fsp=(terms.flow(*_stages(setup)), 10.0))


def ft(setup: Setup) -> Weighted:
    """Factors of the last map (Kim et al., 2018); the paraphraser learns meanwhile."""
    # The paraphraser learns at a fifth of the rate, as in the tables.
    term = terms.factor_transfer(*_last(setup), reconstruction_weight=0.2 / 500)
    return _with_labels(ft=(term, 500.0))


def ab(setup: Setup) -> Weighted:
    """Activation boundaries (Heo et al., 2018), with the labels and not before them."""
    pairs = _paired(setup.student.preactivations, setup.teacher.preactivations)
    return _with_labels(ab=(terms.activation_boundary(*pairs), 3e-3))


def ofd(setup: Setup) -> Weighted:
    """What the teacher's ReLU lets through (Heo et al., 2019)."""
    student, teacher = _paired(setup.student.preactivations, setup.teacher.preactivations)
    term = terms.overhaul(student, teacher, margins=_margins(setup, len(teacher)))
    return _with_labels(ofd=(term, 1e-3))


def vid(setup: Setup) -> Weighted:
    """Information about the teacher's stages (Ahn et al., 2019)."""
    return _with_labels(vid=(terms.vid(*_stages(setup)), 1.0))


def review(setup: Setup) -> Weighted:
    """Stages fused with all behind them (Chen et al., 2021); warm-up over a twelfth."""
    stages = _paired(setup.student.preactivations, setup.teacher.preactivations)
    embeddings = _embeddings(setup)
    paths = ([*own, last] for own, last in zip(stages, embeddings, strict=True))
    return _with_labels(review=(terms.review(*paths), _warm_up(setup, 0.6)))


def cat(setup: Setup) -> Weighted:
    """Class activation maps (Guo et al., 2023); the weight is ours."""
    return _with_labels(cat=(terms.class_attention(), 50.0))


def cwd(setup: Setup) -> Weighted:
    """Where each channel looks, last map (Shu et al., 2020); same widths; the weight is ours."""
    return _with_labels(cwd=(terms.channel_wise(*_last(setup)), 10.0))


def mgd(setup: Setup) -> Weighted:
    """The last map from what a mask leaves of it (Yang et al., 2022)."""
    return _with_labels(mgd=(terms.masked_generation(*_last(setup), mask_ratio=0.15), 1.2e-3))


def simkd(setup: Setup) -> Weighted:
    """The teacher's classifier on a map that learns to be the teacher's (Chen et al., 2022)."""
    return _with_labels(0.0, simkd=(terms.simkd(setup.teacher.last_map), 1.0))


def semckd(setup: Setup) -> Weighted:
    """Soft targets, and all stages from all, by learned attention (Chen et al., 2020)."""
    stages = terms.semantic_calibration(*_stages(setup))
    soft = terms.soft_targets(temperature=4.0)
    return _with_labels(semckd_soft=(soft, 1.0), semckd=(stages, 400.0))


def ickd(setup: Setup) -> Weighted:
    """How channels relate, last map (Liu et al., 2021)."""
    return _with_labels(ickd=(terms.inter_channel_correlation(*_last(setup)), 2.5))


def pad(setup: Setup) -> Weighted:
    """The embedding with a learned uncertainty (Zhang et al., 2020); the weight is ours."""
    return _with_labels(pad=(terms.prime_aware(*_embeddings(setup)), _warm_up(setup, 1.0)))


def srrl(setup: Setup) -> Weighted:
    """Features that the teacher's classifier can read (Yang et al., 2021)."""
    classifier = classifier_of("srrl", setup.teacher, setup.teacher_params)
    term = terms.softmax_regression(*_embeddings(setup), classifier=classifier)
    return _with_labels(srrl=(term, 1.0))


# Relations and contrast


def rkd(setup: Setup) -> Weighted:
    """Distances and angles of embeddings (Park et al., 2019)."""
    return _with_labels(
        rkd_distance=(terms.distance_relation(*_embeddings(setup)), 25.0),
        rkd_angle=(terms.angle_relation(*_embeddings(setup)), 50.0),
    )


def sp(setup: Setup) -> Weighted:
    """Similarity of the last maps (Tung & Mori, 2019)."""
    return _with_labels(sp=(terms.similarity_preserving(*_last(setup)), 3000.0))


def cc(setup: Setup) -> Weighted:
    """Correlation congruence of embeddings (Peng et al., 2019); the weight is ours."""
    return _with_labels(cc=(terms.correlation_congruence(*_embeddings(setup)), 100.0))


def cc_neighbours(setup: Setup) -> Weighted:
    """Products of the errors of neighbours in the batch: the tables' CC (Peng et al., 2019)."""
    term = terms.consecutive_correlation(*_embeddings(setup))
    return _with_labels(cc_neighbours=(term, 0.02))


def pkt(setup: Setup) -> Weighted:
    """Probabilities of neighbours (Passalis & Tefas, 2018)."""
    return _with_labels(pkt=(terms.probabilistic_transfer(*_embeddings(setup)), 30000.0))


def darkrank(setup: Setup) -> Weighted:
    """The order of neighbours (Chen et al., 2018); the weight is ours."""
    return _with_labels(darkrank=(terms.hard_dark_rank(*_embeddings(setup), normalize=True), 1.0))


def itrd(setup: Setup) -> Weighted:
    """Correlation and mutual information (Miles et al., 2021)."""
    return _with_labels(itrd=(terms.itrd(*_embeddings(setup)), 1.0))


def crd(setup: Setup) -> Weighted:
    """Contrast with a memory bank, 16,384 negatives (Tian et al., 2019)."""
    negatives = min(16_384, setup.num_examples)
    term = terms.crd(*_embeddings(setup), num_examples=setup.num_examples, num_negatives=negatives)
    return _with_labels(crd=(term, 0.8))


def _named(*methods: Callable[[Setup], Weighted]) -> dict[str, Callable[[Setup], Weighted]]:
    return {method.__name__.replace("_", "-"): method for method in methods}


LOGITS = _named(
    scratch, kd, logit_std, dkd, nkd, wsld, dist, ttm, wttm, mlkd, ctkd, logit_mse, skd, tfkd,
    reverse_kl, js, skew_kl, skew_reverse_kl, total_variation, akl, taid,
)  # fmt: skip
FEATURES = _named(
    uskd, hint, ab, vid, pad, srrl, rkd, sp, cc, cc_neighbours, pkt, darkrank, itrd, crd,
)  # fmt: skip
SPATIAL = _named(at, nst, fsp, ft, ofd, review, cat, cwd, mgd, simkd, semckd, ickd)
METHODS: Mapping[str, Callable[[Setup], Weighted]] = {**LOGITS, **FEATURES, **SPATIAL}
"""What `--method` knows: methods of logits, of features of any shape, and of feature maps."""

BY_DESIGN: Mapping[str, tuple[str, ...]] = {
    "darkrank": ("zero at equality",),  # the likelihood of an order, not a distance
    "logit_mse": ("shift invariance",),  # raw logits, like their cosines in skd
    "skd_directions": ("shift invariance",),
    "ttm": ("zero at equality",),  # the teacher is softened, the student is not
    "wttm": ("zero at equality",),
}
"""What terms break on purpose, of the checks that `--audit` makes."""


def check(name, student, teacher):
    from kdjax.runs import fitting

    fitting.check_fit(name, student, teacher)


def fits(name, student, teacher):
    from kdjax.runs import fitting

    return fitting.fits(name, student, teacher)
