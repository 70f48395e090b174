"""`python -m xent` is the `xent` command."""

from xent.cli import main

if __name__ == "__main__":
    main()
