"""``python -m medmpi.doctor``, for launchers: ``srun -n 64 python -m medmpi.doctor``."""

import sys

from medmpi.doctor.main import main

sys.exit(main(sys.argv[1:]))
