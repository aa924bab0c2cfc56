"""``python -m medmpi.slide COMMAND``: the same as ``medmpi slide COMMAND``."""

import sys

from medmpi.slide.main import main

sys.exit(main())
