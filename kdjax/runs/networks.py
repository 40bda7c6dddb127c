"""Networks as the command line names them: described by settings, checked, read as teachers."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax import models
from kdjax.data import Dataset
from kdjax.models import Network, NetworkSpec
from kdjax.runs import tasks
from kdjax.runs.console import say
from kdjax.runs.resolved import Resolved
from kdjax.runs.settings import NetworkSettings, TaskName, TeacherSettings
from kdjax.types import Variables

_ANY_HEAD: Any = "any"


def spec_of(settings: Resolved, dataset: Dataset, network: NetworkSettings) -> NetworkSpec:
    """Describe a network of the settings for the data."""
    spec = NetworkSpec(
        network.module or network.name or "mlp",
        tuple(network.widths or ()),
        tasks.num_outputs(settings.task, dataset, settings.embedding_size),
        dataset.image_shape,
        mean=tuple(float(x) for x in dataset.mean),
        std=tuple(float(x) for x in dataset.std),
        dropout=network.dropout,
        drop_path=network.drop_path,
        input_dropout=network.input_dropout,
        precision=settings.precision,
        patch_size=_patch_size(network, dataset.image_shape),
        label_names=tasks.names_of(settings.task, dataset),
        stages=tuple(network.stages or ()),
        embedding=network.embedding or "",
        classifier=network.classifier or "",
    )
    mean, std = tasks.scale_of(settings.task, dataset)
    return dataclasses.replace(spec, output_mean=mean, output_std=std)


def check_own(flag: str, spec: NetworkSpec, *, learns: bool) -> None:
    """Raise a ValueError that names the flag unless a network of the user's code can be made.

    Args:
        flag: such as "--student".
        spec: describes the network.
        learns: whether it is to be trained.
    """
    if ":" in spec.name and _is_torchs(_built(f"{flag}.module", spec)) and learns:
        raise ValueError(
            f"{flag}.module {spec.name} makes a PyTorch module, which teaches and does not learn"
        )


def check_patches(flag: str, spec: NetworkSpec) -> None:
    """Raise a ValueError that names the flag unless the images divide into a network's patches."""
    if not spec.patch_size:
        return
    height, width, _ = spec.image_shape
    if height % spec.patch_size or width % spec.patch_size:
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


def check_answers(flag: str, spec: NetworkSpec, task: TaskName) -> None:
    """Raise a ValueError that names the flag if a network answers in no shape of a task's."""
    own = ":" in spec.name
    if task == "single-label" and spec.name != "unet" and not own:
        return
    pixels = spec.image_shape[:2] if task == "pixels" else ()
    found, expected = _answers_of(spec), (*pixels, spec.num_classes)
    if found != expected:
        fits = "unet, or a fully convolutional --student.module" if pixels else "another network"
        raise ValueError(
            f"{flag}.{'module' if own else 'name'} {spec.name} answers an image with {found}, "
            f"--task {task} needs {expected}: {fits} fits"
        )


def given_teacher(
    settings: TeacherSettings, spec: NetworkSpec, *, any_size: bool = False
) -> Network | None:
    """Read the teacher that the settings give, None where one is to be trained.

    A PyTorch module is never trained: without a checkpoint it has the weights that it comes with.
    What such a module or a state dict answers with is in the data's own unit.

    Args:
        settings: of the teacher.
        spec: what flags and data say about it.
        any_size: whether it may answer with as many numbers as it likes.
    """
    if any_size:
        settings = dataclasses.replace(settings, head=_ANY_HEAD)
    if settings.checkpoint is not None:
        return load_teacher(settings, spec)
    if settings.module is None or not _is_torchs(_built("--teacher.module", spec)):
        return None
    mean, std = _normalization(settings, {}, spec)
    spec = dataclasses.replace(spec, mean=mean, std=std, output_mean=(), output_std=())
    model = models.build(spec)
    images = np.zeros((1, *spec.image_shape), np.uint8)
    return _with_classes(settings, Network(spec, model, model.init(jax.random.key(0), images)))


