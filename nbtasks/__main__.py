"""`python -m nbtasks`: the same as the command `nbtasks`."""

import sys

from nbtasks.cli import main

sys.exit(main())
