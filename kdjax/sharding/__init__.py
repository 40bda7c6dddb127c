"""The mesh, and how arrays are laid out on it. One device is a mesh of one."""

# fmt: off
# isort: off
from kdjax._renamed import moved
from kdjax.sharding._mesh import (
    AXES, BATCH_AXES, batch_sharding, check_batch_size, local_rows, make_mesh, put, replicate,
    replicated, shard_batch,
)
from kdjax.sharding._placement import LOGICAL_AXES, Rules, abstract, initialize, place, shardings
from kdjax.sharding._tables import MLP_RULES, NETWORK_RULES, RESNET_RULES, TRANSFORMER_RULES
from kdjax.sharding._use import LayoutFn, gather, gathered_again, hold, layout_of

__all__ = [
    "AXES", "BATCH_AXES", "LOGICAL_AXES", "MLP_RULES", "NETWORK_RULES", "RESNET_RULES",
    "TRANSFORMER_RULES", "LayoutFn", "Rules", "abstract", "batch_sharding", "check_batch_size",
    "gather", "gathered_again", "hold", "initialize", "layout_of", "local_rows", "make_mesh",
    "place", "put", "replicate", "replicated", "shard_batch", "shardings",
]

_, __getattr__ = moved(__name__)
