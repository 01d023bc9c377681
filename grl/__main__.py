"""`python -m grl` is `grl`."""

import sys

from grl.cli import main

sys.exit(main())
