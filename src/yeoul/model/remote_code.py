"""What a folder of model_type "yeoul" carries so that transformers' `trust_remote_code=True` opens it.

One file that imports and nothing more: the computation stays in the package. Yeoul itself writes the file and never
reads or runs one.
"""

from __future__ import annotations

FILE = "modeling_yeoul.py"
AUTO_MAP = {"AutoConfig": "modeling_yeoul.YeoulConfig", "AutoModelForCausalLM": "modeling_yeoul.YeoulForCausalLM"}
"""The value of `auto_map` in config.json."""

_TEXT = '''"""For trust_remote_code=True in transformers. The model is in the package: pip install 'yeoul[hf]'."""

from yeoul.hf import YeoulConfig, YeoulForCausalLM  # noqa: F401
'''


def remote_code_files() -> dict[str, str]:
    """Names and texts of the files that lie beside config.json; its `auto_map` is `AUTO_MAP`."""
    return {FILE: _TEXT}
