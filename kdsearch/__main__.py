"""`python -m kdsearch`."""

from kdsearch.cli import main

if __name__ == "__main__":
    main()
