"""Tokenizers compared over one text: length, bits per byte of one small model, cost, speed."""
