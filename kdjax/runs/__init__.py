"""What a run needs beyond the library: flags, work directory, methods by name, training, report."""

__all__: list[str] = []
