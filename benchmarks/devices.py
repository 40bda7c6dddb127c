"""What devices can do at most, by their makers' data sheets, and what of it a step uses."""

from typing import Any, NamedTuple

import jax


class Peak(NamedTuple):
    """Products of matrices without sparsity in FLOP/s, and bytes/s of a device's memory.

    `single` is of float32 inputs as JAX multiplies them by default: TF32 on NVIDIA's devices, one
    pass of bfloat16 on TPUs.
    """

    half: float
    single: float
    bandwidth: float


# The first whose name begins that of the device, or is in it.
PEAKS = {
    "H200": Peak(989e12, 495e12, 4.80e12),
    "H100 PCIe": Peak(756e12, 378e12, 2.00e12),
    "H100": Peak(989e12, 495e12, 3.35e12),
    "A100-SXM4-40GB": Peak(312e12, 156e12, 1.555e12),
    "A100": Peak(312e12, 156e12, 2.04e12),
    "TPU v4": Peak(275e12, 275e12, 1.23e12),
    "TPU v5 lite": Peak(197e12, 197e12, 0.82e12),
    "TPU v5e": Peak(197e12, 197e12, 0.82e12),
    "TPU v5": Peak(459e12, 459e12, 2.77e12),
    "TPU v6": Peak(918e12, 918e12, 1.64e12),
}


def peak_of(kind: str) -> Peak | None:
    """Return what a device can do by its kind, such as "NVIDIA H100 80GB HBM3"; None if unknown."""
    return next((peak for name, peak in PEAKS.items() if name in kind), None)


def shares(
    peak: Peak | None, seconds: float, flops: float | None, traffic: float | None, *, half: bool
) -> dict[str, float | str]:
    """Return what a step uses of the peaks.

    Args:
        peak: of the device; None if it is not known.
        seconds: a step takes.
        flops: of a step.
        traffic: bytes that a step reads and writes, by the compiler's count.
        half: whether it computes in bfloat16.
    """
    limits = (None, None) if peak is None else (peak.half if half else peak.single, peak.bandwidth)
    names = ("share of peak FLOP/s", "share of bandwidth")
    return {
        name: "unknown" if limit is None or not count else count / seconds / limit
        for name, limit, count in zip(names, limits, (flops, traffic), strict=True)
    }


def peak_memory(device: Any = None) -> int | None:
    """Return the most bytes that were in use on a device since the process began, if it says so."""
    stats = (device or jax.local_devices()[0]).memory_stats() or {}
    return stats.get("peak_bytes_in_use")
