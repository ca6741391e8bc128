"""`python -m minigpt_ext.cli ...` is `minigpt ...`, for tools that start Python themselves."""

from . import main

main()
