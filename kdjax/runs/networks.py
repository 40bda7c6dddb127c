"""Networks by the names that the command line knows, and trained ones on disk."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.runs.convolutions import maps_of
from kdjax.runs.settings import NetworkSettings, TeacherSettings
from kdjax import checkpoint, models
from kdjax.types import Model, PyTree, Variables


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """All that it takes to build a network; it is stored beside the variables.

    `reused_width` is not zero where a network answers through the classifier of its teacher, whose
    embedding has that width; see `kdjax.models.simkd`.
    """

    name: str
    widths: tuple[int, ...]
    num_classes: int
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dropout: float = 0.0
    input_dropout: float = 0.0
    precision: str = "float32"
    patch_size: int = 0
    reused_width: int = 0


class Network(NamedTuple):
    """A trained network: raw images [batch, height, width, channels] of 0 to 255 in, logits out.

    `logits = network.model.apply(*network.variables, images, train=False)[0].logits`
    """

    spec: NetworkSpec
    model: Model
    variables: Variables


def build(spec: NetworkSpec, *, features: Sequence[str] = ()) -> Model:
    """Make the network that a specification describes; it normalises raw images itself."""
    if spec.reused_width:
        own = dataclasses.replace(spec, reused_width=0)
        return reusing(build(own, features=[*features, maps_of(spec.name).last]), spec)
    dtype = {"float32": None, "bfloat16": jnp.bfloat16}[spec.precision]
    if spec.name == "mlp":
        model = models.mlp(
            spec.num_classes,
            widths=spec.widths,
            dropout=spec.dropout,
            input_dropout=spec.input_dropout,
            dtype=dtype,
            features=features,
        )
    elif is_vit(spec.name):
        model = getattr(models, spec.name)(
            spec.num_classes,
            patch_size=spec.patch_size,
            dropout=spec.dropout,
            dtype=dtype,
            features=features,
        )
    else:
        model = getattr(models, spec.name)(spec.num_classes, dtype=dtype, features=features)
    return models.normalized(model, np.array(spec.mean), np.array(spec.std))


def reusing(model: Model, spec: NetworkSpec, classifier: PyTree = None) -> Model:
    """Let a network that captures its last map answer through a teacher's classifier.

    Args:
        model: the network itself.
        spec: its description, with `reused_width`.
        classifier: the teacher's `kernel` and `bias`; None where trained variables that hold them
            will be read.

    Returns:
        A model; see `kdjax.models.simkd`.
    """
    zeros = {
        "kernel": np.zeros((spec.reused_width, spec.num_classes), np.float32),
        "bias": np.zeros(spec.num_classes, np.float32),
    }
    return models.simkd(model, classifier or zeros, feature=maps_of(spec.name).last)


def make_spec(
    settings: NetworkSettings,
    *,
    num_classes: int,
    image_shape: tuple[int, ...],
    mean: Any,
    std: Any,
    precision: str,
) -> NetworkSpec:
    """Describe the network of some settings on some data."""
    return NetworkSpec(
        name=settings.name or "mlp",
        widths=tuple(settings.widths or ()),
        num_classes=num_classes,
        image_shape=tuple(image_shape),
        mean=tuple(float(x) for x in mean),
        std=tuple(float(x) for x in std),
        dropout=settings.dropout,
        input_dropout=settings.input_dropout,
        precision=precision,
        patch_size=_patch_size(settings, image_shape),
    )


def is_vit(name: str) -> bool:
    """Whether a network of that name is a vision transformer."""
    return name.startswith("vit_")


def check_patches(flag: str, spec: NetworkSpec) -> None:
    """Raise a ValueError that names the flag unless the images divide into a network's patches."""
    height, width, _ = spec.image_shape
    if is_vit(spec.name) and (height % spec.patch_size or width % spec.patch_size):
        raise ValueError(
            f"{flag}.patch-size is {spec.patch_size}, which does not divide images of "
            f"{height} x {width}"
        )


