"""`mpirun -n N python -m medmpi.prepare INPUT... --out DIR [--flags]`."""

import sys

from medmpi.prepare.main import main

sys.exit(main())