def load_teacher(settings: TeacherSettings, spec: NetworkSpec) -> Network:
    """Read a teacher: a network of ours, or a PyTorch state dict.

    Args:
        settings: `checkpoint` names a directory or a file, and for a file `name` or `module` the
            network; `mean` and `std` override the normalization that a state dict may carry. Where
            none is known it is that of the data, which is said. With `head` "probe" the classes are
            the teacher's own.
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
        return _checked(path, _ours("--teacher", path), settings, spec)
    state_dict = _read("--teacher", path)
    mean, std = _normalization(settings, state_dict, spec)
    if len(mean) != spec.image_shape[-1]:
        raise ValueError(
            f"--teacher.checkpoint {path} is for images of {len(mean)} channels, the data has "
            f"{spec.image_shape[-1]}"
        )
    spec = dataclasses.replace(spec, mean=mean, std=std, output_mean=(), output_std=())
    if settings.head != "own":
        num_classes = models.classes_of(state_dict) or spec.num_classes
        spec = dataclasses.replace(spec, num_classes=num_classes, label_names=())
    return _with_classes(settings, _of_file("--teacher", path, state_dict, spec))


def starting_values(settings: NetworkSettings, spec: NetworkSpec) -> Variables | None:
    """Read where a student starts, None where it is drawn.

    Returns:
        Variables of the student, with None for what is drawn: a classifier of other classes.

    Raises:
        FileNotFoundError: if there is nothing at that path.
        ValueError: if it holds another network.
    """
    if settings.checkpoint is None:
        return None
    path, like = settings.checkpoint, _shapes_of(spec)
    given, ours = dict(_leaves(_start_of(path, spec))), dict(_leaves(like))
    drawn = _drawn(path, spec, given, ours)
    kept = [None if name in drawn else given[name] for name in ours]
    start: Variables = jax.tree.unflatten(jax.tree.structure(like), kept)
    return start


def _start_of(path: Path, spec: NetworkSpec) -> Variables:
    """Read variables for a network but for its classes."""
    if path.is_dir():
        return _ours("--student", path).variables
    state_dict = _read("--student", path)
    num_classes = models.classes_of(state_dict) or spec.num_classes
    own = dataclasses.replace(spec, num_classes=num_classes)
    return _of_file("--student", path, state_dict, own).variables


def _drawn(
    path: Path, spec: NetworkSpec, given: Mapping[str, Any], ours: Mapping[str, Any]
) -> list[str]:
    """Return which arrays of a network are of other shapes in a file: those of one layer may be."""
    there = {name: tuple(np.shape(leaf)) for name, leaf in given.items()}
    drawn = [name for name, leaf in ours.items() if there.get(name) != leaf.shape]
    layers, odd = {name.rpartition("/")[0] for name in drawn}, [*(there.keys() - ours.keys())]
    if odd or len(layers) > 1:
        name = (odd + drawn)[0]
        here = ours[name].shape if name in ours else "missing"
        raise ValueError(
            f"--student.checkpoint {path} is not a {spec.name}: {name} is "
            f"{there.get(name, 'missing')} there, {here} here"
        )
    if drawn:
        say(
            f"student        starts from {path} but for {layers.pop()}, which is drawn: "
            f"{drawn[0]} is {there.get(drawn[0])} there, {ours[drawn[0]].shape} here"
        )
    return drawn


def in_place(start: Variables, spec: NetworkSpec) -> Variables:
    """Return a student's starting values where a method makes more of it than the student."""
    if not spec.reused_width:
        return start
    rest = jax.tree.map(lambda _: None, _shapes_of(spec))
    return Variables(*({**r, "student": x} for r, x in zip(rest, start, strict=True)))


def _leaves(tree: Variables) -> list[tuple[str, Any]]:
    pairs = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in pairs]


def _built(flag: str, spec: NetworkSpec) -> Variables:
    """Return the shapes of a network; a mistake in what makes it names the flag."""
    try:
        return _shapes_of(spec)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{flag} {spec.name}: {error}") from error


