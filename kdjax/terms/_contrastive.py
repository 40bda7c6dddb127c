"""A term that remembers: each example against a bank of embeddings of all others."""

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.losses import _inputs
from kdjax.losses._numerics import norms
from kdjax.metrics import examples_of
from kdjax.terms._layers import init_linear, linear
from kdjax.terms._reading import rows_of
from kdjax.types import Array, Batch, PyTree, Term, TermInputs, Variables

_OTHER = {"student": "teacher", "teacher": "student"}


def crd(
    student_feature: str,
    teacher_feature: str,
    *,
    num_examples: int,
    num_negatives: int,
    width: int = 128,
    temperature: float = 0.07,
    momentum: float = 0.5,
) -> Term:
    """Bring student and teacher together on each example and apart on others: CRD.

    Both networks' features go through learned linear maps to unit vectors. Each is told from
    `num_negatives` random ones in the other network's bank, which remembers one for each training
    example; the examples of the batch are renewed there once the step has used them. See
    `kdjax.losses.contrastive_representation_loss`; the value is the sum of both sides.

    The batch needs `index`, an example's place in the training set; one that is out of range has
    the value nan. The negatives are at `contrast_index` [batch, num_negatives] where the batch
    has it (drawn from other classes only, say). Otherwise they are random and the same for the
    whole batch, a function of the state's key and the number of batches seen. Examples that the
    mask leaves out have the value 0 and renew nothing; of one that is there twice the last renews.

    Micro-batches are batches here: each draws its own negatives and renews the banks for the
    next, and the first estimates the normalisers, which then stay.

    Args:
        student_feature: module path of a student feature, [batch, ...], flattened.
        teacher_feature: module path of a teacher feature, likewise.
        num_examples: the size of the training set, and of the banks.
        num_negatives: how many each example is told from; the paper has 16384.
        width: of the embeddings.
        temperature: what inner products are divided by.
        momentum: how much of a remembered vector stays when it is renewed.

    Returns:
        A term with parameters `student` and `teacher`, each a `kernel` [feature_width, width] and
        a `bias` [width]; its state has `banks` [num_examples, width] and `log_normalizers` of
        both, `num_batches` and `key`.

    Raises:
        ValueError: if a number is out of range; at trace time, if a network captured no feature
            of that name, or an index is missing or has another shape.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = (
        ...     terms.crd("hidden", "hidden", num_examples=64, num_negatives=16),
        ...     term_inputs(),
        ... )
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2019, arXiv:1910.10699.

    Differs from its authors' code: without `contrast_index` a batch shares its negatives, so that
    their rows are read once and not again for each example.
    """
    _check_settings(num_examples, num_negatives, width, temperature)

    def features(inputs: TermInputs) -> dict[str, Array]:
        pair = rows_of("crd", inputs, student_feature, teacher_feature)
        return dict(zip(_OTHER, pair, strict=True))

    def init(key: Array, inputs: TermInputs) -> Variables:
        params, banks = {}, {}
        for i, (name, x) in enumerate(features(inputs).items()):
            kernel_key, bank_key = jax.random.split(jax.random.fold_in(key, i))
            params[name] = init_linear(kernel_key, x.shape[-1], width)
            banks[name] = _init_bank(bank_key, num_examples, width)
        zeros = dict.fromkeys(banks, jnp.zeros((), jnp.float32))
        counter = {"num_batches": jnp.zeros((), jnp.int32), "key": jax.random.fold_in(key, 2)}
        return Variables(params, {"banks": banks, "log_normalizers": zeros, **counter})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        mask = examples_of(inputs.mask)
        index = _index_of(inputs.batch, mask, num_examples)
        negatives = _negatives_of(inputs.batch, state, len(index), num_examples, num_negatives)
        banks, values = state["banks"], jnp.zeros((), jnp.float32)
        new_banks, log_normalizers = {}, {}
        for name, x in features(inputs).items():
            embedded = norms.normalize(linear(params[name], x))
            scores = _scores(banks[_OTHER[name]], embedded, index, negatives, temperature)
            estimate = losses.contrastive_log_normalizer(
                *scores, num_examples=num_examples, mask=mask & (index < num_examples)
            )
            known = state["log_normalizers"][name]
            log_normalizers[name] = jnp.where(state["num_batches"] > 0, known, estimate)
            values += losses.contrastive_representation_loss(
                *scores, log_normalizer=log_normalizers[name], num_examples=num_examples
            )
            new_banks[name] = _renew(banks[name], index, mask, embedded, momentum)
        num_batches = state["num_batches"] + jnp.any(mask)
        new_state = {**state, "banks": new_banks, "log_normalizers": log_normalizers}
        return jnp.where(mask, values, 0), {**new_state, "num_batches": num_batches}

    return Term(init, apply)


