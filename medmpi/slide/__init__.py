"""Whole slides: exact heatmaps, slide stores, restartable jobs, stitching, classification and FROC."""
