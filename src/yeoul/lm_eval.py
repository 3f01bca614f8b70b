"""Our models for lm-eval (extra [eval]): `python -m yeoul.lm_eval --model yeoul --model_args path=runs/demo ...`.

All else on that line is lm-eval's own command line, which knows our tasks, too. The class is announced as an entry
point, so that versions of lm-eval that look for those take `lm_eval --model yeoul` as it stands; 0.4.13 does not.
"""

from __future__ import annotations

import sys

from yeoul.errors import UserError
from yeoul.recipes.tasks.harness import YeoulLM, register
from yeoul.recipes.tasks.run import KOREAN

__all__ = ["YeoulLM", "register"]


def main() -> int:
    """lm-eval's command line with our class and our tasks.

    Returns:
        0, or 2 after an error that a user can fix.
    """
    from lm_eval.__main__ import cli_evaluate

    register()
    if not any(word.partition("=")[0] == "--include_path" for word in sys.argv):
        sys.argv += ["--include_path", str(KOREAN)]
    try:
        cli_evaluate()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
