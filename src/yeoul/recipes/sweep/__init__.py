"""Settings of sampling measured: accuracy against diversity, over a grid of settings and prompts."""
