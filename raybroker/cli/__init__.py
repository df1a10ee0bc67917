"""The command line: `verbs.py` lists what it can do, the other files do it."""
