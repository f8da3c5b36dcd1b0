"""`python -m cltools.cli`, as torchrun starts it."""

from cltools.cli import main

if __name__ == "__main__":
    main()
