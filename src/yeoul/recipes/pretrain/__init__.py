"""A language model from text."""
