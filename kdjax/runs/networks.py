"""Networks as the command line names them: described by settings, checked, read as teachers."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from kdjax import models
from kdjax.data import Dataset
from kdjax.models import Network, NetworkSpec
from kdjax.runs.console import say
from kdjax.runs.resolved import Resolved
from kdjax.runs.settings import NetworkSettings, TeacherSettings
from kdjax.types import Variables


def spec_of(settings: Resolved, dataset: Dataset, network: NetworkSettings) -> NetworkSpec:
    """Describe a network of the settings for the data."""
    return NetworkSpec(
        network.name or "mlp",
        tuple(network.widths or ()),
        dataset.num_classes,
        dataset.image_shape,
        mean=tuple(float(x) for x in dataset.mean),
        std=tuple(float(x) for x in dataset.std),
        dropout=network.dropout,
        drop_path=network.drop_path,
        input_dropout=network.input_dropout,
        precision=settings.precision,
        patch_size=_patch_size(network, dataset.image_shape),
        label_names=dataset.label_names,
    )


def check_patches(flag: str, spec: NetworkSpec) -> None:
    """Raise a ValueError that names the flag unless the images divide into a network's patches."""
    height, width, _ = spec.image_shape
    if spec.patch_size and (height % spec.patch_size or width % spec.patch_size):
        raise ValueError(
            f"{flag}.patch-size is {spec.patch_size}, which does not divide images of "
            f"{height} x {width}"
        )


def check_blocks(specs: Mapping[str, NetworkSpec]) -> None:
    """Raise a ValueError that names the flag unless all networks are made of blocks."""
    for flag, spec in specs.items():
        leaves = jax.tree.leaves_with_path(_shapes_of(spec).params)
        paths = [jax.tree_util.keystr(path) for path, _ in leaves]
        if not any("block_" in path for path in paths):
            raise ValueError(
                f"--rematerialise computes blocks again, and {flag}.name {spec.name} has none"
            )


def load_teacher(settings: TeacherSettings, spec: NetworkSpec) -> Network:
    """Read a teacher: a network of ours, or a PyTorch state dict.

    Args:
        settings: `checkpoint` names a directory or a file, and for a file `name` the architecture;
            `mean` and `std` override the normalization that a state dict may carry. Where none is
            known it is that of the data, which is said.
        spec: what flags and data say about the teacher.

    Returns:
        The teacher with its own normalization.

    Raises:
        FileNotFoundError: if there is nothing at that path.
        ValueError: if it holds another architecture, or is for other images or classes.
    """
    path = settings.checkpoint
    assert path is not None
    if path.is_dir():
        return _checked(path, _ours(path), settings, spec)
    if not path.exists():
        raise FileNotFoundError(f"--teacher.checkpoint: there is nothing at {path}")
    state_dict = models.read_state_dict(path)
    mean, std = _normalization(settings, state_dict, spec)
    spec = dataclasses.replace(spec, mean=mean, std=std)
    model = models.build(spec)
    try:
        like, shape = _shapes_of(spec), spec.image_shape
        variables = models.from_pytorch(state_dict, like, image_shape=shape)
    except ValueError as error:
        raise ValueError(f"--teacher.checkpoint {path} is not a {spec.name}: {error}") from error
    return Network(spec, model, variables)


def _ours(path: Path) -> Network:
    """Read a network of ours; where a work directory was named, say where its networks are."""
    try:
        return models.load_network(path)
    except FileNotFoundError as error:
        inside = [str(path / name) for name in ("teacher", "student") if (path / name).is_dir()]
        hint = f"; try {' or '.join(inside)}" if inside else ""
        raise FileNotFoundError(f"--teacher.checkpoint {path} holds no network{hint}") from error


def _normalization(
    settings: TeacherSettings, state_dict: Mapping[str, np.ndarray], spec: NetworkSpec
) -> list[tuple[float, ...]]:
    """Return mean and deviation of what a teacher was trained on; where unknown, the data's."""
    brought = models.normalization_of(state_dict)
    mean, std = brought or (spec.mean, spec.std)
    chosen = [
        tuple(float(x) for x in values) for values in (settings.mean or mean, settings.std or std)
    ]
    if brought is None and not (settings.mean and settings.std):
        words = [" ".join(f"{x:.3f}" for x in values) for values in chosen]
        say(
            f"teacher        {settings.checkpoint} does not say how its images were normalized; "
            f"taken are those of the data, mean {words[0]} and deviation {words[1]}; if it saw "
            "others, give --teacher.mean and --teacher.std (ImageNet's: 0.485 0.456 0.406 and "
            "0.229 0.224 0.225)"
        )
    return chosen


def _shapes_of(spec: NetworkSpec) -> Variables:
    images = jax.ShapeDtypeStruct((1, *spec.image_shape), np.uint8)
    shapes: Variables = jax.eval_shape(models.build(spec).init, jax.random.key(0), images)
    return shapes


def _patch_size(settings: NetworkSettings, image_shape: tuple[int, ...]) -> int:
    if not (settings.name or "").startswith("vit_"):
        return 0
    side = min(image_shape[:2])
    default = 16 if side >= 112 else 8 if side >= 64 else 4 if side >= 16 else 2
    return settings.patch_size or default


def _checked(path: Path, teacher: Network, settings: TeacherSettings, spec: NetworkSpec) -> Network:
    """Return a teacher of ours if it is what the flags say and the data needs."""
    asked, found = (settings.name, settings.widths), (teacher.spec.name, teacher.spec.widths)
    for flag, want, have in zip(("name", "widths"), asked, found, strict=True):
        if want is not None and want != have:
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
