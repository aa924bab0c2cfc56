"""The commands of ``medmpi slide``, one module each: ``main(argv) -> exit code``."""
