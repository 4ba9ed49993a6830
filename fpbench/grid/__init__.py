"""A study as jobs: what each depends on, running them, how far they are, and the reference that notebooks are held to."""
