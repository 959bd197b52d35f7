"""`python -m logitstore` is the `logitstore` command."""

from logitstore.cli.app import main

if __name__ == "__main__":
    main()
