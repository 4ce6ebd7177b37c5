"""`python -m lightformers` is the command line."""

from lightformers.cli import main

main()
