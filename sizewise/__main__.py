"""`python -m sizewise`."""

from sizewise.cli.main import main

main()
