"""Losses and terms that are right, and ones that are each wrong in one way, for the harness."""

import jax
import jax.numpy as jnp

from kdjax import losses, terms
from kdjax.types import Term, Variables

kd = losses.kd_loss


def same_shape(*arrays):
    """Widen arrays, which must not be broadcast."""
    if len({x.shape for x in arrays}) > 1:
        raise ValueError("other shapes")
    return [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in arrays]


def soft(student_logits, teacher_logits, *, temperature=4.0):
    """The textbook's sum: good enough for the laws, and quicker to compile than the exact one."""
    x, v = same_shape(student_logits, jax.lax.stop_gradient(teacher_logits))
    both = ~(jnp.isneginf(x) | jnp.isneginf(v))
    p = jax.nn.softmax(v / temperature)
    log_q, log_p = (jax.nn.log_softmax(y / temperature) for y in (x, v))
    gap = jnp.where(both, log_p, 0) - jnp.where(both, log_q, 0)
    return temperature**2 * jnp.sum(p * gap, -1)


def relation_loss(student_features, teacher_features, *, mask=None):
    """Mean squared difference of inner products with the other examples that count."""
    if student_features.shape[0] != teacher_features.shape[0]:
        raise ValueError("other batches")
    size = student_features.shape[0]
    mask = jnp.ones(size, bool) if mask is None else mask
    wide = jnp.promote_types(student_features.dtype, jnp.float32)
    s, t = (
        jnp.where(mask[:, None], x.reshape(size, -1).astype(wide), 0)
        for x in (student_features, jax.lax.stop_gradient(teacher_features))
    )
    squares = jnp.square(s @ s.T - t @ t.T).sum(1)
    return jnp.where(mask, squares, 0) / jnp.maximum(mask.sum(), 1)


def two_stage_loss(student_maps, teacher_maps, scale):
    """Compare several maps at once, with a parameter that has no batch axis."""
    parts = [losses.hint_loss(s * jnp.broadcast_to(scale, s.shape), t)
             for s, t in zip(student_maps, teacher_maps, strict=True)]  # fmt: skip
    return sum(parts)


def noisy_label_loss(student_logits, teacher_logits, label_probs):
    return kd(student_logits, teacher_logits, label_probs)


def no_t_squared(student_logits, teacher_logits, *, temperature=4.0):
    return soft(student_logits, teacher_logits, temperature=temperature) / temperature**2


def no_t_squared_beside_labels(student_logits, teacher_logits, labels, *, temperature=4.0):
    weaker = no_t_squared(student_logits, teacher_logits, temperature=temperature)
    return weaker + losses.cross_entropy(student_logits, labels)


def static_temperature(student_logits, teacher_logits, *, temperature=4.0):
    return no_t_squared(student_logits, teacher_logits, temperature=float(temperature))


def leaking_loss(student_logits, teacher_logits):
    names = (losses.tempered_log_softmax(x, 1.0) for x in (student_logits, teacher_logits))
    return losses.kl_divergence(*names)


def nan_at_zero_mass(student_logits, teacher_logits):
    s, t = map(jax.nn.log_softmax, same_shape(student_logits, teacher_logits))
    return jnp.maximum((jnp.exp(t) * (t - s)).sum(-1), 0)


def low_precision(student_logits, teacher_logits):
    same_shape(student_logits, teacher_logits)
    squares = jnp.square(jax.nn.softmax(student_logits) - jax.nn.softmax(teacher_logits))
    return squares.sum(-1).astype(jnp.promote_types(squares.dtype, jnp.float32))


def blind(student_logits, teacher_logits, *, temperature=4.0):
    student, _ = same_shape(student_logits, teacher_logits)
    return soft(student, student, temperature=temperature)


def broadcasting(student_features, teacher_features):
    return losses.hint_loss(*jnp.broadcast_arrays(student_features, teacher_features))


def squared_logits(student_logits, teacher_logits):
    student, teacher = same_shape(student_logits, teacher_logits)
    return jnp.square(student - teacher).sum(-1)


@jax.custom_jvp
def doubled(x):
    return x


