"""Training: settings, the loop, evaluation, checkpoints, logs and the report. Start it with ``python -m medmpi.train``.

Nothing is imported here, so that ``--help`` stays immediate.
"""
