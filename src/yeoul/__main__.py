"""`python -m yeoul` is `yeoul`."""

import sys

from yeoul.cli import main

sys.exit(main())
