"""`python -m grl` runs the command line `grl`."""

import sys

from grl.cli import main

sys.exit(main())
