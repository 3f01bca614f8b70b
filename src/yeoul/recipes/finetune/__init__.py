"""A model taught further: by conversations, text, labels, pairs or preferences."""
