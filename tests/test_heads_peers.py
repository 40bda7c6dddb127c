"""Chunked divergences of peers, by their own code where it is installed: numbers and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.heads import Head, chunked_mean

TOKENS, VOCAB, WIDTHS = 22, 2_049, (12, 20)
pytestmark = pytest.mark.slow


def drawn():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(n, w)) for w in WIDTHS for n in (TOKENS, VOCAB)]
    labels = np.where(rng.random(TOKENS) < 0.3, -100, rng.integers(0, VOCAB, TOKENS))
    return [x.astype(np.float32) for x in arrays], rng.normal(size=VOCAB).astype(np.float32), labels


def ours(loss_fn, soft_cap=None):
    """Return values and the mean's gradients for hidden states, kernel and bias."""
    (hidden, kernel, teacher, teacher_kernel), bias, labels = drawn()

    def mean(hidden, kernel, bias):
        head, source = (Head(k, b, soft_cap) for k, b in ((kernel, bias), (teacher_kernel, None)))
        return chunked_mean(
            *(loss_fn, hidden, head, teacher, source),
            labels=jnp.asarray(labels), ignore_label=-100, chunk_size=8,
        )  # fmt: skip

    (value, values), by = jax.jit(jax.value_and_grad(mean, (0, 1, 2), has_aux=True))(
        hidden, kernel, bias
    )
    return value, values, by


def torch_drawn(torch):
    """Return the same as tensors, what is trained with room for a gradient."""
    arrays, bias, labels = drawn()
    hidden, kernel, teacher, teacher_kernel, bias = (
        torch.tensor(x, requires_grad=i in (0, 1, 4)) for i, x in enumerate([*arrays, bias])
    )
    return (hidden, kernel, bias), (teacher, teacher_kernel), torch.tensor(labels)


def assert_alike(found, expected):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=5e-6 * float(np.max(np.abs(y))))


def jsd(beta, temperature):
    def loss(student, teacher, labels):
        both = (losses.tempered_log_softmax(x, temperature) for x in (student, teacher))
        return losses.generalized_js_divergence(*both, beta=beta)

    return loss


@pytest.mark.parametrize(("beta", "soft_cap"), [(0.0, None), (0.3, 4.0), (0.7, None), (1.0, 4.0)])
def test_trl(beta, soft_cap):
    reason = "TRL is not installed: pip install trl"
    torch = pytest.importorskip("torch", reason=reason)
    module = "trl.kernels.chunked_divergence"
    peer = pytest.importorskip(module, reason=reason, exc_type=ImportError)
    (hidden, kernel, bias), (teacher, teacher_kernel), labels = torch_drawn(torch)
    values, _ = peer.ChunkedDivergenceFunction.apply(
        *(hidden, kernel, bias, teacher, teacher_kernel, None, beta, 1.5),
        *(1.0, soft_cap, 1.0, soft_cap),
    )
    counts = labels != -100
    (values * counts).sum().div(counts.sum()).backward()
    _, found, by = ours(jsd(beta, 1.5), soft_cap)
    theirs = [(values * counts).detach().numpy(), *(x.grad.numpy() for x in (hidden, kernel, bias))]
    assert_alike([found, *by], theirs)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_liger(beta):
    reason = "Liger Kernel is not installed: pip install liger-kernel"
    torch = pytest.importorskip("torch", reason=reason)
    peer = pytest.importorskip("liger_kernel.chunked_loss", reason=reason, exc_type=ImportError)
    (hidden, kernel, bias), (teacher, teacher_kernel), labels = torch_drawn(torch)
    theirs = peer.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.3, weight_soft_loss=0.7, beta=beta, temperature=1.0,
        chunk_size=8, compiled=False,
    )(hidden, kernel, teacher, teacher_kernel, labels, bias)  # fmt: skip
    theirs.backward()

    def loss(student, teacher, labels):
        soft = jsd(beta, 1.0)(student, teacher, labels)
        return 0.7 * soft + 0.3 * losses.cross_entropy(student, labels, ignore_label=-100)

    value, _, by = ours(loss)
    expected = [theirs.detach().numpy(), *(x.grad.numpy() for x in (hidden, kernel, bias))]
    assert_alike([value, *by], expected)
