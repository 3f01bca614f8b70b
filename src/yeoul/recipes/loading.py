"""`yeoul.load`: a model and its tokenizer by their folder, run or id on the hub."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul import runtime
from yeoul.recipes.model_folder import ModelFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer


def load(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    adapter: str | Path | Sequence[str | Path] | None = None,
) -> tuple[Decoder, Tokenizer | None]:
    """Load a model, and its tokenizer when the folder has one.

    Args:
        path: a Hugging Face folder, a GGUF file, a run folder with `model/` inside, or the id of a model on the hub; or
            an adapter, alone or in the run that made it, that names its base model.
        device: "auto", "cpu", "cuda", "cuda:N".
        dtype: "auto" keeps the checkpoint's type where the device computes in it natively, else float32; that of a
            quantized model on the CPU always. Quantized weights of a GGUF file count as bfloat16.
        adapter: folder or hub id of a LoRA adapter, which stays unmerged as "default"; of several, each is called as
            its folder, and the first is active (`yeoul.adapt.lora.api.set_adapter`). The first one's own tokenizer,
            where it has one, goes before the model's: its chat template is the one that it was trained with.

    Raises:
        UserError: nothing there, damaged, an architecture that Yeoul does not know, a tokenizer of another model, no
            such device.
    """
    import torch

    from yeoul.adapt.lora.api import load_adapters
    from yeoul.adapt.lora.peft_files import tokenizer_beside
    from yeoul.text.tokenizer import Tokenizer

    found = ModelFolder.open(path)
    adapters: list[str | Path] = [] if found.adapter is None else [found.adapter]
    if adapter is not None:
        adapters += [adapter] if isinstance(adapter, str | PathLike) else adapter
    target = runtime.resolve_device(device)
    wanted = runtime.requested_dtype(dtype)
    low_bit = target.type == "cpu" and found.quantization is not None  # its kernels take bf16, native or not
    if wanted is None and not low_bit and not runtime.computes_natively(found.stored_dtype, target):
        wanted = torch.float32
    model = found.load(target, wanted)
    if not adapters:
        return model, found.tokenizer
    load_adapters(model, adapters)
    own = tokenizer_beside(adapters[0])
    if own is None:
        return model, found.tokenizer
    tokenizer = Tokenizer.load(own)
    tokenizer.check_fits(model.config.vocab_size)
    return model, tokenizer
