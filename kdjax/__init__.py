"""Knowledge distillation in JAX. Import the part that you need, for example `kdjax.losses`."""

__version__ = "0.1.0"