doubled.defjvp(lambda primals, tangents: (primals[0], 2 * tangents[0]))


def wrong_gradient(student_logits, teacher_logits):
    return soft(doubled(student_logits), teacher_logits)


def negative(student_logits, teacher_logits):
    return -soft(student_logits, teacher_logits)


def offset(student_logits, teacher_logits):
    return soft(student_logits, teacher_logits) + 0.5


def off_target(student_logits, teacher_logits):
    return soft(student_logits, 2 * teacher_logits)


def first_class_counts_twice(student_logits, teacher_logits):
    s, t = map(jax.nn.softmax, same_shape(student_logits, jax.lax.stop_gradient(teacher_logits)))
    return soft(student_logits, teacher_logits) + jnp.square(s[..., 0] - t[..., 0])


def axis_ignored(student_logits, teacher_logits, *, axis=-1):
    return soft(student_logits, teacher_logits)


def where_ignored(student_logits, teacher_logits, *, where=None):
    return soft(student_logits, teacher_logits)


def secretly_coupled(student_features, teacher_features):
    values = losses.hint_loss(student_features, teacher_features)
    return values * values.mean()


def mask_ignored(student_features, teacher_features, *, mask=None):
    return relation_loss(student_features, teacher_features)


def padding_pairs(student_features, teacher_features, *, mask=None):
    values = relation_loss(student_features, teacher_features)
    return values if mask is None else jnp.where(mask, values, 0)


def nan_for_one(student_features, teacher_features, *, mask=None):
    values = relation_loss(student_features, teacher_features, mask=mask)
    return values * ((len(values) - 1) / jnp.asarray(len(values) - 1, values.dtype))


def overflowing(student_logits, teacher_logits):
    log_total = jnp.log(jnp.exp(*same_shape(student_logits)).sum(-1))
    return soft(student_logits, teacher_logits) + 0 * log_total


def norm_at_zero_loss(student_features, teacher_features):
    total = losses.hint_loss(student_features, teacher_features)
    return jnp.sqrt(total)


def single_only(student_logits, teacher_logits):
    return soft(student_logits.astype(jnp.float32), teacher_logits.astype(jnp.float32))


def averaged(student_logits, teacher_logits):
    return soft(student_logits, teacher_logits).mean()


def eager_only(student_logits, teacher_logits):
    return soft(student_logits, teacher_logits) * (2 if float(student_logits.sum()) > 0 else 1)


def other_when_compiled(student_logits, teacher_logits):
    traced = isinstance(student_logits, jax.core.Tracer)
    return soft(student_logits, teacher_logits) * (2 if traced else 1)


def relation_term(x):
    return relation_loss(x.student.features["hidden"], x.teacher.features["hidden"], mask=x.mask)


def squares_to_zero(student, teacher):
    return jnp.square(same_shape(student)[0]).sum(-1)


def running_mean(update, fn=squares_to_zero):
    """A term that remembers something of the teacher's examples."""

    def init(key, x):
        return Variables({}, jnp.zeros(x.teacher.logits.shape[1:], jnp.float32))

    def apply(params, state, x):
        return fn(x.student.logits, x.teacher.logits), update(state, x)

    return Term(init, apply)


def masked_mean(state, x):
    teacher = jax.lax.stop_gradient(x.teacher.logits.astype(jnp.float32))
    total = jnp.where(x.mask[:, None], teacher, 0).sum(0)
    return 0.9 * state + 0.1 * total / jnp.maximum(x.mask.sum(), 1)


def unmasked_sum(state, x):
    return state + x.teacher.logits.astype(jnp.float32).sum(0)


def shrunk(params, x):
    return losses.hint_loss(params * x, 0 * x)


def learned(init=lambda key: jnp.ones(()), fn=shrunk):
    """A term with a parameter for the student's hidden layer."""

    def apply(params, state, x):
        return fn(params, x.student.features["hidden"].astype(jnp.float32)), state

    return Term(lambda key, x: Variables(init(key), {}), apply)


def on_logits(fn, **options):
    return terms.stateless(lambda x: fn(x.student.logits, x.teacher.logits), **options)
