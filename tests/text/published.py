"""Tokenizer folders in the shapes of published families, made on the spot with transformers' own classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from text.samples import small_corpus

CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' '  + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
EXAONE4 = (
    "{%- for message in messages %}{{- '[|' + message.role + '|]\\n' + message.content + '[|endofturn|]\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '[|assistant|]\\n' }}{%- endif %}"
)
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level_parts(special: list[str], size: int = 420) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of byte-level BPE, special tokens first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(small_corpus(), trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def sentencepiece_parts(special: list[str], size: int = 640) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of BPE over U+2581 with byte fallback, special tokens and bytes first."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*special, *BYTES], show_progress=False, max_token_length=8
    )
    backend.train_from_iterator([word for line in small_corpus() for word in line.split()], trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one away."""
    path = folder / name
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    values |= changes
    values = {key: value for key, value in values.items() if value is not None or key in ("normalizer",)}
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def gpt2(folder: Path) -> None:
    from transformers import GPT2TokenizerFast

    vocab, merges = byte_level_parts(["<|endoftext|>"])
    GPT2TokenizerFast(vocab=vocab, merges=merges).save_pretrained(folder)


def gpt2_pair(folder: Path) -> None:
    """Only vocab.json and merges.txt, as in 2019."""
    vocab, merges = byte_level_parts(["<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    edit(folder, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", model_max_length=1024)


def qwen2_pair(folder: Path) -> None:
    gpt2_pair(folder)
    added = {"content": "<|im_end|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    number = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    tokens = {str(number): {**added, "content": "<|im_start|>"}, str(number + 1): added}
    tokens[str(number + 2)] = {**added, "content": "<tool_call>", "special": False}
    edit(
        folder, "tokenizer_config.json",
        tokenizer_class="Qwen2Tokenizer", added_tokens_decoder=tokens, eos_token="<|im_end|>", chat_template=CHATML,
    )  # fmt: skip


def kogpt2(folder: Path) -> None:
    """SentencePiece-like BPE of the tokenizers library: NFKC and Metaspace, no bytes."""
    from tokenizers import SentencePieceBPETokenizer
    from transformers import PreTrainedTokenizerFast

    backend = SentencePieceBPETokenizer()
    special = ["<s>", "</s>", "<usr>", "<pad>", "<sys>", "<unk>", "<mask>", "<unused0>"]
    backend.train_from_iterator(small_corpus(), vocab_size=420, special_tokens=special, show_progress=False)
    PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer, bos_token="</s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<pad>", mask_token="<mask>",
    ).save_pretrained(folder)  # fmt: skip


def neox(folder: Path) -> None:
    from transformers import GPTNeoXTokenizerFast

    vocab, merges = byte_level_parts(["<|endoftext|>", "<|padding|>"])
    tokenizer = GPTNeoXTokenizerFast(vocab=vocab, merges=merges)
    tokenizer.add_tokens(["  ", "    ", "사용자표"])
    tokenizer.save_pretrained(folder)


def polyglot(folder: Path) -> None:
    """GPT-NeoX's pipeline under the class PreTrainedTokenizerFast, chat tokens that are not special."""
    neox(folder)
    edit(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", chat_template=CHATML)


def llama(folder: Path) -> None:
    """As transformers writes Llama today: Metaspace, "first"."""
    from transformers import LlamaTokenizerFast

    vocab, merges = sentencepiece_parts(["<unk>", "<s>", "</s>"])
    tokenizer = LlamaTokenizerFast(vocab=vocab, merges=merges, add_bos_token=True)
    tokenizer.chat_template = LLAMA2
    tokenizer.save_pretrained(folder)


def llama_legacy(folder: Path) -> None:
    """As Llama 2 was published: Prepend and Replace as normalizer, a begin token in the post-processor."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab, merges = sentencepiece_parts(["<unk>", "<s>", "</s>"])
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=LLAMA2
    ).save_pretrained(folder)


def mistral(folder: Path) -> None:
    """Metaspace "first" without a class of its own, with control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab, merges = sentencepiece_parts(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in names])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=LLAMA2
    ).save_pretrained(folder)


def llama3(folder: Path) -> None:
    """Byte-level BPE behind a Split; only the post-processor says that a text has a begin token."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab, merges = byte_level_parts([])
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    first = backend.token_to_id("<|begin_of_text|>")
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", first)]),
        ]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", chat_template=LLAMA3
    ).save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "add_bos_token" not in config
    ids = [backend.token_to_id("<|end_of_text|>"), backend.token_to_id("<|eot_id|>")]
    edit(folder, "generation_config.json", eos_token_id=ids, temperature=0.6)


def qwen2(folder: Path) -> None:
    from transformers import Qwen2TokenizerFast

    vocab, merges = byte_level_parts([])
    tokenizer = Qwen2TokenizerFast(
        vocab=vocab, merges=merges, extra_special_tokens=["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>"
    )
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)


def gemma(folder: Path) -> None:
    from tokenizers import AddedToken
    from transformers import GemmaTokenizerFast

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    vocab, merges = sentencepiece_parts(names)
    tokenizer = GemmaTokenizerFast(
        vocab=vocab, merges=merges, add_bos_token=True, extra_special_tokens=["<start_of_turn>", "<end_of_turn>"]
    )
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("▁▁", normalized=False)])
    tokenizer.chat_template = GEMMA
    tokenizer.save_pretrained(folder)


def exaone4(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab, merges = byte_level_parts(["[PAD]", "[BOS]", "[EOS]", "[UNK]", " "])
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"]
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    backend.add_tokens([AddedToken("<thought>", normalized=False)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="[BOS]", eos_token="[|endofturn|]", unk_token="[UNK]", pad_token="[PAD]",
        chat_template=EXAONE4,
    ).save_pretrained(folder)  # fmt: skip


def phi3(folder: Path) -> None:
    """A legacy Llama whose end of turn takes the white space behind it."""
    from tokenizers import AddedToken, Tokenizer

    llama_legacy(folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(
        [
            AddedToken("<|im_start|>", normalized=False, lstrip=True),
            AddedToken("<|im_end|>", normalized=False, rstrip=True),
        ]
    )
    backend.save(str(folder / "tokenizer.json"))
    edit(folder, "tokenizer_config.json", added_tokens_decoder=None)
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")


SHAPES: dict[str, Callable[[Path], None]] = {
    "gpt2": gpt2, "gpt2-pair": gpt2_pair, "kogpt2": kogpt2, "gpt-neox": neox, "polyglot-ko": polyglot, "llama": llama,
    "llama-legacy": llama_legacy, "mistral": mistral, "llama3": llama3, "qwen2": qwen2, "qwen2-pair": qwen2_pair,
    "gemma": gemma, "exaone4": exaone4, "phi3": phi3,
}  # fmt: skip
CHATS = ("polyglot-ko", "llama", "llama-legacy", "mistral", "llama3", "qwen2", "qwen2-pair", "gemma", "exaone4", "phi3")
"""Shapes with a chat template."""
