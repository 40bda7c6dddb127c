"""Scripts that train, measure and report."""
