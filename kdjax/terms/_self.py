"""Terms in which the student teaches itself."""

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.terms._layers import init_linear, linear
from kdjax.terms._reading import feature_of
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


def uskd(
    student_feature: str,
    *,
    target_weight: float = 1.0,
    nontarget_weight: float = 0.1,
    weak_weight: float = 0.005,
    smoothing: float = 0.1,
) -> Term:
    """Self-distillation with soft labels made to measure (USKD); it needs no teacher.

    A weak classifier, a linear layer on a feature early in the student, learns the smoothed labels
    and helps to rank the classes. See `kdjax.losses.self_target_loss` and
    `kdjax.losses.self_rank_loss`; the authors' code adds the labels' cross-entropy to them. Its
    weights are the defaults here for ImageNet, and 0.1 all three for CIFAR-100.

    Args:
        student_feature: module path of a student feature, [batch, ..., width], averaged over the
            axes between.
        target_weight: of the labeled class.
        nontarget_weight: of the ranks of the others.
        weak_weight: of the weak classifier's own loss.
        smoothing: how much of the weak classifier's labels is spread over all classes.

    Returns:
        A term with parameters `kernel` [width, num_classes] and `bias` [num_classes].

    Raises:
        ValueError: at trace time, if the network captured no feature of that name.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.uskd("hidden"), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge
        Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", 2023,
        arXiv:2303.13005.
    """

    def feature(inputs: TermInputs) -> Array:
        x = feature_of("uskd", "student", inputs.student, student_feature)
        return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=jnp.float32)

    def init(key: Array, inputs: TermInputs) -> Variables:
        width, num_classes = feature(inputs).shape[-1], inputs.student.logits.shape[-1]
        return Variables(init_linear(key, width, num_classes), {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        logits, labels = inputs.student.logits, inputs.batch["label"]
        weak = linear(params, feature(inputs))
        spread = jax.nn.one_hot(labels, weak.shape[-1]) * (1 - smoothing)
        smoothed = spread + smoothing / weak.shape[-1]
        values = target_weight * losses.self_target_loss(logits, labels, mask=inputs.mask)
        values += nontarget_weight * losses.self_rank_loss(logits, weak, labels)
        return values + weak_weight * losses.cross_entropy(weak, smoothed), state

    return Term(init, apply, couples_batch=True)
