"""Saving and restoring, with digests: what comes back is what was written, or an error.

Orbax writes and reads the arrays. It does not notice every damaged byte, and is loud about those it
does, so a manifest of ours beside them holds a SHA-256 of every file, checked before Orbax sees it,
and one of every leaf, or of every part of a leaf that no process held whole, checked on what Orbax
made of it. A checkpoint is a folder `<step>`: it gets that name when it is complete.
"""

from kdjax.checkpoint._digests import params_sha256
from kdjax.checkpoint._files import best_step
from kdjax.checkpoint._lock import InUse, lock
from kdjax.checkpoint._reading import CheckpointError, CheckpointWarning, restore
from kdjax.checkpoint._saving import Save, save, saving
from kdjax.checkpoint._variables import load_variables, save_variables

__all__ = [
    "CheckpointError", "CheckpointWarning", "InUse", "Save", "best_step", "load_variables",
    "lock", "params_sha256", "restore", "save", "save_variables", "saving",
]  # fmt: skip
