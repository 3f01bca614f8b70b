"""A model in fewer bits."""
