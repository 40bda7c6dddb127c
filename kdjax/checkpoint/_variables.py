"""A trained network on its own: its variables and what is needed to build it again."""

from pathlib import Path
from typing import Any

from kdjax.checkpoint._arrays import Damaged, read_arrays, read_manifest, write
from kdjax.checkpoint._files import prune, steps_in
from kdjax.checkpoint._reading import CheckpointError
from kdjax.distributed import exchange, gathered, is_leader
from kdjax.types import Variables


def save_variables(directory: str | Path, variables: Variables, metadata: dict[str, Any]) -> None:
    """Write a network, replacing the one that was there at once.

    Where several processes train together, all of them must call.

    Args:
        directory: the network's own folder.
        variables: nested dictionaries of arrays; keys come back as text, tuples as lists.
        metadata: what JSON can hold; it comes back as it was.

    Raises:
        OSError: if it cannot be written; the network that was there is untouched.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from kdjax import checkpoint
        >>> from kdjax.types import Variables
        >>> folder = tempfile.mkdtemp()
        >>> checkpoint.save_variables(folder, Variables({"w": np.ones(2)}, {}), {"epochs": 3})
        >>> variables, metadata = checkpoint.load_variables(folder)
        >>> metadata
        {'epochs': 3}
    """
    directory = Path(directory).absolute()
    newest = max(steps_in(directory), default=-1)
    version = int(exchange(f"version {directory}", str(newest + 1))[0])
    write(directory / str(version), gathered(variables._asdict()), metadata)
    if is_leader():
        prune(directory, version, keep=1)
    exchange(f"version {directory}", "done")


def load_variables(directory: str | Path) -> tuple[Variables, dict[str, Any]]:
    """Read a network. Where several processes train together, all of them must call.

    Args:
        directory: where `save_variables` wrote it.

    Returns:
        The variables as NumPy arrays, and the metadata.

    Raises:
        FileNotFoundError: if there is no network.
        CheckpointError: if it is damaged, or is a checkpoint of something else.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from kdjax import checkpoint
        >>> from kdjax.types import Variables
        >>> folder = tempfile.mkdtemp()
        >>> checkpoint.save_variables(folder, Variables({"w": np.ones(2)}, {}), {})
        >>> checkpoint.load_variables(folder)[0].params["w"].shape
        (2,)
    """
    directory = Path(directory).absolute()
    versions = steps_in(directory)
    if not versions:
        raise FileNotFoundError(f"{directory} holds no network")
    path = directory / str(versions[-1])
    try:
        manifest = read_manifest(path)
        tree = read_arrays(path, manifest["leaves"], None)
    except Damaged as damage:
        raise CheckpointError(f"the network in {path} is damaged: {damage}") from damage
    if not isinstance(tree, dict) or set(tree) != set(Variables._fields):
        raise CheckpointError(f"{path} holds something else than a network")
    return Variables(**gathered(tree)), manifest["metadata"]
