"""Flags for XLA on a CPU."""

# Most programs of the tests run once on a few numbers: what counts is a short compilation.
QUICK_COMPILATION = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