def check_blocks(specs: Mapping[str, NetworkSpec]) -> None:
    """Raise a ValueError that names the flag unless all networks are made of blocks."""
    for flag, spec in specs.items():
        images = jax.ShapeDtypeStruct((1, *spec.image_shape), np.uint8)
        params = jax.eval_shape(build(spec).init, jax.random.key(0), images).params
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
        if not any("block_" in path for path in paths):
            raise ValueError(
                f"--rematerialise computes blocks again, and {flag}.name {spec.name} has none"
            )


def save_network(directory: Path, spec: NetworkSpec, variables: Variables) -> None:
    """Write a trained network, to be read by `load_network`."""
    checkpoint.save_variables(directory, variables, dataclasses.asdict(spec))


def load_network(directory: str | Path) -> Network:
    """Read a trained network, such as the `student` folder of a work directory.

    Args:
        directory: where `save_network` wrote it.

    Returns:
        The specification, the model and its variables.

    Raises:
        FileNotFoundError: if there is no network.
        ValueError: if the files are damaged, or hold something else.
    """
    variables, metadata = checkpoint.load_variables(Path(directory))
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in metadata.items()
    }
    try:
        spec = NetworkSpec(**fields)
    except TypeError as error:
        raise ValueError(f"{directory} holds no network of a work directory") from error
    return Network(spec, build(spec), variables)


def load_teacher(settings: TeacherSettings, spec: NetworkSpec) -> Network:
    """Read a teacher: a network of ours, or a PyTorch state dict.

    Args:
        settings: `checkpoint` names a directory or a file, and for a file `name` the architecture;
            `mean` and `std` override the normalisation that a state dict may carry.
        spec: what flags and data say about the teacher.

    Returns:
        The teacher with its own normalisation.

    Raises:
        FileNotFoundError: if there is nothing at that path.
        ValueError: if it holds another architecture, or is for other images or classes.
    """
    path = settings.checkpoint
    assert path is not None
    if path.is_dir():
        return _checked(path, load_network(path), settings, spec)
    if not path.exists():
        raise FileNotFoundError(f"--teacher.checkpoint: there is nothing at {path}")
    state_dict = models.read_state_dict(path)
    mean, std = models.normalisation_of(state_dict) or (spec.mean, spec.std)
    mean, std = settings.mean or mean, settings.std or std
    spec = dataclasses.replace(
        spec, mean=tuple(float(x) for x in mean), std=tuple(float(x) for x in std)
    )
    model = build(spec)
    images = jax.ShapeDtypeStruct((1, *spec.image_shape), np.uint8)
    try:
        like = jax.eval_shape(model.init, jax.random.key(0), images)
        variables = models.from_pytorch(state_dict, like, image_shape=spec.image_shape)
    except ValueError as error:
        raise ValueError(f"--teacher.checkpoint {path} is not a {spec.name}: {error}") from error
    return Network(spec, model, variables)


def _patch_size(settings: NetworkSettings, image_shape: tuple[int, ...]) -> int:
    if not is_vit(settings.name or ""):
        return 0
    side = min(image_shape[:2])
    default = 16 if side >= 112 else 8 if side >= 64 else 4 if side >= 16 else 2
    return settings.patch_size or default


def _checked(path: Path, teacher: Network, settings: TeacherSettings, spec: NetworkSpec) -> Network:
    """Return a teacher of ours if it is what the flags say and the data needs."""
    asked, found = (settings.name, settings.widths), (teacher.spec.name, teacher.spec.widths)
    for flag, want, have in zip(("name", "widths"), asked, found, strict=True):
        if want is not None and want != have and not (flag == "widths" and have == ()):
            raise ValueError(f"--teacher.{flag} is {want}, but {path} holds {have}")
    if teacher.spec.num_classes != spec.num_classes:
        raise ValueError(
            f"--teacher.checkpoint {path} has {teacher.spec.num_classes} classes, "
            f"the data has {spec.num_classes}"
        )
    if teacher.spec.image_shape != spec.image_shape:
        raise ValueError(
            f"--teacher.checkpoint {path} takes images of {teacher.spec.image_shape}, "
            f"the data has {spec.image_shape}"
        )
    return teacher
