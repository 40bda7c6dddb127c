"""Networks by name, as data: built, saved and read back."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models import (
    _convnet,
    _mlp,
    _mobile,
    _residual,
    _shuffle,
    _transformer,
    _unet,
    _vgg,
    _wide,
)
from kdjax.models._heads import Classifier, probed, simkd, with_class_maps
from kdjax.models._own import own_model, seen_from
from kdjax.models._wrappers import check_raw, normalized, scaled
from kdjax.types import Array, FeaturePaths, Model, Variables

NETWORKS: Mapping[str, Callable[..., Model]] = {
    "mlp": _mlp.mlp, "convnet": _convnet.convnet,
    "resnet8": _residual.resnet8, "resnet14": _residual.resnet14,
    "resnet20": _residual.resnet20, "resnet32": _residual.resnet32, "resnet44": _residual.resnet44,
    "resnet56": _residual.resnet56, "resnet110": _residual.resnet110,
    "resnet8x4": _residual.resnet8x4, "resnet32x4": _residual.resnet32x4,
    "cifar_resnet50": _residual.cifar_resnet50, "wrn_16_1": _wide.wrn_16_1,
    "wrn_16_2": _wide.wrn_16_2, "wrn_40_1": _wide.wrn_40_1, "wrn_40_2": _wide.wrn_40_2,
    "imagenet_mobilenet_v2": _mobile.imagenet_mobilenet_v2,
    "imagenet_vgg11": _vgg.imagenet_vgg11, "imagenet_vgg16": _vgg.imagenet_vgg16,
    "vgg8": _vgg.vgg8, "vgg13": _vgg.vgg13, "mobilenet_v2": _mobile.mobilenet_v2,
    "shufflenet_v1": _shuffle.shufflenet_v1, "shufflenet_v2": _shuffle.shufflenet_v2,
    "resnet18": _residual.resnet18, "resnet34": _residual.resnet34,
    "resnet50": _residual.resnet50, "resnet101": _residual.resnet101, "vit_mu": _transformer.vit_mu,
    "vit_ti": _transformer.vit_ti, "vit_s": _transformer.vit_s, "vit_b": _transformer.vit_b,
    "unet": _unet.unet,
}  # fmt: skip
_DTYPES: Mapping[str, Any] = {"float32": None, "bfloat16": jnp.bfloat16}
_OWN_FIELDS = {
    "mlp": ("widths", "dropout", "input_dropout"),
    "convnet": ("widths",),
    "unet": ("widths",),
    "vit": ("patch_size", "dropout", "drop_path", "distillation_token"),
}


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """All that it takes to build a network; it is stored beside the variables.

    A name with a colon is that of what makes a network of the user's own, "package.module:name",
    whose features are where `stages`, `embedding` and `classifier` say. `reused_width` is not zero
    where a network answers through the classifier of its teacher, whose embedding has that width;
    see `kdjax.models.simkd`. `probed_classes` is not zero where a linear layer over that many
    logits gives a network other classes; see `kdjax.models.probed`. `output_mean` and `output_std`
    are those of the real numbers that a network answers with; see `kdjax.models.scaled`.
    """

    name: str
    widths: tuple[int, ...]
    num_classes: int
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dropout: float = 0.0
    drop_path: float = 0.0
    input_dropout: float = 0.0
    precision: str = "float32"
    patch_size: int = 0
    reused_width: int = 0
    label_names: tuple[str, ...] = ()
    distillation_token: bool = False
    stages: tuple[str, ...] = ()
    embedding: str = ""
    classifier: str = ""
    probed_classes: int = 0
    output_mean: tuple[float, ...] = ()
    output_std: tuple[float, ...] = ()


class Network(NamedTuple):
    """A trained network: `network(images)` are its logits, `network.classes` what they stand for.

    `network.classes[network(image).argmax()]` names what is on an image. With features, it is
    `network.model.apply(*network.variables, images, train=False)[0]`.
    """

    spec: NetworkSpec
    model: Model
    variables: Variables

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits; their numbers where none are."""
        return self.spec.label_names or tuple(map(str, range(self.spec.num_classes)))

    def __call__(self, images: Any) -> Array:
        """Return the logits of raw images.

        Args:
            images: of 0 to 255, uint8 or floating, [height, width, channels] or [batch..., height,
                width, channels].

        Returns:
            [num_classes] or [batch..., num_classes].

        Raises:
            ValueError: if images are of another shape, or not raw.
        """
        shape = tuple(self.spec.image_shape)
        axes = len(shape)
        if np.shape(images)[-axes:] != shape:
            raise ValueError(
                f"network: images have shape {np.shape(images)}, expected {shape} for one, or "
                f"[batch, {', '.join(map(str, shape))}]"
            )
        images = images if hasattr(images, "dtype") else np.asarray(images)
        if axes > 1:
            check_raw(images)
        batch = images.shape[:-axes]
        rows = images.reshape(math.prod(batch), *shape)
        logits: Array = _logits(self.model, self.variables, rows)
        return logits.reshape(*batch, *logits.shape[1:])


