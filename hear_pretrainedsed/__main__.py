"""`python -m hear_pretrainedsed`: the command, where its script is not on the path."""

from hear_pretrainedsed.cli import main

main()
