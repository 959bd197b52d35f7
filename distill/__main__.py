"""`python -m distill`, also under torchrun and accelerate launch."""

from distill.cli import main

if __name__ == "__main__":
    main()