def build(
    spec: NetworkSpec, *, features: Sequence[str] = (), classifier: Classifier | None = None
) -> Model:
    """Make the network that a specification describes; it normalizes raw images itself.

    Args:
        spec: describes it.
        features: paths to capture; `build(spec).paths.all` is all that a method may look at, and
            what none looks at costs nothing. With `paths.last_map` come `class_maps`, see
            `with_class_maps`.
        classifier: the teacher's, for a network that answers through it; None where trained
            variables that hold it will be read.

    Returns:
        A model.

    Raises:
        ValueError: if there is no network of that name, or a number in the specification is out of
            range.

    Example:
        >>> from kdjax import models
        >>> spec = models.NetworkSpec("mlp", (32,), 10, (8, 8, 1), (0.5,), (0.25,))
        >>> models.build(spec).paths.embedding
        'drop_0'
    """
    if classifier is None:
        # Networks of one description share what is compiled for them.
        return _built(spec, tuple(features))
    return _made(spec, features, classifier)


def save_network(directory: str | Path, spec: NetworkSpec, variables: Variables) -> None:
    """Write a trained network, to be read by `load_network`.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import numpy as np
        >>> from kdjax import models
        >>> spec = models.NetworkSpec("mlp", (4,), 10, (8, 8, 1), (0.5,), (0.25,))
        >>> images = np.zeros((2, 8, 8, 1), np.uint8)
        >>> shapes = jax.eval_shape(models.build(spec).init, jax.random.key(0), images)
        >>> variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        >>> folder = tempfile.mkdtemp()
        >>> models.save_network(folder, spec, variables)
        >>> models.load_network(folder).spec.name
        'mlp'
    """
    from kdjax import checkpoint  # Most who build networks save none, and Orbax loads slowly.

    checkpoint.save_variables(Path(directory), variables, dataclasses.asdict(spec))


def load_network(directory: str | Path) -> Network:
    """Read a trained network, such as the `student` folder of a work directory.

    Args:
        directory: where `save_network` wrote it.

    Returns:
        The specification, the model and its variables.

    Raises:
        FileNotFoundError: if there is no network.
        ValueError: if the files are damaged, or hold something else.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import numpy as np
        >>> from kdjax import models
        >>> spec = models.NetworkSpec("mlp", (4,), 10, (8, 8, 1), (0.5,), (0.25,))
        >>> images = np.zeros((2, 8, 8, 1), np.uint8)
        >>> shapes = jax.eval_shape(models.build(spec).init, jax.random.key(0), images)
        >>> variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        >>> folder = tempfile.mkdtemp()
        >>> models.save_network(folder, spec, variables)
        >>> network = models.load_network(folder)
        >>> network(images).shape, network(images[0]).shape
        ((2, 10), (10,))
    """
    from kdjax import checkpoint

    variables, metadata = checkpoint.load_variables(Path(directory))
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in metadata.items()
    }
    try:
        spec = NetworkSpec(**fields)
    except TypeError as error:
        raise ValueError(f"{directory} holds no network of a work directory") from error
    return Network(spec, build(spec), variables)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Model, variables: Variables, images: Array) -> Array:
    outputs, _ = model.apply(*variables, images, train=False)
    return outputs.logits


@functools.cache
def _built(spec: NetworkSpec, features: tuple[str, ...]) -> Model:
    return _made(spec, features, None)


def _made(spec: NetworkSpec, features: Sequence[str], classifier: Classifier | None) -> Model:
    if spec.probed_classes:
        own = dataclasses.replace(spec, num_classes=spec.probed_classes, probed_classes=0)
        return probed(_made(own, features, classifier), spec.num_classes)
    if spec.output_std:
        own = dataclasses.replace(spec, output_mean=(), output_std=())
        return scaled(_made(own, features, classifier), spec.output_mean, spec.output_std)
    if ":" in spec.name:
        return _own(spec, features)
    if spec.name not in NETWORKS:
        raise ValueError(f"build: there is no network {spec.name!r}, only {', '.join(NETWORKS)}")
    make_fn = functools.partial(
        NETWORKS[spec.name],
        spec.num_classes,
        dtype=_DTYPES[spec.precision],
        **{name: getattr(spec, name) for name in _OWN_FIELDS.get(spec.name.split("_")[0], ())},
    )
    last_map = make_fn().paths.last_map
    captured = [*features, last_map] if spec.reused_width else features
    model = normalized(make_fn(features=captured), np.array(spec.mean), np.array(spec.std))
    if last_map in features:
        model = with_class_maps(model)
    return simkd(model, classifier or _no_classifier(spec)) if spec.reused_width else model


def _own(spec: NetworkSpec, features: Sequence[str]) -> Model:
    """Make a network of the user's code, of the values of a specification that it asks for."""
    given = {"num_classes": spec.num_classes, "image_shape": spec.image_shape}
    given |= {"dropout": spec.dropout, "dtype": _DTYPES[spec.precision]}
    paths = FeaturePaths(spec.stages, (), spec.embedding, spec.classifier)

    def make(features: Sequence[str], paths: FeaturePaths = paths) -> Model:
        return own_model(spec.name, given, features=features, paths=paths)

    model = make(features, seen_from(make, paths, spec.image_shape))
    return normalized(model, np.array(spec.mean), np.array(spec.std))


def _no_classifier(spec: NetworkSpec) -> Classifier:
    return {
        "kernel": np.zeros((spec.reused_width, spec.num_classes), np.float32),
        "bias": np.zeros(spec.num_classes, np.float32),
    }
