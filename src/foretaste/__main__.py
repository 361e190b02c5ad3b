"""`python -m foretaste` is the `foretaste` command."""

from foretaste.cli import main

if __name__ == "__main__":
    main()
