"""Flags for XLA on a CPU."""

import os
import re
from importlib.metadata import version

JAXLIB = tuple(map(int, re.findall(r"\d+", version("jaxlib"))[:3]))
# Most programs of the tests run once on a few numbers: what counts is a short compilation.
FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
# XLA ends a process without a word where it does not know a flag; this one went in 0.11.1.
if JAXLIB < (0, 11, 1):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
# What users run is optimized: with this set, the tests run that.
OPTIMIZED = "KDJAX_TESTS_OPTIMIZED" in os.environ
QUICK_COMPILATION = "" if OPTIMIZED else " ".join(FLAGS)
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
