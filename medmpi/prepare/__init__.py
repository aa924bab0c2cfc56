"""Preprocessing of image files into pictures or HDF5 shards. Start it with ``python -m medmpi.prepare``.

Nothing is imported here, so that ``--help`` stays immediate.
"""