def _is_torchs(variables: Variables) -> bool:
    """Whether variables are those of a PyTorch module: arrays by name, and no layers."""
    return bool(variables.params) and all(hasattr(x, "shape") for x in variables.params.values())


def _read(flag: str, path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise FileNotFoundError(f"{flag}.checkpoint: there is nothing at {path}")
    return models.read_state_dict(path)


def _of_file(
    flag: str, path: Path, state_dict: Mapping[str, np.ndarray], spec: NetworkSpec
) -> Network:
    """Put a state dict into a network."""
    like, shape = _built(flag, spec), spec.image_shape if len(spec.image_shape) == 3 else None
    try:
        variables = models.from_pytorch(state_dict, like, image_shape=shape)
    except ValueError as error:
        raise ValueError(f"{flag}.checkpoint {path} is not a {spec.name}: {error}") from error
    return Network(spec, models.build(spec), variables)


def _with_classes(settings: TeacherSettings, teacher: Network) -> Network:
    """Return a teacher whose own code says its classes, if they are those that are asked for."""
    spec = teacher.spec
    found = _answers_of(spec)[-1]
    if settings.head == "own" and found != spec.num_classes:
        raise ValueError(
            f"--teacher.module {spec.name} answers with {found} classes, the data has "
            f"{spec.num_classes}: --teacher.head probe gives it those"
        )
    return teacher._replace(spec=dataclasses.replace(spec, num_classes=found))


def _ours(flag: str, path: Path) -> Network:
    """Read a network of ours; where a work directory was named, say where its networks are."""
    try:
        return models.load_network(path)
    except FileNotFoundError as error:
        inside = [str(path / name) for name in ("teacher", "student") if (path / name).is_dir()]
        hint = f"; try {' or '.join(inside)}" if inside else ""
        raise FileNotFoundError(f"{flag}.checkpoint {path} holds no network{hint}") from error


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
            f"teacher        {settings.checkpoint or settings.module} does not say how its images "
            "were normalized; taken are those of the data, "
            f"mean {words[0]} and deviation {words[1]}; if it saw "
            "others, give --teacher.mean and --teacher.std (ImageNet's: 0.485 0.456 0.406 and "
            "0.229 0.224 0.225)"
        )
    return chosen


@functools.cache
def stage_widths(spec: NetworkSpec) -> tuple[int, ...]:
    """Return the channels of each stage of a network."""
    stages = models.build(spec).paths.stages
    model = models.build(spec, features=stages)

    def features(images: jax.Array) -> dict[str, jax.Array]:
        variables = model.init(jax.random.key(0), images)
        return dict(model.apply(*variables, images, train=False)[0].features)

    found = jax.eval_shape(features, np.zeros((1, *spec.image_shape), np.uint8))
    return tuple(found[stage].shape[-1] for stage in stages)


def _answers_of(spec: NetworkSpec) -> tuple[int, ...]:
    """Return the shape of what a network answers one image with."""
    images = jax.ShapeDtypeStruct((1, *spec.image_shape), np.uint8)
    call = functools.partial(models.build(spec).apply, train=False)
    (outputs, _) = jax.eval_shape(call, *_shapes_of(spec), images)
    shape: tuple[int, ...] = outputs.logits.shape[1:]
    return shape


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
    asked = settings.module or settings.name, settings.widths
    found = teacher.spec.name, teacher.spec.widths
    for flag, want, have in zip(("name", "widths"), asked, found, strict=True):
        if want is not None and want != have:
            raise ValueError(f"--teacher.{flag} is {want}, but {path} holds {have}")
    if settings.head == "own" and teacher.spec.num_classes != spec.num_classes:
        raise ValueError(
            f"--teacher.checkpoint {path} has {teacher.spec.num_classes} classes, "
            f"the data has {spec.num_classes}: --teacher.head probe gives it those"
        )
    if teacher.spec.image_shape != spec.image_shape:
        raise ValueError(
            f"--teacher.checkpoint {path} takes images of {teacher.spec.image_shape}, "
            f"the data has {spec.image_shape}"
        )
    return teacher
