"""Softmax attention turned into DiJiang's: what is chosen, what is trained, what came of it."""
