"""`python -m textautograd`."""

from textautograd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
