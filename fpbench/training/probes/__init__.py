"""The probes, one module each: a solver on arrays, and ``fit``, which is what ``training.probing`` calls."""
