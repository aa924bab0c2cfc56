"""Trained models in other programs' formats. Needs the extra ``medmpi[export]``."""
