"""Trained models on files, folders and streams of images. Start it with ``python -m medmpi.infer``.

Nothing is imported here, so that ``--help`` stays immediate.
"""
