"""Decoding a token of every row in one call to a native library, which is optional: without it PyTorch does the same.

`decoder_of` gives a `NativeDecoder` for a model that it can do, `binding` says whether there is a library at all. A
model becomes a program of some twenty kinds of operations (`program`, `layers`), which runs on the tensors of the cache
that PyTorch uses too (`memory`), so that prefill and pieces of a text stay PyTorch's and either may go on where the
other stopped.
"""
