"""What is known about a model's folder."""