def _check_settings(num_examples: int, num_negatives: int, width: int, temperature: float) -> None:
    counts = {"num_examples": num_examples, "num_negatives": num_negatives, "width": width}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"crd: {name} is {count}, expected 1 or more")
    if temperature <= 0:
        raise ValueError(f"crd: temperature is {temperature}, expected it to be positive")


def _init_bank(key: Array, num_examples: int, width: int) -> Array:
    """Draw rows of length about 1."""
    bound = (3 / width) ** 0.5
    return jax.random.uniform(key, (num_examples, width), jnp.float32, -bound, bound)


def _index_of(batch: Batch, mask: Array, num_examples: int) -> Array:
    """Return where in the training set the examples are; out of range is behind its end."""
    if "index" not in batch:
        raise ValueError(f"crd: the batch has no 'index', only {sorted(batch)}")
    index = _inputs.as_integers("crd", "index", batch["index"])
    if index.shape != mask.shape or index.ndim != 1:
        raise ValueError(f"crd: index has shape {index.shape}, expected [batch], mask {mask.shape}")
    index = jnp.where(mask, index, 0)
    return jnp.where(index < 0, num_examples, index)


def _negatives_of(
    batch: Batch, state: PyTree, batch_size: int, num_examples: int, num_negatives: int
) -> Array:
    """Return indices of negatives, [num_negatives] for all or [batch, num_negatives] as given."""
    if "contrast_index" not in batch:
        key = jax.random.fold_in(state["key"], state["num_batches"])
        return jax.random.randint(key, (num_negatives,), 0, num_examples)
    index = _inputs.as_integers("crd", "contrast_index", batch["contrast_index"])
    if index.shape != (batch_size, num_negatives):
        raise ValueError(
            f"crd: contrast_index has shape {index.shape}, expected "
            f"{(batch_size, num_negatives)}: the negatives of each example, without itself"
        )
    return jnp.where(index < 0, num_examples, index)


def _scores(
    bank: Array, embedded: Array, index: Array, negatives: Array, temperature: float
) -> tuple[Array, Array]:
    """Return inner products with an example's own row and with negative rows, [batch, ...]."""
    own = jnp.sum(embedded * jnp.take(bank, index, axis=0), axis=-1)
    if negatives.ndim == 1:
        rows = jnp.take(bank, negatives, axis=0)
        others = jnp.einsum("bw,kw->bk", embedded, rows, precision="highest")
    elif negatives.shape[1] * bank.shape[1] < bank.shape[0]:
        rows = jnp.take(bank, negatives, axis=0)
        others = jnp.einsum("bw,bkw->bk", embedded, rows, precision="highest")
    else:  # Products with the whole bank are fewer numbers than rows for each example.
        products = jnp.einsum("bw,nw->bn", embedded, bank, precision="highest")
        others = jnp.take_along_axis(products, negatives, axis=1)
    return own / temperature, others / temperature


def _renew(bank: Array, index: Array, mask: Array, embedded: Array, momentum: float) -> Array:
    """Move the rows of the examples that count; of one that is there twice the last moves it."""
    later = jnp.triu(index[:, None] == index[None, :], k=1) & mask[None, :]
    writes = mask & ~jnp.any(later, axis=1)
    rows = losses.remembered_embeddings(jnp.take(bank, index, axis=0), embedded, momentum=momentum)
    target = jnp.where(writes, index, len(bank))
    return bank.at[target].set(rows.astype(bank.dtype), mode="drop")
