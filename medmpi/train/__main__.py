"""`mpirun -n N python -m medmpi.train [run.toml] [--flags]`."""

import sys

from medmpi.train.main import main

sys.exit(main())
