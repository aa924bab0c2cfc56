"""``python -m medmpi.cli``: the same as the ``medmpi`` command."""

import sys

from medmpi.cli import main

sys.exit(main())
