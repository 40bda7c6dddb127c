"""Networks and their classifiers: maps of the classes, and a teacher's classifier reused."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.losses._numerics import pooling
from kdjax.models._layers import layer_fn
from kdjax.models._linen import from_linen
from kdjax.types import Array, Model, Outputs, PyTree, Variables

Classifier = Mapping[str, Any]
"""A last layer: `kernel` [width, num_classes] and, if it has one, `bias` [num_classes]."""


def with_class_maps(
    model: Model, *, feature: str | None = None, head: Sequence[str] | None = None
) -> Model:
    """Add class activation maps to a network's features: the logits of each position alone.

    The maps are feature @ kernel + bias, with the classifier's own arrays: their mean over all
    positions is the network's logits, and gradients reach both.

    Args:
        model: a network whose logits are a linear map of the mean of a feature map.
        feature: that map among the features that the network captures,
            [batch, height, width, width_of_head]; by default `model.paths.last_map`.
        head: where the classifier is in the network's parameters, as a path; by default
            `model.paths.head`, or "head" where the network says none.

    Returns:
        A model with the same variables whose features have `class_maps`,
        [batch, height, width, num_classes], as well.

    Raises:
        ValueError: from apply, if there is no such feature or classifier.

    Example:
        >>> from kdjax import models
        >>> models.with_class_maps(models.resnet(8, 10)).paths.last_map
        'stage_3'

    References:
        Zhou, Khosla, Lapedriza, Oliva, Torralba, "Learning Deep Features for Discriminative
        Localization", 2015, arXiv:1512.04150.
    """
    name = model.paths.last_map if feature is None else feature
    path = (model.paths.head or "head",) if head is None else head

    def apply(params: PyTree, state: PyTree, inputs: Any, **mode: Any) -> tuple[Outputs, PyTree]:
        outputs, new_state = model.apply(params, state, inputs, **mode)
        x = _feature("with_class_maps", outputs, name)
        maps = _classify(_classifier("with_class_maps", params, path), x)
        return outputs._replace(features={**outputs.features, "class_maps": maps}), new_state

    return model._replace(apply=apply)


def probed(model: Model, num_classes: int) -> Model:
    """Put a linear layer over a network's logits, which gives it other classes.

    Args:
        model: a network with logits [batch, classes of its own].
        num_classes: of the layer.

    Returns:
        A model with `network` and `probe` (`kernel`, `bias`) in its parameters, the probe zero at
        first; its features are the network's.

    Example:
        >>> from kdjax import models
        >>> models.probed(models.resnet(8, 1000), 10).paths.head
        ''

    References:
        Alain, Bengio, "Understanding intermediate layers using linear classifier probes", 2016,
        arXiv:1610.01644.
    """

    def init(key: Array, inputs: Any) -> Variables:
        own = model.init(key, inputs)
        outputs, _ = model.apply(*own, inputs, train=False)
        kernel = jnp.zeros((outputs.logits.shape[-1], num_classes))
        probe = {"kernel": kernel, "bias": jnp.zeros(num_classes)}
        return Variables({"network": own.params, "probe": probe}, own.state)

    def apply(params: PyTree, state: PyTree, inputs: Any, **mode: Any) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(params["network"], state, inputs, **mode)
        return outputs._replace(logits=_classify(params["probe"], outputs.logits)), state

    norms = tuple(f"network/{path}" for path in model.paths.norms)
    return Model(init, apply, model.paths._replace(head="", norms=norms))


def simkd(
    student: Model,
    classifier: Classifier,
    *,
    feature: str | None = None,
    size: tuple[int, int] | None = None,
    factor: int = 2,
) -> Model:
    """Return a student that answers through its teacher's classifier, behind a projector.

    The student's feature map is averaged to `size` and projected by 1x1, 3x3 and 1x1
    convolutions, each with BatchNorm and ReLU; the teacher's classifier, which stays as it is,
    reads its mean. Train it with `kdjax.losses.projected_feature_loss`, as a term of the feature
    `projected`; the projector is deployed with the student, whose own classifier stays in its
    parameters, unused and without gradient.

    Args:
        student: the network to train; it captures `feature`.
        classifier: the teacher's last layer: `kernel` [teacher_width, num_classes] and `bias`
            [num_classes], such as `variables.params["head"]`. It is copied into the model's state,
            which is saved with it and never trained.
        feature: the student's last feature map, [batch, height, width, channels]; by default
            `student.paths.last_map`.
        size: height and width of the teacher's last feature map, where they are smaller than the
            student's; None leaves the student's map as it is.
        factor: by how much the projector is narrower in between than the teacher.

    Returns:
        A model with `student` and `projector` in its parameters, and `classifier` in its state,
        whose features have `projected` as well: [batch, height, width, teacher_width].

    Raises:
        ValueError: if the classifier's shapes do not fit, or the factor is below one; from init
            and apply, if the student captures no such feature.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import models
        >>> classifier = {"kernel": jnp.ones((64, 10)), "bias": jnp.zeros(10)}
        >>> models.simkd(models.resnet(8, 10), classifier).paths.head
        ''

    References:
        Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher
        Classifier", 2022, arXiv:2203.14001, section 3.
    """
    width = _width_of("simkd", classifier)
    if factor < 1:
        raise ValueError(f"simkd: factor is {factor}, expected at least 1")
    name = student.paths.last_map if feature is None else feature
    projector = from_linen(Projector(width, max(1, width // factor)))

    def features_of(outputs: Outputs) -> Array:
        x = _feature("simkd", outputs, name)
        return x if size is None else pooling.average_pool(x, size)

    def init(key: Array, inputs: Any) -> Variables:
        student_key, projector_key = jax.random.split(key)
        own = student.init(student_key, inputs)
        outputs, _ = student.apply(own.params, own.state, inputs, train=False)
        new = projector.init(projector_key, features_of(outputs))
        # A copy: the state's buffers are donated, and the teacher needs its own.
        frozen = {name: jnp.array(x) for name, x in classifier.items()}
        return Variables(
            {"student": own.params, "projector": new.params},
            {"student": own.state, "projector": new.state, "classifier": frozen},
        )

    def apply(
        params: PyTree, state: PyTree, inputs: Any, *, train: bool, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        outputs, student_state = student.apply(
            params["student"], state["student"], inputs, train=train, key=key
        )
        (projected, _), projector_state = projector.apply(
            params["projector"], state["projector"], features_of(outputs), train=train
        )
        pooled = jnp.mean(projected, axis=(1, 2))
        logits = _classify(jax.lax.stop_gradient(state["classifier"]), pooled)
        features = {**outputs.features, "projected": projected}
        changed = {**state, "student": student_state, "projector": projector_state}
        return Outputs(logits, features), changed if train else state

    # Its own classifier does not answer any more, and its parameters have moved.
    norms = tuple(f"student/{path}" for path in student.paths.norms)
    return Model(init, apply, student.paths._replace(head="", norms=norms))


class Projector(nn.Module):
    """Three convolutions from the student's channels to the teacher's, narrow in between.

    Modules: `reduce`, `reduce_norm`, `mix`, `mix_norm`, `expand`, `expand_norm`.
    """

    width: int
    inner_width: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height, width, self.width], after a ReLU."""
        layer = layer_fn(None, train, nn.linear.default_kernel_init)
        x = nn.relu(layer(x, self.inner_width, 1, 1, "reduce"))
        x = nn.relu(layer(x, self.inner_width, 3, 1, "mix"))
        return nn.relu(layer(x, self.width, 1, 1, "expand"))


