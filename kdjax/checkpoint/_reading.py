"""Reading what was saved: the newest checkpoint that is sound, on any mesh."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from kdjax.checkpoint._arrays import Damaged, read_arrays, read_manifest
from kdjax.checkpoint._digests import Leaf, leaves_of, type_of
from kdjax.checkpoint._files import steps_in
from kdjax.distributed import exchange, is_leader
from kdjax.types import PyTree


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged, or another's, and an older one is used in its place."""


class CheckpointError(ValueError):
    """No checkpoint of a directory can be used."""


def restore(
    directory: str | Path,
    like: PyTree,
    *,
    step: int | None = None,
    owner: Mapping[str, Any] | None = None,
) -> tuple[int, PyTree] | None:
    """Read the newest checkpoint that is sound and its own, and warn of newer ones that are not.

    A checkpoint that was written for another step than its name says is not its own.
    Where several processes train together, all of them must call; they may be others, in number
    and with another mesh, than those that saved.

    Args:
        directory: where `save` wrote.
        like: arrays or `jax.ShapeDtypeStruct`s of the expected structure; their shardings say
            where the restored arrays go, whatever mesh they were written from.
        step: read the checkpoint of that step and no other; see `best_step`.
        owner: what `save` was told; a checkpoint of another owner, or of none, is not taken.

    Returns:
        The step and the tree, or None if there is no checkpoint.

    Raises:
        CheckpointError: if there are checkpoints and none can be used, or not that of `step`.
        ValueError: if a sound one holds other arrays than `like`.

    Example:
        >>> import tempfile
        >>> from kdjax import checkpoint
        >>> print(checkpoint.restore(tempfile.mkdtemp(), {}))
        None
    """
    directory = Path(directory).absolute()
    # As process 0 sees them.
    said = exchange(f"steps {directory}", " ".join(map(str, steps_in(directory))))
    steps = [int(word) for word in said[0].split()]
    if step is not None:
        if step not in steps:
            raise CheckpointError(f"{directory} has no checkpoint of step {step}, only {steps}")
        steps = [step]
    reasons: list[Damaged] = []
    for at in reversed(steps):
        path = directory / str(at)
        try:
            leaves = read_manifest(path, whose={"step": at, **(owner or {})})["leaves"]
            _check_structure(path, leaves, like)
            return at, read_arrays(path, leaves, jax.tree.map(_abstract, like))
        except Damaged as damage:
            if step is not None:
                raise CheckpointError(f"{_found(path, damage)}: {damage}") from damage
            reasons.append(damage)
            if is_leader():
                unused = f"{_found(path, damage)} and not used: {damage}"
                warnings.warn(unused, CheckpointWarning, stacklevel=2)
    if reasons:
        kinds = " or ".join(sorted({reason.called for reason in reasons}))
        raise CheckpointError(
            f"all checkpoints in {directory} are {kinds} (steps {', '.join(map(str, steps))}), the "
            f"last because {reasons[0]}: delete that folder to start anew"
        )
    return None


def _found(path: Path, damage: Damaged) -> str:
    return f"the checkpoint of step {path.name} in {path.parent} is {damage.called}"


def _check_structure(path: Path, leaves: dict[str, Leaf], like: PyTree) -> None:
    """Raise a ValueError that names the first array that only one side has, or in another shape."""
    expected = {name: type_of(x) for name, x in leaves_of(like).items()}
    stored = {name: leaf["type"] for name, leaf in leaves.items()}
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            raise ValueError(
                f"restore: the checkpoint {path} holds {name} as {stored.get(name, 'nothing')}, "
                f"expected {expected.get(name, 'nothing')}"
            )


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    # Otherwise Orbax would ask for the devices that the arrays were written from.
    here = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
