"""Sentences translated by two systems side by side: by examples in the prompt, scored against references."""