def _classify(classifier: Classifier, x: Array) -> Array:
    kernel = jnp.asarray(classifier["kernel"])
    wide = jnp.promote_types(x.dtype, kernel.dtype)
    logits = jnp.einsum("...i,ij->...j", x.astype(wide), kernel.astype(wide))
    if "bias" not in classifier:
        return logits
    return logits + jnp.broadcast_to(jnp.asarray(classifier["bias"], wide), logits.shape)


def _width_of(function: str, classifier: Classifier) -> int:
    kernel = jnp.shape(classifier["kernel"]) if "kernel" in classifier else ()
    bias = jnp.shape(classifier["bias"]) if "bias" in classifier else kernel[1:]
    if len(kernel) != 2 or bias != kernel[1:]:
        shapes = {name: jnp.shape(x) for name, x in classifier.items()}
        raise ValueError(
            f"{function}: classifier has {shapes}, expected kernel [width, num_classes] and bias "
            "[num_classes]"
        )
    return kernel[0]


def _feature(function: str, outputs: Outputs, name: str) -> Array:
    if name not in outputs.features:
        raise ValueError(
            f"{function}: the network captures no feature {name!r}, only {sorted(outputs.features)}"
        )
    x = outputs.features[name]
    if x.ndim != 4:
        raise ValueError(
            f"{function}: {name} has shape {x.shape}, expected [batch, height, width, channels]"
        )
    return x


def _classifier(function: str, params: PyTree, path: Sequence[str]) -> Classifier:
    found = params
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            raise ValueError(f"{function}: the parameters have nothing at {'/'.join(path)}")
        found = found[name]
    classifier: Classifier = found
    _width_of(function, classifier)
    return classifier
