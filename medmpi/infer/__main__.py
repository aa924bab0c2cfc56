"""`mpirun -n N python -m medmpi.infer RUN INPUT... --out DIR [--flags]`."""

import sys

from medmpi.infer.main import main

sys.exit(main())
