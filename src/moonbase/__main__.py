"""`python -m moonbase`."""

from moonbase.cli import main

main()
