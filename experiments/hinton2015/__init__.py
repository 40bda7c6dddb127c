"""The experiments of Hinton, Vinyals & Dean (2015), one script per section."""
