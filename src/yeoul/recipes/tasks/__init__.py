"""Standard tasks: lm-eval reads our models."""
