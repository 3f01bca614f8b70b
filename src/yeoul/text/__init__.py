"""Text to ids and back: tokenizer, its training, chat rendering, streaming."""
